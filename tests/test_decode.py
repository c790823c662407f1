"""What the numbers of a file mean stands in its header: white is white in any depth, polarity and transparency."""

import io
import struct
import zlib
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


def tiff(
    pixels: bytes,
    bits: int,
    photometric: int = BLACK_IS_ZERO,
    kind: int = UNSIGNED,
    order: str = "<",
    more: dict[int, tuple[int, int]] | None = None,
) -> bytes:
    """A grey TIFF of 2 x 1 pixels by the specification, in either byte order; Pillow writes few of these kinds."""
    tags: dict[int, tuple[int, int]] = {
        256: (4, 2),
        257: (4, 1),
        258: (3, bits),
        259: (3, 1),
        262: (3, photometric),
        273: (4, 0),
        277: (3, 1),
        278: (4, 1),
        279: (4, len(pixels)),
        339: (3, kind),
    } | (more or {})
    start = 8 + 2 + 12 * len(tags) + 4
    tags[273] = (4, start)
    entries = b""
    for tag, (type_, value) in sorted(tags.items()):
        packed = struct.pack(f"{order}Hxx" if type_ == 3 else f"{order}I", value)
        entries += struct.pack(f"{order}HHI", tag, type_, 1) + packed
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HIH", 42, 8, len(tags))
    return head + entries + bytes(4) + pixels


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
@pytest.mark.parametrize(("photometric", "colors"), [(2, 3), (2, 4), (5, 4)], ids=["RGB", "RGBA", "CMYK"])
def test_colours_of_16_bits_that_stand_apart_are_refused_and_not_misread(
    photometric: int, colors: int, order: str
) -> None:
    with pytest.raises(InvalidImage, match="16 bits with each colour apart"):
        Image.from_bytes(tiff(bytes(4 * colors), 16, photometric, order=order, more={277: (3, colors), 284: (3, 2)}))


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
    "a profile of 300 MB": chunk(b"iCCP", b"printer\0\0" + zlib.compress(bytes(300 * 2**20))),
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
    assert row(encoded(red, "GIF", comment=b"a" * 3 * 2**20))[0] == (255, 0, 0)
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
