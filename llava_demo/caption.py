"""Captions for folders: asks the engine about many pictures at once, and writes files that a later run continues.

It knows engines by their `stream` only, and nothing of options.
"""

import asyncio
import csv
import glob
import io
import json
import lzma
import os
import sys
import zipfile
import zlib
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, aclosing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llava_demo.chat import ChatRequest, Message, SamplingParams
from llava_demo.engines import Engine, complete
from llava_demo.errors import EngineBusy, EngineUnavailable, GenerationFailed, InvalidRequest
from llava_demo.images import Image, ImageLimits

SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif"])
READ_AHEAD = 8  # pictures that are decoded while others are answered
ON_CPU, ON_GPU = 16, 64  # answered at once, unless the operator says otherwise
TRIES = 5  # attempts for a picture while the engine does not answer; then the run ends
NAMED = 5  # broken files in the summary
FIELDS = ("file", "caption", "error")
_ROW_START, _TABLE_START = b'{"file": ', ",".join(FIELDS).encode()
# What zipfile raises for a damaged or encrypted member, and for a compression that it does not know (3.11).
_UNPACKING_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError)


@dataclass(frozen=True)
class PictureFile:
    """A picture to caption; `name` stands in its row, `path` is None inside a ZIP file."""

    name: str
    read: Callable[[], bytes]
    path: Path | None = None


@dataclass(frozen=True)
class Row:
    """The outcome for a picture: its caption, or the reason why there is none."""

    source: PictureFile
    caption: str = ""
    error: str = ""


@dataclass(frozen=True)
class Asked:
    """What is asked about each picture."""

    prompt: str
    sampling: SamplingParams
    limits: ImageLimits


Write = Callable[[Row], None]


def sources_of(places: Sequence[str]) -> list[PictureFile]:
    """The pictures in folders (and below), ZIP files, lists (.txt, one path per line), glob patterns, picture files.

    Raises:
        InvalidRequest: a place holds no picture; the message names it.
    """
    found: dict[str, PictureFile] = {}  # each picture once
    for place in dict.fromkeys(places):
        for source in _sources(place):
            known = found.get(source.name)
            is_other = known and (known.path is None or known.path.absolute() != (source.path or Path()).absolute())
            name = (Path(_text(place)) / source.name).as_posix() if is_other else source.name
            found[name] = replace(source, name=name)
    return list(found.values())


def _sources(place: str) -> Iterable[PictureFile]:
    path = Path(place)
    if path.is_dir():
        named = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        files = [file for file in named if file.is_file() or not file.exists()]  # a link to nothing is told, too
        found = [_file(file, file.relative_to(path).as_posix()) for file in files]
    elif path.suffix.lower() == ".zip" and path.is_file():
        found = list(_zipped(path))
    elif path.suffix.lower() == ".txt" and path.is_file():
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")  # as Python spells paths
        found = [_file(path.parent / line, line) for line in map(str.strip, text.split("\n")) if line]
    elif path.is_file():
        found = [_file(path, place)]
    else:
        names = sorted(glob.glob(place, recursive=True))  # noqa: PTH207, Path.glob takes no absolute pattern
        found = [_file(Path(name), name) for name in names if Path(name).is_file()]
    if not found:
        raise InvalidRequest(f"{place}: there is no picture, and no folder, ZIP file or list with some.")
    return found


def _file(path: Path, name: str) -> PictureFile:
    return PictureFile(_text(name), path.read_bytes, path)


def _text(name: str) -> str:
    """A file's name with bytes that are not UTF-8 written as \\xff."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _zipped(path: Path) -> Iterator[PictureFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
    except (OSError, zipfile.BadZipFile) as error:
        raise InvalidRequest(f"{path}: this is no ZIP file that can be read.") from error

    def reader(name: str) -> Callable[[], bytes]:
        def read() -> bytes:
            try:
                with zipfile.ZipFile(path) as archive:
                    return archive.read(name)
            except _UNPACKING_ERRORS as error:
                raise InvalidRequest(f"It cannot be unpacked: {error}.") from error

        return read

    return (PictureFile(name, reader(name)) for name in sorted(names) if Path(name).suffix.lower() in SUFFIXES)


# --- where captions go, and which are there already


def done_in(out: Path) -> dict[str, str]:
    """The names in a file of rows, each with its error or "".

    An unfinished last row, which a killed run leaves, is cut off.

    Raises:
        InvalidRequest: the file holds something else; it stays as it is.
    """
    if not out.exists():
        return {}
    whole, newline, unfinished = out.read_bytes().rpartition(b"\n")
    is_table = out.suffix == ".csv"
    start = _ROW_START if not is_table else b"" if whole else _TABLE_START
    try:
        if not (unfinished.startswith(start) or start.startswith(unfinished)):
            raise ValueError
        done = _table_from(whole.decode()) if is_table else _rows_from(whole.decode())
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise InvalidRequest(f"{out} is there, and holds no captions; choose another name with --out.") from error
    if unfinished:
        os.truncate(out, len(whole) + len(newline))
    return done


def _table_from(text: str) -> dict[str, str]:
    table = csv.DictReader(io.StringIO(text))
    if tuple(table.fieldnames or FIELDS) != FIELDS:
        raise ValueError
    return {row["file"]: row["error"] for row in table}


def _rows_from(text: str) -> dict[str, str]:
    rows = [json.loads(line) for line in text.split("\n") if line]  # `splitlines` parts at Unicode's separators, too
    return {row["file"]: row.get("error", "") for row in rows}


@contextmanager
def rows_into(out: Path) -> Iterator[Write]:
    """Append rows to `out`, as JSON lines or CSV by its suffix; each is on disk before the next one begins."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if out.suffix == ".csv" and not file.tell():
            table.writeheader()

        def write(row: Row) -> None:
            values = {"file": row.source.name, "caption": row.caption, "error": row.error}
            if out.suffix == ".csv":  # one line per row, so that `done_in` recognizes an unfinished one
                table.writerow(
                    {name: " ".join(value.split()) for name, value in values.items()} | {"file": values["file"]}
                )
            else:
                kept = {name: value for name, value in values.items() if value or name == "file"}
                file.write(json.dumps(kept, ensure_ascii=False) + "\n")
            file.flush()

        yield write


