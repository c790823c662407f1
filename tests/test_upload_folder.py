"""The folder of uploads: what is old goes, what is too much goes, a full disk is said, and so is what has gone."""

import errno
import json
import os
import resource
import shutil
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import PIL.Image
import pytest
from pictures import encoded, png
from processes import OtherServer, other_server
from servers import Server

from llava_demo.environment import claim_upload_folder
from llava_demo.errors import EngineUnavailable, InvalidImage
from llava_demo.images import ImageLimits
from llava_demo.serve import uploads
from llava_demo.serve.uploads import KEEP_S, PART_S, UploadFolder, check_upload

KILOBYTES = 10


@pytest.fixture
def folder(tmp_path: Path) -> UploadFolder:
    return UploadFolder(tmp_path, lambda path: check_upload(path, ImageLimits()))


def add(folder: Path, name: str) -> Path:
    """A whole upload of KILOBYTES."""
    path = folder / name / "a.png"
    path.parent.mkdir()
    path.write_bytes(bytes(KILOBYTES * 1000))
    return path


class Clock:
    """The time that `uploads` sees: files cannot be made old, but all that follows can be later."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.later_s, now = 0.0, uploads.time.time
        patch.setattr(uploads.time, "time", lambda: now() + self.later_s)


def test_whole_uploads_go_after_a_week_parts_after_minutes_and_what_the_page_shows_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, whole, part = add(tmp_path, "shown"), add(tmp_path, "whole"), tmp_path / "tmpabc"
    part.write_bytes(b"part")
    folder, clock = UploadFolder(tmp_path, lambda _: None, [shown]), Clock(monkeypatch)
    folder.sweep()
    assert part.exists()
    clock.later_s = PART_S + 1
    folder.sweep()
    assert (whole.exists(), part.exists()) == (True, False)
    clock.later_s = KEEP_S + 1
    folder.sweep()
    assert (whole.exists(), whole.parent.exists(), shown.exists()) == (False, False, True)


def test_a_server_that_starts_deletes_what_earlier_runs_left_and_at_its_end_all(
    folder: UploadFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = add(tmp_path, "old")
    Clock(monkeypatch).later_s = KEEP_S + 1
    folder.start()
    assert not old.exists()
    add(tmp_path, "new")
    folder.close()
    assert not tmp_path.exists()


def test_a_callers_oldest_uploads_make_room_for_its_new_ones(
    folder: UploadFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "CALLER_BYTES", 25_000)
    monkeypatch.setattr(uploads, "LEAST_BYTES", 0)
    greedy = [owned(folder, tmp_path, f"greedy {number}", "greedy") for number in range(4)]
    polite = owned(folder, tmp_path, "polite", "polite")
    folder.make_room("polite")
    assert all(path.exists() for path in greedy)
    folder.make_room("greedy")
    assert [path.exists() for path in greedy] == [False, False, True, True]
    assert polite.exists()


def test_a_full_folder_loses_the_oldest_uploads_of_the_caller_with_the_most(
    folder: UploadFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "FOLDER_BYTES", 35_000)
    monkeypatch.setattr(uploads, "LEAST_BYTES", 0)
    polite = owned(folder, tmp_path, "polite", "polite")
    greedy = [owned(folder, tmp_path, f"greedy {number}", "greedy") for number in range(4)]
    folder.make_room("newcomer")
    assert [path.exists() for path in greedy] == [False, False, True, True]
    assert polite.exists()


def test_a_small_file_counts_as_a_larger_one(
    folder: UploadFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gigabyte of them would be millions, which take seconds to list before each upload."""
    monkeypatch.setattr(uploads, "CALLER_BYTES", 2 * uploads.LEAST_BYTES)
    tiny = [owned(folder, tmp_path, f"tiny {number}", "greedy") for number in range(4)]
    folder.make_room("greedy")
    assert [path.exists() for path in tiny] == [False, False, True, True]


def owned(folder: UploadFolder, place: Path, name: str, caller: str) -> Path:
    path = place / name / "a.png"
    path.parent.mkdir()
    path.write_bytes(png() + bytes(KILOBYTES * 1000 - len(png())))
    folder.check(json.dumps([str(path)]).encode(), caller)
    return path


