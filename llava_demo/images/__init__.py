"""Pictures from outside: checked, decoded and downloaded."""

from llava_demo.images.image import MIME_TYPES, Image, ImageLimits, bytes_from_numbers

__all__ = ["MIME_TYPES", "Image", "ImageLimits", "bytes_from_numbers"]
