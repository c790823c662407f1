/* The operations of a step of a model in 8 bits on a CPU. `native.py` compiles and calls this file.
 *
 * Rows are float32 and contiguous. A row's numbers do not depend on other rows, on how many there are, or on the number
 * of threads. Products of integers are exact, and so the same as those of torch's kernels.
 */
#include <float.h>
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

enum {
    LEVELS = 127,
    CHANNELS = 64, /* output channels of a tile; `native.py` lays weights out in such blocks */
    ROWS = 6,      /* rows of a tile: with 4 registers of 16 channels, 24 of 32 registers are sums */
    KEYS = 16,     /* keys of a head that are attended to at once */
    SECOND_CACHE = 2, /* prefetch into the second-level cache: the first is full */
    CHUNK = 96,    /* rows that are multiplied by a block of weights while both are in the second-level cache */
    JOINED = 3,    /* largest number of layers with the same input */
    SHIFT = 128,   /* added to weights: the instruction multiplies unsigned by signed numbers */
};

/* ---- products */

typedef struct {
    const float *balance; /* by which inputs are multiplied */
    const uint8_t *packed;
    const float *scales, *bias; /* no bias is NULL */
    long inputs, outputs;
    float share; /* outliers are above this share of the sum of a row's absolute values */
} Linear;

typedef struct {
    int8_t *digits;    /* (2 count, width), zeros behind a row's end */
    float *steps;      /* value of one digit, for each row */
    int32_t *shifts;   /* sum that SHIFT adds to a row's products */
    long *targets;     /* row of the output to which a row is added */
    long count, extra; /* number of rows, and of the rows behind them that hold outliers */
    long width;        /* a multiple of 4 */
} Digits;

static float digits_of(const float *row, long size, float peak, int8_t *digits, int32_t *shift) {
    float step = peak / LEVELS < FLT_MIN ? FLT_MIN : peak / LEVELS, inverse = 1 / step;
    int32_t sum = 0;
#pragma omp simd reduction(+ : sum)
    for (long j = 0; j < size; j++) {
        int digit = (int)rintf(row[j] * inverse);
        digits[j] = (int8_t)digit;
        sum += digit;
    }
    *shift = SHIFT * sum;
    return step;
}

static float peak_of(const float *row, long size, float *sum) {
    float peak = 0, total = 0;
#pragma omp simd reduction(max : peak) reduction(+ : total)
    for (long j = 0; j < size; j++) {
        float value = fabsf(row[j]);
        peak = value > peak ? value : peak;
        total += value;
    }
    *sum = total;
    return total == total ? peak : total; /* NaN stays NaN */
}

/* As `_linear_in_torch` in int8.py: a row with outliers becomes two. */
static void quantize(const float *x, const Linear *layer, float *row, Digits *into, long i) {
    long size = layer->inputs;
    for (long j = 0; j < size; j++) row[j] = x[j] * layer->balance[j];
    float sum, peak = peak_of(row, size, &sum), limit = sum * layer->share;
    if (peak > limit) {
        long at;
#pragma omp atomic capture
        at = into->extra++;
        at += into->count;
        int8_t *digits = memset(into->digits + at * into->width, 0, into->width);
        float step = peak / LEVELS, inverse = 1 / step;
        int32_t total = 0;
        for (long j = 0; j < size; j++) {
            int digit = fabsf(row[j]) > limit ? (int)rintf(row[j] * inverse) : 0;
            digits[j] = (int8_t)digit;
            total += digit;
            row[j] -= digit * step;
        }
        into->steps[at] = step, into->shifts[at] = SHIFT * total, into->targets[at] = i;
        peak = peak_of(row, size, &sum);
    }
    int8_t *digits = into->digits + i * into->width;
    memset(digits + size, 0, into->width - size);
    into->steps[i] = digits_of(row, size, peak, digits, into->shifts + i);
    into->targets[i] = i;
}

INLINE void multiply(const int rows, const int8_t *x, long width, const uint8_t *w, int32_t y[ROWS][CHANNELS]) {
#ifdef __AVX512VNNI__
    __m512i sums[ROWS][4];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++) sums[r][c] = _mm512_setzero_si512();
    for (long k = 0; k < width; k += 4, w += 4 * CHANNELS) {
        __m512i weights[4];
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++) weights[c] = _mm512_loadu_si512(w + 64 * c);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            int32_t four;
            memcpy(&four, x + r * width + k, 4);
            __m512i digits = _mm512_set1_epi32(four);