def test_in_a_folder_of_other_programs_only_files_of_this_server_are_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, part, clock = add(tmp_path, "theirs"), tmp_path / "tmpabc", Clock(monkeypatch)
    part.write_bytes(b"part of an upload to another program")
    folder = UploadFolder(tmp_path, lambda _: None, is_shared=True)
    swept = owned(folder, tmp_path, "swept", "caller")
    clock.later_s = KEEP_S + 1
    folder.sweep()
    assert not swept.exists()
    closed = owned(folder, tmp_path, "closed", "caller")
    folder.close()
    assert not closed.exists()
    assert theirs.exists()
    assert part.exists()


def test_the_first_sender_of_a_file_keeps_it(folder: UploadFolder, tmp_path: Path) -> None:
    theirs, mine = owned(folder, tmp_path, "theirs", "they"), tmp_path / "mine" / "a.png"
    mine.parent.mkdir()
    mine.write_bytes(b"#!/bin/sh")
    with pytest.raises(InvalidImage):
        folder.check(json.dumps([str(theirs), str(mine)]).encode(), "I")
    assert (theirs.exists(), mine.exists()) == (True, False)


def test_a_folder_that_something_else_deleted_takes_uploads_again(tmp_path: Path) -> None:
    """systemd deletes files in /tmp after ten days; each upload was answered with 500 from then on."""
    folder = UploadFolder(tmp_path / "uploads", lambda _: None)
    folder.make_room("a")
    folder.sweep()
    assert stat.S_IMODE((tmp_path / "uploads").stat().st_mode) == 0o700


def test_uploads_that_are_deleted_while_another_looks_at_the_folder_stop_neither(
    folder: UploadFolder, tmp_path: Path
) -> None:
    is_over = threading.Event()

    def come_and_go() -> None:
        while not is_over.is_set():
            for number in range(20):
                add(tmp_path, str(number))
            for number in range(20):
                shutil.rmtree(tmp_path / str(number))

    with ThreadPoolExecutor() as elsewhere:
        coming = elsewhere.submit(come_and_go)
        try:
            for _ in range(100):
                folder.make_room("a")
        finally:
            is_over.set()
        coming.result()


def test_a_second_signal_in_the_middle_of_the_end_does_not_wait_for_the_first(tmp_path: Path) -> None:
    """A signal's handler runs in the main thread, between any two lines of what that does."""
    folder = UploadFolder(tmp_path, lambda _: None)
    uploaded = [owned(folder, tmp_path, str(number), "a") for number in range(3)]

    class Interrupted(dict[Path, str]):
        def pop(self, *given: Any) -> Any:
            folder._callers = dict(self)
            folder.close()
            return super().pop(*given)

    folder._callers = Interrupted(folder._callers)
    closing = threading.Thread(target=folder.close, daemon=True)
    closing.start()
    closing.join(60)
    assert not any(path.exists() for path in uploaded)


def test_a_disk_with_no_room_is_said(folder: UploadFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(uploads.shutil, "disk_usage", lambda _: usage._replace(free=2**20))
    with pytest.raises(EngineUnavailable, match="no room for uploads"):
        folder.make_room("a")


def test_an_error_of_the_disk_in_mid_upload_is_said(folder: UploadFolder) -> None:
    with pytest.raises(EngineUnavailable, match="no room for uploads"), folder.receiving():
        raise OSError(errno.ENOSPC, "No space left on device")


# In a server


@pytest.fixture(scope="module")
def server(tiny_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OtherServer]:
    temporary = tmp_path_factory.mktemp("temporary")
    command = ["llava_demo", "serve", "--model", tiny_folder, "--engine", "generate", "--port", "PORT"]
    with other_server(*command, health="health/ready", variables={"GRADIO_TEMP_DIR": str(temporary)}) as server:
        yield server


def noise() -> bytes:
    """A picture of 300 KB."""
    return encoded(PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (320, 320, 3), np.uint8)), "PNG")


