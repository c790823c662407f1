"""What Gradio keeps of its visitors is dropped: sessions, answers that were or were not fetched, ended uploads."""

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from checkpoints import engine_of
from gradio.routes import file_upload_statuses
from pictures import png
from servers import free_port

from llava_demo.model.llava import Llava
from llava_demo.serve import launch
from llava_demo.serve.sessions import SESSIONS, forget_answers, forget_idle, forget_uploads
from llava_demo.settings import Settings


@pytest.fixture(scope="module")
def page_and_client(tiny_llava: Llava) -> Iterator[tuple[Any, httpx.Client]]:
    page, url = launch(Settings(port=free_port()), engine_of(tiny_llava), prevent_thread_lock=True)
    with httpx.Client(base_url=url, timeout=60) as client:
        yield page, client
    page.close(verbose=False)


def call(client: httpx.Client, is_read: bool = True) -> None:
    """A call of gradio_client's endpoint /info, each in a session of its own."""
    event = client.post("gradio_api/call/info", json={"data": []}).json()["event_id"]
    if is_read:
        assert "event: complete" in client.get(f"gradio_api/call/info/{event}").text


def test_sessions_are_bounded_and_forgotten_once_idle(page_and_client: tuple[Any, httpx.Client]) -> None:
    page, client = page_and_client
    for _ in range(SESSIONS + 20):
        call(client)
    holder = page.app.state_holder
    assert 0 < len(holder.session_data) <= SESSIONS
    assert not any(session.config_values for session in holder.session_data.values()), "a copy of the page's settings"
    forget_idle(page, idle_s=3600)
    assert holder.session_data
    forget_idle(page, idle_s=-1)
    assert (len(holder.session_data), len(holder.time_last_used)) == (0, 0)
    call(client)


def test_what_was_fetched_is_forgotten_and_what_was_not_after_a_while(
    page_and_client: tuple[Any, httpx.Client],
) -> None:
    page, client = page_and_client
    for is_read in (True, False, True, False):
        call(client, is_read)
    queue, deadline = page._queue, time.monotonic() + 30
    while queue.event_ids_to_events:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    unread: dict[str, Any] = {}
    forget_answers(page, unread, keep_s=3600)
    assert len(queue.pending_event_ids_session) == len(unread) == 2
    forget_answers(page, unread, keep_s=-1)
    assert (len(queue.pending_event_ids_session), len(queue.pending_messages_per_session), unread) == (0, 0, {})
    call(client)


def test_nothing_is_recorded_of_events(page_and_client: tuple[Any, httpx.Client]) -> None:
    page, client = page_and_client
    call(client)
    assert not page._queue.event_analytics


def test_how_far_uploads_came_is_forgotten(page_and_client: tuple[Any, httpx.Client]) -> None:
    _, client = page_and_client
    deadline = time.monotonic() + 60
    while not file_upload_statuses._statuses:  # the servers of this process forget them now and then by themselves
        assert time.monotonic() < deadline
        client.post("gradio_api/upload?upload_id=whole", files={"files": ("a.png", png())})
        client.post("gradio_api/upload?upload_id=refused", files={"others": ("a.png", png())})
    assert client.get("gradio_api/upload_progress?upload_id=never").status_code == 404
    forget_uploads()
    assert (file_upload_statuses._statuses, dict(file_upload_statuses._signals)) == ({}, {})
