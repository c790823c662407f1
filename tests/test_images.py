"""Pictures as people send them: every format, every odd kind of pixel, and what must be refused before it costs."""

import base64
import io
import random
import struct
import zlib
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest
from pictures import encoded, png

from llava_demo.errors import ImageTooLarge, InvalidImage
from llava_demo.images import MIME_TYPES, Image, ImageLimits

RED, BLUE, WHITE = (200, 30, 30), (30, 30, 200), (255, 255, 255)

# The red and blue picture of `red_and_blue`, written by libheif; pi-heif can read HEIC only.
HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAXxtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJpbG9jAAAA"
    "AERAAAEAAQAAAAABoAABAAAAAAAAADUAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA/GlwcnAAAADc"
    "aXBjbwAAAHVodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQApQgEBA3AAAAMAkAAAAwAA"
    "AwAeoCCBBZbqrprm4CGgwIAAAAyAAAADAIRiAAEABkQBwXPBiQAAABNjb2xybmNseAABAA0ABoAAAAAUaXNwZQAAAAAAAABAAAAAQAAAAChjbGFw"
    "AAAAIAAAAAEAAAAQAAAAAf///+AAAAAC////0AAAAAIAAAAQcGl4aQAAAAADCAgIAAAAGGlwbWEAAAAAAAAAAQABBYECAwWEAAAAPW1kYXQAAAAx"
    "KAGvGSFwUkDvXaW//34+/1mF/iVk7/8qNr32m/zWVUratfKi32aAq3Zn9Cim7W6tgA=="
)

# As a phone held upright writes it: stored on its side, and both `irot` and the EXIF say how it is to be turned.
TURNED_HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAaFtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAADRpbG9jAAAA"
    "AERAAAIAAQAAAAABxQABAAAAAAAAAKgAAgAAAAACbQABAAAAAAAAACQAAAA4aWluZgAAAAAAAgAAABVpbmZlAgAAAAABAABodmMxAAAAABVpbmZl"
    "AgAAAQACAABFeGlmAAAAAA5waXRtAAAAAAABAAAA4GlwcnAAAADAaXBjbwAAAHhodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH/"
    "/wNwAAADAJAAAAMAAAMAHroCQGEAAQArQgEBA3AAAAMAkAAAAwAAAwAeoCCAgWW6kkprm4CGgwIAAAMAMgAAAwACEGIAAQAHRAHBcrAiQAAAABNj"
    "b2xybmNseAABAA0ABoAAAAAUaXNwZQAAAAAAAABAAAAAgAAAABBwaXhpAAAAAAMICAgAAAAJaXJvdAMAAAAYaXBtYQAAAAAAAAABAAEFgQIDBIUA"
    "AAAaaXJlZgAAAAAAAAAOY2RzYwACAAEAAQAAANRtZGF0AAAApCgBrwY4W4jl4r/wc01VmsJEu1tn0v/VMOX//7LZ/Zf5MPZJtIv+ZX3xWf+n8kdh"
    "SaOyDcvOtrMTG1iNgdk92832HXjfKjWNuEbvzuAK2AZmazjBjGovwZq1pCLcW7wXrwWIQW3MOF9zIAApHAUMFCL+hfckmrEFKdxZdUlulGIN4gy8"
    "07vuBTU4yXEw+lQpYsW89LVP4sxfsxJTx8MLc5j/2Jq/AAAABkV4aWYAAE1NACoAAAAIAAEBEgADAAAAAQAGAAAAAAAA"
)


def red_and_blue(mode: str = "RGB") -> PIL.Image.Image:
    """32 x 16: red on the left, blue on the right."""
    picture = PIL.Image.new("RGB", (32, 16), RED)
    picture.paste(BLUE, (16, 0, 32, 16))
    return picture.convert(mode)


