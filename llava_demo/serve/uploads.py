"""`UploadFolder`: the folder of uploaded files, for one server of one user; what is in it, and when it is deleted."""

import json
import logging
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from llava_demo.errors import EngineUnavailable, InvalidImage, TooManyRequests
from llava_demo.images import Image, ImageLimits

KEEP_S = 7 * 24 * 3600  # an open conversation reads its pictures again at each turn
PART_S = 600  # age at which the part of a broken-off upload is deleted
SWEEP_EVERY_S = 3600
FOLDER_BYTES = 2**30
CALLER_BYTES = FOLDER_BYTES // 4

_log = logging.getLogger(__name__)


class UploadFolder:
    """The files below `folder`, as Gradio writes them: `<sha256>/<name>` when they are whole, parts beside.

    `check_file` looks at a file and raises InvalidImage for one that may not stay; `kept` are never deleted.
    """

    def __init__(self, folder: Path, check_file: Callable[[Path], None], kept: Sequence[Path] = ()) -> None:
        self._folder, self._check_file = folder, check_file
        self._kept = {path.resolve() for path in kept}
        self._lock = threading.Lock()
        self._callers: dict[Path, str] = {}  # files received since the start, and their callers
        self._end = threading.Event()

    def start(self) -> None:
        """Delete what earlier runs left, and from now on, every hour, what is old."""
        self.sweep()
        threading.Thread(target=self._sweep_hourly, name="sweep", daemon=True).start()

    def close(self) -> None:
        """Delete all files, uploads and what the page shows."""
        self._end.set()
        self._kept = set()
        self._delete(lambda *_: True)

    def sweep(self) -> None:
        """Delete old files, and those that came last where the folder is over its size."""
        self._delete(lambda path, age_s: age_s > (KEEP_S if self._is_whole(path) else PART_S))

    def check_room(self, caller: str) -> None:
        """Raises:
        EngineUnavailable: the folder or the disk is full.
        TooManyRequests: the caller's files take too much.
        """
        sizes = {path: size for path, size, _ in self._files()}
        own = sum(size for path, size in sizes.items() if self._callers.get(path) == caller)
        if own > CALLER_BYTES:
            raise TooManyRequests("Your uploads take all the room that you may have here; try again later.", limit=1)
        if sum(sizes.values()) > FOLDER_BYTES or shutil.disk_usage(self._folder).free < 64 * 2**20:
            raise EngineUnavailable("There is no room for uploads on this server now; try again later.", 60)

    @contextmanager
    def receiving(self) -> Iterator[None]:
        """Raises:
        EngineUnavailable: the disk was full before all of an upload was written.
        """
        try:
            yield
        except OSError as error:
            self._delete(lambda path, age_s: not self._is_whole(path) and age_s > PART_S)
            raise EngineUnavailable("There is no room for uploads on this server now; try again later.", 60) from error

    def check(self, answer: bytes, caller: str) -> None:
        """Look at the files that Gradio's answer to an upload names.

        Raises:
            InvalidImage, ImageTooLarge: one is no picture; then all of this upload are deleted.
        """
        paths = [Path(path) for path in _texts(answer)]
        try:
            for path in paths:
                self._check_file(path)
                with self._lock:
                    self._callers[path] = caller
        except InvalidImage:
            for path in paths:
                with self._lock:
                    is_anothers = self._callers.get(path, caller) != caller  # first sender keeps it
                if not is_anothers and path.resolve() not in self._kept:
                    _remove(path)
            raise

    def _sweep_hourly(self) -> None:
        while not self._end.wait(SWEEP_EVERY_S):
            self.sweep()

    def _files(self) -> Iterator[tuple[Path, int, float]]:
        """Path, size in bytes and age in seconds of each file."""
        now = time.time()
        for path in self._folder.rglob("*"):
            with suppress(OSError):  # gone meanwhile
                found = path.lstat()
                if not stat.S_ISDIR(found.st_mode):
                    yield path, found.st_size, now - found.st_ctime

    def _delete(self, is_due: Callable[[Path, float], bool]) -> None:
        count = 0
        for path, _, age_s in list(self._files()):
            if path.resolve() not in self._kept and is_due(path, age_s):
                count += _remove(path)
                with self._lock:
                    self._callers.pop(path, None)
        if count:
            _log.info("%d uploads were deleted", count)

    def _is_whole(self, path: Path) -> bool:
        return path.parent != self._folder


def _remove(path: Path) -> bool:
    """Delete a file, and its folder if nothing else is in it; True unless it was gone."""
    try:
        path.unlink()
    except OSError:
        return False
    with suppress(OSError):
        path.parent.rmdir()
    return True


def _texts(answer: bytes) -> list[str]:
    value: Any = json.loads(answer)
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


def check_upload(path: Path, limits: ImageLimits) -> None:
    """Raises:
    InvalidImage, ImageTooLarge: a file is neither a picture nor, by its name and first bytes, a saved conversation.
    """
    first = {".zip": b"PK", ".json": b"{"}.get(path.suffix.lower())
    if first is not None:
        with path.open("rb") as file:
            if file.read(64).lstrip().startswith(first):
                return
    Image.from_path(path, limits)
