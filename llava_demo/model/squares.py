"""Pictures as LLaVA's processor is to get them: padded to a square, cropped, or squashed. Knows no model and no tokens.

The Hub's LLaVA-1.5 processor cuts the middle square out of a picture, and so loses 44 % of a 16:9 photo; the original
demo pads to a square instead (`expand2square` in LLaVA's mm_utils.py). Padding is our default.
"""

from typing import Literal

import PIL.Image

PictureMode = Literal["pad", "crop", "resize"]

CLIP_MEAN_COLOUR = (122, 116, 104)  # CLIP's mean, which is zero for the vision tower: tuple(int(x * 255) for x in mean)
MAX_PADDED_SIDE = 8192  # a square of this side takes 200 MB; of 16,384, the longest side that we take, 800 MB


def prepared(picture: PIL.Image.Image, mode: PictureMode, side: int, filter_: PIL.Image.Resampling) -> PIL.Image.Image:
    """The picture as the processor is to get it: with `crop` as it is, else a square of `side` pixels.

    `side` and `filter_` are the processor's own, so that it finds nothing left to resize or to crop.
    """
    if mode == "pad":
        return _padded(picture).resize((side, side), filter_)
    if mode == "resize":
        return picture.resize((side, side), filter_)
    return picture


def _padded(picture: PIL.Image.Image) -> PIL.Image.Image:
    if max(picture.size) > MAX_PADDED_SIDE:
        picture = picture.copy()
        picture.thumbnail((MAX_PADDED_SIDE, MAX_PADDED_SIDE))
    width, height = picture.size
    longest = max(width, height)
    square = PIL.Image.new("RGB", (longest, longest), CLIP_MEAN_COLOUR)
    square.paste(picture, ((longest - width) // 2, (longest - height) // 2))
    return square
