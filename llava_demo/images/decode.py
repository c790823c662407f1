"""From a picture's opened file to its pixels: upright, RGB, 8 bits, on white, and without holding up other threads."""

import math
import mmap
import struct
import subprocess
import sys
import tempfile
import threading
import zlib
from contextlib import nullcontext, suppress

import numpy as np
import PIL.Image
import PIL.ImageOps

from llava_demo.errors import InvalidImage

# What a damaged file makes Pillow 12's decoders raise: the first five were seen among 60,000 such files, and its own
# code names the others.
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
)

# The pixels of a picture stay in memory until it is answered, of 50 megapixels 200 MB, and there may be many in line.
# What any model looks at is smaller: a few tiles of at most 400 pixels a side.
MAX_SIDE_KEPT = 4096
_LARGE_PIXELS = 8_000_000
_one_large_at_a_time = threading.Lock()  # while it is decoded, a picture takes two to four times its pixels


def decoded(picture: PIL.Image.Image, data: bytes) -> PIL.Image.Image:
    """The pixels of a picture whose header was read and checked; `data` is its file.

    Raises:
        InvalidImage: the file is damaged, or its pixels have no agreed meaning.
    """
    is_large = picture.width * picture.height > _LARGE_PIXELS
    try:
        with _one_large_at_a_time if is_large else nullcontext():
            picture = _loaded_elsewhere(picture, data) if is_large and picture.format == "WEBP" else picture
            picture.load()
            _turn_upright(picture)
            return _on_white(_shrunk(_eight_bits(picture) if picture.mode[0] in "IF" else picture))
    except DECODER_ERRORS as error:
        raise InvalidImage("The picture is damaged or cut off: its pixels cannot be decoded.") from error


def _loaded_elsewhere(picture: PIL.Image.Image, data: bytes) -> PIL.Image.Image:
    """The pixels of a WebP file, decoded by another process.

    Pillow 12 decodes WebP with the interpreter's lock in its hand: 24 megapixels stop all of a server for 60 ms.
    """
    with tempfile.TemporaryFile() as file:
        command = [sys.executable, "-P", "-c", _DECODE_WEBP, picture.mode]
        done = subprocess.run(command, input=data, stdout=file, stderr=subprocess.DEVNULL, check=False)
        if done.returncode:
            raise ValueError("not decoded")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pixels:
            loaded = PIL.Image.frombytes(picture.mode, picture.size, pixels)  # type: ignore[arg-type]
    loaded.info = picture.info  # how to turn it
    return loaded


_DECODE_WEBP = """
import io, sys
import PIL.Image
picture = PIL.Image.open(io.BytesIO(sys.stdin.buffer.read()), formats=["WEBP"])
assert picture.mode == sys.argv[1]
sys.stdout.buffer.write(picture.tobytes())
"""


def _shrunk(picture: PIL.Image.Image) -> PIL.Image.Image:
    """The picture with at most MAX_SIDE_KEPT pixels a side, each the mean of a block, before copies are made of it."""
    factor = math.ceil(max(picture.size) / MAX_SIDE_KEPT)
    if factor == 1:
        return picture
    if picture.mode not in ("L", "RGB", "RGBA", "CMYK") or "transparency" in picture.info:
        picture = _on_white(picture)  # a palette's numbers have no mean
    return picture.reduce((min(factor, picture.width), min(factor, picture.height)))


def _turn_upright(picture: PIL.Image.Image) -> None:
    with suppress(*DECODER_ERRORS):  # damaged EXIF says nothing of how to turn; the pixels are still good
        PIL.ImageOps.exif_transpose(picture, in_place=True)


def _eight_bits(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Grey of 16 bits: the high byte, as Pillow takes it in colour; its own conversion clips all above 255 to white."""
    values = np.asarray(picture)
    if picture.mode == "F" or values.min() < 0 or values.max() > 2**16 - 1:
        raise InvalidImage("Grey values of 32 bits have no agreed white; save the picture with 8 or 16 bits.")
    grey = (values >> 8).astype(np.uint8)
    if isinstance(picture.info.get("transparency"), int):
        grey[values == picture.info["transparency"]] = 255
    return PIL.Image.fromarray(grey)


def _on_white(picture: PIL.Image.Image) -> PIL.Image.Image:
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    key = picture.info.get("transparency")
    if picture.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        # The see-through colour of a PNG with 16 bits; Pillow 12 shortens its pixels to 8 bits, but not this.
        picture.info["transparency"] = tuple(value >> 8 for value in key)
    layer = picture if picture.mode == "RGBA" else picture.convert("RGBA")
    white = PIL.Image.new("RGB", picture.size, "white")
    white.paste(layer, mask=layer)
    return white
