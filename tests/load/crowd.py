"""The locust file: clients of four interfaces that ask about pictures and know the right answers.

`python -m tests.load` runs it. A question's right answer is the one that it got when nobody else asked. Locust replaces
sockets and threads of its process by gevent's, so that nothing of the server may be imported here.
"""

import base64
import itertools
import json
import os
import random
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import requests
from locust import User, between, events, task
from locust.env import Environment
from locust.exception import StopUser

Question = dict[str, str]  # the path of a picture, the prompt, and the answer

QUESTIONS: list[Question] = json.loads(Path(os.environ["QUESTIONS"]).read_text(encoding="utf-8"))
RESULT = Path(os.environ["RESULT"])
HANG_UPS = float(os.environ.get("HANG_UPS", "0"))  # the part of the requests that their callers give up
MOST = int(os.environ.get("MOST_REQUESTS", "0"))  # then all stop; 0 for no limit

TIMEOUT_S = 300
NOT_TAKEN_S = 0.5  # a connection that is closed as early was closed before the request was read
KNOBS = {"temperature": 0, "max_tokens": 64}

outcomes: dict[str, Counter[str]] = {}
first_text_s: list[float] = []
_callers = itertools.count(1)
_asked = itertools.count(1)


class Refused(Exception):
    """The server said that it is busy, and when to try again."""


class Failed(Exception):
    """Anything else that is no answer."""


class HungUp(Exception):
    """This caller did not wait for its answer."""


class Caller(User):
    """One person or program at an address of its own; `pieces` is the interface that it uses."""

    abstract = True
    wait_time = between(0, 1)

    def on_start(self) -> None:
        number = next(_callers)
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.headers["X-Forwarded-For"] = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"

    def pieces(self, question: Question) -> Iterator[str]:
        """Ask; yields the answer as it comes."""
        raise NotImplementedError

    @task
    def ask(self) -> None:
        if MOST and next(_asked) > MOST:
            gevent.spawn(self.environment.runner.quit)  # it waits for all users, this one too
            raise StopUser
        question, start = random.choice(QUESTIONS), time.perf_counter()
        failure: Exception | None = None
        try:
            text = self._answer(question, start)
            outcome = judged(text, question)
        except (Refused, HungUp) as error:
            outcome = type(error).__name__
        except requests.ConnectionError as error:
            is_gone = "refused" in str(error) or time.perf_counter() - start < NOT_TAKEN_S
            outcome = "Gone" if is_gone else f"broken off: {error}"[:200]
        except (Failed, requests.RequestException, ValueError, KeyError) as error:
            outcome = f"{type(error).__name__}: {error}"[:200]
        if outcome not in ("right", "Refused", "HungUp", "Gone"):
            failure = Failed(outcome)
        name = type(self).__name__
        outcomes.setdefault(name, Counter())[outcome] += 1
        self.environment.events.request.fire(
            request_type="ask",
            name=name,
            response_time=(time.perf_counter() - start) * 1000,
            response_length=0,
            exception=failure,
        )

    def _answer(self, question: Question, start: float) -> str:
        patience_s = random.choice([0.0, 0.05, 0.3, 1.0]) if random.random() < HANG_UPS else None
        text = ""
        pieces = self.pieces(question)
        try:
            for piece in pieces:
                if piece and not text:
                    first_text_s.append(time.perf_counter() - start)
                text += piece
                if patience_s is not None and time.perf_counter() - start >= patience_s:
                    raise HungUp
        finally:
            pieces.close()  # type: ignore[attr-defined]
        return text

    def post(self, path: str, body: Any, is_stream: bool = True) -> requests.Response:
        return checked(self.session.post(self.host + path, json=body, stream=is_stream, timeout=TIMEOUT_S))


class OpenAI(Caller):
    """OpenAI's chat completions, streamed."""

    def pieces(self, question: Question) -> Iterator[str]:
        picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{in_base64(question)}"}}
        content = [picture, {"type": "text", "text": question["prompt"]}]
        body = {"messages": [{"role": "user", "content": content}], "stream": True, **KNOBS}
        with self.post("/v1/chat/completions", body) as response:
            for data in events_of(response):
                if data == "[DONE]":
                    return
                event = json.loads(data)
                if "error" in event:
                    raise failure_of(event["error"]["message"])
                yield event["choices"][0]["delta"].get("content") or ""
        raise Failed("the stream has no end")


class Cloudflare(Caller):
    """Cloudflare's way to run a model, whole."""

    def pieces(self, question: Question) -> Iterator[str]:
        body = {"image": in_base64(question), "prompt": question["prompt"], **KNOBS}
        yield self.post("/ai/run/@cf/llava-hf/llava-1.5-7b-hf", body, is_stream=False).json()["description"]