def files(picture: PIL.Image.Image) -> dict[str, bytes]:
    """The picture in every format and compression that is taken; where there are more frames, they are turned."""
    frames = (picture.transpose(PIL.Image.Transpose.ROTATE_180),)
    cmyk, palette = picture.convert("CMYK"), picture.quantize(4)
    return {
        "JPEG": encoded(picture, "JPEG"),
        "JPEG progressive": encoded(picture, "JPEG", progressive=True),
        "JPEG CMYK": encoded(cmyk, "JPEG"),
        "JPEG MPO": encoded(picture, "MPO", frames),
        "PNG": encoded(picture, "PNG"),
        "PNG palette": encoded(palette, "PNG"),
        "PNG animated": encoded(picture, "PNG", frames),
        "WEBP": encoded(picture, "WEBP"),
        "WEBP lossless": encoded(picture, "WEBP", lossless=True),
        "WEBP animated": encoded(picture, "WEBP", frames),
        "GIF": encoded(picture, "GIF"),
        "GIF animated": encoded(picture, "GIF", frames),
        "BMP": encoded(picture, "BMP"),
        "BMP palette": encoded(palette, "BMP"),
        "TIFF": encoded(picture, "TIFF"),
        "TIFF LZW": encoded(picture, "TIFF", compression="tiff_lzw"),
        "TIFF pages": encoded(picture, "TIFF", frames),
        "TIFF CMYK": encoded(cmyk, "TIFF"),
        "TIFF LAB": encoded(lab(picture), "TIFF"),
        "AVIF": encoded(picture, "AVIF", quality=90),
    }


def lab(picture: PIL.Image.Image) -> PIL.Image.Image:
    profiles = PIL.ImageCms.createProfile("sRGB"), PIL.ImageCms.createProfile("LAB")
    return PIL.ImageCms.buildTransform(*profiles, "RGB", "LAB").apply(picture)


FILES = files(red_and_blue()) | {"HEIF": HEIC}
NOISE = files(PIL.Image.effect_noise((64, 48), 80).convert("RGB"))


