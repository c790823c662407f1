"""Captions for folders: every picture through the engine, many at once, into files that the next run goes on with.

Knows engines by their `stream` only, and nothing of options.
"""

import asyncio
import csv
import glob
import io
import json
import sys
import zipfile
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, aclosing, contextmanager
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class PictureFile:
    """A picture that is to be captioned, by the name that its row gets; `path` is None inside a ZIP."""

    name: str
    read: Callable[[], bytes]
    path: Path | None = None


@dataclass(frozen=True)
class Row:
    """What came of a picture: a caption, or why there is none."""

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
    """The pictures in folders (and below), ZIP files, lists (.txt, a path a line), glob patterns, and picture files.

    Raises:
        InvalidRequest: nothing is there; the message names the place.
    """
    found = {source.name: source for place in places for source in _sources(place)}  # each once
    return list(found.values())


def _sources(place: str) -> Iterable[PictureFile]:
    path = Path(place)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        found = [PictureFile(file.relative_to(path).as_posix(), file.read_bytes, file) for file in files]
    elif path.suffix.lower() == ".zip" and path.is_file():
        found = list(_zipped(path))
    elif path.suffix.lower() == ".txt" and path.is_file():
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        found = [_file(path.parent / line, line) for line in lines]
    elif path.is_file():
        found = [_file(path, place)]
    else:
        names = sorted(glob.glob(place, recursive=True))  # noqa: PTH207, Path.glob takes no absolute pattern
        found = [_file(Path(name), name) for name in names if Path(name).is_file()]
    if not found:
        raise InvalidRequest(f"{place}: there is no picture, and no folder, ZIP file or list with some.")
    return found


def _file(path: Path, name: str) -> PictureFile:
    return PictureFile(name, path.read_bytes, path)


def _zipped(path: Path) -> Iterator[PictureFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
    except (OSError, zipfile.BadZipFile) as error:
        raise InvalidRequest(f"{path}: this is no ZIP file that can be read.") from error

    def reader(name: str) -> Callable[[], bytes]:
        def read() -> bytes:
            with zipfile.ZipFile(path) as archive:
                return archive.read(name)

        return read

    return (PictureFile(name, reader(name)) for name in sorted(names) if Path(name).suffix.lower() in SUFFIXES)


# --- where captions go: what is there says what is done


def done_in(out: Path) -> dict[str, str]:
    """The names in a file of rows, each with its error or "". A last row that is not whole, since the program was
    killed, is cut off.

    Raises:
        InvalidRequest: the file holds something else.
    """
    if not out.exists():
        return {}
    data = out.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        out.write_bytes(whole)
    try:
        text = whole.decode()
        if out.suffix == ".csv":
            return {row["file"]: row["error"] for row in csv.DictReader(io.StringIO(text))}
        rows = map(json.loads, text.splitlines())
        return {row["file"]: row.get("error", "") for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidRequest(f"{out} is there, and holds no captions; choose another name with --out.") from error


@contextmanager
def rows_into(out: Path) -> Iterator[Write]:
    """Rows are added to `out`, JSON lines or CSV by its suffix, each whole and at once."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if out.suffix == ".csv" and not file.tell():
            table.writeheader()

        def write(row: Row) -> None:
            values = {"file": row.source.name, "caption": row.caption, "error": row.error}
            if out.suffix == ".csv":  # a line a row, so that an unfinished one can be told
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
    """Each caption is a text file beside its picture, whole or not there; errors are `told`, and tried next time."""

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
    """Caption `sources`, `at_once` at a time; each row is written, then yielded, in the order in which they are ready.

    Raises:
        EngineUnavailable: nothing answers any more; what was written stays.
    """
    waiting = iter(sources)
    with into as write:
        tasks = {asyncio.create_task(_row(engine, source, asked)) for source in islice(waiting, at_once)}
        try:
            while tasks:
                done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    row = task.result()
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
        request = ChatRequest((message,), asked.sampling, caller=source.name)  # pictures are equals in a fair queue
        return Row(source, (await _answer(engine, request)).strip())
    except OSError as error:
        return Row(source, error=error.strerror or "The file cannot be read.")
    except (InvalidRequest, GenerationFailed, zipfile.BadZipFile) as error:
        return Row(source, error=str(error))


async def _answer(engine: Engine, request: ChatRequest) -> str:
    tries = 0
    while True:
        try:
            return (await complete(engine, request)).text
        except EngineUnavailable as error:
            tries += not isinstance(error, EngineBusy)  # a full queue empties
            if tries >= TRIES:
                raise
            await asyncio.sleep(error.retry_after_s)


@dataclass
class Captions:
    """A run: what waits, where captions go, and what was done before and now."""

    waiting: list[PictureFile]
    out: Path | None  # None: beside the pictures
    done: int  # before this run
    failed: list[str] = field(default_factory=list)  # those of them that have no caption, by name

    @classmethod
    def of(cls, places: Sequence[str], out: Path | None) -> "Captions":
        """Raises InvalidRequest: see `sources_of` and `done_in`; a ZIP file, beside which nothing can be written."""
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
        """Caption what waits, with a bar that estimates the end; the engine is closed at last."""
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
        errors = f"; {len(self.failed)} could not be captioned: {_some(self.failed)}" if self.failed else ""
        if total is not None and self.done < total:
            return f"{self.done} of {total} pictures are done, {where}{errors}. The same command goes on from there."
        return f"{self.done} pictures are done, {where}{errors}."


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
