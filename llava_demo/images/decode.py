"""Decodes a picture's file: its header, and its pixels as a model needs them: upright, RGB, 8 bits, on white.

A hostile file may take long: `workers` runs this code in processes that can be killed.
"""

import math
import re
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import PIL.Image
import PIL.ImageOps
import PIL.TiffImagePlugin

from llava_demo.errors import ImageTooLarge, InvalidImage
from llava_demo.images.opened import (
    BITS,
    COLOUR_MAP,
    COMPRESSION,
    DECODER_ERRORS,
    FLOAT,
    JPEG_END,
    MIME_TYPES,
    MOST,
    PHOTOMETRIC,
    SAMPLE_FORMAT,
    SIGNED,
    TILE_LENGTH,
    TILE_WIDTH,
    opened,
    tag_of,
    with_end,
)

if TYPE_CHECKING:
    import numpy as np

MAX_SIDE_KEPT = 4096  # models see less: a few tiles of at most 400 pixels a side

_ORIENTATION = 0x0112

PictureMode = Literal["pad", "crop", "resize"]
CLIP_MEAN_COLOUR = (122, 116, 104)  # tuple(int(x * 255) for x in CLIP's mean): zero for the vision tower


@dataclass(frozen=True)
class ImageLimits:
    """The largest picture that is taken. Bytes are checked first, pixels and sides by the header."""

    max_bytes: int = 20 * 2**20
    max_pixels: int = 50_000_000
    max_side: int = 16_384


@dataclass(frozen=True)
class Header:
    """A picture's description, read before its pixels are decoded."""

    mime_type: str
    width: int  # as stored, before EXIF turns it
    height: int
    is_plain: bool  # all decoders read it in the same way: a JPEG or PNG (llama.cpp: no WebP), opaque, not turned


@dataclass(frozen=True)
class Fit:
    """A square of `side` pixels for the vision tower.

    `side` and `filter` are those of the model's processor, which then has nothing to resize or crop. The processor of
    LLaVA-1.5 on the Hub keeps the middle square of a picture, and so loses 44 % of a 16:9 photo; the original demo pads
    (`expand2square` in LLaVA's mm_utils.py), which is our default.
    """

    mode: Literal["pad", "resize"]
    side: int
    filter: int  # a PIL.Image.Resampling


def fit_of(mode: PictureMode, side: int, filter: int) -> Fit | None:
    """The square of a picture mode; None where the processor gets the picture unchanged."""
    return None if mode == "crop" else Fit(mode, side, int(filter))


def header_of(data: bytes, limits: ImageLimits) -> Header:
    """Read a file's header, and check all sizes in it.

    Raises:
        InvalidImage: it is not a picture, or its format is not taken.
        ImageTooLarge: a size is over one of the limits.
    """
    picture = opened(data)
    try:
        sizes = [picture.size, *_hidden_sizes(picture, data)]
        is_plain = _is_plain(picture)
    except DECODER_ERRORS as error:
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
    """The pixels of a file whose header was checked, of the first frame or page; with `fit` as a square.

    Colour profiles are not applied, as in LLaVA's own processing.

    Raises:
        InvalidImage: the file is damaged, or the meaning of its numbers is unknown.
    """
    try:
        picture = opened(data)
        picture.load()
        if picture.format == "JPEG" and with_end(data) is not data:
            _check_whole(picture, data)
        _turn_upright(picture)
        picture = _on_white(_shrunk(_eight_bits(picture, data)))
        return _fitted(picture, fit) if fit else picture
    except InvalidImage:
        raise
    except DECODER_ERRORS as error:
        raise InvalidImage("The picture is damaged or cut off: its pixels cannot be decoded.") from error