#pragma GCC unroll 4
            for (int c = 0; c < 4; c++) sums[r][c] = _mm512_dpbusd_epi32(sums[r][c], weights[c], digits);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++) _mm512_storeu_si512(y[r] + 16 * c, sums[r][c]);
#else
    memset(y, 0, rows * sizeof *y);
    for (long k = 0; k < width; k += 4, w += 4 * CHANNELS)
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < CHANNELS; c++)
                for (int j = 0; j < 4; j++) y[r][c] += x[r * width + k + j] * w[4 * c + j];
#endif
}

/* Rows `first` to `last` of `from` times one block of weights, added to `y` (rows, channels). */
static void multiply_block(const Digits *from, long first, long last, const uint8_t *w, const float *scales,
                           const float *bias, long left, float *y, long channels) {
    int32_t sums[ROWS][CHANNELS];
    long count = left < CHANNELS ? left : CHANNELS;
    for (long row = first; row < last; row += ROWS) {
        int rows = last - row < ROWS ? (int)(last - row) : ROWS;
        const int8_t *x = from->digits + row * from->width;
        switch (rows) {
        case 1: multiply(1, x, from->width, w, sums); break;
        case 2: multiply(2, x, from->width, w, sums); break;
        case 3: multiply(3, x, from->width, w, sums); break;
        case 4: multiply(4, x, from->width, w, sums); break;
        case 5: multiply(5, x, from->width, w, sums); break;
        default: multiply(6, x, from->width, w, sums);
        }
        for (int r = 0; r < rows; r++) {
            float *target = y + from->targets[row + r] * channels, step = from->steps[row + r];
            int32_t shift = from->shifts[row + r];
            const float *start = row + r >= from->count ? target : bias;
            if (start)
                for (long c = 0; c < count; c++) target[c] = (float)(sums[r][c] - shift) * scales[c] * step + start[c];
            else
                for (long c = 0; c < count; c++) target[c] = (float)(sums[r][c] - shift) * scales[c] * step;
        }
    }
}

static void multiply_all(const Digits *from, long first, long last, const Linear *layer, float *y) {
    long channels = layer->outputs, blocks = (channels + CHANNELS - 1) / CHANNELS;
    long chunks = (last - first + CHUNK - 1) / CHUNK;
#pragma omp for schedule(guided) collapse(2) nowait /* memory is half as fast where threads read every other block */
    for (long block = 0; block < blocks; block++)
        for (long chunk = 0; chunk < chunks; chunk++) {
            long at = block * CHANNELS, from_row = first + chunk * CHUNK;
            long to_row = from_row + CHUNK < last ? from_row + CHUNK : last;
            multiply_block(from, from_row, to_row, layer->packed + at * from->width, layer->scales + at,
                           layer->bias ? layer->bias + at : NULL, channels - at, y + at, channels);
        }
}

typedef struct {
    Digits digits[JOINED];
    float *rows; /* one for each thread */
    long size;
} Workspace;

static void release(Workspace *space) {
    for (int n = 0; n < JOINED; n++) {
        Digits *digits = space->digits + n;
        free(digits->digits), free(digits->steps), free(digits->shifts), free(digits->targets);
    }
    free(space->rows);
}

/* Memory for `layers` layers with at most `size` inputs and `count` rows; returns 0 where memory is short. */
static int reserve(Workspace *space, int layers, long count, long size, int threads) {
    long width = (size + 3) / 4 * 4;
    memset(space, 0, sizeof *space);
    space->rows = malloc(threads * size * sizeof(float)), space->size = size;
    int is_there = space->rows != NULL;
    for (int n = 0; n < layers; n++) {
        Digits *digits = space->digits + n;
        digits->count = count;
        digits->digits = malloc(2 * count * width);
        digits->steps = malloc(2 * count * sizeof(float));
        digits->shifts = malloc(2 * count * sizeof(int32_t));
        digits->targets = malloc(2 * count * sizeof(long));
        is_there = is_there && digits->digits && digits->steps && digits->shifts && digits->targets;
    }
    return is_there;
}

