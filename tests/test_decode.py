"""What the numbers of a file mean stands in its header: white is white in any depth, polarity and transparency."""

import io
import itertools
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
import pytest
from pictures import encoded
from test_images import png_file, row, words

from llava_demo.errors import InvalidImage
from llava_demo.images import Image

BLACK, GREY, WHITE = (0, 0, 0), (128, 128, 128), (255, 255, 255)
UNSIGNED, SIGNED, FLOAT = 1, 2, 3
BLACK_IS_ZERO, WHITE_IS_ZERO = 1, 0


MOST_255 = {341: (11, struct.unpack("<I", struct.pack("<f", 255))[0])}  # the float that is white


def tiff_file(tags: dict[int, tuple[int, Sequence[int]]], strips: Sequence[bytes], order: str = "<") -> bytes:
    """A TIFF by the specification, in either byte order; Pillow writes few kinds. `tags` have a type and values."""
    tags = tags | {273: (4, [0] * len(strips)), 279: (4, list(map(len, strips)))}

    def values(tag: int) -> bytes:
        letter = "H" if tags[tag][0] == 3 else "I"
        return struct.pack(f"{order}{len(tags[tag][1])}{letter}", *tags[tag][1])

    place = 8 + 2 + 12 * len(tags) + 4
    pixels = place + sum(len(values(tag)) for tag in tags if len(values(tag)) > 4)
    tags[273] = (4, [pixels + sum(map(len, strips[:index])) for index in range(len(strips))])
    entries = more = b""
    for tag, (type_, given) in sorted(tags.items()):
        value = values(tag)
        if len(value) > 4:
            value, more = struct.pack(f"{order}I", place + len(more)), more + value
        entries += struct.pack(f"{order}HHI", tag, type_, len(given)) + value.ljust(4, b"\0")
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HIH", 42, 8, len(tags))
    return head + entries + bytes(4) + more + b"".join(strips)


def tiff(
    pixels: bytes,
    bits: int,
    photometric: int = BLACK_IS_ZERO,
    kind: int = UNSIGNED,
    order: str = "<",
    more: dict[int, tuple[int, int]] | None = None,
) -> bytes:
    """A grey one of 2 x 1 pixels."""
    shorts = {258: bits, 259: 1, 262: photometric, 277: 1, 278: 1, 339: kind}
    tags = {256: (4, 2), 257: (4, 1)} | {tag: (3, value) for tag, value in shorts.items()} | (more or {})
    return tiff_file({tag: (type_, [value]) for tag, (type_, value) in tags.items()}, [pixels], order)


def packed(bits: int, *values: int) -> bytes:
    """Numbers of so many bits, most significant bit first."""
    text = "".join(f"{value:0{bits}b}" for value in values)
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big")


GREYS: dict[str, bytes] = {
    **{f"{bits} bits": tiff(packed(bits, 0, 2**bits - 1), bits) for bits in (1, 2, 4, 8, 12)},
    **{f"{bits} bits, big endian": tiff(packed(bits, 0, 2**bits - 1), bits, order=">") for bits in (8, 12)},
    **{
        f"{bits} bits{', ' * (order == '>')}{'big endian' * (order == '>')}": tiff(
            struct.pack(f"{order}2{letter}", 0, 2**bits - 1), bits, order=order
        )
        for bits, letter in ((16, "H"), (32, "I"))
        for order in "<>"
    },
    **{
        f"signed {bits} bits {order}": tiff(
            struct.pack(f"{order}2{letter}", 0, 2 ** (bits - 1) - 1), bits, kind=SIGNED, order=order
        )
        for bits, letter in ((8, "b"), (16, "h"), (32, "i"))
        for order in "<>"
    },
    **{
        f"float of {bits} bits {order}": tiff(struct.pack(f"{order}2{letter}", 0, 1), bits, kind=FLOAT, order=order)
        for bits, letter in ((32, "f"), (64, "d"))
        for order in "<>"
    },
    "float with its most in the header": tiff(struct.pack("<2f", 0, 255), 32, kind=FLOAT, more=MOST_255),
    "PNG of 16 bits": png_file(2, 1, 16, 0, b"\0" + words(0, 0xFFFF)),
    "PNG of 2 bits": png_file(2, 1, 2, 0, b"\0" + packed(2, 0, 3)),
}
NEGATIVES: dict[str, bytes] = {
    **{f"{bits} bits": tiff(packed(bits, 2**bits - 1, 0), bits, WHITE_IS_ZERO) for bits in (1, 2, 4, 8, 12)},
    "16 bits": tiff(struct.pack("<2H", 0xFFFF, 0), 16, WHITE_IS_ZERO),
    "16 bits, big endian": tiff(struct.pack(">2H", 0xFFFF, 0), 16, WHITE_IS_ZERO, order=">"),
    "32 bits": tiff(struct.pack("<2I", 2**32 - 1, 0), 32, WHITE_IS_ZERO),
    "float": tiff(struct.pack("<2f", 1, 0), 32, WHITE_IS_ZERO, FLOAT),
}


