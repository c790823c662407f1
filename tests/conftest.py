"""Fixtures for all tests: tiny checkpoints, running servers, one browser."""

import atexit
import functools
import gc
import logging
import os
import shutil
import signal
import ssl
import tempfile
from collections.abc import Generator, Iterator
from typing import Any

import httpx
import pytest

from llava_demo.environment import quick_imports

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported: beside the other workers one core is what there is
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_xdist_auto_num_workers() -> int:
    """Two workers more than there are cores: a third of their time they wait for browsers and servers."""
    return (os.cpu_count() or 1) + 2


def pytest_addoption(parser: pytest.Parser) -> None:
    engines = ["generate", "batched", "remote"]
    parser.addoption("--engine", choices=engines, default="generate", help="what answers behind the page and the APIs")


# No test asks the real Hub, or finds what was once loaded from it: --model auto is then the miniature, at once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hf-home-")
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)

os.environ.setdefault("MPLBACKEND", "agg")  # else Gradio, before its first event, imports matplotlib to find one out

# Started by nohup or with & from a script, processes ignore these, and so would the servers that tests send them to.
for name in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(name) is signal.SIG_IGN:
        signal.signal(name, signal.default_int_handler if name is signal.SIGINT else signal.SIG_DFL)


def pytest_configure(config: pytest.Config) -> None:
    """The process that hands tests to workers runs none: it need not import torch first."""
    if "PYTEST_XDIST_WORKER" in os.environ or not config.getoption("numprocesses", None):
        with quick_imports():
            for name in ("checkpoints", "servers", "browsers", "node"):
                config.pluginmanager.import_plugin(name)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    with quick_imports():
        return (yield)


def pytest_sessionfinish() -> None:
    """pytest 9 collects garbage ten times at its end, to tell of errors there: once finds what there is."""
    gc.collect()
    gc.freeze()


# The files that take longest, 25 to 40 s of a CPU each. Begun as the last ones, they would leave the other cores idle.
LONGEST = [
    *("test_giving_pictures", "test_miniature_truth", "test_ending", "test_load_tools", "test_readme", "test_remote"),
    *("test_browser", "test_browser_turns", "test_bench", "test_workers", "test_start", "test_browser_keeping"),
    *("test_bench_suite", "test_engines_agree", "test_examples", "test_first_run", "test_main", "test_kernels"),
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))


@pytest.fixture(scope="session", autouse=True)
def certificates_are_read_once() -> Iterator[None]:
    """httpx 0.28 reads those of all authorities for each client and each `httpx.get`: 30 ms, and a call takes one."""

    @functools.cache
    def known(*_: str | None, **options: Any) -> ssl.SSLContext:
        return httpx.create_ssl_context(**options)

    def context(**options: Any) -> ssl.SSLContext:
        return known(*map(os.environ.get, ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE")), **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("httpx._transports.default.create_ssl_context", context)
        yield


@pytest.fixture(scope="session", autouse=True)
def requests_of_tests_are_patient() -> Iterator[None]:
    """httpx 0.28 gives up after 5 seconds by default, which a server on a busy machine may take."""
    with pytest.MonkeyPatch.context() as patch:
        for phase in ("connect", "read", "write", "pool"):
            patch.setattr(f"httpx._config.DEFAULT_TIMEOUT_CONFIG.{phase}", 60.0)
        yield


@pytest.fixture(scope="session", autouse=True)
def uploads_of_these_tests_only(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Gradio 6.31 names an upload by its hash, and a server that ends deletes its own: others that share it lose it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        yield


@pytest.fixture(autouse=True)
def upload_folder_stays() -> Iterator[None]:
    """`serve` chooses another folder for its process; servers of other tests would lose their pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", os.environ["GRADIO_TEMP_DIR"])
        yield


@pytest.fixture(autouse=True)
def log_of_this_test_only() -> Iterator[None]:
    """A handler that a test sets up writes to the standard error of that test, which is closed after it."""
    yield
    logger = logging.getLogger("llava_demo")
    for handler in [handler for handler in logger.handlers if isinstance(handler, logging.StreamHandler)]:
        logger.removeHandler(handler)