/* For all threads of a team: each y (count, outputs) = x (count, inputs) times a layer's weights, plus its bias. */
static void multiply_joined(const Linear *layers, int joined, const float *x, long count, float *const *y,
                            Workspace *space) {
    Digits *digits = space->digits;
    float *row = space->rows + omp_get_thread_num() * space->size;
    int has_extra = 0;
#pragma omp single
    for (int n = 0; n < joined; n++) digits[n].extra = 0, digits[n].width = (layers[n].inputs + 3) / 4 * 4;
#pragma omp for collapse(2)
    for (int n = 0; n < joined; n++)
        for (long i = 0; i < count; i++) quantize(x + i * layers[n].inputs, layers + n, row, digits + n, i);
    for (int n = 0; n < joined; n++) {
        multiply_all(digits + n, 0, count, layers + n, y[n]);
        has_extra |= digits[n].extra > 0;
    }
#pragma omp barrier
    if (!has_extra) return;
    for (int n = 0; n < joined; n++) multiply_all(digits + n, count, count + digits[n].extra, layers + n, y[n]);
#pragma omp barrier
}

/* y (count, outputs) = x (count, inputs) times weights, plus bias if there is one; returns 0 where memory is short. */
int linear(const Linear *layer, const float *x, long count, float *y, int threads) {
    Workspace space;
    int is_there = reserve(&space, 1, count, layer->inputs, threads);
    if (is_there) {
#pragma omp parallel num_threads(threads)
        multiply_joined(layer, 1, x, count, &y, &space);
    }
    release(&space);
    return is_there;
}

/* ---- between the products */

INLINE float exponential(float x) { /* to 2e-7 of its value; from 2^-126 to 2^126 */
    x *= 1.44269504f;
    x = x < -126 ? -126 : x > 126 ? 126 : x;
    float whole = rintf(x), part = x - whole, power;
    int32_t bits = ((int32_t)whole + 127) << 23;
    memcpy(&power, &bits, 4);
    float sum = 1.5403530e-4f;
    sum = sum * part + 1.3333558e-3f, sum = sum * part + 9.6181291e-3f, sum = sum * part + 5.5504109e-2f;
    sum = sum * part + 2.4022651e-1f, sum = sum * part + 6.9314718e-1f;
    return (sum * part + 1) * power;
}

static void gate_rows(float *gate, const float *up, long count, long size) {
#pragma omp for
    for (long i = 0; i < count; i++)
        for (long j = i * size; j < (i + 1) * size; j++) gate[j] = gate[j] / (1 + exponential(-gate[j])) * up[j];
}

/* gate = silu(gate) * up */
void gated(float *gate, const float *up, long count, long size, int threads) {
#pragma omp parallel num_threads(threads) if (count > 1)
    gate_rows(gate, up, count, size);
}

static void norm_rows(float *hidden, const float *delta, const float *weight, float epsilon, float *y, long count,
                      long size) {
#pragma omp for
    for (long i = 0; i < count; i++) {
        float *row = hidden + i * size, squares = 0;
        if (delta)
            for (long j = 0; j < size; j++) row[j] += delta[i * size + j];
#pragma omp simd reduction(+ : squares)
        for (long j = 0; j < size; j++) squares += row[j] * row[j];
        float factor = 1 / sqrtf(squares / size + epsilon);
        for (long j = 0; j < size; j++) y[i * size + j] = weight[j] * (row[j] * factor);
    }
}

/* hidden = hidden + delta, where there is one, and its RMS norm in `y` */
void add_norm(float *hidden, const float *delta, const float *weight, float epsilon, float *y, long count, long size,
              int threads) {
#pragma omp parallel num_threads(threads) if (count > 1)
    norm_rows(hidden, delta, weight, epsilon, y, count, size);
}

/* ---- attention over pages of 8-bit keys and values */

typedef struct {
    int8_t *digits; /* (2, tokens, heads, width) */
    float *steps;   /* (2, tokens, heads) */
    long tokens, heads, width, page_tokens;
} Pages;

