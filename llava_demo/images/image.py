"""`Image`: a picture from outside, checked and decoded once; every way in makes them, every engine reads them.

It opens files and fetches nothing from the network: an address is for a way in to fetch, which then hands over bytes.
"""

import base64
import binascii
import hashlib
import io
import math
import re
import struct
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pi_heif  # type: ignore[import-untyped]
import PIL.Image

from llava_demo.errors import ImageTooLarge, InvalidImage
from llava_demo.images.decode import DECODER_ERRORS, decoded

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

_TOO_MANY_PIXELS = (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning)


@dataclass(frozen=True)
class ImageLimits:
    """The largest picture that is taken. Bytes are counted first, the others read from the header before decoding.

    Pillow raises its own alarm at 89 million pixels, so `max_pixels` cannot be above.
    """

    max_bytes: int = 20 * 2**20
    max_pixels: int = 50_000_000
    max_side: int = 16_384


@dataclass(frozen=True)
class Image:
    """A decoded picture. Two are equal when their bytes are, so that `digest` can be the key of every cache.

    Every way of making one raises:
        InvalidImage: no picture, a damaged one, or one of a format that is not taken.
        ImageTooLarge: over one of the `limits`.
    """

    digest: str  # sha256 of `data`, in hex
    data: bytes = field(repr=False, compare=False)  # the file as it came
    mime_type: str = field(compare=False)  # of the bytes, whatever their label said
    pixels: PIL.Image.Image = field(repr=False, compare=False)  # RGB, upright, 8 bits, on white, at most 4,096 a side

    @classmethod
    def from_bytes(cls, data: bytes, limits: ImageLimits = ImageLimits()) -> "Image":
        """Decode a picture's file: the first frame or page, turned as its EXIF says, transparent parts on white.

        Colour profiles are not applied, as LLaVA's own processing does not.
        """
        _check_bytes(len(data), limits)
        picture = _opened(data, limits)
        mime_type = MIME_TYPES["JPEG" if picture.format == "MPO" else str(picture.format)]
        return cls(hashlib.sha256(data).hexdigest(), data, mime_type, decoded(picture, data))

    @classmethod
    def from_path(cls, path: str | Path, limits: ImageLimits = ImageLimits()) -> "Image":
        """Read a file of this machine. The path must come from somebody who may read it: it is not checked."""
        try:
            if not Path(path).is_file():
                raise InvalidImage("There is no such picture file.")
            _check_bytes(Path(path).stat().st_size, limits)
            data = Path(path).read_bytes()
        except (OSError, ValueError) as error:  # ValueError: a path with a null byte
            why = error.strerror if isinstance(error, OSError) else "not a path"
            raise InvalidImage(f"The picture's file cannot be read: {why}.") from error
        return cls.from_bytes(data, limits)

    @classmethod
    def from_data_url(cls, url: str, limits: ImageLimits = ImageLimits()) -> "Image":
        """Decode `data:image/...;base64,...`, the form in which OpenAI's clients send a file; its label is ignored."""
        if url[:8].lower().startswith(("http://", "https://")):
            raise InvalidImage("This server fetches no web addresses; send the picture's bytes as a data URL.")
        head, comma, body = url.partition(",")
        if not (comma and head[:5].lower() == "data:" and head[-7:].lower() == ";base64"):
            raise InvalidImage("A picture must be given as a data URL, data:image/jpeg;base64,...")
        return cls.from_base64(body, limits)

    @classmethod
    def from_base64(cls, text: str, limits: ImageLimits = ImageLimits()) -> "Image":
        """Decode base64 of RFC 4648; line breaks in it are ignored."""
        blanks = sum(text.count(blank) for blank in " \n\r\t")  # a fast look first: no thread runs during the next line
        _check_bytes((len(text) - blanks) * 3 // 4 - 2, limits)
        letters = "".join(text.split()) if blanks else text
        try:
            data = base64.b64decode(letters, validate=True)
        except (binascii.Error, ValueError) as error:  # ValueError: characters beyond ASCII
            raise InvalidImage("The picture is not valid base64.") from error
        return cls.from_bytes(data, limits)

    @classmethod
    def from_ints(cls, values: list[Any], limits: ImageLimits = ImageLimits()) -> "Image":
        """Decode a list of byte values, as Cloudflare's Workers send `[...new Uint8Array(file)]`."""
        _check_bytes(len(values), limits)
        return cls.from_bytes(bytes_from_numbers(values), limits)

    def to_data_url(self) -> str:
        """The file as it came, as `data:...;base64,...` with its true type."""
        return f"data:{self.mime_type};base64,{base64.b64encode(self.data).decode()}"


def bytes_from_numbers(values: list[Any]) -> bytes:
    """The bytes of numbers 0-255 out of JSON: 255.0 is one of them, 1.5 and true are not.

    Raises:
        InvalidImage: another value is among them.
    """
    kinds = set(map(type, values))
    try:
        if not kinds <= {int, float}:
            raise TypeError
        return bytes(map(_whole, values) if float in kinds else values)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidImage("The picture must be a list of whole numbers from 0 to 255.") from error


def _whole(number: float) -> int:
    if number != int(number):
        raise ValueError
    return int(number)


def _check_bytes(count: int, limits: ImageLimits) -> None:
    if count > limits.max_bytes:
        given, most = math.ceil(count / 2**20 * 10) / 10, limits.max_bytes / 2**20
        raise ImageTooLarge(f"The picture has {given:,.1f} MB; at most {most:g} MB are taken.")


@cache
def _formats() -> list[str]:
    # glibc gives pieces of over 32 MB back to the system at once; Pillow's usual 16 MB stay with the thread that had
    # them, 190 MB after each large picture.
    PIL.Image.core.set_block_size(2**26)
    pi_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)
    return list(MIME_TYPES)


def _opened(data: bytes, limits: ImageLimits) -> PIL.Image.Image:
    """Read the header only, and check the sizes that it tells."""
    try:
        picture = PIL.Image.open(io.BytesIO(data), formats=_formats())
        sizes = [picture.size, *_hidden_sizes(picture, data)]
    except _TOO_MANY_PIXELS as error:
        raise ImageTooLarge(f"The picture has more than {limits.max_pixels / 1e6:g} megapixels.") from error
    except DECODER_ERRORS as error:
        raise InvalidImage(f"This is {_name_of_what_is_no_picture(data)}; send a {_WANTED} picture.") from error
    for width, height in sizes:
        if max(width, height) > limits.max_side:
            most = f"at most {limits.max_side:,} pixels a side are taken"
            raise ImageTooLarge(f"The picture is {width:,} x {height:,}; {most}.")
        if width * height > limits.max_pixels:
            megapixels = f"{width:,} x {height:,}, {width * height / 1e6:.1f} megapixels"
            raise ImageTooLarge(f"The picture is {megapixels}; at most {limits.max_pixels / 1e6:g} are taken.")
    return picture


def _hidden_sizes(picture: PIL.Image.Image, data: bytes) -> list[tuple[int, int]]:
    """Sizes that decoding makes room for, and that `picture.size` does not tell.

    A TIFF of 10 x 10 pixels may be cut from one tile of 40,000 x 40,000; a HEIC may show 1 x 1 of as many.
    """
    if picture.format == "TIFF":
        tags = getattr(picture, "tag_v2")  # noqa: B009, of TiffImageFile only
        return [(int(tags.get(322, 0)), int(tags.get(323, 0)))]  # TileWidth, TileLength
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
    return "not a picture that can be read"
