/* What a step of a model in 8 bits spends its time with on a CPU. `native.py` compiles and calls it.
 *
 * Rows are float32 and contiguous. No row's numbers depend on other rows, on how many there are, or on the number of
 * threads. Products of integers are exact: they are those of torch's kernels.
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
    CHUNK = 96,    /* rows that pass by one block of weights while both stay in the second cache */
    SHIFT = 128,   /* is added to weights: the instruction multiplies unsigned by signed numbers */
};

/* ---- products */

typedef struct {
    int8_t *digits;    /* (2 count, width), zeros behind a row's end */
    float *steps;      /* what a digit of a row is worth */
    int32_t *shifts;   /* what SHIFT adds to a row's products */
    long *targets;     /* the row of the output that a row is added to */
    long count, extra; /* rows, and behind them those that hold outliers */
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

/* As `Int8Linear._in_torch`: a row with values above `share` of its sum becomes two. */
static void quantize(const float *x, const float *balance, long size, float share, float *row, Digits *into, long i) {
    for (long j = 0; j < size; j++) row[j] = x[j] * balance[j];
    float sum, peak = peak_of(row, size, &sum), limit = sum * share;
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

static void multiply_all(const Digits *from, long first, long last, const uint8_t *packed, const float *scales,
                         const float *bias, float *y, long channels) {
    long blocks = (channels + CHANNELS - 1) / CHANNELS, chunks = (last - first + CHUNK - 1) / CHUNK;
#pragma omp for schedule(dynamic) collapse(2)
    for (long block = 0; block < blocks; block++)
        for (long chunk = 0; chunk < chunks; chunk++) {
            long at = block * CHANNELS, from_row = first + chunk * CHUNK;
            long to_row = from_row + CHUNK < last ? from_row + CHUNK : last;
            multiply_block(from, from_row, to_row, packed + at * from->width, scales + at, bias ? bias + at : NULL,
                           channels - at, y + at, channels);
        }
}

/* y (count, channels) = x (count, size) times weights, plus bias if there is one; 0 where memory is short. */
int linear(const float *x, long count, long size, const float *balance, float share, const uint8_t *packed,
           const float *scales, const float *bias, float *y, long channels, int threads) {
    Digits rows = {.count = count, .width = (size + 3) / 4 * 4};
    rows.digits = malloc(2 * count * rows.width);
    rows.steps = malloc(2 * count * sizeof(float));
    rows.shifts = malloc(2 * count * sizeof(int32_t));
    rows.targets = malloc(2 * count * sizeof(long));
    float *scratch = malloc(threads * size * sizeof(float));
    int is_there = rows.digits && rows.steps && rows.shifts && rows.targets && scratch;
    if (is_there) {
#pragma omp parallel num_threads(threads)
        {
            float *row = scratch + omp_get_thread_num() * size;
#pragma omp for
            for (long i = 0; i < count; i++) quantize(x + i * size, balance, size, share, row, &rows, i);
            multiply_all(&rows, 0, count, packed, scales, bias, y, channels);
            if (rows.extra) multiply_all(&rows, count, count + rows.extra, packed, scales, bias, y, channels);
        }
    }
    free(rows.digits), free(rows.steps), free(rows.shifts), free(rows.targets), free(scratch);
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

/* gate = silu(gate) * up */
void gated(float *gate, const float *up, long count, long size, int threads) {
#pragma omp parallel for num_threads(threads) if (count > 1)
    for (long i = 0; i < count; i++)
        for (long j = i * size; j < (i + 1) * size; j++) gate[j] = gate[j] / (1 + exponential(-gate[j])) * up[j];
}

/* hidden = hidden + delta, where there is one, and its RMS norm in `y` */
void add_norm(float *hidden, const float *delta, const float *weight, float epsilon, float *y, long count, long size,
              int threads) {
#pragma omp parallel for num_threads(threads) if (count > 1)
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

/* Rotates queries, `queries` for each head of keys, in place, and writes rotated keys, and values, to `places`. cosine
 * and sine are (count, width). */
void write_rotated(const Pages *pages, long queries, float *query, const float *key, const float *value, const float *cosine,
                   const float *sine, const int64_t *places, long count, int threads) {
    long width = pages->width, heads = pages->heads;
#pragma omp parallel for num_threads(threads) if (count > 1)
    for (long i = 0; i < count; i++) {
        const float *c = cosine + i * width, *s = sine + i * width;
        for (long head = 0; head < heads; head++) {
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
                long at = (kind * pages->tokens + places[i]) * heads + head;
                float peak = peak_of(rows[kind], width, &sum);
                pages->steps[at] = digits_of(rows[kind], width, peak, pages->digits + at * width, &unused);
            }
        }
    }
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

INLINE float dot(const float *x, const int8_t *digits, const long width) {
    long j = 0;
    float sum = 0;
#ifdef __AVX512F__ /* gcc 12 takes four times as long by itself */
    __m512 sums = _mm512_setzero_ps();
    for (; j + 16 <= width; j += 16) {
        __m512i wide = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(digits + j)));
        sums = _mm512_fmadd_ps(_mm512_loadu_ps(x + j), _mm512_cvtepi32_ps(wide), sums);
    }
    sum = _mm512_reduce_add_ps(sums);
#endif
    for (; j < width; j++) sum += x[j] * (float)digits[j];
    return sum;
}

INLINE void add_scaled(float *sum, float factor, const int8_t *digits, const long width) {
#pragma omp simd
    for (long j = 0; j < width; j++) sum[j] += factor * (float)digits[j];
}

/* Heads `first` to `last` of one row over its `count` keys, token by token: heads of a token lie side by side, and
 * memory is slow where it is not read in order. */
INLINE void attend_heads(const Pages *pages, const long width, const long queries, const float *query, const int64_t *table,
                         long count, long first, long last, float *scores, float *y) {
    long heads = pages->heads, page = pages->page_tokens;
    float scale = 1 / sqrtf(width);
    for (long t = 0; t < count; t++) {
        long at = (table[t / page] * page + t % page) * heads;
        for (long head = first; head < last; head++) {
            const int8_t *key = pages->digits + (at + head) * width;
            float step = pages->steps[at + head] * scale;
            for (long n = head * queries; n < (head + 1) * queries; n++)
                scores[(n - first * queries) * count + t] = dot(query + n * width, key, width) * step;
        }
    }
    for (long n = 0; n < (last - first) * queries; n++) softmax(scores + n * count, count);
    memset(y + first * queries * width, 0, (last - first) * queries * width * sizeof(float));
    for (long t = 0; t < count; t++) {
        long at = (pages->tokens + table[t / page] * page + t % page) * heads;
        for (long head = first; head < last; head++) {
            const int8_t *value = pages->digits + (at + head) * width;
            float step = pages->steps[at + head];
            for (long n = head * queries; n < (head + 1) * queries; n++)
                add_scaled(y + n * width, scores[(n - first * queries) * count + t] * step, value, width);
        }
    }
}

/* For each of `count` requests: row `rows[i]` of the rotated queries, `queries` for each head of keys, attends to
 * `keys[i]` keys in the pages from `tables[starts[i]]` on. Returns 0 where memory is short. */
int attend(const Pages *pages, long queries, const float *query, const int64_t *rows, const int64_t *tables,
           const int64_t *starts, const int64_t *keys, long count, float *y, int threads) {
    long size = pages->heads * queries * pages->width, most = 0, groups = (2 * threads + count - 1) / count;
    groups = groups < pages->heads ? groups : pages->heads;
    for (long i = 0; i < count; i++) most = keys[i] > most ? keys[i] : most;
    long each = (pages->heads + groups - 1) / groups * queries * most;
    float *all_scores = malloc(threads * each * sizeof(float));
    if (!all_scores) return 0;
#pragma omp parallel for schedule(dynamic) collapse(2) num_threads(threads)
    for (long i = 0; i < count; i++)
        for (long group = 0; group < groups; group++) {
            long first = pages->heads * group / groups, last = pages->heads * (group + 1) / groups;
            const float *q = query + rows[i] * size;
            float *to = y + rows[i] * size, *scores = all_scores + omp_get_thread_num() * each;
            const int64_t *table = tables + starts[i];
            if (pages->width == 64 && queries == 1)
                attend_heads(pages, 64, 1, q, table, keys[i], first, last, scores, to);
            else if (pages->width == 128 && queries == 1)
                attend_heads(pages, 128, 1, q, table, keys[i], first, last, scores, to);
            else
                attend_heads(pages, pages->width, queries, q, table, keys[i], first, last, scores, to);
        }
    free(all_scores);
    return 1;
}