INLINE void rotate(const float *x, const float *cosine, const float *sine, long half, float *y) {
    for (long j = 0; j < half; j++) {
        float one = x[j], other = x[half + j];
        y[j] = one * cosine[j] - other * sine[j];
        y[half + j] = other * cosine[half + j] + one * sine[half + j];
    }
}

typedef struct {
    const float *cosine, *sine; /* (rows, width) */
    const int64_t *places;      /* in the pages */
} Positions;

static void rotate_rows(const Pages *pages, long queries, float *query, const float *key, const float *value,
                        const Positions *at_rows, long count) {
    long width = pages->width, heads = pages->heads;
#pragma omp for collapse(2)
    for (long i = 0; i < count; i++)
        for (long head = 0; head < heads; head++) {
            const float *c = at_rows->cosine + i * width, *s = at_rows->sine + i * width;
            float rotated[width], sum;
            int32_t unused;
            for (long n = 0; n < queries; n++) {
                float *mine = query + ((i * heads + head) * queries + n) * width;
                rotate(mine, c, s, width / 2, rotated);
                memcpy(mine, rotated, width * sizeof(float));
            }
            rotate(key + (i * heads + head) * width, c, s, width / 2, rotated);
            const float *rows[] = {rotated, value + (i * heads + head) * width};
            for (int kind = 0; kind < 2; kind++) {
                long at = (kind * pages->tokens + at_rows->places[i]) * heads + head;
                float peak = peak_of(rows[kind], width, &sum);
                pages->steps[at] = digits_of(rows[kind], width, peak, pages->digits + at * width, &unused);
            }
        }
}

/* Rotates queries, `queries` for each head of keys, in place, and writes rotated keys, and values, to their places. */
void write_rotated(const Pages *pages, long queries, float *query, const float *key, const float *value,
                   const Positions *at_rows, long count, int threads) {
#pragma omp parallel num_threads(threads) if (count > 1)
    rotate_rows(pages, queries, query, key, value, at_rows, count);
}

INLINE void softmax(float *scores, long count) {
    float peak = -FLT_MAX, sum = 0;
#pragma omp simd reduction(max : peak)
    for (long t = 0; t < count; t++) peak = scores[t] > peak ? scores[t] : peak;
#pragma omp simd reduction(+ : sum)
    for (long t = 0; t < count; t++) {
        scores[t] = exponential(scores[t] - peak);
        sum += scores[t];
    }
    for (long t = 0; t < count; t++) scores[t] /= sum;
}

/* Places of KEYS keys from `first` on, as rows of all heads; places behind the last key repeat the first one. */
static void find(const Pages *pages, const int64_t *table, long first, long count, long *places) {
    for (int k = 0; k < KEYS; k++) {
        long t = first + k < count ? first + k : first;
        places[k] = (table[t / pages->page_tokens] * pages->page_tokens + t % pages->page_tokens) * pages->heads;
    }
}

#ifdef __AVX512F__ /* without intrinsics, gcc 12's code takes four times as long */
INLINE __m512 wide(const int8_t *digits) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)digits)));
}

/* The sum of each of 16 registers. */
INLINE __m512 sums_of(const __m512 *x) {
    __m512 pairs[8], fours[4], halves[2];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        pairs[i] = _mm512_add_ps(_mm512_unpacklo_ps(x[2 * i], x[2 * i + 1]),
                                 _mm512_unpackhi_ps(x[2 * i], x[2 * i + 1]));
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m512d one = _mm512_castps_pd(pairs[2 * i]), other = _mm512_castps_pd(pairs[2 * i + 1]);
        __m512d low = _mm512_unpacklo_pd(one, other), high = _mm512_unpackhi_pd(one, other);
        fours[i] = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
    }
    for (int i = 0; i < 2; i++)
        halves[i] = _mm512_add_ps(_mm512_shuffle_f32x4(fours[2 * i], fours[2 * i + 1], 0x88),
                                  _mm512_shuffle_f32x4(fours[2 * i], fours[2 * i + 1], 0xdd));
    return _mm512_add_ps(_mm512_shuffle_f32x4(halves[0], halves[1], 0x88),
                         _mm512_shuffle_f32x4(halves[0], halves[1], 0xdd));
}
#endif