def _check_whole(picture: PIL.Image.Image, data: bytes) -> None:
    """Refuse a JPEG that lacks more than its end marker: then bytes added at its end change its pixels.

    Raises:
        InvalidImage: pixels are missing, which libjpeg leaves grey.
    """
    there = with_end(data).removesuffix(JPEG_END).rstrip(b"\xff")
    if opened(there + b"\x55" * 64 + JPEG_END).tobytes() != picture.tobytes():
        raise InvalidImage("The picture is damaged or cut off: some of its pixels are missing.")


def _is_plain(picture: PIL.Image.Image) -> bool:
    if picture.format not in ("JPEG", "MPO", "PNG") or picture.mode not in ("RGB", "L"):
        return False
    # Without this condition, a PNG would be decoded to look for EXIF behind the pixels.
    orientation = picture.getexif().get(_ORIENTATION, 1) if "exif" in picture.info else 1
    return orientation == 1 and not picture.has_transparency_data


def _hidden_sizes(picture: PIL.Image.Image, data: bytes) -> list[tuple[int, int]]:
    """Sizes for which a decoder allocates memory, beside `picture.size`.

    A TIFF of 10 x 10 pixels may be cut from a tile of 40,000 x 40,000, a HEIC of 1 x 1 from a picture of that size.
    """
    if picture.format == "TIFF":
        return [(int(tag_of(picture, TILE_WIDTH, 0)), int(tag_of(picture, TILE_LENGTH, 0)))]
    if picture.format == "HEIF":
        sizes = re.finditer(rb"ispe.{4}(.{8})", _meta_box(data), re.DOTALL)  # ISO/IEC 23008-12, 6.5.3
        return [struct.unpack(">II", size[1]) for size in sizes]
    return []


def _meta_box(data: bytes) -> bytes:
    """The box that describes a HEIC file; it may stand before or after the pixels (ISO/IEC 14496-12, 4.2)."""
    start = 0
    while start + 16 <= len(data):
        size, kind, long_size = struct.unpack_from(">I4sQ", data, start)
        size = long_size if size == 1 else size or len(data)
        if kind == b"meta":
            return data[start : start + size]
        start += max(size, 8)
    return b""


def _turn_upright(picture: PIL.Image.Image) -> None:
    with suppress(*DECODER_ERRORS):  # the EXIF is damaged; the pixels are still good
        PIL.ImageOps.exif_transpose(picture, in_place=True)


def _shrunk(picture: PIL.Image.Image) -> PIL.Image.Image:
    """The picture with at most MAX_SIDE_KEPT pixels a side, each the mean of a block, to save memory for copies."""
    factor = math.ceil(max(picture.size) / MAX_SIDE_KEPT)
    if factor == 1:
        return picture
    if picture.mode not in ("L", "RGB", "RGBA", "CMYK") or "transparency" in picture.info:
        picture = _on_white(picture)  # numbers of a palette have no mean
    return picture.reduce((min(factor, picture.width), min(factor, picture.height)))


def _eight_bits(picture: PIL.Image.Image, data: bytes) -> PIL.Image.Image:
    """The picture with values from 0 to 255, also for its transparent colour."""
    key = picture.info.get("transparency")
    if picture.mode == "RGBA" and tag_of(picture, PHOTOMETRIC, 2) < 2:
        return _grey_and_alpha(picture, is_big_endian=data.startswith(b"MM") and tag_of(picture, COMPRESSION, 1) == 1)
    if picture.mode[0] in "IF" or (picture.mode == "L" and tag_of(picture, SAMPLE_FORMAT, 1) == SIGNED):
        return _grey_of_numbers(picture, key)
    if picture.format == "PNG" and picture.mode == "L" and isinstance(key, int):
        depth = data[24]  # Pillow 12 scales pixels of 2 and 4 bits to 8, but not the transparent colour
        picture.info["transparency"] = key * 255 // (2**depth - 1)
    if picture.format == "PNG" and picture.mode == "RGB" and isinstance(key, tuple) and data[24] == 16:
        return _without_colour(picture, key, data)
    if picture.mode == "P" and (colours := _colour_map(picture)) and max(colours) < 256:
        picture.putpalette(bytes(colours), "RGB;L")  # some programs write 8 bits, the format has 16
    if picture.format == "BMP" and picture.mode == "RGBA" and picture.getchannel(3).getextrema() == (0, 0):
        return picture.convert("RGB")  # many programs leave the fourth byte at 0, and mean opaque
    return picture