def png_file(width: int, height: int, depth: int, kind: int, pixels: bytes = b"", key: bytes = b"") -> bytes:
    """A PNG by the specification, with 16-bit colour and see-through keys, which Pillow does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    transparency = chunk(b"tRNS", key) if key else b""
    return b"\x89PNG\r\n\x1a\n" + header + transparency + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def tiled_tiff(side: int, tile_side: int, pixels: bytes) -> bytes:
    """A grey square TIFF of one compressed tile."""
    tags = {
        256: side,
        257: side,
        258: 8,
        259: 8,
        262: 1,
        277: 1,
        322: tile_side,
        323: tile_side,
        324: 0,
        325: len(pixels),
    }
    start = 8 + 2 + 12 * len(tags) + 4
    entries = (struct.pack("<HHII", tag, 4, 1, start if tag == 324 else value) for tag, value in tags.items())
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + b"".join(entries) + bytes(4) + pixels


def words(*values: int) -> bytes:
    return struct.pack(f">{len(values)}H", *values)


def is_near(color: Any, wanted: tuple[int, int, int], tolerance: int = 16) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(color, wanted, strict=True))


def row(data: bytes) -> list[Any]:
    """The pixels of the upper row."""
    pixels = Image.from_bytes(data).pixels
    assert pixels.mode == "RGB"
    return [pixels.getpixel((x, 0)) for x in range(pixels.width)]


@pytest.mark.parametrize("name", FILES)
def test_every_format_comes_out_upright_in_rgb_and_the_first_of_several(name: str) -> None:
    image = Image.from_bytes(FILES[name])
    assert image.pixels.mode == "RGB"
    assert image.pixels.size == (32, 16)
    assert is_near(image.pixels.getpixel((6, 8)), RED)
    assert is_near(image.pixels.getpixel((26, 8)), BLUE)
    assert image.mime_type == MIME_TYPES[name.split()[0]]


ONE_FRAME = [name for name in FILES if not name.endswith(("MPO", "animated", "pages"))]


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("name", ONE_FRAME)
def test_a_cut_off_file_is_refused(name: str, share: float) -> None:
    data = NOISE.get(name, HEIC)
    with pytest.raises(InvalidImage):
        assert Image.from_bytes(data[: int(len(data) * share)]).pixels


@pytest.mark.parametrize("name", ["JPEG MPO", "PNG animated", "WEBP animated", "GIF animated", "TIFF pages"])
def test_what_is_cut_off_after_the_first_frame_is_not_missed(name: str) -> None:
    data = NOISE[name]
    assert Image.from_bytes(data[: int(len(data) * 0.9)]).pixels == Image.from_bytes(data).pixels


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_a_picture_is_turned_as_its_exif_says(format: str, orientation: int) -> None:
    stored = {
        1: None,
        2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
        3: PIL.Image.Transpose.ROTATE_180,
        4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
        5: PIL.Image.Transpose.TRANSPOSE,
        6: PIL.Image.Transpose.ROTATE_90,
        7: PIL.Image.Transpose.TRANSVERSE,
        8: PIL.Image.Transpose.ROTATE_270,
    }[orientation]
    upright = PIL.Image.new("RGB", (32, 16), WHITE)
    upright.paste(RED, (0, 0, 16, 8))  # only one of the eight ways puts the red quarter on the upper left
    picture = upright if stored is None else upright.transpose(stored)
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    pixels = Image.from_bytes(encoded(picture, format, exif=exif)).pixels
    assert pixels.size == (32, 16)
    assert is_near(pixels.getpixel((4, 3)), RED)
    assert is_near(pixels.getpixel((28, 3)), WHITE)
    assert is_near(pixels.getpixel((4, 13)), WHITE)


def test_a_phones_heic_is_turned_once() -> None:
    image = Image.from_bytes(TURNED_HEIC)
    assert image.size == image.pixels.size == (128, 64)
    assert is_near(image.pixels.getpixel((16, 12)), (255, 0, 0))
    assert all(is_near(image.pixels.getpixel(place), WHITE) for place in ((112, 12), (16, 52), (112, 52)))


@pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01", b"Exif\0\0"])
def test_damaged_exif_does_not_cost_the_picture(exif: bytes) -> None:
    assert is_near(Image.from_bytes(encoded(red_and_blue(), "JPEG", exif=exif)).pixels.getpixel((6, 8)), RED)


def test_grey_of_16_bits_keeps_its_brightness() -> None:
    """Pillow's own conversion clips: everything above 255 of 65535 would be white."""
    data = png_file(4, 1, 16, 0, b"\0" + words(0, 0x4000, 0x8080, 0xFFFF))
    assert row(data) == [(0, 0, 0), (64, 64, 64), (128, 128, 128), WHITE]


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_tiff_grey_of_16_bits_keeps_its_brightness(mode: str) -> None:
    picture = PIL.Image.new(mode, (2, 1), 0x8080)
    assert row(encoded(picture, "TIFF")) == [(128, 128, 128)] * 2


# GREY


def test_colour_of_16_bits_keeps_its_brightness() -> None:
    data = png_file(2, 1, 16, 2, b"\0" + words(0x8080, 0xFFFF, 0, 0x0101, 0x4040, 0xC8C8))
    assert row(data) == [(128, 255, 0), (1, 64, 200)]


def test_see_through_pictures_lie_on_white() -> None:
    see_through = PIL.Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    see_through.putpixel((1, 0), (255, 0, 0, 128))
    expected = [WHITE, (255, 127, 127)]
    assert row(encoded(see_through, "PNG")) == expected
    assert row(encoded(see_through, "WEBP", lossless=True)) == expected
    assert row(encoded(see_through, "TIFF")) == expected
    grey = PIL.Image.new("LA", (2, 1), (0, 0))
    grey.putpixel((1, 0), (0, 128))
    assert row(encoded(grey, "PNG")) == [WHITE, (127, 127, 127)]


