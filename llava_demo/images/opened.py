"""Opens a picture's file with Pillow: the formats that are taken, and repairs before Pillow can read them."""

import io
import re
import struct
import zlib
from functools import cache
from typing import Any

import PIL.AvifImagePlugin
import PIL.Image
import PIL.TiffImagePlugin

from llava_demo.errors import InvalidImage

MIME_TYPES = {  # the only decoders of Pillow that pictures may reach: not EPS (Ghostscript), PSD, ICNS, ...
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "BMP": "image/bmp",
    "TIFF": "image/tiff",
    "AVIF": "image/avif",
    "HEIF": "image/heic",
}
_WANTED = "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or HEIC"

# What Pillow 12's decoders raise for damaged files: the first five were seen with 60,000 such files, the last one with
# a PNG without a palette; the others are in Pillow's code.
DECODER_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    RuntimeError,
    EOFError,
    TypeError,
    LookupError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
    AssertionError,
)

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"))
_GIF_TRANSPARENCY = b"\xf9"  # label of the extension that has it
_MAX_EXIF_BYTES = 2**20
# The end, and all markers that are followed by a length; other markers stand among the pixels (ITU-T T.81, B.1.1.3).
_JPEG_MARKER = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]", re.DOTALL)
JPEG_END = b"\xff\xd9"
# TIFF's tags
BITS, COMPRESSION, PHOTOMETRIC, _PLANES, COLOUR_MAP, TILE_WIDTH, TILE_LENGTH = 258, 259, 262, 284, 320, 322, 323
SAMPLE_FORMAT, MOST = 339, 341
SIGNED, FLOAT = 2, 3  # sample formats
_YCBCR = 6  # photometric

_MARKUP = (b"<?xml", b"<!--", b"<!doctype svg", b"<svg")
_RARE = "that is damaged, or of a rare kind, as of 12 bits a colour"
_SIGNATURES = (  # of files that people send in place of a picture
    (b"\x1a\x45\xdf\xa3", "a video, or a damaged picture"),  # WebM
    (b"\xff\xd8\xff", f"a JPEG {_RARE}"),
    (b"II*\0\x10\0\0\0CR", "a camera's raw file"),
    (b"FUJIFILMCCD-RAW", "a camera's raw file"),
    (b"II*\0", f"a TIFF {_RARE}"),
    (b"MM\0*", f"a TIFF {_RARE}"),
    (_PNG_SIGNATURE, "a PNG that is damaged"),
    (b"GIF8", "a GIF that is damaged"),
    (b"\xff\x0a", "a JPEG XL"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000"),
    (b"8BPS", "a Photoshop file"),
    (b"\0\0\1\0", "an icon"),
    (b"\0\0\2\0", "an icon"),
    (b"%!PS", "a PostScript file"),
    (b"v/1\x01", "an OpenEXR picture"),
    (b"#?RADIANCE", "a Radiance HDR picture"),
    (b"PK\3\4", "a ZIP file"),
    (b"\x1f\x8b", "a file packed with gzip"),
    (b"version https://git-lfs", "a pointer of Git LFS, not its file"),
    (b"data:", "a data URL as text"),
)


@cache
def formats() -> list[str]:
    """Register all decoders with Pillow; returns the names of those that are used."""
    import pi_heif  # type: ignore[import-untyped]  # here: with numpy, which it brings, it takes as long as Python

    pi_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)
    PIL.AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # the time limit counts the time of all threads
    # glibc returns blocks of over 32 MB to the system at once; Pillow's usual 16 MB stay with the process.
    PIL.Image.core.set_block_size(2**26)
    PIL.Image.MAX_IMAGE_PIXELS = None  # `header_of` has limits of its own
    kinds = PIL.TiffImagePlugin.OPEN_INFO  # Pillow 12 can decode these kinds, and does not list them
    for order, end in ((PIL.TiffImagePlugin.II, ""), (PIL.TiffImagePlugin.MM, "B")):
        for polarity in (0, 1):
            kinds.setdefault((order, polarity, (1,), 1, (12,), ()), ("I;16", "I;12"))
            kinds.setdefault((order, polarity, (1,), 1, (16,), ()), (f"I;16{end}", f"I;16{end}"))
            kinds.setdefault((order, polarity, (1,), 1, (32,), ()), ("I", f"I;32{end}"))
            kinds.setdefault((order, polarity, (SIGNED,), 1, (16,), ()), ("I", f"I;16{end}S"))
            kinds.setdefault((order, polarity, (SIGNED,), 1, (32,), ()), ("I", f"I;32{end}S"))
            kinds.setdefault((order, polarity, (FLOAT,), 1, (64,), ()), ("F", f"F;64{end}F"))
            for alpha in (0, 1, 2):  # grey and transparency, two bytes each, which `decode` puts together
                kinds.setdefault((order, polarity, (1,), 1, (16, 16), (alpha,)), ("RGBA", "RGBA"))
    return list(MIME_TYPES)


