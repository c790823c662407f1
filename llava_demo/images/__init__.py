"""Pictures from outside: checked, decoded and downloaded."""

from llava_demo.images.decode import Fit, ImageLimits, PictureMode, fit_of
from llava_demo.images.image import Image, bytes_from_numbers
from llava_demo.images.opened import MIME_TYPES

__all__ = ["MIME_TYPES", "Fit", "Image", "ImageLimits", "PictureMode", "bytes_from_numbers", "fit_of"]