def test_premultiplied_alpha_lies_on_white() -> None:
    data = encoded(PIL.Image.new("RGBA", (2, 1), (128, 0, 0, 128)), "TIFF")
    extra_samples = struct.Struct("<HHIHH").pack  # tag 338: the fourth value is 2 plain or 1 premultiplied alpha
    plain, premultiplied = extra_samples(338, 3, 1, 2, 0), extra_samples(338, 3, 1, 1, 0)
    assert data.count(plain) == 1
    assert row(data) == [(191, 127, 127)] * 2
    assert row(data.replace(plain, premultiplied)) == [(255, 127, 127)] * 2


@pytest.mark.parametrize(
    ("key", "format"), [(b"\0\x80", "PNG"), (0, "PNG"), (0, "GIF")], ids=["png alphas", "png key", "gif key"]
)
def test_palettes_with_transparency_lie_on_white(key: Any, format: str) -> None:
    picture = PIL.Image.new("P", (2, 1))
    picture.putpalette([0, 0, 0, 255, 0, 0])
    picture.putpixel((1, 0), 1)
    red = (255, 127, 127) if key == b"\0\x80" else (255, 0, 0)
    assert row(encoded(picture, format, transparency=key)) == [WHITE, red]


@pytest.mark.parametrize(
    ("depth", "kind", "pixels", "key", "expected"),
    [
        (8, 0, b"\0\x07\x09", words(7), (9, 9, 9)),
        (8, 2, b"\0\x01\x02\x03\x09\x09\x09", words(1, 2, 3), (9, 9, 9)),
        (16, 0, b"\0" + words(300, 0x0909), words(300), (9, 9, 9)),
        (
            16,
            2,
            b"\0" + words(0x1234, 0x5678, 0x9ABC, 0x0909, 0x0909, 0x0909),
            words(0x1234, 0x5678, 0x9ABC),
            (9, 9, 9),
        ),
        (1, 0, b"\0\x40", words(0), WHITE),
    ],
    ids=["grey 8", "colour 8", "grey 16", "colour 16", "black and white"],
)
def test_see_through_keys_of_pngs_lie_on_white(
    depth: int, kind: int, pixels: bytes, key: bytes, expected: tuple[int, int, int]
) -> None:
    """The first pixel has the key's colour. Pillow 12 does not find it in 16-bit colour."""
    assert row(png_file(2, 1, depth, kind, pixels, key)) == [WHITE, expected]


