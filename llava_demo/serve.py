"""Serving: the page, its API and the REST APIs on one port. `python -m llava_demo serve` and app.py call this."""

import os
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import gradio as gr
from gradio.context import LocalContext
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from llava_demo import log
from llava_demo.api import Access, RestRoutes
from llava_demo.callers import NameCallers
from llava_demo.engines import Engine
from llava_demo.engines.load import engine_at_once
from llava_demo.engines.loading import LoadingEngine
from llava_demo.images.download import Downloads
from llava_demo.settings import SettingError, Settings, reach_own_address
from llava_demo.ui import LinkPreview, build_page, card, look, scripts

# Who waits, waits in the engine, which knows the line and tells it. Gradio by itself runs at most 40 events at once and
# on ZeroGPU lets only one wait.
PLACES_BESIDE_THE_LINE = 80  # for who is being answered (64 by default), and who hears that the line is full

INTERRUPTED = 130  # what shells report for Ctrl-C: 128 + SIGINT


def launch(settings: Settings, engine: Engine | None = None, **options: Any) -> tuple[gr.Blocks, str]:
    """Serve until Ctrl-C, or return at once with `prevent_thread_lock=True`; gives the page and its address.

    The page is up before the model is loaded. An engine that is made here is closed with the server; one that is given
    stays its owner's. `options` go on to `gr.Blocks.launch`.

    Raises:
        SettingError: the port is in use, or the address is none of this machine's.
        EngineUnavailable: the model cannot be loaded. With `prevent_thread_lock` the page may be up already, and says
            so to whoever asks.
    """
    log.setup(settings.log_format)
    reach_own_address(settings.host)
    _check_address(settings.host, settings.port)
    is_ours = engine is None
    engine = engine or engine_at_once(settings)
    page = build_page(engine, settings)
    routes = rest_routes(engine, settings)
    is_waiting = not options.pop("prevent_thread_lock", False)
    places = settings.max_queue + (settings.max_concurrent or 0) + PLACES_BESIDE_THE_LINE
    _, local_url, share_url = page.queue(max_size=places).launch(
        server_name=settings.host,
        server_port=settings.port,
        share=settings.share,
        auth=settings.credentials,
        max_file_size=settings.image_limits.max_bytes,
        max_threads=places,
        prevent_thread_lock=True,
        quiet=True,
        ssr_mode=False,  # a Space turns it on, and Node would answer /health with the page's HTML
        run_history=False,  # would keep what people asked in their browsers
        enable_monitoring=False,
        pwa=False,
        footer_links=["api"],
        mcp_server=settings.auth is None,
        app_kwargs={
            "routes": [routes, scripts(), card()],
            "lifespan": partial(_lifespan, [engine] if is_ours else []),
            "middleware": [
                Middleware(LinkPreview),
                Middleware(NameCallers, keys=settings.api_keys),
                *([Middleware(_CallersOfRest)] if settings.is_zero_gpu else []),
            ],
        },
        **look(),
        **options,
    )
    _log_why_no_tools(page, settings)
    if settings.share and not share_url:
        log.logger.warning("--share: there is no public link, since Gradio's tunnel cannot be reached from here.")
    url = share_url or local_url
    _say(f"\n  Ask a picture   {url}\n")
    if isinstance(engine, LoadingEngine):
        engine.when_loaded(lambda: _say(what_answers(engine)))
    else:
        _say(what_answers(engine))
    if is_waiting:
        _wait(page, engine)
    return page, url


def _wait(page: gr.Blocks, engine: Engine) -> None:
    """Until Ctrl-C, or until it is clear that the model cannot be loaded, which is raised."""
    if isinstance(engine, LoadingEngine):
        try:
            engine.loaded()
        except KeyboardInterrupt:
            page.close(verbose=False)
            os._exit(INTERRUPTED)  # the thread that loads cannot be ended; torch aborts where Python ends around it
        except BaseException:
            page.close(verbose=False)
            raise
    page.block_thread()


def _say(words: str) -> None:
    sys.stdout.write(words)
    sys.stdout.flush()


def rest_routes(engine: Engine, settings: Settings) -> RestRoutes:
    """The REST APIs as the settings want them."""
    limits, access = settings.image_limits, Access(settings.api_keys, has_login=settings.auth is not None)
    return RestRoutes(engine, limits, access, Downloads(limits) if settings.fetch_urls else None)


def what_answers(engine: Engine) -> str:
    """What the terminal says once the model is there."""
    info = engine.info
    lines = [
        f"  Model           {info.model}",
        f"  Engine          {info.engine} on {info.device}, {info.precision}, {info.attention}",
        *(f"                  {reason}" for reason in info.reasons),
        "",
    ]
    return "\n".join(lines) + "\n"


def _log_why_no_tools(page: gr.Blocks, settings: Settings) -> None:
    """Where the API is no MCP server. Gradio's asks its own page as any client does, but without a login."""
    if settings.auth is not None:
        log.logger.info("MCP is off: Gradio's MCP server cannot log in, and --auth asks for it.")
    elif not page.mcp_server:
        log.logger.warning("MCP is off: it needs the package mcp, from 1.21 on and before 2. %s", page.mcp_error)


def _check_address(host: str, port: int) -> None:
    """Before a model is loaded for minutes: would Gradio be able to listen there?"""
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
    """Names the caller to `spaces`, which then charges his quota on ZeroGPU; Gradio does it for its own calls only."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            LocalContext.request.set(gr.Request(Request(scope)))
        await self._app(scope, receive, send)


@asynccontextmanager
async def _lifespan(engines: Sequence[Engine], _: Starlette) -> AsyncIterator[None]:
    yield
    for engine in engines:
        await engine.aclose()
