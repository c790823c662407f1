"""Serving: the page, its API and the REST APIs on one port. `python -m llava_demo serve` and app.py call this.

guard        the ASGI middleware in front of everything
bodies       limits of request bodies: size, number, speed, nesting
connections  limits of connections: number, deadlines
origins      which web pages may call the server
multipart    the parser of uploads
uploads      the folder of uploaded files
gate         counts requests, and closes when the server ends
ending       SIGTERM, SIGINT and SIGHUP
sessions     bounds what Gradio keeps of its visitors
"""

import asyncio
import gc
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.context import LocalContext
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from llava_demo import log
from llava_demo.api import Access, RestRoutes, max_body_bytes
from llava_demo.callers import Callers
from llava_demo.engines import Engine
from llava_demo.engines.load import engine_at_once
from llava_demo.engines.loading import LoadingEngine
from llava_demo.environment import is_claimed, reach_own_address
from llava_demo.images.download import Downloads
from llava_demo.serve.bodies import Bodies, BodyLimits
from llava_demo.serve.connections import limit_connections
from llava_demo.serve.ending import Ending
from llava_demo.serve.gate import Gate
from llava_demo.serve.guard import Guard, Rules
from llava_demo.serve.multipart import use_upload_parser
from llava_demo.serve.origins import Origins, listens_locally
from llava_demo.serve.sessions import SESSIONS, forget_sessions, keep_no_analytics, use_light_sessions
from llava_demo.serve.uploads import UploadFolder, check_upload
from llava_demo.settings import SettingError, Settings
from llava_demo.ui import LinkPreview, build_page, card, look, scripts

# Requests wait in the engine, which shows its queue. Gradio by itself runs at most 40 events at once, and on ZeroGPU
# lets only one wait.
PLACES_BESIDE_THE_QUEUE = 80  # for running requests (64 by default) and refused ones


def launch(settings: Settings, engine: Engine | None = None, **options: Any) -> tuple[gr.Blocks, str]:
    """Serve until Ctrl-C, or return at once with `prevent_thread_lock=True`; returns the page and its address.

    The page is up before the model is loaded. The server closes an engine that it made; the caller closes a given one.
    `options` are passed to `gr.Blocks.launch`.

    Raises:
        SettingError: the port is in use, or the address is not one of this machine's.
        EngineUnavailable: the model cannot be loaded. With `prevent_thread_lock` the page may be up already, and
            answers each question with this error.
    """
    log.setup(settings.log_format)
    use_upload_parser()
    use_light_sessions()
    reach_own_address(settings.host)
    _check_address(settings.host, settings.port)
    is_ours, is_waiting = engine is None, not options.pop("prevent_thread_lock", False)
    engine = engine or engine_at_once(settings)
    page = build_page(engine, settings)
    rules = _rules(page, settings)
    ending = Ending(engine, rules.gate, settings.grace, partial(_clean_up, page, rules.uploads))
    if is_waiting:
        ending.listen()
    owned = engine if is_ours else None
    app_kwargs = {
        "routes": [rest_routes(engine, settings), scripts(), card()],
        "lifespan": partial(_lifespan, page, rules, owned),
        "middleware": [
            Middleware(LinkPreview),
            *([Middleware(_CallersOfRest)] if settings.is_zero_gpu else []),
        ],
    }
    url = _open(page, settings, app_kwargs, options)
    limit_connections(page.server.config, page.app, rules.callers.is_proxy)
    _say(f"\n  Ask a picture   {url}\n")
    if isinstance(engine, LoadingEngine):
        engine.when_loaded(lambda: _say(what_answers(engine)))
        if is_waiting:
            engine.when_loaded(_pause_less)
    else:
        _say(what_answers(engine))
    if is_waiting:
        ending.wait()
    return page, url