REFUSED = {
    "nothing": (b"", "This is an empty file"),
    "text": (b"hello, I am no picture", "not a picture that can be read; send a JPEG, PNG, WebP"),
    "zeros": (bytes(1000), "not a picture that can be read"),
    "PDF": (b"%PDF-1.7\n%\xe2\xe3", "This is a PDF; send"),
    "PDF after a line": (b"\r\n%PDF-1.7\n", "This is a PDF; send"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "This is an SVG; send"),
    "SVG with a prologue": (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- me -->\n<SVG/>", "This is an SVG; send"),
    "web page": (b"<!DOCTYPE html><html><svg></svg></html>", "This is a web page; send"),
    "video": (b"\0\0\0\x18ftypmp42\0\0\0\0", "This is a video, or a damaged picture; send"),
    "SVG in UTF-16": ("<?xml version='1.0'?><svg/>".encode("utf-16"), "This is an SVG; send"),
    "JPEG XL": (b"\0\0\0\x0cJXL \r\n\x87\n", "This is a JPEG XL; send"),
    "JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n", "This is a JPEG 2000; send"),
    "Photoshop": (b"8BPS\0\1", "This is a Photoshop file; send"),
    "raw": (b"II*\0\x10\0\0\0CR\2\0", "This is a camera's raw file; send"),
    "icon": (b"\0\0\1\0\1\0", "This is an icon; send"),
    "ZIP": (b"PK\3\4", "This is a ZIP file; send"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\n", "This is a pointer of Git LFS, not its file; send"),
    "half a WebP": (b"RIFF\xff\0\0\0WEBPVP8 ", "This is a WebP that is damaged or cut off; send"),
    "WebM": (b"\x1a\x45\xdf\xa3\x01\0\0\0", "This is a video, or a damaged picture; send"),
    "only a PNG's signature": (b"\x89PNG\r\n\x1a\n", "This is a PNG that is damaged; send"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_picture_is_refused_by_its_name(name: str) -> None:
    data, words = REFUSED[name]
    with pytest.raises(InvalidImage, match=words) as caught:
        Image.from_bytes(data)
    assert caught.value.status == 400


@pytest.mark.parametrize("format", ["PPM", "ICO", "PCX", "TGA", "EPS", "PDF", "ICNS", "JPEG2000", "DDS", "SGI"])
def test_decoders_that_nobody_needs_are_not_reached(format: str) -> None:
    with pytest.raises(InvalidImage):
        Image.from_bytes(encoded(red_and_blue(), format))


def test_too_many_bytes_are_refused() -> None:
    data = png()
    assert Image.from_bytes(data, ImageLimits(max_bytes=len(data))).data == data
    with pytest.raises(ImageTooLarge, match=r"20\.1 MB; at most 20 MB are taken") as caught:
        Image.from_bytes(bytes(20 * 2**20 + 1))
    assert caught.value.status == 413


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((8000, 7000), "8,000 x 7,000, 56.0 megapixels; at most 50"),
        ((16_385, 1), "16,385 x 1; at most 16,384 pixels a side"),
        ((1, 20_000), "1 x 20,000; at most 16,384 pixels a side"),
        ((12_000, 10_000), "120.0 megapixels"),  # by itself Pillow warns from 89 megapixels
        ((16_000, 16_000), "256.0 megapixels"),  # and raises from 179
        ((2**31 - 1, 2**31 - 1), "at most 16,384 pixels a side"),
    ],
)
def test_too_many_pixels_are_refused_by_the_header(size: tuple[int, int], words: str) -> None:
    """The files hold no pixels at all, so whoever decoded them would complain of that."""
    with pytest.raises(ImageTooLarge, match=words) as caught:
        Image.from_bytes(png_file(*size, 8, 2))
    assert caught.value.status == 413


def test_a_large_picture_behind_a_small_window_is_refused_by_the_header() -> None:
    """The HEIC shows 32 x 16 of 64 x 64 pixels; libheif makes room for all of them before it cuts the window out."""
    size = struct.Struct(">II").pack
    assert HEIC.count(b"ispe\0\0\0\0" + size(64, 64)) == 1
    data = HEIC.replace(size(64, 64), size(12_000, 12_000), 1)
    assert Image.from_bytes(HEIC).size == (32, 16)
    with pytest.raises(ImageTooLarge, match="12,000 x 12,000, 144"):
        Image.from_bytes(data)


def test_a_large_tile_behind_a_small_picture_is_refused_by_the_header() -> None:
    """Pillow 12 makes room for the whole tile: 0.9 GB for such a file of 0.9 MB, and of 10 x 10 pixels."""
    assert Image.from_bytes(tiled_tiff(10, 16, zlib.compress(bytes(16 * 16)))).pixels.size == (10, 10)
    with pytest.raises(ImageTooLarge, match="12,000 x 12,000, 144"):
        Image.from_bytes(tiled_tiff(10, 12_000, b""))


def test_the_letters_of_a_pdf_inside_of_a_picture_do_not_make_it_one() -> None:
    data = encoded(red_and_blue(), "JPEG", comment="%PDF-1.7 <svg>")
    assert b"%PDF-" in data[:100]
    assert Image.from_bytes(data).pixels.size == (32, 16)


def test_the_limits_are_the_callers() -> None:
    data = png(size=(100, 50))
    Image.from_bytes(data, ImageLimits(max_pixels=5000, max_side=100))
    with pytest.raises(ImageTooLarge):
        Image.from_bytes(data, ImageLimits(max_pixels=4999))
    with pytest.raises(ImageTooLarge):
        Image.from_bytes(data, ImageLimits(max_side=99))


@pytest.mark.parametrize("name", FILES)
def test_damaged_files_give_a_picture_or_a_refusal(name: str) -> None:
    """Whatever a decoder raises, the caller gets an error that is theirs to mend."""
    chance = random.Random(name)
    for _ in range(60):
        data = bytearray(FILES[name])
        for _ in range(chance.choice((1, 3, 12))):
            data[chance.randrange(min(len(data), chance.choice((64, 400, len(data)))))] = chance.randrange(256)
        try:
            assert Image.from_bytes(bytes(data)).pixels.mode == "RGB"
        except InvalidImage as error:
            assert str(error).endswith(".")


def test_pictures_are_equal_when_their_bytes_are() -> None:
    red, again, blue = (Image.from_bytes(png(color)) for color in ("red", "red", "blue"))
    assert red == again
    assert hash(red) == hash(again)
    assert red != blue
    assert len(red.digest) == 64
    assert "bytes" not in repr(red)


def test_a_data_url_comes_back_with_the_true_type() -> None:
    data = encoded(red_and_blue(), "WEBP")
    labelled_wrong = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
    image = Image.from_data_url(labelled_wrong)
    assert image.data == data
    assert image.to_data_url() == labelled_wrong.replace("jpeg", "webp")
    assert Image.from_data_url(image.to_data_url()) == image


@pytest.mark.parametrize(
    "start",
    ["data:image/png;base64,", "DATA:;BASE64,", "data:text/plain;charset=utf-8;base64,", "data:image/png; base64,"],
)
def test_the_label_of_a_data_url_does_not_matter(start: str) -> None:
    assert Image.from_data_url(start + base64.b64encode(png()).decode()).mime_type == "image/png"


def test_a_data_url_may_be_escaped_as_in_an_address() -> None:
    letters = base64.b64encode(png()).decode()
    for url in (f"data:image/png;base64,{quote(letters, safe='')}", f"data:image/png,{quote(png())}"):
        assert Image.from_data_url(url).data == png()
    with pytest.raises(ImageTooLarge):
        Image.from_data_url("data:," + "%41" * 1000, ImageLimits(max_bytes=999))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://example.org/cat.jpg", "fetches no web addresses"),
        ("HTTP://127.0.0.1/", "fetches no web addresses"),
        ("file:///etc/passwd", "one of file:; it must be a data URL"),
        ("/etc/passwd", "a text of 11 characters; it must be"),
        ("", "is empty; it must be"),
        ("data:image/png;base64", "a data URL without a comma; it must be a data URL"),
        ("data:image/png,abc", "not a picture"),
        ("data:image/png;base64,%%%", "not valid base64"),
        ("data:image/svg+xml;base64,PHN2Zy8+", "This is an SVG"),
        ("data:image/png;base64,", "This is an empty file"),
        ("data:image/png;base64,@@@@", "not valid base64"),
        ("data:image/png;base64,abcde", "not valid base64"),
        ("data:image/png;base64,ä", "not valid base64"),
    ],
)
def test_other_addresses_are_refused_and_not_repeated(url: str, words: str) -> None:
    with pytest.raises(InvalidImage, match=words) as caught:
        Image.from_data_url(url)
    assert "passwd" not in str(caught.value)