@pytest.mark.parametrize("name", GREYS)
def test_black_is_black_and_white_is_white_in_every_depth(name: str) -> None:
    assert row(GREYS[name]) == [BLACK, WHITE]


@pytest.mark.parametrize("name", NEGATIVES)
def test_where_white_is_zero_the_picture_is_no_negative(name: str) -> None:
    assert row(NEGATIVES[name]) == [BLACK, WHITE]


@pytest.mark.parametrize(
    ("bits", "values"),
    [(12, packed(12, 2048, 2048)), (16, struct.pack("<2H", 0x8080, 0x8080)), (32, struct.pack("<2I", 2**31, 2**31))],
)
def test_what_lies_between_keeps_its_brightness(bits: int, values: bytes) -> None:
    assert row(tiff(values, bits)) == [GREY, GREY]


def test_grey_of_16_bits_in_numbers_of_32_keeps_its_brightness() -> None:
    """As Pillow writes its mode I."""
    assert row(encoded(PIL.Image.new("I", (2, 1), 0x8080), "TIFF")) == [GREY, GREY]


@pytest.mark.parametrize("values", [(0.0, 255.0), (-1.0, 1.0), (0.0, float("inf"))])
def test_floats_beyond_0_to_1_have_no_agreed_white_and_are_refused(values: tuple[float, float]) -> None:
    with pytest.raises(InvalidImage, match="beyond 0 to 1 has no agreed white"):
        row(tiff(struct.pack("<2f", *values), 32, kind=FLOAT))


