"""`UploadFolder`: the folder of uploaded files, for one server of one user; what is in it, and when it is deleted."""

import json
import logging
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_demo.errors import EngineUnavailable, InvalidImage
from llava_demo.images import Image, ImageLimits

KEEP_S = 7 * 24 * 3600  # an open conversation reads its pictures again at each turn
PART_S = 600  # age at which the part of a broken-off upload is deleted
SWEEP_EVERY_S = 3600
FOLDER_BYTES = 2**30
CALLER_BYTES = FOLDER_BYTES // 4
LEAST_BYTES = 2**16  # smallest size a file counts as: it bounds the number of files
SPARE_BYTES = 64 * 2**20  # free on the disk, for the server's other files
NO_ROOM = "There is no room for uploads on this server now; try again later."

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _File:
    path: Path
    size: int  # in bytes, LEAST_BYTES at least
    age_s: float
    is_whole: bool  # no part of an upload that is under way or broke off
    caller: str  # "" if an earlier run left it


class UploadFolder:
    """The files below `folder`, as Gradio writes them: `<sha256>/<name>` when they are whole, parts beside.

    `check_file` looks at a file and raises InvalidImage for one that may not stay; `kept` are never deleted. Where the
    folder `is_shared` with other programs, only files that came through this server are looked at or deleted.
    """

    def __init__(
        self, folder: Path, check_file: Callable[[Path], None], kept: Sequence[Path] = (), is_shared: bool = False
    ) -> None:
        self._folder, self._check_file, self._is_shared = folder, check_file, is_shared
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
        self._delete(lambda _: True)

    def sweep(self) -> None:
        """Delete old files."""
        self._delete(lambda file: file.age_s > (KEEP_S if file.is_whole else PART_S))

    def make_room(self, caller: str) -> None:
        """Delete the oldest files of `caller` where it has too many, and of the largest caller where all have.

        A full folder would stop everybody for a week; the page uploads missing pictures again.

        Raises:
            EngineUnavailable: the disk is full, whatever is in the folder.
        """
        files: dict[str, list[_File]] = {caller: []}
        for file in self._files():
            if file.is_whole and not self._is_kept(file):
                files.setdefault(file.caller, []).append(file)
        files[caller] = self._freed(files[caller], _bytes_of(files[caller]) - CALLER_BYTES)
        self._freed(max(files.values(), key=_bytes_of), sum(map(_bytes_of, files.values())) - FOLDER_BYTES)
        if shutil.disk_usage(self._folder).free < SPARE_BYTES:
            raise EngineUnavailable(NO_ROOM, 60)

    @contextmanager
    def receiving(self) -> Iterator[None]:
        """Raises:
        EngineUnavailable: the disk was full before all of an upload was written.
        """
        try:
            yield
        except OSError as error:
            raise EngineUnavailable(NO_ROOM, 60) from error

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
                for path in paths:
                    self._callers.setdefault(path, caller)  # the first sender of these bytes keeps them
        except InvalidImage:
            for path in paths:
                if self._caller_of(path, caller) == caller and path.resolve() not in self._kept:
                    self._forget(path)
            raise

    def _sweep_hourly(self) -> None:
        while not self._end.wait(SWEEP_EVERY_S):
            self.sweep()

    def _files(self) -> Iterator[_File]:
        now = time.time()
        with self._lock:
            received = list(self._callers)
        for path in received if self._is_shared else self._folder.rglob("*"):
            with suppress(OSError):  # gone meanwhile
                found = path.lstat()
                if not stat.S_ISDIR(found.st_mode):
                    is_whole = path.parent != self._folder
                    size = max(found.st_size, LEAST_BYTES)
                    yield _File(path, size, now - found.st_ctime, is_whole, self._caller_of(path))

    def _delete(self, is_due: Callable[[_File], bool]) -> None:
        due = [file for file in self._files() if is_due(file) and not self._is_kept(file)]
        if count := sum(self._forget(file.path) for file in due):
            _log.info("%d uploads were deleted", count)

    def _freed(self, files: Sequence[_File], count: int) -> list[_File]:
        """Delete the oldest of `files` until `count` bytes are free; returns the others."""
        left = sorted(files, key=lambda file: file.age_s)
        while left and count > 0:
            file = left.pop()
            self._forget(file.path)
            count -= file.size
        return left

    def _forget(self, path: Path) -> bool:
        with self._lock:
            self._callers.pop(path, None)
        return _remove(path)

    def _is_kept(self, file: _File) -> bool:
        return file.path.resolve() in self._kept

    def _caller_of(self, path: Path, otherwise: str = "") -> str:
        with self._lock:
            return self._callers.get(path, otherwise)


def _bytes_of(files: Sequence[_File]) -> int:
    return sum(file.size for file in files)


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