def _open(page: gr.Blocks, settings: Settings, app_kwargs: dict[str, Any], options: dict[str, Any]) -> str:
    """Put the page on its port; returns its address."""
    places = settings.max_queue + (settings.max_concurrent or 0) + PLACES_BESIDE_THE_QUEUE
    _, local_url, share_url = page.queue(max_size=places).launch(
        server_name=f"[{settings.host}]" if ":" in settings.host else settings.host,  # Gradio writes URLs with it
        server_port=settings.port,
        share=settings.share,
        auth=settings.credentials,
        max_file_size=settings.image_limits.max_bytes,
        max_threads=places,
        state_session_capacity=SESSIONS,
        prevent_thread_lock=True,
        quiet=True,
        ssr_mode=False,  # a Space turns it on, and Node would answer /health with the page's HTML
        run_history=False,  # would store questions in browsers
        enable_monitoring=False,
        pwa=False,
        footer_links=[],  # the page has "Use in code" and /v1/docs
        mcp_server=settings.auth is None,
        app_kwargs=app_kwargs,
        **look(),
        **options,
    )
    keep_no_analytics(page)
    _log_why_no_tools(page, settings)
    if settings.share and not share_url:
        log.logger.warning("--share: there is no public link, since Gradio's tunnel cannot be reached from here.")
    url: str = share_url or local_url
    return url


@asynccontextmanager
async def _lifespan(page: gr.Blocks, rules: Rules, engine: Engine | None, app: Starlette) -> AsyncIterator[None]:
    """Put the guard in front before the first request; close `engine` with the server."""
    assert app.middleware_stack is not None  # Starlette called this through it
    app.middleware_stack = Guard(app.middleware_stack, page, rules)  # around Gradio's own CORS, which is too open
    log.take_over("uvicorn")  # here, since the first requests come while Gradio's `launch` still runs
    rules.uploads.start()
    forgetting = asyncio.create_task(forget_sessions(page))
    yield
    forgetting.cancel()
    if engine is not None:
        await engine.aclose()


def _rules(page: gr.Blocks, settings: Settings) -> Rules:
    limits, uploads = settings.image_limits, Path(gr.utils.get_upload_folder())
    shown = [Path(path) for block in page.blocks.values() for path in getattr(block, "keep_in_cache", ())]
    is_local = listens_locally(settings.host) and not settings.share and not settings.trusted_proxy
    gate = Gate()
    return Rules(
        Callers(settings.api_keys, [ip_network(proxy) for proxy in settings.trusted_proxy]),
        Origins(is_local, has_login=settings.auth is not None, has_keys=bool(settings.api_keys)),
        gate,
        Bodies(BodyLimits.of(limits, max_body_bytes(limits)), gate),
        UploadFolder(uploads, partial(check_upload, limits=limits), shown, is_shared=not is_claimed(uploads)),
        limits,
    )


def _clean_up(page: gr.Blocks, uploads: UploadFolder) -> None:
    page.close(verbose=False)
    uploads.close()


def _pause_less() -> None:
    """Shorten the event loop's waits for other threads.

    A full garbage collection over all that was imported and loaded stops every thread for a third of a second: these
    objects are left out from now on. A thread that runs Python gives way after one millisecond in place of five.
    """
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(0.001)


def _say(words: str) -> None:
    sys.stdout.write(words)
    sys.stdout.flush()


def rest_routes(engine: Engine, settings: Settings) -> RestRoutes:
    """The REST APIs with these settings."""
    limits, access = settings.image_limits, Access(settings.api_keys, has_login=settings.auth is not None)
    return RestRoutes(engine, limits, access, Downloads(limits) if settings.fetch_urls else None)


def what_answers(engine: Engine) -> str:
    """What the terminal shows once the model is loaded."""
    info = engine.info
    lines = [
        f"  Model           {info.model}",
        f"  Engine          {info.engine} on {info.device}, {info.precision}, {info.attention}",
        *(f"                  {reason}" for reason in info.reasons),
        "",
    ]
    return "\n".join(lines) + "\n"


def _log_why_no_tools(page: gr.Blocks, settings: Settings) -> None:
    """Say why MCP is off, if it is. Gradio's MCP server calls its own page like any client, but cannot log in."""
    if settings.auth is not None:
        log.logger.info("MCP is off: Gradio's MCP server cannot log in, as --auth demands.")
    elif not page.mcp_server:
        log.logger.warning("MCP is off: it needs the package mcp>=1.21,<2. %s", page.mcp_error)


def _check_address(host: str, port: int) -> None:
    """Raise SettingError before a model is loaded for minutes, if Gradio could not listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise SettingError(
                f"Port {port} on {host} cannot be listened on ({error.strerror}); choose another with --port or --host."
            ) from error


class _CallersOfRest:
    """Names the caller to `spaces`, which charges its quota on ZeroGPU; Gradio does so for its own calls only."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            LocalContext.request.set(gr.Request(Request(scope)))
        await self._app(scope, receive, send)
