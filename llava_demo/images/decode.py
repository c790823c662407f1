"""What a picture's file holds: its header, and its pixels upright, RGB, 8 bits, on white, as a model wants them.

All of this may take long with a hostile file: `workers` runs it in processes that can be killed.
"""

import io
import math
import re
import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import PIL.AvifImagePlugin
import PIL.Image
import PIL.ImageOps
import PIL.TiffImagePlugin

from llava_demo.errors import ImageTooLarge, InvalidImage

if TYPE_CHECKING:
    import numpy as np

MIME_TYPES = {  # Pillow's decoders that pictures may reach, and no others: not EPS (Ghostscript), PSD, ICNS, ...
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

# What a damaged file makes Pillow 12's decoders raise: the first five were seen among 60,000 such files, and its own
# code names the others.
_DECODER_ERRORS = (
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
)

MAX_SIDE_KEPT = 4096  # what any model looks at is smaller: a few tiles of at most 400 pixels a side

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"))
_MAX_EXIF_BYTES = 2**20
# TIFF's tags
_BITS, _PHOTOMETRIC, _PLANES, _TILE_WIDTH, _TILE_LENGTH, _SAMPLE_FORMAT, _MOST = 258, 262, 284, 322, 323, 339, 341
_SIGNED, _FLOAT = 2, 3  # sample formats
_ORIENTATION = 0x0112

PictureMode = Literal["pad", "crop", "resize"]
CLIP_MEAN_COLOUR = (122, 116, 104)  # CLIP's mean, which is zero for the vision tower: tuple(int(x * 255) for x in mean)


@dataclass(frozen=True)
class ImageLimits:
    """The largest picture that is taken. Bytes are counted first; the others are read from the header."""

    max_bytes: int = 20 * 2**20
    max_pixels: int = 50_000_000
    max_side: int = 16_384


@dataclass(frozen=True)
class Header:
    """What a file tells before its pixels are decoded."""

    mime_type: str
    width: int  # as stored; a picture may lie on its side
    height: int
    is_plain: bool  # every decoder reads it alike: a JPEG, PNG or WebP, RGB or grey, opaque, upright


@dataclass(frozen=True)
class Fit:
    """A square of `side` pixels for the vision tower.

    `side` and `filter` are the processor's own: it finds nothing left to resize or crop. The Hub's LLaVA-1.5 processor
    cuts the middle square out of a picture and so loses 44 % of a 16:9 photo; the original demo pads (`expand2square`
    in LLaVA's mm_utils.py), and so do we by default.
    """

    mode: Literal["pad", "resize"]
    side: int
    filter: int  # a PIL.Image.Resampling


def fit_of(mode: PictureMode, side: int, filter: int) -> Fit | None:
    """What a picture mode asks for; None where the processor is to get the picture as it is."""
    return None if mode == "crop" else Fit(mode, side, int(filter))


def header_of(data: bytes, limits: ImageLimits) -> Header:
    """Read a file's header and check the sizes that it tells.

    Raises:
        InvalidImage: it is no picture, or one of a format that is not taken.
        ImageTooLarge: over one of the limits.
    """
    picture = _opened(data)
    try:
        is_wide = _tag(picture, _PLANES, 1) == 2 and _tag(picture, _BITS, 8) > 8
        if is_wide and getattr(picture, "tile", [("",)])[0][0] == "raw":  # Pillow 12 misreads it, and says nothing
            raise InvalidImage("The picture is a TIFF of 16 bits with each colour apart; save it with 8 bits.")
        sizes = [picture.size, *_hidden_sizes(picture, data)]
        is_plain = _is_plain(picture)
    except _DECODER_ERRORS as error:
        raise InvalidImage("The picture's header is damaged.") from error
    for width, height in sizes:
        if max(width, height) > limits.max_side:
            most = f"at most {limits.max_side:,} pixels a side are taken"
            raise ImageTooLarge(f"The picture is {width:,} x {height:,}; {most}.")
        if width * height > limits.max_pixels:
            megapixels = f"{width:,} x {height:,}, {width * height / 1e6:.1f} megapixels"
            raise ImageTooLarge(f"The picture is {megapixels}; at most {limits.max_pixels / 1e6:g} are taken.")
    mime_type = MIME_TYPES["JPEG" if picture.format == "MPO" else str(picture.format)]
    return Header(mime_type, *picture.size, is_plain)


def pixels_of(data: bytes, fit: Fit | None = None) -> PIL.Image.Image:
    """The pixels of a file whose header was checked: the first frame or page, as `fit` wants them, else all.

    Colour profiles are not applied, as LLaVA's own processing does not.

    Raises:
        InvalidImage: the file is damaged, or its numbers have no agreed meaning.
    """
    try:
        picture = _opened(data)
        picture.load()
        _turn_upright(picture)
        picture = _on_white(_shrunk(_eight_bits(picture, data)))
        return _fitted(picture, fit) if fit else picture
    except InvalidImage:
        raise
    except _DECODER_ERRORS as error:
        raise InvalidImage("The picture is damaged or cut off: its pixels cannot be decoded.") from error


@cache
def formats() -> list[str]:
    """Have Pillow know everything that is read here; the names of its decoders."""
    import pi_heif  # type: ignore[import-untyped]  # here: with numpy, which it brings, it takes as long as Python

    pi_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)
    PIL.AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # the time limit counts all threads
    # glibc gives pieces of over 32 MB back to the system at once; Pillow's usual 16 MB stay with the process.
    PIL.Image.core.set_block_size(2**26)
    PIL.Image.MAX_IMAGE_PIXELS = None  # `header_of` has limits of its own
    kinds = PIL.TiffImagePlugin.OPEN_INFO  # Pillow 12 can decode these, and does not list them
    for order, end in ((PIL.TiffImagePlugin.II, ""), (PIL.TiffImagePlugin.MM, "B")):
        for polarity in (0, 1):
            kinds.setdefault((order, polarity, (1,), 1, (12,), ()), ("I;16", "I;12"))
            kinds.setdefault((order, polarity, (1,), 1, (16,), ()), (f"I;16{end}", f"I;16{end}"))
            kinds.setdefault((order, polarity, (1,), 1, (32,), ()), ("I", f"I;32{end}"))
            kinds.setdefault((order, polarity, (_SIGNED,), 1, (16,), ()), ("I", f"I;16{end}S"))
            kinds.setdefault((order, polarity, (_SIGNED,), 1, (32,), ()), ("I", f"I;32{end}S"))
            kinds.setdefault((order, polarity, (_FLOAT,), 1, (64,), ()), ("F", f"F;64{end}F"))
    return list(MIME_TYPES)