def text_beside(path: Path) -> Path:
    """photo.txt for photo.jpg, as programs that train on captions expect it."""
    return path.with_suffix(".txt")


@contextmanager
def texts_beside(told: Callable[[str], Any]) -> Iterator[Write]:
    """Write each caption to a text file beside its picture; errors go to `told`, and the next run tries again."""

    def write(row: Row) -> None:
        if row.error or row.source.path is None:
            told(f"{row.source.name}: {row.error}")
            return
        target = text_beside(row.source.path)
        unfinished = target.with_suffix(".txt.unfinished")
        unfinished.write_text(row.caption + "\n", encoding="utf-8")
        unfinished.replace(target)

    yield write


# --- the work


async def captioned(
    engine: Engine, sources: Sequence[PictureFile], asked: Asked, into: AbstractContextManager[Write], at_once: int
) -> AsyncGenerator[Row, None]:
    """Caption `sources`, `at_once` at a time; each row is written, then yielded, as soon as it is ready.

    Raises:
        EngineUnavailable: nothing answers any more; what was written stays.
    """
    waiting = iter(sources)
    with into as write:
        tasks = {asyncio.create_task(_row(engine, source, asked)) for source in islice(waiting, at_once)}
        try:
            while tasks:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    row = task.result()
                    tasks.remove(task)
                    write(row)
                    tasks |= {asyncio.create_task(_row(engine, source, asked)) for source in islice(waiting, 1)}
                    yield row
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _row(engine: Engine, source: PictureFile, asked: Asked) -> Row:
    try:
        image = await asyncio.to_thread(lambda: Image.from_bytes(source.read(), asked.limits))
        message = Message("user", asked.prompt, (image,))
        request = ChatRequest((message,), asked.sampling, caller=source.name)  # the fair queue limits a caller's share
        return Row(source, (await _answer(engine, request)).strip())
    except OSError as error:
        return Row(source, error=error.strerror or "The file cannot be read.")
    except (InvalidRequest, GenerationFailed) as error:
        return Row(source, error=str(error))


async def _answer(engine: Engine, request: ChatRequest) -> str:
    tries = 0
    while True:
        try:
            return (await complete(engine, request)).text
        except EngineUnavailable as error:
            tries += not isinstance(error, EngineBusy)  # a full queue empties by itself
            if tries >= TRIES:
                raise
            await asyncio.sleep(error.retry_after_s)


@dataclass
class Captions:
    """A run: the pictures that wait, where captions go, and what is done."""

    waiting: list[PictureFile]
    out: Path | None  # None: beside the pictures
    done: int  # by earlier runs, and by this one; failures count
    failed: list[str] = field(default_factory=list)  # names of the pictures without a caption
    before: int = field(init=False)  # done by earlier runs, as the names in `out` say

    def __post_init__(self) -> None:
        self.before = self.done

    @classmethod
    def of(cls, places: Sequence[str], out: Path | None) -> "Captions":
        """Raises:
        InvalidRequest: as `sources_of` and `done_in` raise it; or there is a ZIP file, and `out` is None.
        """
        sources = sources_of(places)
        if out is None:
            if any(source.path is None for source in sources):
                raise InvalidRequest("--beside needs pictures on disk; for a ZIP file choose --out.")
            waiting = [s for s in sources if s.path and not text_beside(s.path).exists()]
            return cls(waiting, out, len(sources) - len(waiting))
        done = done_in(out)
        waiting = [source for source in sources if source.name not in done]
        failed = [source.name for source in sources if done.get(source.name)]
        return cls(waiting, out, len(sources) - len(waiting), failed)

    async def write_all(self, engine: Engine, asked: Asked, at_once: int | None) -> None:
        """Caption what waits, with a progress bar, and close the engine."""
        total = self.done + len(self.waiting)
        at_once = READ_AHEAD + (at_once or (ON_CPU if engine.info.device == "CPU" else ON_GPU))
        into = texts_beside(tqdm.write) if self.out is None else rows_into(self.out)
        try:
            with tqdm(total=total, initial=self.done, unit="picture", disable=None) as bar:
                async with aclosing(captioned(engine, self.waiting, asked, into, at_once)) as rows:
                    async for row in rows:
                        self.done += 1
                        self.failed += [row.source.name] if row.error else []
                        bar.update()
        finally:
            sys.stderr.write(f"{self.summary(total)}\n")
            await engine.aclose()

    def summary(self, total: int | None = None) -> str:
        where = "beside them" if self.out is None else f"in {self.out}"
        captioned = self.done - len(self.failed)
        words = f"{captioned} picture{'s' * (captioned != 1)} captioned, {where}"
        if self.failed:
            why = "see above" if self.out is None else "their rows say why; delete these to try again"
            words += f"; {len(self.failed)} failed ({why}): {_some(self.failed)}"
        if total is not None and self.done < total:
            return f"{words}; {total - self.done} are left. The same command continues from there."
        if not self.before:
            return f"{words}."
        # Names, since those of another folder may be the same.
        return f"{words}. {self.before} of these names {'was' if self.before == 1 else 'were'} there before."


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