/* Products of x (width) with a head of KEYS keys; `places` is from the head's first number on. */
INLINE void dots(const float *x, const int8_t *digits, const long *places, const long width, float *y) {
    long j = 0;
    memset(y, 0, KEYS * sizeof *y);
#ifdef __AVX512F__
    __m512 sums[KEYS];
#pragma GCC unroll 16
    for (int k = 0; k < KEYS; k++) sums[k] = _mm512_setzero_ps();
    for (; j + 16 <= width; j += 16) {
        __m512 some = _mm512_loadu_ps(x + j);
#pragma GCC unroll 16
        for (int k = 0; k < KEYS; k++) sums[k] = _mm512_fmadd_ps(some, wide(digits + places[k] * width + j), sums[k]);
    }
    _mm512_storeu_ps(y, sums_of(sums));
#endif
    for (int k = 0; k < KEYS; k++)
        for (long i = j; i < width; i++) y[k] += x[i] * (float)digits[places[k] * width + i];
}

/* Adds a head of KEYS values, each times its factor, to y (width). */
INLINE void add_scaled(float *y, const float *factors, const int8_t *digits, const long *places, const long width) {
    long j = 0;
#ifdef __AVX512F__
    for (; j + 16 <= width; j += 16) {
        __m512 sum = _mm512_loadu_ps(y + j);
#pragma GCC unroll 16
        for (int k = 0; k < KEYS; k++)
            sum = _mm512_fmadd_ps(_mm512_set1_ps(factors[k]), wide(digits + places[k] * width + j), sum);
        _mm512_storeu_ps(y + j, sum);
    }
#endif
    for (; j < width; j++)
        for (int k = 0; k < KEYS; k++) y[j] += factors[k] * (float)digits[places[k] * width + j];
}

/* Heads `first` to `last` of one row over its `count` keys, KEYS at a time. The heads of a token are adjacent; the next
 * keys are prefetched, since pages are not in order. */
INLINE void attend_heads(const Pages *pages, const long width, const long queries, const float *query,
                         const int64_t *table, long count, long first, long last, float *scores, float *y) {
    float scale = 1 / sqrtf(width), some[KEYS];
    long places[KEYS], next[KEYS];
    for (int kind = 0; kind < 2; kind++) {
        const int8_t *digits = pages->digits + kind * pages->tokens * pages->heads * width;
        const float *steps = pages->steps + kind * pages->tokens * pages->heads;
        if (kind)
            for (long n = 0; n < (last - first) * queries; n++) softmax(scores + n * count, count);
        find(pages, table, 0, count, next);
        for (long t = 0; t < count; t += KEYS) {
            memcpy(places, next, sizeof next);
            int found = t + KEYS < count ? KEYS : (int)(count - t);
            if (t + KEYS < count) find(pages, table, t + KEYS, count, next);
            for (long head = first; head < last; head++) {
                long mine[KEYS];
                for (int k = 0; k < KEYS; k++) {
                    mine[k] = places[k] + head;
                    const int8_t *later = digits + (next[k] + head) * width;
                    for (long j = 0; j < width; j += 64) __builtin_prefetch(later + j, 0, SECOND_CACHE);
                }
                for (long n = head * queries; n < (head + 1) * queries; n++) {
                    float *score = scores + (n - first * queries) * count + t;
                    if (kind) {
                        for (int k = 0; k < KEYS; k++) some[k] = k < found ? score[k] * steps[mine[k]] : 0;
                        add_scaled(y + n * width, some, digits, mine, width);
                    } else {
                        dots(query + n * width, digits, mine, width, some);
                        for (int k = 0; k < found; k++) score[k] = some[k] * (steps[mine[k]] * scale);
                    }
                }
            }
        }
    }
}

typedef struct {
    const int64_t *rows, *tables, *starts, *keys; /* `rows[i]` sees `keys[i]` keys, from page `tables[starts[i]]` on */
    long count;
} Requests;

/* The number of groups of heads, enough for a single request to have work for all threads. */
static long groups_of(const Requests *requests, const Pages *pages, int threads) {
    long groups = (2 * threads + requests->count - 1) / requests->count;
    return groups < pages->heads ? groups : pages->heads;
}

/* Memory for one thread's scores. */
static long scores_of(const Requests *requests, const Pages *pages, long queries, long groups) {
    long most = 0;
    for (long i = 0; i < requests->count; i++) most = requests->keys[i] > most ? requests->keys[i] : most;
    return (pages->heads + groups - 1) / groups * queries * most;
}