@pytest.mark.parametrize("bits", [6, 24, 64])
def test_a_depth_that_no_decoder_reads_is_refused_with_the_reason(bits: int) -> None:
    with pytest.raises(InvalidImage, match="a TIFF that is damaged, or of a rare kind"):
        row(tiff(bytes(2 * bits // 8 + 1), bits))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(
    ("photometric", "red", "white", "more"),
    [(2, "100", "111", {}), (2, "1001", "0000", {338: (3, [2])}), (5, "0110", "0000", {})],
    ids=["RGB", "RGBA", "CMYK"],
)
def test_colours_that_stand_apart_are_read(
    photometric: int, red: str, white: str, more: dict[int, tuple[int, list[int]]], bits: int, order: str
) -> None:
    most, letter = 2**bits - 1, {8: "B", 16: "H"}[bits]
    strips = [struct.pack(f"{order}2{letter}", int(a) * most, int(b) * most) for a, b in zip(red, white, strict=True)]
    shorts = {259: 1, 262: photometric, 277: len(red), 278: 1, 284: 2}
    tags = {256: (4, [2]), 257: (4, [1]), 258: (3, [bits] * len(red))} | {tag: (3, [n]) for tag, n in shorts.items()}
    assert row(tiff_file({**tags, **more}, strips, order)) == [(255, 0, 0), WHITE]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("photometric", [0, 1])
def test_grey_of_16_bits_with_transparency_is_read(photometric: int, is_packed: bool, order: str) -> None:
    greys = [grey if photometric else 0xFFFF - grey for grey in (0, 0x8000, 0xFFFF, 0)]
    data = struct.pack(f"{order}8H", *itertools.chain(*zip(greys, (0xFFFF, 0xFFFF, 0xFFFF, 0), strict=True)))
    shorts = {259: 8 if is_packed else 1, 262: photometric, 277: 2, 278: 1, 338: 2}
    tags = {256: (4, [4]), 257: (4, [1]), 258: (3, [16, 16])} | {tag: (3, [value]) for tag, value in shorts.items()}
    seen = row(tiff_file(tags, [zlib.compress(data) if is_packed else data], order))
    assert (seen[0], *seen[2:]) == (BLACK, WHITE, WHITE)
    assert 127 <= seen[1][0] <= 128


def test_grey_and_transparency_that_stand_apart_in_16_bits_are_no_noise() -> None:
    strips = [struct.pack("<2H", 0, 0xFFFF), struct.pack("<2H", 0xFFFF, 0xFFFF)]
    shorts = {259: 1, 262: 1, 277: 2, 278: 1, 284: 2, 338: 2}
    tags = {256: (4, [2]), 257: (4, [1]), 258: (3, [16, 16])} | {tag: (3, [value]) for tag, value in shorts.items()}
    with pytest.raises(InvalidImage):
        row(tiff_file(tags, strips, "<"))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"exif": True}, {"restart_marker_rows": 1}], ids=str)
@pytest.mark.parametrize("missing", [1, 2])
def test_a_jpeg_whose_end_alone_is_missing_is_seen_as_in_a_browser(options: dict[str, Any], missing: int) -> None:
    data = noisy_jpeg(options)
    assert Image.from_bytes(data[:-missing]).pixels == Image.from_bytes(data).pixels


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"exif": True}, {"restart_marker_rows": 1}], ids=str)
@pytest.mark.parametrize("missing", [40, 0.1, 0.4, 0.7])
def test_a_jpeg_that_lacks_pixels_is_refused_with_the_reason(options: dict[str, Any], missing: float) -> None:
    data = noisy_jpeg(options)
    with pytest.raises(InvalidImage, match="cut off: some of its pixels are missing"):
        assert Image.from_bytes(data[: -int(missing if missing >= 1 else missing * len(data))]).pixels


def noisy_jpeg(options: dict[str, Any]) -> bytes:
    exif = PIL.Image.Exif()
    exif[0x010E] = "\xff\xd9 a thumbnail ends here"
    options = options | ({"exif": exif.tobytes()} if "exif" in options else {})
    return encoded(PIL.Image.effect_noise((200, 160), 90), "JPEG", **options)


