"""`caption`, run as people run it, with the miniature: nothing lost, nothing twice, one bad file one row."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import PIL.Image
import pytest
from pictures import png
from servers import Server, free_port

from llava_demo.__main__ import main
from llava_demo.caption import done_in, sources_of
from tests.fork_server import PIPE, Program

ROOT = Path(__file__).parents[1]
COUNT, BROKEN = 200, ("003.png", "077.png", "150.png")
STAR = "The image shows a yellow star."


def rows_of(out: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures, one of them in a folder below, a broken one, and a file that is none."""
    (tmp_path / "pictures" / "below").mkdir(parents=True)
    star = (ROOT / "examples" / "night-star.png").read_bytes()
    (tmp_path / "pictures" / "star.png").write_bytes(star)
    (tmp_path / "pictures" / "below" / "Star.PNG").write_bytes(star)
    (tmp_path / "pictures" / "broken.jpg").write_bytes(b"\xff\xd8 nothing")
    (tmp_path / "pictures" / "notes.md").write_text("no picture")
    return tmp_path / "pictures"


def caption(*arguments: str | Path) -> int:
    return main(["caption", "--model", "miniature", "--prompt", "What is in this picture?", *map(str, arguments)])


def test_a_run_that_was_killed_goes_on_and_does_nothing_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures, out = tmp_path / "pictures", tmp_path / "out.jsonl"
    pictures.mkdir()
    for number in range(COUNT):
        (pictures / f"{number:03}.png").write_bytes(png("red", (40 + number, 40)))
    for name in BROKEN:
        (pictures / name).write_bytes(b"\x89PNG nothing more")
    command = ["caption", str(pictures), "--model", "miniature", "--out", str(out)]
    with Program(["-m", "llava_demo", *command], ROOT) as first:
        deadline = time.monotonic() + 120
        while not out.exists() or len(out.read_bytes().splitlines()) < 20:
            assert first.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        first.kill()
    assert len(rows_of(out)) < COUNT
    with out.open("a") as file:  # as if the kill had come in the middle of a row
        file.write('{"file": "199.png", "capt')
    assert main(command) == 3
    rows = rows_of(out)
    assert sorted(row["file"] for row in rows) == [f"{number:03}.png" for number in range(COUNT)]
    assert {row["file"] for row in rows if "error" in row} == set(BROKEN)
    assert sum("caption" in row for row in rows) == COUNT - len(BROKEN)
    first_told = capsys.readouterr().err
    assert main(command) == 3
    told = capsys.readouterr().err
    assert f"197 pictures captioned, in {out}; 3 failed (their rows say why; " in told
    assert told.endswith("): 003.png, 077.png, 150.png. 200 of these names were there before.\n")
    assert told.partition(". ")[0] in first_told
    assert rows_of(out) == rows


def test_ctrl_c_ends_it_and_says_how_far_it_is(tmp_path: Path) -> None:
    for number in range(COUNT):
        (tmp_path / f"{number}.png").write_bytes(png("red", (40 + number, 40)))
    out = tmp_path / "out.csv"
    command = ["-m", "llava_demo", "caption", tmp_path, "--model", "miniature", "--out", out]
    with Program(command, ROOT, stderr=PIPE) as running:
        deadline = time.monotonic() + 120
        while not out.exists() or len(out.read_text().splitlines()) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        running.send_signal(signal.SIGINT)
        _, words = running.communicate()
    assert running.returncode == 130
    count = len(out.read_text().splitlines()) - 1
    assert f"{count} pictures captioned, in {out}; {COUNT - count} are left." in words
    assert "Traceback" not in words


def test_a_folder_becomes_rows_and_errors_are_rows_too(folder: Path, tmp_path: Path) -> None:
    assert caption(folder, "--out", tmp_path / "new" / "c.jsonl") == 3
    rows = {row.pop("file"): row for row in rows_of(tmp_path / "new" / "c.jsonl")}
    assert rows.keys() == {"star.png", "below/Star.PNG", "broken.jpg"}
    assert rows["star.png"] == rows["below/Star.PNG"] == {"caption": STAR}
    assert rows["broken.jpg"].keys() == {"error"}