static void attend_rows(const Requests *requests, const Pages *pages, long queries, const float *query, float *scores,
                        long groups, float *y) {
    long size = pages->heads * queries * pages->width;
#pragma omp for schedule(dynamic) collapse(2)
    for (long i = 0; i < requests->count; i++)
        for (long group = 0; group < groups; group++) {
            long first = pages->heads * group / groups, last = pages->heads * (group + 1) / groups;
            const float *q = query + requests->rows[i] * size;
            float *to = y + requests->rows[i] * size;
            const int64_t *table = requests->tables + requests->starts[i];
            memset(to + first * queries * pages->width, 0, (last - first) * queries * pages->width * sizeof(float));
            if (pages->width == 64 && queries == 1)
                attend_heads(pages, 64, 1, q, table, requests->keys[i], first, last, scores, to);
            else if (pages->width == 128 && queries == 1)
                attend_heads(pages, 128, 1, q, table, requests->keys[i], first, last, scores, to);
            else
                attend_heads(pages, pages->width, queries, q, table, requests->keys[i], first, last, scores, to);
        }
}

/* Attention of each request's row of rotated queries, `queries` for each head of keys; 0 where memory is short. */
int attend(const Pages *pages, long queries, const float *query, const Requests *requests, float *y, int threads) {
    long groups = groups_of(requests, pages, threads), each = scores_of(requests, pages, queries, groups);
    float *scores = malloc(threads * each * sizeof(float));
    if (!scores) return 0;
#pragma omp parallel num_threads(threads)
    attend_rows(requests, pages, queries, query, scores + omp_get_thread_num() * each, groups, y);
    free(scores);
    return 1;
}

/* ---- all layers at once */

typedef struct {
    Linear query_key_value[3], output, gate_and_up[2], down;
    const float *norms[2];
    float epsilon;
} Layer;

/* One row of each request through all layers: in the end `delta` is the output of the last MLP, to be added to `hidden`
 * (count, size). It calls the functions above in one parallel region: entering a region for each of them would take as
 * long as the products of a single row. Returns 0 where memory is short. */
int decode(const Layer *layers, long number, const Pages *pages, float *hidden, float *delta, const Positions *at_rows,
           const Requests *requests, int threads) {
    long count = requests->count, size = layers->output.outputs, wide = layers->down.inputs;
    long heads_size = layers->output.inputs, keys_size = layers->query_key_value[1].outputs;
    long queries = heads_size / keys_size, groups = groups_of(requests, pages, threads);
    long each = scores_of(requests, pages, queries, groups), row = size + 2 * heads_size + 2 * keys_size + 2 * wide;
    float *memory = malloc((count * row + threads * each) * sizeof(float));
    float *x = memory, *query = x + count * size, *attended = query + count * heads_size;
    float *key = attended + count * heads_size, *value = key + count * keys_size;
    float *gate = value + count * keys_size, *up = gate + count * wide, *all_scores = up + count * wide;
    Workspace space;
    int is_there = reserve(&space, JOINED, count, row, threads) && memory;
    if (is_there) {
#pragma omp parallel num_threads(threads)
        for (long n = 0; n < number; n++) {
            const Layer *layer = layers + n;
            float *scores = all_scores + omp_get_thread_num() * each;
            norm_rows(hidden, n ? delta : NULL, layer->norms[0], layer->epsilon, x, count, size);
            multiply_joined(layer->query_key_value, 3, x, count, (float *[]){query, key, value}, &space);
            rotate_rows(pages + n, queries, query, key, value, at_rows, count);
            attend_rows(requests, pages + n, queries, query, scores, groups, attended);
            multiply_joined(&layer->output, 1, attended, count, &delta, &space);
            norm_rows(hidden, delta, layer->norms[1], layer->epsilon, x, count, size);
            multiply_joined(layer->gate_and_up, 2, x, count, (float *[]){gate, up}, &space);
            gate_rows(gate, up, count, wide);
            multiply_joined(&layer->down, 1, gate, count, &delta, &space);
        }
    }
    release(&space), free(memory);
    return is_there;
}