@pytest.mark.parametrize(("across", "down"), [(1, 1), (2, 1), (2, 2), (4, 2)])
def test_brightness_and_colour_that_are_not_compressed_are_read(across: int, down: int) -> None:
    """YCbCr: each block of `across` x `down` pixels has its brightnesses, then one colour."""
    blocks = -(-5 // across) * -(-3 // down)
    pixels = (bytes([76]) * across * down + bytes([85, 255])) * blocks
    shorts = {259: 1, 262: 6, 277: 3, 278: 3}
    tags = {256: (4, [5]), 257: (4, [3]), 258: (3, [8] * 3)} | {tag: (3, [value]) for tag, value in shorts.items()}
    picture = Image.from_bytes(tiff_file(tags | {530: (3, [across, down])}, [pixels])).pixels
    assert (picture.size, picture.getcolors()) == ((5, 3), [(15, (254, 0, 0))])


def test_a_jpeg_of_12_bits_is_refused_with_the_reason() -> None:
    data = bytearray(encoded(PIL.Image.new("L", (8, 8)), "JPEG"))
    data[data.index(b"\xff\xc0") + 4] = 12
    with pytest.raises(InvalidImage, match="a JPEG that is damaged, or of a rare kind"):
        Image.from_bytes(bytes(data))


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_the_see_through_grey_of_a_png_is_found_in_every_depth(depth: int) -> None:
    """The first pixel has the key's grey, the second is black. Pillow 12 looks for the key of 2 and 4 bits in vain."""
    key = max(2**depth // 2, 1)
    data = png_file(2, 1, depth, 0, b"\0" + packed(depth, key, 0), words(key))
    assert row(data) == [WHITE, BLACK]


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_a_grey_that_only_looks_like_the_key_stays(depth: int) -> None:
    key = 2**depth - 1
    assert row(png_file(2, 1, depth, 0, b"\0" + packed(depth, 0, key), words(0))) == [WHITE, WHITE]
    assert row(png_file(2, 1, depth, 0, b"\0" + packed(depth, 0, key), words(key))) == [BLACK, WHITE]


@pytest.mark.parametrize("key", [(0x1234, 0x1234, 0x1234), (0, 0, 200)])
def test_the_see_through_colour_of_16_bits_is_compared_whole(key: tuple[int, int, int]) -> None:
    others = [(key[0] + 1, *key[1:]), (*key[:2], key[2] + 1), (*key[:2], key[2] + 256)]
    pixels = [key, *others]
    found = row(
        png_file(len(pixels), 1, 16, 2, b"\0" + words(*(value for pixel in pixels for value in pixel)), words(*key))
    )
    assert found == [WHITE, *(tuple(value >> 8 for value in other) for other in others)]


def bmp_of_32_bits(*pixels: tuple[int, int, int, int]) -> bytes:
    """Blue, green, red and alpha, with a header that says so (BITMAPV4HEADER)."""
    body = bytes(value for pixel in pixels for value in pixel)
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    info = struct.pack("<IiiHHIIiiII", 108, len(pixels), 1, 1, 32, 3, len(body), 0, 0, 0, 0) + masks + bytes(52)
    start = 14 + len(info)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + info + body


def test_a_bmp_whose_alpha_nobody_wrote_is_opaque() -> None:
    assert row(bmp_of_32_bits((0, 0, 255, 0), (255, 0, 0, 0))) == [(255, 0, 0), (0, 0, 255)]
    assert row(bmp_of_32_bits((0, 0, 255, 255), (255, 0, 0, 0))) == [(255, 0, 0), WHITE]


@pytest.mark.parametrize(("bits", "pixels"), [(8, [0, 1]), (4, [0x01]), (1, [0b01000000])])
def test_a_bmp_of_two_colours_has_pixels_as_wide_as_its_header_says(bits: int, pixels: list[int]) -> None:
    body = bytes(pixels).ljust(4, b"\0")
    info = struct.pack("<IiiHHIIiiII", 40, 2, 1, 1, bits, 0, len(body), 0, 0, 2, 0) + b"\0\0\0\0\xff\xff\xff\0"
    start = 14 + len(info)
    assert row(b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + info + body) == [BLACK, WHITE]


@pytest.mark.parametrize("most", [255, 65_535])
def test_a_colour_map_of_8_bits_is_as_bright_as_one_of_16(most: int) -> None:
    shorts = {258: 8, 259: 1, 262: 3, 277: 1, 278: 1}
    tags: dict[int, tuple[int, Sequence[int]]] = {tag: (3, [value]) for tag, value in shorts.items()}
    tags |= {256: (4, [2]), 257: (4, [1]), 320: (3, [0, most, *[0] * 254] * 3)}
    assert row(tiff_file(tags, [bytes([0, 1])])) == [BLACK, WHITE]


def test_a_png_without_its_palette_is_refused_and_costs_no_process() -> None:
    with pytest.raises(InvalidImage, match="damaged or cut off"):
        Image.from_bytes(png_file(2, 1, 8, 3, bytes(3))).pixels  # noqa: B018, a look at its pixels decodes it


def test_large_numbers_are_read_in_little_memory_and_right() -> None:
    values = np.linspace(0, 65_535, 1500 * 700).reshape(700, 1500).astype(np.uint16)
    pixels = np.asarray(Image.from_bytes(encoded(PIL.Image.fromarray(values), "TIFF")).pixels)
    expected = (values / 257 + 0.5).astype(np.uint8)
    assert (pixels == expected[..., None]).all()


# --- what holds no pixels does not cost the picture


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_with(*chunks: bytes, is_before: bool = True) -> bytes:
    file = encoded(PIL.Image.new("RGB", (2, 1), "red"), "PNG")
    place = 33 if is_before else file.index(b"IEND") - 4
    return file[:place] + b"".join(chunks) + file[place:]


LONG = bytes(3 * 2**20)
METADATA = {
    "a compressed text of 3 MB": chunk(b"zTXt", b"workflow\0\0" + zlib.compress(LONG)),
    "an international text of 3 MB": chunk(b"iTXt", b"prompt\0\1\0\0\0" + zlib.compress(LONG)),
    "a plain text of 3 MB": chunk(b"tEXt", b"parameters\0" + LONG.replace(b"\0", b"a")),
    "70 texts of 1 MB": chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**20))) * 70,
    "a profile of 3 MB": chunk(b"iCCP", b"printer\0\0" + zlib.compress(LONG)),
    "a profile of 300 MB": chunk(b"iCCP", b"printer\0\0" + zlib.compress(bytes(300 * 2**20), 1)),
    "a text of an unknown compression": chunk(b"zTXt", b"a\0\7abc"),
    "a damaged text": chunk(b"tEXt", b"a\0b")[:-4] + b"oops",
    "an animation without frames": chunk(b"acTL", b"\0"),
    "too short a resolution": chunk(b"pHYs", b"\0"),
}


