"""Small pictures in the forms in which people send them."""

import io
from typing import Any

import PIL.Image


def encoded(picture: PIL.Image.Image, format: str, **options: Any) -> bytes:
    """The picture as the bytes of a file."""
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def png(color: str = "red", size: tuple[int, int] = (32, 24)) -> bytes:
    """A PNG file of one colour."""
    return encoded(PIL.Image.new("RGB", size, color), "PNG")
