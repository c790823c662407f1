"""Pictures that break programs, made by this script: each by its name, and whether it is one after all.

`python tests/bad_pictures.py FOLDER` writes them into a folder, for tries by hand.
"""

import io
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import PIL.Image
from pictures import encoded

UPRIGHT, TAKEN, REFUSED = "upright", "taken", "refused"


def cases() -> dict[str, tuple[str, bytes]]:
    """The fate and the bytes of every case; what stands upright is red on the left and blue on the right."""
    good = {**_formats(), **_odd_pixels(), **_sizes(), **_turned()}
    bad = {**_disguised(), **_bombs(), **_cut(good), **_damaged()}
    fates = ((UPRIGHT, good), (TAKEN, _burdened()), (REFUSED, bad))
    return {name: (fate, data) for fate, files in fates for name, data in files.items()}


def picture(width: int = 64, height: int = 32, mode: str = "RGB") -> PIL.Image.Image:
    image = PIL.Image.new("RGB", (width, height), (200, 30, 30))
    image.paste((30, 30, 200), (width // 2, 0, width, height))
    return image.convert(mode)


def _formats() -> dict[str, bytes]:
    return {
        "jpeg": encoded(picture(), "JPEG"),
        "png": encoded(picture(), "PNG"),
        "webp": encoded(picture(), "WEBP", lossless=True),
        "gif": encoded(picture(), "GIF"),
        "bmp": encoded(picture(), "BMP"),
        "tiff": encoded(picture(), "TIFF"),
        "avif": encoded(picture(), "AVIF", quality=90),
        "animated gif": encoded(picture(), "GIF", (picture().rotate(180),)),
        "animated png": encoded(picture(), "PNG", (picture().rotate(180),)),
        "animated webp": encoded(picture(), "WEBP", (picture().rotate(180),), lossless=True),
        "tiff with pages": encoded(picture(), "TIFF", (picture().rotate(180),)),
        "jpeg with a tail": encoded(picture(), "JPEG") + b"<script>alert(1)</script>" * 100,
        "png with a tail": encoded(picture(), "PNG") + bytes(1000),
    }


def _odd_pixels() -> dict[str, bytes]:
    see_through = picture(mode="RGBA")
    see_through.putalpha(254)
    return {
        "cmyk jpeg": encoded(picture(mode="CMYK"), "JPEG"),
        "cmyk tiff": encoded(picture(mode="CMYK"), "TIFF"),
        "palette png": encoded(picture().quantize(2), "PNG"),
        "see-through png": encoded(see_through, "PNG"),
        "see-through webp": encoded(see_through, "WEBP", lossless=True),
        "progressive jpeg": encoded(picture(), "JPEG", progressive=True),
        "colour of 16 bits": _png(64, 32, 16, 2, b"".join(b"\0" + _wide_row() for _ in range(32))),
    }


def _wide_row() -> bytes:
    red, blue = struct.pack(">HHH", 0xC8C8, 0x1E1E, 0x1E1E), struct.pack(">HHH", 0x1E1E, 0x1E1E, 0xC8C8)
    return red * 32 + blue * 32


def _sizes() -> dict[str, bytes]:
    return {
        "2 x 1": encoded(picture(2, 1), "PNG"),
        "16,000 x 2": encoded(picture(16_000, 2), "PNG"),
        "20 x 16,000": encoded(picture(20, 16_000), "PNG"),
        "16,384 x 100": encoded(picture(16_384, 100), "JPEG"),
        "49 megapixels png": encoded(picture(7_000, 7_000), "PNG", compress_level=1),
        # 0.6 s of CPU. One of 49 megapixels takes 0.8, and came to the limit of 2 on a machine that did other things.
        "36 megapixels see-through": encoded(picture(6_000, 6_000, "RGBA"), "PNG", compress_level=1),
        "49 megapixels jpeg": encoded(picture(7_000, 7_000), "JPEG"),
        "24 megapixels webp": encoded(picture(6_000, 4_000), "WEBP", method=0),
    }


def _thin() -> dict[str, bytes]:
    sizes = ((1, 1), (1, 16_000), (16_000, 1), (1, 16_384))
    return {f"{width} x {height}": encoded(picture(width, height), "PNG") for width, height in sizes}


def _turned() -> dict[str, bytes]:
    turns = {
        3: PIL.Image.Transpose.ROTATE_180,
        6: PIL.Image.Transpose.ROTATE_90,
        8: PIL.Image.Transpose.ROTATE_270,
    }
    files = {}
    for orientation, turn in turns.items():
        exif = PIL.Image.Exif()
        exif[0x0112] = orientation
        files[f"exif turn {orientation}"] = encoded(picture().transpose(turn), "JPEG", exif=exif)
    return files


def _disguised() -> dict[str, bytes]:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("cat.png", encoded(picture(), "PNG"))
    return {
        "nothing": b"",
        "one zero": b"\0",
        "zeros": bytes(100_000),
        "text": b"no picture " * 100,
        "json": b'{"image": 1}',
        "svg": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="10" height="10"/>',
        "svg that asks for files": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "html": b"<!DOCTYPE html><html><body><img src=x></body></html>",
        "pdf": b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF",
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n%%EOF",
        "zip": archive.getvalue(),
        "gzip": zlib.compress(bytes(1000), wbits=31),
        "elf": b"\x7fELF\x02\x01\x01" + bytes(200),
        "mp4": struct.pack(">I4s4sI", 16, b"ftyp", b"isom", 0) + bytes(100),
        "psd": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 10, 10, 8, 3) + bytes(50),
        "ico": encoded(picture(32, 32), "ICO"),
        "tga": encoded(picture(), "TGA"),
        "jpeg 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100),
        "xpm": b'/* XPM */\nstatic char *a[] = {"1 1 1 1", "a c #fff", "a"};',
        "python pickle": b"\x80\x04\x95" + bytes(50),
    }


def _bombs() -> dict[str, bytes]:
    gif = bytearray(encoded(picture(), "GIF"))
    gif[6:10] = struct.pack("<HH", 65_535, 65_535)
    bmp = bytearray(encoded(picture(), "BMP"))
    bmp[18:26] = struct.pack("<ii", 60_000, 60_000)
    jpeg = bytearray(encoded(picture(), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65_500, 65_500)
    return {
        "png header of 2,000,000,000 x 2,000,000,000": _png(2_000_000_000, 2_000_000_000, 8, 2, b""),
        "png header of 30,000 x 30,000": _png(30_000, 30_000, 8, 2, b""),
        "png of 900 million pixels": _png(30_000, 30_000, 1, 0, bytes(3_751 * 30_000)),
        "png of 16,385 x 1": encoded(picture(16_385, 1), "PNG"),
        "png of 51 megapixels": encoded(PIL.Image.new("L", (7_150, 7_150)), "PNG"),
        "gif of 65,535 x 65,535": bytes(gif),
        "bmp of 60,000 x 60,000": bytes(bmp),
        "jpeg of 65,500 x 65,500": bytes(jpeg),
        "more than 20 MB": encoded(picture(), "BMP") + bytes(21 * 2**20),
    }


def _burdened() -> dict[str, bytes]:
    """What costs something beside the pixels, or is rare, and is a picture."""
    return {
        "png with a long text": _png_with(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(300_000_000), 1)),
        "png with a large profile": _png_with(b"iCCP", b"a\0\0" + zlib.compress(bytes(300_000_000), 1)),
        "grey of 32 bits": encoded(PIL.Image.new("I", (4, 4), 2**20), "TIFF"),
        "floating grey": encoded(PIL.Image.new("F", (4, 4)), "TIFF"),
    }


def _cut(good: dict[str, bytes]) -> dict[str, bytes]:
    names = ("jpeg", "png", "webp", "gif", "bmp", "tiff", "avif", "cmyk jpeg")
    return {f"{name}, cut off": good[name][: len(good[name]) * 6 // 10] for name in names}


def _damaged() -> dict[str, bytes]:
    file = encoded(picture(), "PNG")
    return {
        "png of 0 x 0": _png(0, 0, 8, 2, b""),
        "png without pixels": _png(64, 32, 8, 2, b""),
        "png of a kind that is not": _png(64, 32, 7, 9, bytes(100)),
        "png with damaged pixels": file[:50] + bytes(20) + file[70:],
        "jpeg of its first bytes": b"\xff\xd8\xff\xe0\0\x10JFIF\0",
        "riff without webp": b"RIFF\x10\0\0\0WEBPVP8 " + bytes(4),
        "tiff that points at itself": b"II*\0\x08\0\0\0\x01\0\x00\x01\x04\0\x01\0\0\0\x40\0\0\0\x08\0\0\0",
        "avif without a meta box": struct.pack(">I4s4sI", 16, b"ftyp", b"avif", 0),
        "floating grey without a white": encoded(PIL.Image.new("F", (4, 4), 7), "TIFF"),
    }


def _png(width: int, height: int, depth: int, kind: int, pixels: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    body = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(pixels, 1)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _png_with(name: bytes, data: bytes) -> bytes:
    file = _png(64, 32, 8, 2, bytes((64 * 3 + 1) * 32))
    return file[:33] + _chunk(name, data) + file[33:]


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(exist_ok=True)
    for name, (fate, data) in cases().items():
        (folder / f"{fate} {name}").write_bytes(data)