@pytest.mark.parametrize("is_before", [True, False], ids=["before the pixels", "behind them"])
@pytest.mark.parametrize("name", METADATA)
def test_what_holds_no_pixels_does_not_cost_a_png(name: str, is_before: bool) -> None:
    assert row(png_with(METADATA[name], is_before=is_before)) == [(255, 0, 0)] * 2


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "TIFF", "AVIF"])
def test_a_large_profile_and_large_metadata_do_not_cost_a_picture(format: str) -> None:
    options: dict[str, Any] = {"icc_profile": LONG}
    if format in ("WEBP", "AVIF"):
        options["xmp"] = LONG
    red = row(encoded(PIL.Image.new("RGB", (16, 16), "red"), format, **options))[0]
    assert red[0] > 240
    assert max(red[1:]) < 16


def test_a_comment_of_megabytes_does_not_cost_a_gif_or_a_jpeg() -> None:
    red = PIL.Image.new("RGB", (16, 16), "red")
    assert row(encoded(red, "GIF", comment=b"a" * 15 * 2**20))[0] == (255, 0, 0)
    clear = PIL.Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    assert row(encoded(clear, "GIF", comment=b"a" * 15 * 2**20))[0] == (255, 255, 255)
    jpeg = encoded(red, "JPEG")
    comments = (b"\xff\xfe\xff\xff" + bytes(65_533)) * 60
    assert row(jpeg[:2] + comments + jpeg[2:])[0][0] > 240


def test_a_png_with_large_metadata_is_turned_as_its_exif_says() -> None:
    file = io.BytesIO()
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.new("RGB", (4, 2)).save(file, "PNG", exif=exif)
    data = file.getvalue()
    assert Image.from_bytes(data[:33] + METADATA["a compressed text of 3 MB"] + data[33:]).pixels.size == (2, 4)