class Ollama(Caller):
    """Ollama's chat, in lines."""

    def pieces(self, question: Question) -> Iterator[str]:
        message = {"role": "user", "content": question["prompt"], "images": [in_base64(question)]}
        knobs = {"temperature": 0, "num_predict": KNOBS["max_tokens"]}
        with self.post("/api/chat", {"model": "llava", "messages": [message], "options": knobs}) as response:
            for line in response.iter_lines():
                part = json.loads(line)
                if "error" in part:
                    raise failure_of(part["error"])
                yield part["message"]["content"]
                if part["done"]:
                    return
        raise Failed("the stream has no end")


class Page(Caller):
    """Gradio's queue, as the web page and gradio_client use it: an upload, an event, a stream of what it does."""

    def pieces(self, question: Question) -> Iterator[str]:
        place = f"{self.host}/gradio_api"
        with Path(question["image"]).open("rb") as file:
            upload = self.session.post(f"{place}/upload", files={"files": ("a.png", file)}, timeout=TIMEOUT_S)
        picture = {"path": checked(upload).json()[0], "meta": {"_type": "gradio.FileData"}}
        data, session = [picture, question["prompt"], *self._knobs()], uuid.uuid4().hex
        call = {"data": data, "fn_index": self.ask_event["id"], "session_hash": session}
        self.post("/gradio_api/queue/join", call).close()
        url = f"{place}/queue/data?session_hash={session}"
        said = ""
        with checked(self.session.get(url, stream=True, timeout=TIMEOUT_S)) as response:
            for event in map(json.loads, events_of(response)):
                if event["msg"] == "process_completed":
                    if not event["success"]:
                        raise failure_of(event["output"]["error"])
                    yield event["output"]["data"][0][len(said) :]
                    return
                if event["msg"] == "process_generating":
                    whole = grown(said, event["output"]["data"][0])
                    yield whole[len(said) :]
                    said = whole
        raise Failed("the stream has no end")

    def on_start(self) -> None:
        super().on_start()
        config = self.session.get(f"{self.host}/config", timeout=TIMEOUT_S).json()
        self.ask_event = next(each for each in config["dependencies"] if each["api_name"] == "ask")
        info = self.session.get(f"{self.host}/gradio_api/info", timeout=TIMEOUT_S).json()
        self.parameters = info["named_endpoints"]["/ask"]["parameters"][2:]

    def _knobs(self) -> list[Any]:
        return [KNOBS.get(each["parameter_name"], each["parameter_default"]) for each in self.parameters]


def grown(said: str, update: Any) -> str:
    """A text after an update in Gradio's form: whole, or what is different."""
    if not isinstance(update, list):
        return str(update)
    for action, _, text in update:
        said = said + text if action == "append" else text
    return said


def events_of(response: requests.Response) -> Iterator[str]:
    """The data of each server-sent event."""
    response.encoding = "utf-8"
    for line in response.iter_lines(chunk_size=1, decode_unicode=True):
        if line.startswith("data: "):
            yield line.removeprefix("data: ")


def checked(response: requests.Response) -> requests.Response:
    """The response, if it is an answer."""
    if response.status_code in (429, 503):
        if int(response.headers.get("Retry-After", 0)) > 0:
            raise Refused
        raise Failed(f"{response.status_code} without Retry-After")
    if response.status_code != 200:
        raise Failed(f"status {response.status_code}: {response.text[:100]}")
    return response


def failure_of(words: str) -> Exception:
    """What is told in the middle of a stream, which has no status any more."""
    busy = ("try again", "shutting down")
    return Refused() if any(each in words for each in busy) else Failed(words)


def judged(text: str, question: Question) -> str:
    """Whether an answer is the one that its question got alone, another one's, or none of them."""
    if text.strip() == question["answer"]:
        return "right"
    return "mixed up" if text.strip() in {each["answer"] for each in QUESTIONS} else "wrong"


def in_base64(question: Question) -> str:
    return base64.b64encode(Path(question["image"]).read_bytes()).decode()


@events.quitting.add_listener
def write(environment: Environment, **_: Any) -> None:
    """Leave the result for the process that started this one."""
    total = environment.stats.total
    result = {
        "outcomes": {name: dict(counter) for name, counter in outcomes.items()},
        "first_text_s": first_text_s,
        "answer_ms": {part: total.get_response_time_percentile(part) for part in (0.5, 0.95, 0.99)},
        "requests_per_s": total.total_rps,
    }
    RESULT.write_text(json.dumps(result), encoding="utf-8")
    environment.process_exit_code = 0
