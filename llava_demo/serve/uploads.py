"""`UploadFolder`: the uploaded files of one server: their limits, and when they are deleted."""

import json
import logging
import os
import shutil
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
LEAST_BYTES = 2**16  # smallest size that a file counts as, which bounds the number of files
SPARE_BYTES = 64 * 2**20  # free on the disk, for the server's other files
NO_ROOM = "There is no room for uploads on this server now; try again later."

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _File:
    path: Path
    size: int  # in bytes, LEAST_BYTES at least
    age_s: float
    is_whole: bool  # False for a part of an upload that is under way or broke off
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
        self._lock = threading.RLock()  # a second signal may close the folder within `close`
        self._callers: dict[Path, str] = {}  # files received since the start, and their callers
        self._end = threading.Event()

    def start(self) -> None:
        """Delete old files now and every hour."""
        self.sweep()
        threading.Thread(target=self._sweep_hourly, name="sweep", daemon=True).start()

    def close(self) -> None:
        """Delete all files, those that the page shows too, and the folder."""
        self._end.set()
        self._kept = set()
        self._delete(lambda _: True)
        for folder, *_ in [] if self._is_shared else os.walk(self._folder, topdown=False):
            with suppress(OSError):  # something new is in it
                Path(folder).rmdir()

    def sweep(self) -> None:
        """Delete old files."""
        self._delete(lambda file: file.age_s > (KEEP_S if file.is_whole else PART_S))

    def make_room(self, caller: str) -> None:
        """Delete the oldest files of `caller` if it has too many, and of the largest caller if all together have.

        Without this a full folder would refuse uploads for a week. The page uploads missing pictures again.

        Raises:
            EngineUnavailable: the disk is full, whatever is in the folder.
        """
        self._folder.mkdir(0o700, parents=True, exist_ok=True)  # programs that clean temporary folders may delete it
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
        """Check the files that Gradio's answer to an upload names.

        Raises:
            InvalidImage, ImageTooLarge: one is no picture; then all files of this upload are deleted.
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
        for path in self._paths():
            with suppress(OSError):  # deleted meanwhile
                found = path.lstat()
                is_whole, size = path.parent != self._folder, max(found.st_size, LEAST_BYTES)
                yield _File(path, size, now - found.st_ctime, is_whole, self._caller_of(path))

    def _paths(self) -> list[Path]:
        if self._is_shared:
            with self._lock:
                return list(self._callers)
        # `Path.rglob` of Python 3.11 raises where another thread deletes a folder meanwhile; `os.walk` does not.
        return [Path(folder, name) for folder, _, names in os.walk(self._folder) for name in names]

    def _delete(self, is_due: Callable[[_File], bool]) -> None:
        due = [file for file in self._files() if is_due(file) and not self._is_kept(file)]
        if count := sum(self._forget(file.path) for file in due):
            _log.info("%d uploads were deleted", count)

    def _freed(self, files: Sequence[_File], count: int) -> list[_File]:
        """Delete the oldest of `files` until `count` bytes are freed; returns the others."""
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
    """Delete a file, and its folder if that is empty then; False if the file did not exist."""
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