def _colour_map(picture: PIL.Image.Image) -> tuple[int, ...]:
    return picture.tag_v2.get(COLOUR_MAP, ()) if isinstance(picture, PIL.TiffImagePlugin.TiffImageFile) else ()


def _without_colour(picture: PIL.Image.Image, key: tuple[int, ...], data: bytes) -> PIL.Image.Image:
    """A PNG of 16 bits per channel whose colour `key` is transparent; Pillow 12 reads the upper bytes only.

    It reads the lower bytes when told that the file's big-endian numbers are little-endian.
    """
    import numpy as np

    lower = opened(data)
    lower.tile = [tile._replace(args="RGB;16L") for tile in lower.tile]  # type: ignore[attr-defined]
    lower.load()
    _turn_upright(lower)
    is_key = np.ones((picture.height, picture.width), bool)
    for band, value in enumerate(key):
        is_key &= np.asarray(picture.getchannel(band)) == value >> 8
        is_key &= np.asarray(lower.getchannel(band)) == value & 255
    del picture.info["transparency"]
    picture.putalpha(PIL.Image.fromarray(np.where(is_key, np.uint8(0), np.uint8(255))))
    return picture


def _grey_of_numbers(picture: PIL.Image.Image, key: Any) -> PIL.Image.Image:
    """Grey of more than 8 bits, scaled; Pillow's own conversion clips everything above 255 to white."""
    import numpy as np

    values = np.asarray(picture)
    if picture.mode == "L":
        values = values.view(np.int8)
    if picture.mode == "I" and tag_of(picture, SAMPLE_FORMAT, 1) != SIGNED:
        values = values.view(np.uint32)  # Pillow knows signed numbers only
    white = _white_of(picture, values)
    grey = np.empty(values.shape, np.uint8)
    for start in range(0, len(values), 256):  # in stripes: float64 takes eight times the memory
        stripe = np.nan_to_num(values[start : start + 256].astype(np.float64)).clip(0, white)
        grey[start : start + 256] = (stripe * (255 / white) + 0.5).astype(np.uint8)
    if tag_of(picture, PHOTOMETRIC, 1) == 0:  # WhiteIsZero
        grey = 255 - grey
    if isinstance(key, int):
        grey[values == key] = 255
    return PIL.Image.fromarray(grey)


def _grey_and_alpha(picture: PIL.Image.Image, is_big_endian: bool) -> PIL.Image.Image:
    """Grey of 16 bits with transparency, which was opened as four bytes per pixel."""
    grey, alpha = (picture.getchannel(band) for band in ("RB" if is_big_endian else "GA"))
    if tag_of(picture, PHOTOMETRIC, 1) == 0:  # WhiteIsZero
        grey = PIL.ImageOps.invert(grey)
    return PIL.Image.merge("LA", (grey, alpha))


def _white_of(picture: PIL.Image.Image, values: "np.ndarray[Any, Any]") -> float:
    """The value of white; 0 is black.

    Raises:
        InvalidImage: the value of white is unknown.
    """
    bits, sample_format = tag_of(picture, BITS, 16), tag_of(picture, SAMPLE_FORMAT, 1)
    if sample_format == FLOAT:
        white = float(tag_of(picture, MOST, 1.0))
        if not (0 < white < math.inf and values.min() >= 0 and values.max() <= white):
            raise InvalidImage("Floating-point grey beyond 0 to 1 has no agreed white; save the picture with 8 bits.")
        return white
    if bits == 32 and values.min() >= 0 and values.max() < 2**16:
        return 2**16 - 1  # as Pillow and others store grey of 16 bits
    return float(2 ** (bits - (sample_format == SIGNED)) - 1)


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