def test_csv_lists_and_patterns(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed, out = tmp_path / "list.txt", tmp_path / "c.csv"
    listed.write_text("pictures/star.png\npictures/gone.png\n")
    assert caption(listed, str(folder / "b*.jpg"), "--out", out) == 3
    with out.open(newline="") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    assert rows["pictures/star.png"]["caption"] == STAR
    assert rows["pictures/gone.png"]["error"] == "No such file or directory"
    assert rows[str(folder / "broken.jpg")]["error"]
    capsys.readouterr()
    assert caption(listed, "--out", out) == 3
    assert "1 picture captioned" in (told := capsys.readouterr().err)
    assert "1 failed" in told
    assert ": pictures/gone.png. 2 of these names were there before.\n" in told
    assert len(out.read_text().splitlines()) == 4


def test_a_zip_is_read_as_it_is(folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        archive.write(folder / "star.png", "a/star.png")
        archive.writestr("a/readme.txt", "nothing")
    assert caption(tmp_path / "p.zip", "--out", tmp_path / "c.jsonl") == 0
    assert rows_of(tmp_path / "c.jsonl") == [{"file": "a/star.png", "caption": STAR}]
    assert caption(tmp_path / "p.zip", "--beside") == 1


def test_beside_writes_what_training_programs_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "star.txt").write_text("written by hand")
    assert caption(folder, "--beside") == 3
    assert (folder / "star.txt").read_text() == "written by hand"
    assert (folder / "below" / "Star.txt").read_text() == f"{STAR}\n"
    assert sorted(path.name for path in folder.rglob("*.txt*")) == ["Star.txt", "star.txt"]
    told = capsys.readouterr()
    assert told.out.startswith("broken.jpg: ")
    assert "2 pictures captioned, beside them; 1 failed (see above): broken.jpg." in told.err


def test_another_server_captions_too(miniature: Server, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "c.jsonl"
    command = ["caption", str(folder), "--remote-url", miniature.url, "--out", str(out)]
    assert main([*command, "--prompt", "What is in this picture?"]) == 3
    assert {row.get("caption") for row in rows_of(out)} == {STAR, None}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nothing-here"], 1, "there is no picture"),
        (["{folder}", "--out", "c.md"], 2, "it must end in .jsonl or .csv"),
        (["{folder}", "--out", "{folder}/other.jsonl"], 1, "holds no captions"),
        (["{folder}", "--beside", "--out", "c.csv"], 2, "not allowed with"),
        (["{folder}", "--temperature", "9"], 2, "temperature is 9"),
    ],
)
def test_what_cannot_be_done_is_said(
    arguments: list[str], code: int, words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "other.jsonl").write_text('{"text": "something else"}\n')
    try:
        found = caption(*[argument.format(folder=folder) for argument in arguments])
    except SystemExit as ended:
        found = ended.code  # type: ignore[assignment]
    assert found == code
    assert words in capsys.readouterr().err


def test_pictures_of_any_kind_are_found(tmp_path: Path) -> None:
    PIL.Image.new("RGB", (30, 30), "red").save(tmp_path / "a.webp")
    PIL.Image.new("RGB", (30, 30), "red").save(tmp_path / "b.tiff")
    assert caption(tmp_path, "--out", tmp_path / "c.jsonl") == 0
    assert {row["file"] for row in rows_of(tmp_path / "c.jsonl")} == {"a.webp", "b.tiff"}


def test_a_link_to_nothing_is_an_error_row(tmp_path: Path) -> None:
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert caption(tmp_path, "--out", tmp_path / "c.jsonl") == 3
    assert rows_of(tmp_path / "c.jsonl") == [{"file": "gone.png", "error": "No such file or directory"}]


