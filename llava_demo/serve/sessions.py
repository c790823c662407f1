"""What Gradio keeps of its visitors, bounded: without this a server grows by 150 KB a visit and by 112 KB a call."""

import asyncio
from datetime import datetime

import gradio as gr

# Gradio 6.31 copies the page's whole configuration for each session and keeps 10,000 of them; this page has its state
# in the browser, so a returning session is created again and misses nothing.
SESSIONS = 128
IDLE_S = 60.0
LOOK_S = 10.0


def keep_no_analytics(page: gr.Blocks) -> None:
    """Record no events: Gradio keeps 10,000 and puts them into a table of pandas at the end of each event."""
    page._queue.ANALYTICS_MAX_EVENTS = 0


async def forget_sessions(page: gr.Blocks) -> None:
    """Drop sessions unused for a minute, for as long as the server runs."""
    while True:
        await asyncio.sleep(LOOK_S)
        forget_idle(page, IDLE_S)


def forget_idle(page: gr.Blocks, idle_s: float) -> None:
    """Drop sessions unused for `idle_s` seconds; an answer in progress uses its session at each update."""
    holder, now = page.app.state_holder, datetime.now()
    for session, used_at in list(holder.time_last_used.items()):
        if (now - used_at).total_seconds() > idle_s:
            holder.session_data.pop(session, None)
            holder.time_last_used.pop(session, None)
