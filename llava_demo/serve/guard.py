"""`Guard`: the ASGI middleware in front of Gradio and the REST APIs. It stops requests that could stop the server.

It knows no model. A refusal has a message, in the format of the interface that was called.
"""

import asyncio
import inspect
import json
import logging
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import gradio as gr
from h11 import LocalProtocolError
from python_multipart.exceptions import FormParserError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llava_demo.api import demo_error, is_rest, unrouted
from llava_demo.callers import CANCELLED, Callers
from llava_demo.errors import DemoError, InvalidRequest, RequestTooLarge, UnknownRoute
from llava_demo.images import ImageLimits
from llava_demo.log import place_of
from llava_demo.serve.bodies import Bodies, IncomingBody, check_json
from llava_demo.serve.gate import Gate
from llava_demo.serve.origins import Origins
from llava_demo.serve.uploads import UploadFolder
from llava_demo.wire.bodies import MAX_SHOWN_CHARACTERS, kind_of
from llava_demo.wire.mcp import refusal_of_call, refused, to_be_refused

_SMALL_BYTES = 32_768  # JSON of this size is checked faster than a thread starts
_MAX_SESSION_CHARACTERS = 128  # Gradio keeps a session's name for minutes; the page sends 10 letters, its client 36

# The routes of Gradio 6.31 that the page, gradio_client and MCP use. The others are closed: process_recording keeps
# 19 MB and may run ffmpeg, deep_link keeps 9 MB a call; dev/reload, component_server and vibe-edit are for authors.
_OPEN = (
    *("upload", "upload_progress", "queue/join", "queue/data", "cancel", "reset", "call", "run", "api", "heartbeat"),
    *("mcp", "info", "openapi.json", "file=", "login_check", "user", "token", "app_id", "startup-events", "theme.css"),
)
_CLOSED = ("/monitoring", "/svelte", "/pwa_icon")

_NAMED_BY_CONTENT = re.compile(r"/assets/.*-[\w-]{8}\.\w+")  # as Vite names the files of Gradio's frontend
_WHOLE_ADDRESS = re.compile("https?://", re.IGNORECASE)
_RANGE = re.compile(r"bytes=(?=[0-9-]{2})([0-9]{0,18})-([0-9]{0,18})")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rules:
    """The parts that a `Guard` asks, each about one thing."""

    callers: Callers
    origins: Origins
    gate: Gate
    bodies: Bodies
    uploads: UploadFolder
    limits: ImageLimits


