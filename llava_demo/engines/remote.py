"""RemoteEngine: answers by other servers that speak OpenAI's chat completions: vLLM, SGLang, a cluster.

It needs no torch. A request goes to the server with the least to do; until the first word of the answer another server
may take it over. The servers queue requests themselves; this end only limits how many are sent.
"""

import asyncio
import io
import json
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import replace
from pathlib import PurePath
from typing import Any

import httpx
import PIL.Image

from llava_demo.chat import ChatRequest, Chunk
from llava_demo.engines import EngineInfo, EngineStatus
from llava_demo.engines.events import events_of
from llava_demo.engines.jobs import SHUTTING_DOWN, Job, check_pictures
from llava_demo.engines.turns import Turns
from llava_demo.engines.upstreams import Upstream, Upstreams
from llava_demo.errors import DemoError, EngineBusy, EngineUnavailable, GenerationFailed, PromptTooLong
from llava_demo.images import Fit, Image, ImageLimits, fit_of
from llava_demo.settings import SettingError, Settings
from llava_demo.wire.openai_client import STREAMED, AnswerReader, error_from, request_json

CONNECT_S = 3.0
SILENCE_S = 180.0  # a request may wait in a cluster's queue for minutes; vLLM says nothing meanwhile
MAX_RETRY_AFTER_S = 600  # the longest retry-after of another server that is passed on
CHATS_AT_A_SERVER = 64  # requests sent to each at once; the others wait here, in a fair queue
LLAVA_CONTEXT, LLAVA_IMAGE_TOKENS, LLAVA_SIDE, LLAVA_IMAGES = 4096, 576, 336, 6  # LLaVA-1.5 and models like it
_LIKE_LLAVA_15 = re.compile(r"llava-(v)?1\.5|bakllava|vip-llava", re.IGNORECASE)

_log = logging.getLogger(__name__)


def remote_engine(settings: Settings) -> "RemoteEngine":
    """The engine for `--remote-url`.

    Raises:
        SettingError: there is no address.
    """
    if not settings.remote_url:
        raise SettingError("--engine remote needs --remote-url, the address of a server, as http://127.0.0.1:8000/v1.")
    key = settings.remote_key.get_secret_value() if settings.remote_key else None
    model = None if settings.model == "auto" else settings.model
    return RemoteEngine(Upstreams(settings.remote_url, key, model), settings)


