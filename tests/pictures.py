"""Small pictures in the forms in which people send them."""

import io
from typing import Any

import PIL.Image


def encoded(picture: PIL.Image.Image, format: str, frames: tuple[PIL.Image.Image, ...] = (), **options: Any) -> bytes:
    """The picture as the bytes of a file, before other frames or pages if there are any."""
    file = io.BytesIO()
    if frames:  # copies: Pillow 12 leaves the options of one format in a picture for the next
        options |= {"save_all": True, "append_images": [frame.copy() for frame in frames]}
    picture.copy().save(file, format, **options)
    return file.getvalue()


def png(color: str = "red", size: tuple[int, int] = (32, 24)) -> bytes:
    """A PNG file of one colour."""
    return encoded(PIL.Image.new("RGB", size, color), "PNG")