def _opened(data: bytes) -> PIL.Image.Image:
    try:
        return PIL.Image.open(io.BytesIO(_without_metadata(data)), formats=formats())
    except _DECODER_ERRORS as error:
        raise InvalidImage(f"This is {_name_of_what_is_no_picture(data)}; send a {_WANTED} picture.") from error


def _without_metadata(data: bytes) -> bytes:
    """A PNG with nothing but what its pixels need, and EXIF; other files as they are.

    Pillow 12 unpacks the texts and the profile of a PNG and refuses the file where one takes over 1 MB: workflows of
    picture generators and profiles of printers do.
    """
    if not data.startswith(_PNG_SIGNATURE):
        return data
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


def _is_plain(picture: PIL.Image.Image) -> bool:
    if picture.format not in ("JPEG", "MPO", "PNG", "WEBP") or picture.mode not in ("RGB", "L"):
        return False
    # A PNG without EXIF would be decoded to look for it behind the pixels.
    orientation = picture.getexif().get(_ORIENTATION, 1) if "exif" in picture.info else 1
    return orientation == 1 and not picture.has_transparency_data


def _hidden_sizes(picture: PIL.Image.Image, data: bytes) -> list[tuple[int, int]]:
    """Sizes that decoding makes room for, and that `picture.size` does not tell.

    A TIFF of 10 x 10 pixels may be cut from one tile of 40,000 x 40,000; a HEIC may show 1 x 1 of as many.
    """
    if picture.format == "TIFF":
        return [(int(_tag(picture, _TILE_WIDTH, 0)), int(_tag(picture, _TILE_LENGTH, 0)))]
    if picture.format == "HEIF":
        sizes = re.finditer(rb"ispe.{4}(.{8})", _meta_box(data), re.DOTALL)  # ISO/IEC 23008-12, 6.5.3
        return [struct.unpack(">II", size[1]) for size in sizes]
    return []


def _meta_box(data: bytes) -> bytes:
    """The box of a HEIC file that describes it; it stands before the pixels or after (ISO/IEC 14496-12, 4.2)."""
    start = 0
    while start + 16 <= len(data):
        size, kind, long_size = struct.unpack_from(">I4sQ", data, start)
        size = long_size if size == 1 else size or len(data)
        if kind == b"meta":
            return data[start : start + size]
        start += max(size, 8)
    return b""


def _turn_upright(picture: PIL.Image.Image) -> None:
    with suppress(*_DECODER_ERRORS):  # damaged EXIF says nothing of how to turn; the pixels are still good
        PIL.ImageOps.exif_transpose(picture, in_place=True)


def _shrunk(picture: PIL.Image.Image) -> PIL.Image.Image:
    """The picture with at most MAX_SIDE_KEPT pixels a side, each the mean of a block, before copies are made of it."""
    factor = math.ceil(max(picture.size) / MAX_SIDE_KEPT)
    if factor == 1:
        return picture
    if picture.mode not in ("L", "RGB", "RGBA", "CMYK") or "transparency" in picture.info:
        picture = _on_white(picture)  # a palette's numbers have no mean
    return picture.reduce((min(factor, picture.width), min(factor, picture.height)))