def test_base64_may_be_broken_into_lines() -> None:
    assert Image.from_base64(base64.encodebytes(png()).decode()).data == png()


def test_base64_is_measured_before_it_is_decoded() -> None:
    text = base64.b64encode(png()).decode()
    assert Image.from_base64(text, ImageLimits(max_bytes=len(png()))).data == png()
    with pytest.raises(ImageTooLarge):
        Image.from_base64("@" * 1000, ImageLimits(max_bytes=100))


def test_a_list_of_byte_values_is_a_file() -> None:
    assert Image.from_ints(list(png())).data == png()


@pytest.mark.parametrize("values", [[256], [-1], [1.5], ["1"], [None], [[1]]])
def test_other_lists_are_refused(values: Any) -> None:
    with pytest.raises(InvalidImage, match="whole numbers from 0 to 255"):
        Image.from_ints(values)
    with pytest.raises(ImageTooLarge):
        Image.from_ints([0] * 101, ImageLimits(max_bytes=100))


def test_a_file_is_read_by_its_path(tmp_path: Path) -> None:
    file = tmp_path / "picture.txt"  # the name says nothing
    file.write_bytes(png())
    assert Image.from_path(file) == Image.from_path(str(file)) == Image.from_bytes(png())


def test_a_path_that_cannot_be_read_is_refused_without_repeating_it(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.png", tmp_path, Path("/dev/zero"), "null\0byte"):
        with pytest.raises(InvalidImage, match="picture") as caught:
            Image.from_path(path)
        assert str(path) not in str(caught.value)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "huge.png"
    with file.open("wb") as opened:
        opened.truncate(2**40)  # a hole: a terabyte that takes no space
    with pytest.raises(ImageTooLarge, match=r"1,048,576\.0 MB"):
        Image.from_path(file)


def test_what_the_model_gets_is_what_numpy_reads() -> None:
    """The pixels are an ordinary 8-bit RGB picture, (height, width, 3), whatever came."""
    values = np.asarray(Image.from_bytes(FILES["PNG palette"]).pixels)
    assert values.shape == (16, 32, 3)
    assert values.dtype == np.uint8


def test_a_large_picture_is_kept_smaller_but_its_file_as_it_came() -> None:
    picture = PIL.Image.new("RGB", (5000, 2000), BLUE)
    picture.paste(RED, (0, 0, 2500, 2000))
    image = Image.from_bytes(encoded(picture, "PNG"))
    assert image.pixels.size == (2500, 1000)
    assert is_near(image.pixels.getpixel((1000, 800)), RED)
    assert is_near(image.pixels.getpixel((2000, 800)), BLUE)
    assert PIL.Image.open(io.BytesIO(image.data)).size == (5000, 2000)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_large_webp_which_another_process_decodes_is_what_pillow_decodes(mode: str) -> None:
    picture = PIL.Image.radial_gradient("L").resize((3000, 2800))
    picture = PIL.Image.merge(
        "RGB", [picture, picture.transpose(PIL.Image.Transpose.ROTATE_90).resize(picture.size), picture]
    )
    if mode == "RGBA":
        picture.putalpha(255)
        picture.paste((0, 0, 0, 0), (0, 0, 100, 100))
    file = io.BytesIO()
    exif = PIL.Image.Exif()
    exif[0x0112] = 3  # turned upside down
    picture.save(file, "WEBP", lossless=True, method=0, exif=exif)
    pixels = Image.from_bytes(file.getvalue()).pixels
    expected = picture.convert("RGB").transpose(PIL.Image.Transpose.ROTATE_180)
    if mode == "RGBA":
        expected.paste((255, 255, 255), (2900, 2700, 3000, 2800))
    assert pixels.tobytes() == expected.tobytes()


def test_a_large_webp_that_is_damaged_is_refused() -> None:
    file = io.BytesIO()
    PIL.Image.radial_gradient("L").resize((3000, 2800)).convert("RGB").save(file, "WEBP", lossless=True, method=0)
    data = bytearray(file.getvalue())
    data[len(data) // 2 :] = b"\xff" * (len(data) - len(data) // 2)
    with pytest.raises(InvalidImage, match="damaged or cut off"):
        assert Image.from_bytes(bytes(data)).pixels
