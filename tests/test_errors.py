"""The tree of errors: what HTTP endpoints read off them."""

import inspect

import pytest

from llava_demo import errors
from llava_demo.errors import DemoError, EngineBusy, EngineUnavailable, ImageTooLarge, InvalidRequest

ERRORS = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, DemoError)]


@pytest.mark.parametrize("error", ERRORS)
def test_the_table_in_the_documentation_is_true(error: type[DemoError]) -> None:
    """The module opens with the tree; each line has the name, the status and the code of its class, and its parent."""
    lines = [line for line in (errors.__doc__ or "").splitlines() if f" {error.__name__} " in line]
    assert len(lines) == 1
    name, status, code = lines[0].replace("│", "").replace("├──", "").replace("└──", "").split()[:3]
    assert (name, int(status), code) == (error.__name__, error.status, error.code)


def test_every_error_has_its_own_code() -> None:
    """But for pictures that are too many, to which the APIs' contract gives none."""
    own = [error for error in ERRORS if error is not errors.TooManyImages]
    assert len({error.code for error in own}) == len(own) == 19


def test_a_picture_that_is_too_large_is_also_a_request_that_the_caller_can_mend() -> None:
    error = ImageTooLarge("Too large.", "image")
    assert isinstance(error, InvalidRequest)
    assert (str(error), error.param, error.status) == ("Too large.", "image", 413)


def test_what_may_be_tried_again_says_when() -> None:
    assert EngineUnavailable("Loading.").retry_after_s == 5
    assert EngineBusy("Full.", retry_after_s=30).retry_after_s == 30
