"""The errors that callers see: each with an HTTP status, a code for programs, and a message that helps.

    DemoError                     500  internal_error           a defect of ours
    ├── InvalidRequest            400  invalid_request_error    the request is wrong; `param` names the field
    │   ├── UnsupportedParameter  400  unsupported_parameter    a field that would change the answer is not supported
    │   ├── ModelNotFound         404  model_not_found          a model that is not served here
    │   ├── RequestTooLarge       413  request_too_large        more bytes than a request may have
    │   ├── CompressedBody        415  compressed_body          the body has a Content-Encoding
    │   ├── RequestTimeout        408  request_timeout          the body came too slowly
    │   ├── InvalidImage          400  invalid_image            not a picture, or one that we refuse
    │   │   └── ImageTooLarge     413  image_too_large          more bytes or pixels than are taken
    │   ├── TooManyImages         400  invalid_request_error    more pictures than a conversation may have
    │   └── PromptTooLong         400  context_length_exceeded  more tokens than the context holds
    ├── UnknownRoute              404  not_found                nothing is served at this path
    ├── WrongMethod               405  method_not_allowed       not with this method
    ├── WrongKey                  401  invalid_api_key          no key of this server
    ├── ForeignOrigin             403  foreign_origin           the request comes from another site's web page
    ├── LoginOnly                 403  login_only               the page needs a login, and REST has no keys
    ├── TooManyRequests           429  rate_limit_exceeded      the caller has its share; others may still come
    ├── GenerationFailed          500  generation_failed        the model raised while it answered
    └── EngineUnavailable         503  engine_unavailable       not now: loading, out of memory, or a remote is down
        └── EngineBusy            503  engine_busy              the queue is full

Every endpoint shows `str(error)` to its caller. So a message says what is wrong, what is allowed and what was given. It
never holds a path, a prompt or a traceback.
"""

import reprlib
from typing import Any


class DemoError(Exception):
    """An error for the caller; `status` is the HTTP status, `code` is for programs."""

    status = 500
    code = "internal_error"


class InvalidRequest(DemoError):
    """The request is wrong; `param` is the field, if it is one field."""

    status = 400
    code = "invalid_request_error"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class UnsupportedParameter(InvalidRequest):
    code = "unsupported_parameter"


class ModelNotFound(InvalidRequest):
    status = 404
    code = "model_not_found"


class RequestTooLarge(InvalidRequest):
    status = 413
    code = "request_too_large"


class CompressedBody(InvalidRequest):
    status = 415
    code = "compressed_body"


class RequestTimeout(InvalidRequest):
    status = 408
    code = "request_timeout"


class InvalidImage(InvalidRequest):
    code = "invalid_image"


class ImageTooLarge(InvalidImage):
    status = 413
    code = "image_too_large"


class TooManyImages(InvalidRequest):
    """More pictures than a conversation may have; the page offers to leave one out."""


class PromptTooLong(InvalidRequest):
    """More tokens than the context holds; the page offers to leave a picture out where that helps."""

    code = "context_length_exceeded"

    def __init__(self, message: str, param: str | None = None, *, fits_without_pictures: bool = True) -> None:
        super().__init__(message, param)
        self.fits_without_pictures = fits_without_pictures  # as far as it is known


class UnknownRoute(DemoError):
    status = 404
    code = "not_found"


class WrongMethod(DemoError):
    status = 405
    code = "method_not_allowed"


class WrongKey(DemoError):
    status = 401
    code = "invalid_api_key"


class ForeignOrigin(DemoError):
    status = 403
    code = "foreign_origin"


class LoginOnly(DemoError):
    status = 403
    code = "login_only"


class TooManyRequests(DemoError):
    """May be tried again after `retry_after_s` seconds; the caller may have `limit` requests in flight."""

    status = 429
    code = "rate_limit_exceeded"

    def __init__(self, message: str, limit: int, retry_after_s: int = 5) -> None:
        super().__init__(message)
        self.limit, self.retry_after_s = limit, retry_after_s


class GenerationFailed(DemoError):
    code = "generation_failed"


class EngineUnavailable(DemoError):
    """May be tried again after `retry_after_s` seconds."""

    status = 503
    code = "engine_unavailable"

    def __init__(self, message: str, retry_after_s: int = 5) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineBusy(EngineUnavailable):
    code = "engine_busy"


def shown(value: Any) -> str:
    """The value that was given, cut to a length that fits a message."""
    if isinstance(value, int) and value.bit_length() > 128:  # Python does not write out numbers of 4,300 digits
        return "a huge number"
    return reprlib.repr(value)