def _eight_bits(picture: PIL.Image.Image, data: bytes) -> PIL.Image.Image:
    """The picture with numbers from 0 to 255, and a see-through colour in the same numbers."""
    key = picture.info.get("transparency")
    if picture.mode[0] in "IF" or (picture.mode == "L" and _tag(picture, _SAMPLE_FORMAT, 1) == _SIGNED):
        return _grey_of_numbers(picture, key)
    if picture.format == "PNG" and picture.mode == "L" and isinstance(key, int):
        depth = data[24]  # Pillow 12 widens pixels of 2 and 4 bits to 8, but not this
        picture.info["transparency"] = key * 255 // (2**depth - 1)
    if picture.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        picture.info["transparency"] = tuple(value >> 8 for value in key)  # nor does it shorten this with the pixels
    if picture.format == "BMP" and picture.mode == "RGBA" and picture.getchannel(3).getextrema() == (0, 0):
        return picture.convert("RGB")  # many programs leave the fourth byte at 0, and mean opaque
    return picture


def _grey_of_numbers(picture: PIL.Image.Image, key: Any) -> PIL.Image.Image:
    """Grey of more than 8 bits; Pillow's own conversion clips all above 255 to white."""
    import numpy as np

    values = np.asarray(picture)
    if picture.mode == "L":
        values = values.view(np.int8)
    if picture.mode == "I" and _tag(picture, _SAMPLE_FORMAT, 1) != _SIGNED:
        values = values.view(np.uint32)  # Pillow has signed ones only
    white = _white_of(picture, values)
    grey = np.empty(values.shape, np.uint8)
    for start in range(0, len(values), 256):  # in stripes: the numbers in between take eight times the memory
        stripe = np.nan_to_num(values[start : start + 256].astype(np.float64)).clip(0, white)
        grey[start : start + 256] = (stripe * (255 / white) + 0.5).astype(np.uint8)
    if _tag(picture, _PHOTOMETRIC, 1) == 0:  # WhiteIsZero
        grey = 255 - grey
    if isinstance(key, int):
        grey[values == key] = 255
    return PIL.Image.fromarray(grey)


def _white_of(picture: PIL.Image.Image, values: "np.ndarray[Any, Any]") -> float:
    """The number that stands for the brightest grey; 0 is the darkest.

    Raises:
        InvalidImage: numbers of which it is not known.
    """
    bits, sample_format = _tag(picture, _BITS, 16), _tag(picture, _SAMPLE_FORMAT, 1)
    if sample_format == _FLOAT:
        white = float(_tag(picture, _MOST, 1.0))
        if not (0 < white < math.inf and values.min() >= 0 and values.max() <= white):
            raise InvalidImage("Floating-point grey beyond 0 to 1 has no agreed white; save the picture with 8 bits.")
        return white
    if bits == 32 and values.min() >= 0 and values.max() < 2**16:
        return 2**16 - 1  # as Pillow and others store grey of 16 bits
    return float(2 ** (bits - (sample_format == _SIGNED)) - 1)


def _tag(picture: PIL.Image.Image, tag: int, default: Any) -> Any:
    """A number of a TIFF's header; the default in other files."""
    value = picture.tag_v2.get(tag, default) if isinstance(picture, PIL.TiffImagePlugin.TiffImageFile) else default
    return value[0] if isinstance(value, tuple) else value


def _on_white(picture: PIL.Image.Image) -> PIL.Image.Image:
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    if picture.mode == "La":
        picture = picture.convert("LA")
    layer = picture if picture.mode == "RGBA" else picture.convert("RGBA")
    white = PIL.Image.new("RGB", picture.size, "white")
    white.paste(layer, mask=layer)
    return white


def _fitted(picture: PIL.Image.Image, fit: Fit) -> PIL.Image.Image:
    width, height = picture.size
    longest = max(width, height)
    if fit.mode == "pad" and width != height:
        square = PIL.Image.new("RGB", (longest, longest), CLIP_MEAN_COLOUR)
        square.paste(picture, ((longest - width) // 2, (longest - height) // 2))
        picture = square
    return picture.resize((fit.side, fit.side), PIL.Image.Resampling(fit.filter))


def _name_of_what_is_no_picture(data: bytes) -> str:
    start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not data:
        return "an empty file"
    if b"%pdf-" in start:
        return "a PDF"
    if start.startswith((b"<?xml", b"<!--", b"<!doctype svg", b"<svg")) and b"<svg" in data[:65_536].lower():
        return "an SVG"
    if start.startswith((b"<!doctype html", b"<html")):
        return "a web page"
    if data[4:8] == b"ftyp" or data[:4] == b"\x1a\x45\xdf\xa3":  # MP4, QuickTime and WebM; AVIF and HEIC were opened
        return "a video, or a damaged picture"
    if data.startswith((b"II*\0", b"MM\0*", b"\xff\xd8\xff")):
        kind = "JPEG" if data[0] == 0xFF else "TIFF"
        return f"a {kind} that is damaged, or of a rare kind (other than 8 or 16 bits a colour)"
    return "not a picture that can be read"
