"""Bounds what Gradio keeps of its visitors; without this a server grows by 150 KB a visit and by 112 KB a call."""

import asyncio
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import gradio as gr
import gradio.route_utils
import gradio.state_holder
from gradio.routes import file_upload_statuses

# Gradio 6.31 keeps 10,000 sessions. This page has its state in the browser: a session that was dropped is made again
# and misses nothing.
SESSIONS = 128
IDLE_S = 60.0
UNREAD_S = 600.0  # how long an answer waits to be fetched
LOOK_S = 10.0


class LightSession(gradio.state_holder.SessionState):  # type: ignore[misc]
    """A session without a copy of the page's configuration: only deep links read it, and they are closed here.

    Gradio 6.31 makes the copy on the event loop, which blocks it for a tenth of a second a visit.
    """

    def __init__(self, blocks: gr.Blocks) -> None:
        super().__init__(SimpleNamespace(default_config=blocks.default_config, blocks={}))

    def _update_config(self, key: int) -> None: ...

    def _update_value_in_config(self, key: int, value: Any) -> None: ...


def use_light_sessions() -> None:
    """Have Gradio in this process make `LightSession`s."""
    for module in (gradio.state_holder, gradio.route_utils):
        module.SessionState = LightSession  # type: ignore[misc]


def keep_no_analytics(page: gr.Blocks) -> None:
    """Record no events: Gradio keeps 10,000 and makes a pandas table of them at the end of each event."""
    page._queue.ANALYTICS_MAX_EVENTS = 0


async def forget_sessions(page: gr.Blocks) -> None:
    """Drop sessions, answers and progress that nobody will fetch, as long as the server runs."""
    unread: dict[str, datetime] = {}
    while True:
        await asyncio.sleep(LOOK_S)
        forget_idle(page, IDLE_S)
        forget_answers(page, unread, UNREAD_S)
        forget_uploads()


def forget_idle(page: gr.Blocks, idle_s: float) -> None:
    """Drop the sessions that were not used for `idle_s` seconds; each update of an answer uses its session."""
    holder, now = page.app.state_holder, datetime.now()
    for session, used_at in list(holder.time_last_used.items()):
        if (now - used_at).total_seconds() > idle_s:
            holder.session_data.pop(session, None)
            holder.time_last_used.pop(session, None)


def forget_answers(page: gr.Blocks, unread: dict[str, datetime], keep_s: float) -> None:
    """Drop delivered events, and undelivered ones that ended over `keep_s` seconds ago.

    `unread` keeps the time at which each session with undelivered events was first seen.
    """
    queue, now = page._queue, datetime.now()
    for session, events in list(queue.pending_event_ids_session.items()):
        if events & queue.event_ids_to_events.keys():
            continue
        if not events or (now - unread.setdefault(session, now)).total_seconds() > keep_s:
            queue.pending_event_ids_session.pop(session, None)
            queue.pending_messages_per_session.pop(session, None)
    for session in unread.keys() - queue.pending_event_ids_session.keys():
        del unread[session]


def forget_uploads() -> None:
    """Drop the progress of ended uploads: Gradio keeps it until it is fetched, and every name that was ever fetched."""
    known = file_upload_statuses
    for name in [name for name, status in known._statuses.items() if status.is_done]:
        known.stop_tracking(name)
    for name in [name for name in known._signals if name not in known._statuses]:
        del known._signals[name]