def opened(data: bytes) -> PIL.Image.Image:
    """The picture of a file, before its pixels are decoded.

    Raises:
        InvalidImage: it is not a picture, or its format is not taken; the message says what it is.
    """
    try:
        readable = _reduced(_with_whole_palette(with_end(data)))
        picture = PIL.Image.open(io.BytesIO(readable), formats=formats())
        is_wide = tag_of(picture, _PLANES, 1) == 2 and tag_of(picture, BITS, 8) > 8
        if is_wide or tag_of(picture, PHOTOMETRIC, 1) == _YCBCR:
            # Pillow 12 unpacks these itself if they are not compressed: it misreads the first kind, and takes the other
            # for truncated. libtiff reads both.
            PIL.TiffImagePlugin.READ_LIBTIFF = True
            try:
                picture = PIL.Image.open(io.BytesIO(data), formats=["TIFF"])
            finally:
                PIL.TiffImagePlugin.READ_LIBTIFF = False
        return picture
    except DECODER_ERRORS as error:
        raise InvalidImage(f"This is {_name_of_what_is_no_picture(data)}; send a {_WANTED} picture.") from error


def with_end(data: bytes) -> bytes:
    """A truncated JPEG with an end marker after its whole segments; other files unchanged.

    All of its pixels may still be there, and libjpeg decodes it if there is an end marker.
    """
    if not data.startswith(b"\xff\xd8\xff"):
        return data
    at = 2
    while marker := _JPEG_MARKER.search(data, at):
        if marker[0] == JPEG_END:
            return data
        start = marker.start()
        at = start + 2 + int.from_bytes(data[start + 2 : start + 4])
        if at > len(data):
            return data[:start] + JPEG_END
    return data + JPEG_END


def tag_of(picture: PIL.Image.Image, tag: int, default: Any) -> Any:
    """A number in the header of a TIFF; the default for other files."""
    value = picture.tag_v2.get(tag, default) if isinstance(picture, PIL.TiffImagePlugin.TiffImageFile) else default
    return value[0] if isinstance(value, tuple) else value


def _reduced(data: bytes) -> bytes:
    """A file without most of what is not needed for its first picture."""
    if data.startswith(_PNG_SIGNATURE):
        return _without_chunks(data)
    if data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8X":
        return _with_first_frame(data)
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return _without_extensions(data)
    return data


def _without_chunks(data: bytes) -> bytes:
    """A PNG reduced to the chunks for its pixels, and EXIF.

    Pillow 12 unpacks a PNG's texts and colour profile, and refuses the file if one takes over 1 MB, as workflows of
    image generators and profiles of printers do.
    """
    kept, start = [_PNG_SIGNATURE], len(_PNG_SIGNATURE)
    while start + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, start)
        end = start + 12 + length
        if name in _PNG_PIXELS or (name == b"eXIf" and length <= _MAX_EXIF_BYTES):
            kept.append(data[start:end])
        if name == b"IEND":
            break
        start = end
    return b"".join(kept)


def _with_first_frame(data: bytes) -> bytes:
    """An animated WebP without its later frames.

    Pillow 12 refuses a file if any frame is damaged or cut off, but only the first one is used.
    """
    kept, start, frames = [data[8:12]], 12, 0
    while start + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, start)
        end = start + 8 + length + length % 2
        if end > len(data) or not name.rstrip().isalnum():
            break
        frames += name == b"ANMF"
        if name in (b"VP8X", b"ANIM", b"EXIF") or (name == b"ANMF" and frames == 1):
            kept.append(data[start:end])
        start = end
    return b"RIFF" + struct.pack("<I", sum(map(len, kept))) + b"".join(kept) if frames else data


def _without_extensions(data: bytes) -> bytes:
    """A GIF without the comments and other extensions before its first picture, but for its transparency.

    Pillow 12 takes two seconds for a comment of 3 MB, and a minute for one of 20.
    """
    start = 13 + (3 << (data[10] & 7) + 1 if data[10:11] and data[10] & 0x80 else 0)  # after the palette
    kept = [data[:start]]
    while data[start : start + 1] == b"!":
        end = start + 2
        while end < len(data) and data[end]:
            end += 1 + data[end]
        end += 1
        if data[start + 1 : start + 2] == _GIF_TRANSPARENCY:
            kept.append(data[start:end])
        start = end
    return b"".join([*kept, data[start:]])


def _with_whole_palette(data: bytes) -> bytes:
    """A BMP of 4 or 8 bits without the note that its palette has two colours; other files unchanged.

    If these are black and white, Pillow 12 reads the pixels as single bits.
    """
    is_such = data[:2] == b"BM" and data[28:30] in (b"\4\0", b"\b\0") and data[46:50] == b"\2\0\0\0"
    return data[:46] + bytes(4) + data[50:] if is_such else data


def _name_of_what_is_no_picture(data: bytes) -> str:
    start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not data:
        return "an empty file"
    if b"%pdf-" in start:
        return "a PDF"
    markup = data[:65_536].replace(b"\0", b"").lower()  # it may be in UTF-16
    if markup.lstrip(b"\xff\xfe\xef\xbb\xbf \t\r\n").startswith(_MARKUP) and b"<svg" in markup:
        return "an SVG"
    if start.startswith((b"<!doctype html", b"<html")):
        return "a web page"
    named = next((name for signature, name in _SIGNATURES if data.startswith(signature)), None)
    if named is None and data[4:8] == b"ftyp":  # MP4 and QuickTime; AVIF and HEIC were opened
        named = "a video, or a damaged picture"
    if named is None and data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        named = "a WebP that is damaged or cut off"
    return named or "not a picture that can be read"
