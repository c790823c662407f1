"""The server under test, in a process of its own, and questions whose right answers are known."""

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from PIL import Image, ImageDraw

from tests.load.watch import gauges
from tests.processes import OtherServer, other_server

ROOT = Path(__file__).parents[2]
COLORS = {"red": "#e5322d", "blue": "#2160e8", "green": "#17a34a", "yellow": "#ffd91a"}
PROMPTS = ("What is in this picture?", "How many shapes are there?")
PATIENCE_S = 120


@dataclass(frozen=True)
class Site:
    """A running server, its folder of uploads, and a folder for what is asked and measured."""

    server: OtherServer
    uploads: Path
    folder: Path

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def pid(self) -> int:
        return self.server.process.pid

    @property
    def questions(self) -> list[dict[str, str]]:
        known: list[dict[str, str]] = json.loads((self.folder / "questions.json").read_text(encoding="utf-8"))
        return known

    def parts(self) -> int:
        """Number of uploads that are neither whole nor deleted."""
        return sum(path.is_file() for folder in self.uploads.iterdir() for path in folder.iterdir())

    def wait_until_idle(self) -> dict[str, float]:
        """The gauges once nothing runs or waits and nothing is held, or those after a long wait."""
        wait_until(lambda: not any(gauges(self.url)[f"llava_{name}"] for name in BUSY))
        return gauges(self.url)


BUSY = ("running", "waiting", "held_tokens", "held_pictures")


def wait_until(holds: Callable[[], bool], limit_s: float = PATIENCE_S) -> bool:
    """Whether it holds within the limit."""
    deadline = time.monotonic() + limit_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@contextmanager
def started(folder: Path, count: int, grace_s: int = 60) -> Iterator[Site]:
    """Serve the miniature, and learn the right answers to `count` questions while nobody else asks."""
    temporary = folder / "temporary"
    temporary.mkdir(exist_ok=True)
    # Each client of the crowd is a caller of its own: it says so as a proxy would.
    options = ["--model", "miniature", "--trusted-proxy", "127.0.0.1", "--grace", str(grace_s), "--port", "PORT"]
    variables = {"GRADIO_TEMP_DIR": str(temporary)}
    with other_server("llava_demo", "serve", *options, health="health/ready", variables=variables) as server:
        site = Site(server, temporary, folder)
        questions = [{**each, "answer": answer_of(site, each)} for each in _questions(folder)[:count]]
        (folder / "questions.json").write_text(json.dumps(questions), encoding="utf-8")
        yield site


def body_of(question: dict[str, str], **options: Any) -> dict[str, Any]:
    """A question as OpenAI's clients ask it."""
    data = base64.b64encode(Path(question["image"]).read_bytes()).decode()
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    content = [picture, {"type": "text", "text": question["prompt"]}]
    return {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 64, **options}


def answer_of(site: Site, question: dict[str, str]) -> str:
    """The answer to a question that is asked once."""
    response = httpx.post(f"{site.url}v1/chat/completions", json=body_of(question), timeout=PATIENCE_S)
    text: str = response.json()["choices"][0]["message"]["content"]
    return text.strip()


def crowd(site: Site, users: int, limits: Sequence[str], **variables: str) -> dict[str, Any]:
    """What locust measured with `users` clients; `limits` are its options for the end."""
    result = site.folder / "crowd.json"
    options = ["--headless", "--users", str(users), "--spawn-rate", str(users), "--host", site.url.rstrip("/")]
    quietly = ["--only-summary", "--loglevel", "ERROR", "--stop-timeout", str(PATIENCE_S), *limits]
    known = {"QUESTIONS": str(site.folder / "questions.json"), "RESULT": str(result)}
    done = subprocess.run(
        [sys.executable, "-m", "locust", "--locustfile", str(Path(__file__).parent / "crowd.py"), *options, *quietly],
        env=os.environ | known | variables,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if not result.exists():
        raise RuntimeError(f"locust ended with {done.returncode}:\n{done.stderr[-2000:]}")
    measured: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    result.unlink()
    return measured


def _questions(folder: Path) -> list[dict[str, str]]:
    """Pictures of one shape, small enough that a request is short, and what is asked about each."""
    found = []
    for color, value in COLORS.items():
        for shape in ("circle", "square", "triangle"):
            path = folder / f"{color}-{shape}.png"
            picture = Image.new("RGB", (240, 240), "white")
            pen = ImageDraw.Draw(picture)
            if shape == "circle":
                pen.ellipse((60, 60, 180, 180), fill=value)
            elif shape == "square":
                pen.rectangle((65, 65, 175, 175), fill=value)
            else:
                pen.polygon([(120, 50), (190, 175), (50, 175)], fill=value)
            picture.save(path)
            found += [{"image": str(path), "prompt": prompt} for prompt in PROMPTS]
    return found
