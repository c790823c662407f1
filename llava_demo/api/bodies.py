"""What callers send: read up to a limit, and JSON out of it without holding up everybody else."""

import json
import re
import uuid
from typing import Any

from starlette.requests import Request

from llava_demo.errors import InvalidRequest, RequestTooLarge
from llava_demo.images import ImageLimits, bytes_from_numbers

LETTERS_PER_BYTE = 5  # of a picture's file as numbers, the longest form it is sent in: "255, "
WORDS_BYTES = 2**20  # for all that is not picture
MAX_VALUES = 100_000  # beside a picture's; a string of 20 MB in latin-1 has 80,000 commas

_IMAGE_KEY = re.compile(rb'"image"\s*:\s*(?=\[)')
_PART_BYTES = 100_000  # with fewer values than MAX_VALUES, however short they are


def max_body_bytes(limits: ImageLimits) -> int:
    """One largest picture as numbers, or three of them in base64."""
    return LETTERS_PER_BYTE * limits.max_bytes + WORDS_BYTES


async def body_of(request: Request, max_bytes: int) -> bytes:
    """The whole body; what is over the limit is not read.

    Raises:
        RequestTooLarge: it is longer, or says so itself.
    """
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes:
        raise _too_large(max_bytes)
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
    return bytes(body)


def json_from(body: bytes) -> Any:
    """Decode JSON; a long list of numbers under "image" comes out as `bytes`.

    `json.loads` lets no other thread run until it is done, which takes 5 to 8 s for a picture of 20 MB sent as numbers.
    So such a list is read in parts of some milliseconds, and lists as long in other places are not read at all.

    Raises:
        InvalidRequest: it is no JSON, or has too many values.
        InvalidImage: a value of the picture is no byte's.
    """
    # An unescaped quote ends a string: what is found is never inside one, but always a key.
    found = _IMAGE_KEY.search(body)
    start = found.end() if found else 0
    end = body.find(b"]", start)
    if found and end - start > _PART_BYTES and body.find(b"[", start + 1, end) < 0:
        place = uuid.uuid4().hex
        outer = _loads(body[:start] + json.dumps(place).encode() + body[end + 1 :])
        if isinstance(outer, dict) and outer.get("image") == place:
            return outer | {"image": _bytes_in(body, start + 1, end)}
    return _loads(body)


def _bytes_in(body: bytes, start: int, end: int) -> bytes:
    data = bytearray()
    while start < end:
        comma = body.find(b",", start + _PART_BYTES, end)
        stop = end if comma < 0 else comma
        data += bytes_from_numbers(_loads(b"[" + body[start:stop] + b"]"))
        start = stop + 1
    return bytes(data)


def _loads(body: bytes) -> Any:
    if body.count(b",") > MAX_VALUES:
        raise InvalidRequest(f"The body has more than {MAX_VALUES:,} values.")
    try:
        return json.loads(body.decode())  # of bytes it takes twice as long, and lets nobody else run meanwhile
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error.msg} at character {error.pos:,}.") from error
    except (ValueError, RecursionError) as error:  # ValueError: no UTF-8, or a number of over 4,300 digits
        raise InvalidRequest("The body is not valid JSON.") from error


def _too_large(max_bytes: int) -> RequestTooLarge:
    return RequestTooLarge(f"The request has more than {max_bytes / 2**20:,.0f} MB, the most that is taken.")