class Guard:
    """Wraps an application that serves `page`."""

    def __init__(self, app: ASGIApp, page: gr.Blocks, rules: Rules) -> None:
        self._app, self._page, self._rules = app, page, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        _put_right(scope)
        answer = _Answer(scope, send, self._rules.origins)
        try:
            await self._guarded(scope, receive, answer)
            if answer.unrouted:
                raise answer.unrouted
            if answer.status in _wrong_key_statuses(scope):
                self._rules.callers.note_wrong_key(scope)
        except DemoError as error:
            await answer.refuse(scope, receive, error)
        except FormParserError as error:  # Starlette's and Gradio's parsers let some of python_multipart's through
            await answer.refuse(scope, receive, InvalidRequest(f"The form cannot be read: {error}"))
        except (ClientDisconnect, HTTPException, asyncio.CancelledError) as error:
            # When uvicorn ends it cancels what is left, and would log a traceback for each.
            is_cancelled = isinstance(error, asyncio.CancelledError) and not self._rules.gate.is_closing
            if is_cancelled or (isinstance(error, HTTPException) and not answer.status):
                raise
        except Exception as error:  # noqa: BLE001, the top of a request: uvicorn would log its message and 75 lines
            _log.warning("a request failed: %s", place_of(error))
            await answer.refuse(scope, receive, DemoError("The server failed; please report this."))
            if isinstance(error.__cause__, HTTPException):  # Gradio's last event told of it: the answer is complete
                await send({"type": "http.response.body"})

    async def _guarded(self, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        rules, path = self._rules, scope["path"]
        rules.callers.name(scope)
        rules.origins.check(scope, is_rest(path))
        if _tries_key(scope):
            rules.callers.check_attempts(scope)
        if _is_closed(path):
            raise unrouted(404, scope["method"])
        if answer.origin is not None:
            asked = Headers(scope=scope)
            if scope["method"] == "OPTIONS" and "access-control-request-method" in asked:
                headers = rules.origins.preflight_headers(asked.get("access-control-request-headers"))
                await Response(status_code=204, headers=headers)(scope, receive, answer.send)
                return
            # Gradio's own CORS middleware would reflect it, with credentials.
            scope["headers"] = [(name, value) for name, value in scope["headers"] if name != b"origin"]
        with rules.gate.passing(scope), rules.bodies.counted(scope, receive, is_rest(path)) as body:
            try:
                await self._answered(scope, body, answer)
            except InvalidRequest as error:  # `answer` raised it for the 500 that Starlette sent for the first error
                raise (body.refusal or error) from None

    async def _answered(self, scope: Scope, body: IncomingBody, answer: "_Answer") -> None:
        path, is_post = scope["path"], scope["method"] == "POST"
        if is_post and path.startswith("/gradio_api/upload"):
            await self._upload(scope, body, answer)
        elif is_post and path.startswith("/gradio_api/"):
            value, receive = await self._checked_json(path, body)
            if path.startswith("/gradio_api/mcp"):
                await self._tool(value, scope, body, receive, answer)
            else:
                await self._app(scope, receive, answer.send)
        elif path.startswith("/gradio_api/mcp/sse"):
            with self._rules.callers.session_through_mcp(body.receive, answer.send) as (receive, send):
                await self._app(scope, receive, send)
        else:
            await self._app(scope, body.receive, answer.send)

    async def _checked_json(self, path: str, body: IncomingBody) -> tuple[Any, Receive]:
        data = await body.whole()
        value = await asyncio.to_thread(check_json, data) if len(data) > _SMALL_BYTES else check_json(data)
        if not path.startswith("/gradio_api/mcp"):
            self._check_event(path, value)
        return value, body.replayed(data)

    def _check_event(self, path: str, value: Any) -> None:
        """Raises:
        UnknownRoute: the page has no such event or endpoint; Gradio 6.31 answers with 500.
        """
        if not isinstance(value, dict):
            raise InvalidRequest(f"The body is {kind_of(value)}; it must be a JSON object.")
        if "data" in value and not isinstance(value["data"], list):
            words = f"data is {kind_of(value['data'])}; it must be a list, one value for each input."
            raise InvalidRequest(words, "data")
        functions = self._page.fns
        if path.startswith("/gradio_api/call/"):
            name = path.removeprefix("/gradio_api/call/").removeprefix("v2/").rstrip("/")
            known = {each.api_name: each.fn for each in functions.values() if each.api_visibility == "public"}
            if name not in known:
                raise UnknownRoute("There is no such endpoint; see /gradio_api/info.")
            is_named = path.startswith("/gradio_api/call/v2/")
            _check_arguments(name, inspect.signature(known[name]), value, is_named=is_named)
        index = value.get("fn_index")
        if (path.startswith("/gradio_api/queue/join") or index is not None) and (
            type(index) is not int or index not in functions  # for Python, True is 1
        ):
            raise UnknownRoute("The page has no such event; reload it.")
        if len(str(value.get("session_hash", ""))) > _MAX_SESSION_CHARACTERS:
            raise InvalidRequest(f"session_hash has over {_MAX_SESSION_CHARACTERS} characters.", "session_hash")

    async def _tool(self, call: Any, scope: Scope, body: IncomingBody, receive: Receive, answer: "_Answer") -> None:
        rules, app = self._rules, self._app
        if words := await asyncio.to_thread(refusal_of_call, call, rules.limits):
            if "/messages" in scope["path"]:  # a client of MCP over SSE reads answers on its session only
                receive = body.replayed(json.dumps(to_be_refused(call, words)).encode())
            else:
                app = JSONResponse(refused(call, words))
        if isinstance(call, dict) and call.get("method") == CANCELLED:
            app = Response(status_code=202)  # mcp 1.26 would end the whole session when the call returns
        with rules.callers.asked_through_mcp(scope, receive, call) as receive_noting:
            await app(scope, receive_noting, answer.send)

    async def _upload(self, scope: Scope, body: IncomingBody, answer: "_Answer") -> None:
        """Let Gradio write the files, then check them; files that are no pictures are deleted and refused."""
        uploads = self._rules.uploads
        await asyncio.to_thread(uploads.make_room, body.caller)
        kept: list[Message] = []

        async def keep(message: Message) -> None:
            kept.append(message)

        with uploads.receiving():
            await self._app(scope, body.receive, keep)
        status, content = kept[0]["status"], b"".join(message.get("body", b"") for message in kept)
        if status in (400, 413) and not content.startswith(b"{"):  # Gradio's bare text
            raise (RequestTooLarge if status == 413 else InvalidRequest)(content.decode(), "files")
        if status == 200:
            await asyncio.to_thread(uploads.check, content, body.caller)
        for message in kept:
            await answer.send(message)


class _Answer:
    """An answer on its way out: whether it has begun, and whether the page that asked may read it."""

    def __init__(self, scope: Scope, send: Send, origins: Origins) -> None:
        self.origin, self.status = Headers(scope=scope).get("origin"), 0  # 0 before the answer has begun
        path = scope["path"]
        self._has_words, self._is_page = is_rest(path), not path.startswith("/gradio_api/")
        self._is_unchanging = _NAMED_BY_CONTENT.fullmatch(path) is not None
        self._method = scope["method"]
        self.unrouted: DemoError | None = None  # replaces Gradio's 404 or 405, which has no message
        self._is_failure = False  # Gradio answers with 500
        self._allowed: str | None = None  # the methods that the route takes, for a 405
        self._send, self._origins = send, origins

    async def send(self, message: Message) -> None:
        """Pass a message on.

        Raises:
            InvalidRequest: it replaces a 500 of Gradio, whose words only say something if they are an event's.
        """
        if self.unrouted:
            return
        if self._is_failure:
            raise InvalidRequest(_event_error(message["body"]) or "This request does not fit the page; reload it.")
        if message["type"] == "http.response.start":
            if message["status"] == 500 and not self._has_words:
                self._is_failure = True
                return
            if not self._has_words and (message["status"] == 405 or (message["status"] == 404 and self._is_page)):
                self.unrouted = unrouted(message["status"], self._method)
                self._allowed = Headers(raw=message["headers"]).get("allow")
                return
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Content-Type-Options"] = "nosniff"
            if self._is_unchanging and message["status"] < 400:  # else browsers ask again for each of a hundred files
                headers["Cache-Control"] = "public, max-age=31536000, immutable"
            if self.origin is not None:
                self._origins.allow(self.origin, headers)
        await self._send(message)

    async def refuse(self, scope: Scope, receive: Receive, error: DemoError) -> None:
        """Answer with an error, unless an answer has begun."""
        if self.status:
            return
        self.unrouted, self._has_words, self._is_failure = None, True, False
        request = Request(scope)
        response = await demo_error(request, error)
        if not is_rest(scope["path"]):
            words = {"error": str(error), "detail": str(error)}
            kept = {name: value for name, value in response.headers.items() if not name.startswith("content-")}
            response = JSONResponse(words, error.status, kept)
        if self._allowed:
            response.headers["Allow"] = self._allowed  # RFC 9110, 15.5.6
        if error.status in (403, 408, 413, 503):
            response.headers["Connection"] = "close"  # the rest of the body is not read
        origin, self.origin = self.origin, None if error.status == 403 else self.origin
        with suppress(LocalProtocolError):  # uvicorn has refused a body of broken chunks meanwhile, and hangs up
            await response(scope, receive, self.send)
        self.origin = origin


def _event_error(body: bytes) -> str | None:
    """The words in Gradio's answer for an event that failed; None where it has none."""
    try:
        words = json.loads(body)["error"]
    except (ValueError, TypeError, LookupError):
        return None
    return words if isinstance(words, str) else None


def _check_arguments(name: str, signature: inspect.Signature, body: dict[str, Any], *, is_named: bool) -> None:
    """Raises:
    InvalidRequest: an endpoint's arguments, `data` or by their names, are too many or too few.
    """
    parameters = signature.parameters
    takes = f"/{name} takes {', '.join(parameters) or 'nothing'}"
    if not is_named:
        count = len(body.get("data") or ())
        if count != len(parameters):
            raise InvalidRequest(f"data has {count} values; {takes}: {len(parameters)} in all.", "data")
        return
    for unknown in body.keys() - parameters.keys() - {"oauth_token"}:  # which Gradio's client may send
        raise InvalidRequest(f"{unknown[:MAX_SHOWN_CHARACTERS]} is no argument; {takes}.", unknown)
    for each in parameters.values():
        if each.default is each.empty and each.name not in body:
            raise InvalidRequest(f"{each.name} is missing; {takes}.", each.name)


def _put_right(scope: Scope) -> None:
    """Rewrite requests that RFC 9112 and 9110 allow and Starlette 1 does not read.

    A target may be a whole address, as clients of proxies write it; its host then replaces the header (RFC 9112,
    3.2.2). A server may ignore a `Range` (RFC 9110, 14.2): Gradio answers several ranges, or a bad one, with 500.
    """
    target = scope["raw_path"].decode("latin-1")
    if _WHOLE_ADDRESS.match(target):
        host, slash, path = target.partition("://")[2].partition("/")
        scope["raw_path"] = (slash + path or "/").encode("latin-1")
        scope["path"] = unquote(slash + path or "/")
        kept = [(name, value) for name, value in scope["headers"] if name != b"host"]
        scope["headers"] = [(b"host", host.encode("latin-1")), *kept]
    asked = Headers(scope=scope).get("range")
    wanted = _RANGE.fullmatch(asked or "bytes=0-")
    if wanted is None or (wanted[1] and wanted[2] and int(wanted[1]) > int(wanted[2])):
        scope["headers"] = [(name, value) for name, value in scope["headers"] if name != b"range"]


def _tries_key(scope: Scope) -> bool:
    is_login = scope["path"].rstrip("/") == "/login" and scope["method"] == "POST"
    return is_login or (is_rest(scope["path"]) and "authorization" in Headers(scope=scope))


def _wrong_key_statuses(scope: Scope) -> tuple[int, ...]:
    """The statuses that mean a wrong key or password: Gradio's login answers 400, a REST endpoint 401."""
    if not _tries_key(scope):
        return ()
    return (401,) if is_rest(scope["path"]) else (400, 401)


def _is_closed(path: str) -> bool:
    if not path.startswith("/gradio_api/"):
        return path.startswith(_CLOSED)
    rest = path.removeprefix("/gradio_api/")
    return not (rest in _OPEN or rest.startswith(("file=", *(f"{name}/" for name in _OPEN))))
