"""What Gradio keeps of its visitors, bounded: without this a server grows by 150 KB a visit and by 112 KB a call."""

import asyncio
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import gradio as gr
import gradio.route_utils
import gradio.state_holder
from gradio.routes import file_upload_statuses

# Gradio 6.31 keeps 10,000 sessions; this page has its state in the browser, so that a returning session is
# created again and misses nothing.
SESSIONS = 128
IDLE_S = 60.0
UNREAD_S = 600.0  # for the answer to a call that nobody fetches
LOOK_S = 10.0


class LightSession(gradio.state_holder.SessionState):  # type: ignore[misc]
    """A session without its copy of the page's configuration, which only deep links read, and they are closed here.

    Gradio 6.31 makes the copy on the event loop: a tenth of a second for each visit, in which nothing else is answered.
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
    """Record no events: Gradio keeps 10,000 and puts them into a table of pandas at the end of each event."""
    page._queue.ANALYTICS_MAX_EVENTS = 0


async def forget_sessions(page: gr.Blocks) -> None:
    """Drop what nobody will ask for again, for as long as the server runs."""
    unread: dict[str, datetime] = {}
    while True:
        await asyncio.sleep(LOOK_S)
        forget_idle(page, IDLE_S)
        forget_answers(page, unread, UNREAD_S)
        forget_uploads()


def forget_idle(page: gr.Blocks, idle_s: float) -> None:
    """Drop the sessions that nobody used for `idle_s` seconds; one that is answered uses its own at each update."""
    holder, now = page.app.state_holder, datetime.now()
    for session, used_at in list(holder.time_last_used.items()):
        if (now - used_at).total_seconds() > idle_s:
            holder.session_data.pop(session, None)
            holder.time_last_used.pop(session, None)


def forget_answers(page: gr.Blocks, unread: dict[str, datetime], keep_s: float) -> None:
    """Drop the events that were delivered, and those that ended over `keep_s` seconds ago and were not.

    `unread` has the time at which each of the latter was first seen.
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
    """Drop the progress of ended uploads: Gradio keeps it until it is asked for, and each name that was asked for."""
    known = file_upload_statuses
    for name in [name for name, status in known._statuses.items() if status.is_done]:
        known.stop_tracking(name)
    for name in [name for name in known._signals if name not in known._statuses]:
        del known._signals[name]