class RemoteEngine:
    """An `Engine` for callers on any number of threads and event loops. `info` follows what the servers tell."""

    def __init__(self, upstreams: Upstreams, settings: Settings) -> None:
        self._upstreams, self._settings = upstreams, settings
        slots = settings.max_concurrent or CHATS_AT_A_SERVER * len(upstreams)
        self._turns = Turns(slots, settings.max_queue, _begin)
        self._speaking = set[Job]()  # those whose first word has come

    @property
    def info(self) -> EngineInfo:
        served, count = self._upstreams.served, len(self._upstreams)
        return EngineInfo(
            model=_shown_name(served.model),
            engine="remote",
            device="another server" if count == 1 else f"{count} other servers",
            precision="its own precision" if count == 1 else "their own precision",
            attention="decided there",
            context_tokens=served.context_tokens or LLAVA_CONTEXT,
            image_tokens=served.image_tokens or LLAVA_IMAGE_TOKENS,
            max_images=self._settings.max_images or served.max_images or LLAVA_IMAGES,
            is_miniature=served.model == "miniature",
            reasons=self._reasons(),
            image_side=self._side(),
            image_mode=self._settings.image_mode if self._side() and self._settings.image_mode != "crop" else None,
        )

    async def stream(self, request: ChatRequest) -> AsyncGenerator[Chunk, None]:
        """Answer `request`; see `Engine.stream`. Closing it closes the connection, and so frees the server."""
        check_pictures(request, self.info)
        job = Job(request)
        self._turns.join(job)
        asking = asyncio.create_task(self._ask(job))
        try:
            while True:
                chunk = await job.next()
                if chunk.text:
                    self._speaking.add(job)
                yield chunk
                if chunk.finish_reason:
                    return
        finally:
            self._speaking.discard(job)
            self._turns.leave(job)
            asking.cancel()
            with suppress(asyncio.CancelledError):
                await asking

    def status(self) -> EngineStatus:
        """A request counts as waiting until its first word: it is queued or in prefill there."""
        is_up, speaking = self._upstreams.count_up and not self._turns.refusal, len(self._speaking)
        return EngineStatus("ready" if is_up else "failed", speaking, max(0, sum(self._turns.counts) - speaking))

    async def aclose(self) -> None:
        self._turns.refuse_all(SHUTTING_DOWN)
        self._upstreams.close()

    def seen(self, image: Image) -> PIL.Image.Image | None:
        """The square that the model sees of `image`, where this end makes it; else None."""
        fit = self._fit()
        return image.square(fit) if fit else None

    async def _ask(self, job: Job) -> None:
        """The task behind `stream`: puts all chunks, or what went wrong as the last item."""
        await job.turn.wait()
        try:
            async for chunk in self._chunks(job.request):
                job.put(chunk)
        except DemoError as error:
            job.put(error)
        except Exception as error:  # noqa: BLE001, the top of a task: the caller must be told
            _log.error("asking a server failed: %s", type(error).__name__)
            job.put(GenerationFailed("The server's answer could not be read; please try again."))

    async def _chunks(self, request: ChatRequest) -> AsyncIterator[Chunk]:
        """The answer of the first server that begins one."""
        request = await self._as_sent(request)
        tried: list[Upstream] = []
        failures: list[DemoError] = []
        while (upstream := self._upstreams.least_busy(but=tried)) is not None:
            tried.append(upstream)
            has_begun = False
            try:
                with self._upstreams.asking(upstream):
                    async for chunk in self._answer_of(upstream, request):
                        has_begun = has_begun or bool(chunk.text)
                        yield chunk
                return
            except (EngineUnavailable, GenerationFailed) as error:
                if has_begun:
                    raise GenerationFailed("The answer broke off: the server that wrote it failed.") from error
                failures.append(error)
        raise self._why_none_answered(failures)

    async def _answer_of(self, upstream: Upstream, request: ChatRequest) -> AsyncIterator[Chunk]:
        """The answer of one server, as long as its context allows.

        vLLM, SGLang and TGI refuse a prompt that does not fit together with `max_tokens`. Asked without it, they
        generate up to the end of the context, and refuse only a prompt that is too long by itself.
        """
        body = STREAMED | request_json(request, upstream.served.model, upstream.served.dialect)
        has_logprobs = request.sampling.top_logprobs is not None
        try:
            async for chunk in self._answer_to(body, upstream, has_logprobs):
                yield chunk
        except PromptTooLong:  # said before any text
            del body["max_tokens"]
            async for chunk in self._answer_to(body, upstream, has_logprobs):
                yield chunk

    async def _answer_to(self, body: dict[str, Any], upstream: Upstream, has_logprobs: bool) -> AsyncIterator[Chunk]:
        timeout = httpx.Timeout(SILENCE_S, connect=CONNECT_S)
        reader = AnswerReader(has_logprobs)
        try:
            # A client of its own: one that is kept belongs to the event loop it was first used in.
            async with (
                httpx.AsyncClient(
                    headers=self._upstreams.headers, verify=self._upstreams.tls, timeout=timeout
                ) as client,
                client.stream("POST", f"{upstream.url}/chat/completions", json=body) as answer,
            ):
                if answer.status_code != 200:
                    if answer.status_code in (502, 503, 504):
                        self._upstreams.saw(upstream, is_up=False)
                    raise error_from(answer.status_code, _json_of(await answer.aread()), _retry_after_s(answer))
                self._upstreams.saw(upstream, is_up=True)
                async with aclosing(events_of(answer)) as events:
                    async for data in events:
                        yield reader.chunk_from(data)
                        if reader.is_done:
                            break
        except httpx.ReadTimeout as error:
            raise EngineUnavailable(f"The server that answers said nothing for {SILENCE_S:g} seconds.") from error
        except httpx.HTTPError as error:
            self._upstreams.saw(upstream, is_up=False)
            raise EngineUnavailable("The server that answers cannot be reached.") from error
        yield reader.last_chunk()

    def _why_none_answered(self, failures: list[DemoError]) -> DemoError:
        if len(failures) == 1 or all(isinstance(failure, EngineBusy) for failure in failures):
            return failures[-1]
        return EngineUnavailable(f"None of the {len(failures)} servers that could answer does; try again in a while.")

    async def _as_sent(self, request: ChatRequest) -> ChatRequest:
        """The request with its pictures in the form in which they are sent.

        Where the side of the model's square is known, that is the square as a PNG: the same pixels for the model, a
        fraction of the bytes, and padded even where the server would crop. Else it is the file as it came, unless
        servers read it differently: an unusual format, transparency, or pixels that lie on their side.
        """
        fit = self._fit()
        for image in request.images:
            if fit or not image.is_plain:
                await image.decode(fit)

        def sent(image: Image) -> Image:
            if fit is None and image.is_plain:
                return image
            return _as_png(image.square(fit) if fit else image.pixels)

        def with_pictures() -> ChatRequest:
            messages = (replace(m, images=tuple(map(sent, m.images))) for m in request.messages)
            return replace(request, messages=tuple(messages))

        return await asyncio.to_thread(with_pictures)

    def _fit(self) -> Fit | None:
        side = self._side()
        return fit_of(self._settings.image_mode, side, PIL.Image.Resampling.BICUBIC) if side else None

    def _side(self) -> int | None:
        served = self._upstreams.served
        return served.image_side or (LLAVA_SIDE if _LIKE_LLAVA_15.search(served.model or "") else None)

    def _reasons(self) -> tuple[str, ...]:
        served, count = self._upstreams.served, len(self._upstreams)
        where = "another server answers" if count == 1 else f"{count} servers answer, the least busy one each request"
        reasons = [f"Engine remote: {where}; this one only serves the page and the API."]
        if served.context_tokens is None:
            reasons.append("The server does not tell how much its model holds; LLaVA-1.5's 4,096 tokens are assumed.")
        if self._side() and self._settings.image_mode != "crop":
            how = {"pad": "padded to", "resize": "squeezed into"}[self._settings.image_mode]
            reasons.append(f"Pictures are {how} the model's square of {self._side()} pixels here, and sent as that.")
        else:
            reasons.append("Pictures are sent as they came; the server prepares them in its own way.")
        if served.dialect.note:
            reasons.append(served.dialect.note)
        return tuple(reasons)


def _begin(job: Job) -> None:
    with suppress(RuntimeError):  # its event loop is closed
        job.loop.call_soon_threadsafe(job.turn.set)


def _shown_name(model: str | None) -> str:
    """Never the path of a folder, only its name."""
    if model is None:
        return "not known yet"
    return PurePath(model).name if PurePath(model).is_absolute() else model


def _as_png(picture: PIL.Image.Image) -> Image:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return Image.from_bytes(file.getvalue(), ImageLimits(max_bytes=2**31))  # it was taken before, as a smaller file


def _json_of(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _retry_after_s(answer: httpx.Response) -> int:
    given = answer.headers.get("retry-after", "")
    return min(int(given), MAX_RETRY_AFTER_S) if re.fullmatch("[0-9]{1,9}", given) else 5