def test_a_disk_that_is_full_in_mid_upload_is_said_without_a_traceback_and_leaves_nothing(server: OtherServer) -> None:
    """No file of the server's may grow, as on a full disk; the log must."""
    limits = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        for _ in range(3):
            response = httpx.post(f"{server.url}gradio_api/upload", files={"files": ("a.png", noise())}, timeout=60)
            assert (response.status_code, int(response.headers["retry-after"])) == (503, 60)
            assert "no room for uploads" in response.json()["error"]
        small = httpx.post(f"{server.url}gradio_api/upload", files={"files": ("a.png", png())}, timeout=60)
        assert small.status_code == 200
    finally:
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, limits)
    again = httpx.post(f"{server.url}gradio_api/upload", files={"files": ("a.png", noise())}, timeout=60)
    assert again.status_code == 200
    folder = Path(again.json()[0]).parents[1]
    assert not [path for path in folder.iterdir() if path.is_file()]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert b"Traceback" not in os.pread(server.written.fileno(), 10**6, 0)


def test_a_conversation_that_finds_no_room_is_refused_with_words(server: OtherServer) -> None:
    """Gradio's words for it were none."""
    [path] = httpx.post(f"{server.url}gradio_api/upload", files={"files": ("a.png", noise())}, timeout=60).json()
    config = httpx.get(f"{server.url}config").json()
    values = {component["id"]: component["props"].get("value") for component in config["components"]}
    [event] = [event for event in config["dependencies"] if event["api_name"] == "saved"]
    picture = {"type": "file", "file": {"path": path, "meta": {"_type": "gradio.FileData"}}}
    data = [[{"role": "user", "content": [picture]}], *(values[knob] for knob in event["inputs"][1:])]
    limits = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        response = httpx.post(
            f"{server.url}gradio_api/run/predict", json={"data": data, "fn_index": event["id"]}, timeout=60
        )
    finally:
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, limits)
    assert "no room for files" in response.text


def ask(server: Server, picture: str) -> str:
    """What is said about a question to gradio_client's endpoint about an uploaded file."""
    file = {"path": picture, "meta": {"_type": "gradio.FileData"}}
    call = httpx.post(f"{server.url}gradio_api/call/v2/ask", json={"image": file, "prompt": "Hello", "max_tokens": 2})
    events = httpx.get(f"{server.url}gradio_api/call/ask/{call.json()['event_id']}", timeout=60).text
    return events.strip().splitlines()[-1]


def submit(server: Server, picture: str) -> str:
    """What is said about a question on the page about it."""
    file = {"path": picture, "meta": {"_type": "gradio.FileData"}}
    config: dict[str, Any] = httpx.get(f"{server.url}config").json()
    sends = next(event for event in config["dependencies"] if "submit" in str(event["targets"]))
    values = {component["id"]: component["props"].get("value") for component in config["components"]}
    data = [{"text": "Hello", "files": [file]}, [], *(values[knob] for knob in sends["inputs"][2:])]
    call = {"fn_index": sends["id"], "data": data, "session_hash": "somebody else"}
    assert httpx.post(f"{server.url}gradio_api/queue/join", json=call).status_code == 200
    with httpx.stream("GET", f"{server.url}gradio_api/queue/data?session_hash=somebody else", timeout=60) as events:
        return next(line for line in events.iter_lines() if "process_" in line and "starts" not in line)


@pytest.mark.parametrize("say", [ask, submit])
def test_a_picture_that_has_gone_is_said_with_a_way_on(tiny: Server, say: Any) -> None:
    [path] = httpx.post(f"{tiny.url}gradio_api/upload", files={"files": ("gone.png", png("blue"))}).json()
    Path(path).unlink()
    assert "no longer on this server; reload the page, or upload it again" in say(tiny, path)


def test_a_folder_of_another_user_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    first = claim_upload_folder(7860)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    first.rmdir()
    first.write_text("somebody else's")
    other = claim_upload_folder(7860)
    assert other != first
    assert other.is_dir()
    other.rmdir()