def test_pictures_of_one_name_in_two_places_are_two(tmp_path: Path) -> None:
    for place in ("one", "other"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "a.png").write_bytes(png())
        with zipfile.ZipFile(tmp_path / f"{place}.zip", "w") as archive:
            archive.writestr("a.png", png())
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    assert [source.name for source in sources_of([one, other, one])] == ["a.png", f"{other}/a.png"]
    assert [source.name for source in sources_of([f"{one}.zip", f"{other}.zip"])] == ["a.png", f"{other}.zip/a.png"]
    assert len(sources_of([one, f"{one}/a.png", f"{one}/*.png"])) == 2, "by two names"


def test_names_and_captions_of_any_letters_are_gone_on_with(tmp_path: Path) -> None:
    """A line separator of Unicode in a row, a file name that is no UTF-8, and a list with such a name."""
    names = [os.fsdecode(b"a\xff.png"), "b\u2028\u0085.png"]
    for name in names:
        (tmp_path / name).write_bytes(png("red", (40, 40)))
    (tmp_path / "list.txt").write_bytes(b"a\xff.png\nb\xe2\x80\xa8\xc2\x85.png\n")
    for out in (tmp_path / "c.jsonl", tmp_path / "c.csv"):
        for places in (tmp_path, tmp_path, tmp_path / "list.txt"):
            assert caption(places, "--out", out) == 0
        assert set(done_in(out)) == {"a\\xff.png", "b\u2028\u0085.png"}
        assert out.read_text("utf-8").count("\n") == 2 + (out.suffix == ".csv")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.jsonl", '{"learning_rate": 0.1}'),
        ("c.jsonl", '{"file": "a.png"}\n{"learning_rate": 0.1}'),
        ("c.csv", "name,age"),
        ("c.csv", "name,age\n"),
        ("c.csv", "name,age\nAda,36"),
    ],
)
def test_a_file_that_holds_something_else_is_left_as_it_is(
    name: str, content: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(content)
    assert caption(folder, "--out", tmp_path / name) == 1
    assert "holds no captions" in capsys.readouterr().err
    assert (tmp_path / name).read_text() == content


def test_a_member_of_a_zip_that_cannot_be_unpacked_is_one_row(folder: Path, tmp_path: Path) -> None:
    star, where = (folder / "star.png").read_bytes(), tmp_path / "p.zip"
    with zipfile.ZipFile(where, "w") as archive:
        for name in ("star.png", "locked.png", "odd.png"):
            archive.writestr(name, star)
        archive.writestr("torn.png", star, zipfile.ZIP_DEFLATED)
        torn = archive.getinfo("torn.png").header_offset + 30 + len("torn.png")
    data = bytearray(where.read_bytes())
    data[torn : torn + 8] = b"\xff" * 8
    for name, field, value in (("locked.png", 8, b"\x01"), ("odd.png", 10, b"\x63")):  # its flags; its compression
        entry = data.rindex(name.encode()) - 46  # of the central directory
        data[entry + field : entry + field + 1] = value
    where.write_bytes(data)
    assert caption(where, "--out", tmp_path / "c.jsonl") == 3
    rows = {row["file"]: row for row in rows_of(tmp_path / "c.jsonl")}
    assert rows["star.png"]["caption"] == STAR
    for name in ("locked.png", "odd.png", "torn.png"):
        assert rows[name]["error"].startswith("It cannot be unpacked: "), rows[name]


def test_a_server_that_goes_ends_the_run_in_one_line(folder: Path, tmp_path: Path) -> None:
    for number in range(20):
        (folder / f"{number}.png").write_bytes(png("red", (40 + number, 40)))
    command = ["-m", "llava_demo", "caption", str(folder), "--out", str(tmp_path / "c.jsonl")]
    away = ["--remote-url", f"http://127.0.0.1:{free_port()}"]
    code = "import llava_demo.errors as e, runpy; e.EngineUnavailable.__init__.__defaults__ = (0,)"
    run = f"{code}; runpy.run_module('llava_demo', run_name='__main__', alter_sys=True)"
    ended = subprocess.run(
        [sys.executable, "-c", run, *command[2:], *away], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert "never retrieved" not in ended.stderr
    assert "cannot be reached" in ended.stderr.splitlines()[-1]
