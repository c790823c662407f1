"""Fixtures for all tests: tiny checkpoints, running servers, one browser."""

import logging
from collections.abc import Iterator

import pytest

pytest_plugins = ["checkpoints", "servers", "browsers", "node"]


@pytest.fixture(autouse=True)
def log_of_this_test_only() -> Iterator[None]:
    """A handler that a test sets up writes to the standard error of that test, which is closed after it."""
    yield
    logger = logging.getLogger("llava_demo")
    for handler in [handler for handler in logger.handlers if isinstance(handler, logging.StreamHandler)]:
        logger.removeHandler(handler)
