"""`Image`: a picture from outside, checked when it is made and decoded once, when its pixels are needed.

It reads files, and fetches nothing from the network: an endpoint fetches an address and passes the bytes.
"""

import base64
import binascii
import hashlib
import math
import re
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

import PIL.Image

from llava_demo.errors import ImageTooLarge, InvalidImage, shown
from llava_demo.images import workers
from llava_demo.images.decode import Fit, ImageLimits

REMEMBERED_BYTES = 128 * 2**20  # decoded pictures kept for follow-up questions: 380 of LLaVA-1.5's squares
CARRIED_SIDE = 1024  # a square up to this side stays with its `Image`

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]{0,20}):", re.IGNORECASE)


@dataclass(frozen=True)
class Image:
    """A picture whose header was read. Pictures with equal bytes are equal, so `digest` can be a key of caches.

    Every constructor raises:
        InvalidImage: it is not a picture, or its format is not taken.
        ImageTooLarge: it is over one of the `limits`.

    Whatever reads its pixels raises InvalidImage where they are damaged, or take too long to decode.
    """

    digest: str  # sha256 of `data`, in hex
    data: bytes = field(repr=False, compare=False)  # the file as it came
    mime_type: str = field(compare=False)  # by the bytes, not by their label
    size: tuple[int, int] = field(compare=False)  # width and height by the header, as stored
    is_plain: bool = field(repr=False, compare=False)  # every decoder reads it alike, see `Header`
    _squares: dict[Fit, PIL.Image.Image] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def from_bytes(cls, data: bytes, limits: ImageLimits = ImageLimits()) -> "Image":
        """Take a picture's file."""
        _check_bytes(len(data), limits)
        header = workers.header(data, limits)
        size = (header.width, header.height)
        return cls(hashlib.sha256(data).hexdigest(), data, header.mime_type, size, header.is_plain)

    @classmethod
    def from_path(cls, path: str | Path, limits: ImageLimits = ImageLimits()) -> "Image":
        """Read a file of this machine. The path is not checked: the caller must have the right to read it."""
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
        """Take `data:image/...;base64,...`, as OpenAI's clients send a file; its MIME type is ignored.

        As in browsers, percent signs may escape characters, in base64 or in place of it (RFC 2397).
        """
        if url[:8].lower().startswith(("http://", "https://")):
            raise InvalidImage("This server fetches no web addresses; send the picture's bytes as a data URL.")
        head, comma, body = url.partition(",")
        if not comma or head[:5].lower() != "data:":
            allowed = "a data URL, data:image/jpeg;base64,..., or http: or https: where the server fetches pictures"
            raise InvalidImage(f"The picture's address is {_form_of(url)}; it must be {allowed}.")
        if head.lower().replace(" ", "").endswith(";base64"):
            return cls.from_base64(unquote(body) if "%" in body else body, limits)
        _check_bytes(len(body) - 2 * body.count("%"), limits)
        return cls.from_bytes(unquote_to_bytes(body), limits)

    @classmethod
    def from_base64(cls, text: str, limits: ImageLimits = ImageLimits()) -> "Image":
        """Take base64 of RFC 4648 in either alphabet; line breaks are ignored, and the padding may be missing."""
        blanks = sum(text.count(blank) for blank in " \n\r\t")  # fast; `split` would stop all threads for a while
        _check_bytes((len(text) - blanks) * 3 // 4 - 2, limits)
        letters = ("".join(text.split()) if blanks else text).replace("-", "+").replace("_", "/").rstrip("=")
        letters += "=" * (-len(letters) % 4)
        try:
            data = base64.b64decode(letters, validate=True)
        except (binascii.Error, ValueError) as error:  # ValueError: characters beyond ASCII
            raise InvalidImage("The picture is not valid base64.") from error
        return cls.from_bytes(data, limits)

    @classmethod
    def from_ints(cls, values: list[Any], limits: ImageLimits = ImageLimits()) -> "Image":
        """Take a list of byte values, as Cloudflare's Workers send `[...new Uint8Array(file)]`."""
        _check_bytes(len(values), limits)
        return cls.from_bytes(bytes_from_numbers(values), limits)

    @property
    def pixels(self) -> PIL.Image.Image:
        """The whole picture: RGB, upright, 8 bits, on white, at most 4,096 pixels a side. May wait for others."""
        return self._known(None) or self._keep(None, workers.pixels(self.data))

    def square(self, fit: Fit) -> PIL.Image.Image:
        """The picture in the form for the vision tower. May wait for others."""
        return self._known(fit) or self._keep(fit, workers.pixels(self.data, fit))

    def is_decoded(self, fit: Fit | None) -> bool:
        """Whether `square`, or `pixels` for None, returns at once."""
        return self._known(fit) is not None

    async def decode(self, fit: Fit | None) -> None:
        """Decode, so that `square`, or `pixels` for None, returns at once; a cancel ends the work."""
        if not self.is_decoded(fit):
            self._keep(fit, await workers.pixels_for_caller(self.data, fit))

    def _known(self, fit: Fit | None) -> PIL.Image.Image | None:
        return (fit and self._squares.get(fit)) or _recent.get((self.digest, fit))

    def _keep(self, fit: Fit | None, decoded: PIL.Image.Image) -> PIL.Image.Image:
        if fit and fit.side <= CARRIED_SIDE:
            self._squares[fit] = decoded
        _recent.put((self.digest, fit), decoded)
        return decoded

    def to_data_url(self) -> str:
        """The unchanged file as `data:...;base64,...` with its true type."""
        return f"data:{self.mime_type};base64,{base64.b64encode(self.data).decode()}"


def _form_of(address: str) -> str:
    """What an address is that is not taken; a path is not repeated."""
    if scheme := _SCHEME.match(address):
        return "a data URL without a comma" if scheme[1].lower() == "data" else f"one of {scheme[1]}:"
    return f"a text of {len(address):,} characters" if address else "empty"


def bytes_from_numbers(values: list[Any]) -> bytes:
    """Bytes from numbers 0 to 255 in JSON, which may be written as 255.0.

    Raises:
        InvalidImage: a value is something else, as 1.5 or true.
    """
    kinds = set(map(type, values))
    try:
        if not kinds <= {int, float}:
            raise TypeError
        return bytes(map(_whole, values) if float in kinds else values)
    except (TypeError, ValueError, OverflowError) as error:
        wrong = next(value for value in values if type(value) not in (int, float) or value not in range(256))
        raise InvalidImage(
            f"The picture's bytes hold {shown(wrong)}; they must be whole numbers from 0 to 255."
        ) from error


def _whole(number: float) -> int:
    if number != int(number):
        raise ValueError
    return int(number)


def _check_bytes(count: int, limits: ImageLimits) -> None:
    if count > limits.max_bytes:
        given, most = math.ceil(count / 2**20 * 10) / 10, limits.max_bytes / 2**20
        raise ImageTooLarge(f"The picture has {given:,.1f} MB; at most {most:g} MB are taken.")


class _Recent:
    """The pictures that were used last, up to REMEMBERED_BYTES of them. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # over the two below
        self._pictures: OrderedDict[Any, PIL.Image.Image] = OrderedDict()  # the one used last is last
        self._bytes = 0

    def get(self, key: Any) -> PIL.Image.Image | None:
        with self._lock:
            picture = self._pictures.get(key)
            if picture is not None:
                self._pictures.move_to_end(key)
            return picture

    def put(self, key: Any, picture: PIL.Image.Image) -> None:
        with self._lock:
            self._bytes += _bytes_of(picture) - _bytes_of(self._pictures.pop(key, None))
            self._pictures[key] = picture
            while self._bytes > REMEMBERED_BYTES:
                self._bytes -= _bytes_of(self._pictures.popitem(last=False)[1])


def _bytes_of(picture: PIL.Image.Image | None) -> int:
    return 4 * picture.width * picture.height if picture else 0  # Pillow keeps RGB in four bytes


_recent = _Recent()
