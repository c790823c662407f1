"""Pictures for measuring: as many different ones as are wanted, the same ones in every run."""

import io
import zlib

import numpy as np
import PIL.Image

from llava_demo.images import Image

SIDE = 480  # pixels; square, so that both sides see all of it: the model card's way crops, ours pads
_TILES = 8


def picture(label: str) -> Image:
    """Coloured tiles, other ones for another `label`."""
    noise = np.random.default_rng(zlib.crc32(label.encode()))
    tiles = noise.integers(0, 256, (_TILES, _TILES, 3), dtype=np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(tiles).resize((SIDE, SIDE), PIL.Image.Resampling.NEAREST).save(file, "PNG")
    return Image.from_bytes(file.getvalue())
