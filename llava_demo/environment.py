"""Prepares the process's environment, before Gradio, torch and transformers are imported."""

import atexit
import gc
import inspect
import os
import re
import stat
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import getproxies

import httpx

from llava_demo.settings import SettingError

_FOLDER = "llava_demo-"
# Gradio 6.31 reads variables at its import and later: GRADIO_NUM_PORTS=0 or GRADIO_SERVER_PORT=abc would end the start,
# GRADIO_DEBUG=1 would stop it half-way, GRADIO_ALLOWED_PATHS would publish files. uvicorn reads WEB_CONCURRENCY.
_OF_USE = ("GRADIO_TEMP_DIR", "GRADIO_ROOT_PATH", "GRADIO_ANALYTICS_ENABLED", "GRADIO_SHARE_SERVER_ADDRESS")
_OURS = {"GRADIO_SERVER_NAME": "--host", "GRADIO_SERVER_PORT": "--port", "GRADIO_SHARE": "--share"}
_OTHERS = ("WEB_CONCURRENCY",)
LEAST_HANDLES = 64
LEAST_ADDRESSES = 2 * 2**30  # torch, Gradio and the miniature map 1.8 GB


def drop_variables() -> list[str]:
    """Remove variables of libraries that would override our options; returns one sentence for each that a user set.

    On a Space there are no sentences: the platform sets some of these variables.
    """
    dropped = [name for name in os.environ if name.startswith("GRADIO_") and name not in _OF_USE]
    for name in (*dropped, *_OTHERS):
        os.environ.pop(name, None)
    if os.environ.get("SYSTEM") == "spaces":
        return []
    return [f"{name} has no effect here{f'; {_OURS[name]} has' if name in _OURS else ''}." for name in sorted(dropped)]


def check_folder() -> None:
    """Raises:
    SettingError: the working folder is gone, for which Gradio asks at its import.
    """
    try:
        Path.cwd()
    except OSError as error:
        words = "The folder that this was started in is gone; change to one that is there."
        raise SettingError(words) from error


@contextmanager
def quick_imports() -> Iterator[None]:
    """Within the block, gradio, torch and transformers are imported in two thirds of the time.

    The garbage collector does not run meanwhile, and never visits their objects later. Gradio 6.31 is kept from parsing
    its sources to write stubs beside them: it leaves out classes without a file.
    """

    def file_unless_component(thing: Any) -> str:
        if isinstance(thing, type) and thing.__module__.startswith("gradio."):
            raise FileNotFoundError(thing)
        return file_of(thing)

    file_of, is_collecting, modules = inspect.getfile, gc.isenabled(), len(sys.modules)
    gc.disable()
    inspect.getfile = file_unless_component  # type: ignore[assignment]  # while libraries are imported
    try:
        yield
    finally:
        inspect.getfile = file_of
        if len(sys.modules) > modules:
            gc.freeze()
            atexit.register(gc.unfreeze)  # else triton's binding reports frozen objects as leaked at the end
        if is_collecting:
            gc.enable()


def check_limits(file_bytes: int = 0) -> None:
    """Raise the limits of `ulimit` as far as this user may; `file_bytes` is the largest file that will be written.

    Raises:
        SettingError: a limit is so low that a library would crash at the start.
    """
    try:
        import resource
    except ImportError:  # Windows
        return
    wanted = {
        "n": (resource.RLIMIT_NOFILE, LEAST_HANDLES, "open files"),
        "v": (resource.RLIMIT_AS, LEAST_ADDRESSES, "bytes of addresses"),
        "d": (resource.RLIMIT_DATA, LEAST_ADDRESSES, "bytes of data"),
        "f": (resource.RLIMIT_FSIZE, file_bytes, "bytes in a file"),
    }
    for letter, (name, least, what) in wanted.items():
        soft, hard = resource.getrlimit(name)
        if soft == resource.RLIM_INFINITY or soft >= least:
            continue
        if hard == resource.RLIM_INFINITY or hard >= least:
            resource.setrlimit(name, (least if letter == "n" else hard, hard))
        else:
            raise SettingError(f"ulimit -{letter} allows {hard:,} {what}; at least {least:,} are needed.")


def unusable_variables(error: Exception) -> list[str]:
    """The variables whose names or values are quoted by the error of a library's import; none for other errors.

    huggingface_hub 2.4 quotes the value of HF_HUB_DOWNLOAD_TIMEOUT and not its name, torch 2.13 the name of TORCH_LOGS.
    """
    if not any("importlib._bootstrap" in frame.filename for frame in traceback.extract_tb(error.__traceback__)):
        return []
    words, known = str(error), os.environ.items()
    return sorted(name for name, value in known if value and (repr(value) in words or ("_" in name and name in words)))


def reach_own_address(host: str) -> None:
    """Except this machine from proxies: Gradio 6.31 requests its own page, and a remote engine a server here.

    Raises:
        SettingError: httpx cannot use a proxy or a file of certificates, so that no request could be made.
    """
    proxies = getproxies()  # from the environment or the system's settings
    if proxies:
        hosts = proxies.pop("no", "").split(",")
        given = [re.sub(r"^\*(?=.)|[][]", "", host.strip()) for host in hosts]  # in the form that httpx reads
        excepted = [*given, "127.0.0.1", "localhost", "::1", host]
        os.environ["no_proxy"] = ",".join(dict.fromkeys(filter(None, excepted)))
        os.environ["NO_PROXY"] = os.environ["no_proxy"]
    for scheme, url in proxies.items():
        os.environ.setdefault(f"{scheme}_proxy", url)  # with NO_PROXY set, the system's settings are no longer read
    try:
        httpx.Client().close()
    except (httpx.InvalidURL, ImportError, ValueError) as error:
        names = " or ".join(f"{scheme.upper()}_PROXY" for scheme in proxies)
        raise SettingError(
            f"The address of a proxy in {names} cannot be used; it must begin with http://, https://, socks5:// or "
            "socks5h://, and be followed by a host and a port. NO_PROXY must hold names and addresses."
        ) from error
    except OSError as error:
        if os.environ.get("SSLKEYLOGFILE") and error.filename == os.environ["SSLKEYLOGFILE"]:
            raise SettingError("SSLKEYLOGFILE must be a file that can be written; unset it or mend it.") from error
        raise SettingError(
            "SSL_CERT_FILE must be a file of certificates in PEM format; unset it or mend it."
        ) from error


def is_claimed(folder: Path) -> bool:
    """Whether a folder was made by `claim_upload_folder`: no other program keeps files there."""
    return folder.name.startswith(_FOLDER)


def claim_upload_folder(port: int) -> Path:
    """Have Gradio, which must not be imported yet, keep uploads in a folder for this user and this port.

    Gradio's default folder is the same for all users of a machine: it belongs to the first user, and the servers of the
    others do not start. If another user owns our folder's name, a folder with another name is made.

    Raises:
        OSError: no folder can be made.
    """
    os.umask(os.umask(0o077) & 0o077)  # the owner must be able to read the files
    given = os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir()
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(given) / f"{_FOLDER}{user}-{port}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True, parents=True)
        found = folder.lstat()
        is_ours = stat.S_ISDIR(found.st_mode) and (not hasattr(os, "getuid") or found.st_uid == user)
    except OSError:
        is_ours = False
    if not is_ours:
        folder = Path(tempfile.mkdtemp(prefix=_FOLDER))
    folder.chmod(0o700)
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    return folder
