"""The extension of the stream: every frame carries its position, and a client may go on behind a position."""

from __future__ import annotations

from typing import Any

import anthropic
import httpx2
import pytest

from conftest import custom_tool, toolset
from support.log import shapes
from support.recorder import Conversation, custom_result
from support.scripted import Model, answer, bash, call
from support.wire import Frame, frames


@pytest.fixture
def rested(start: Any) -> Conversation:
    conversation: Conversation = start(
        answer(bash("echo hello"), call("lookup", word="ant")), answer("done"), tools=[toolset(), custom_tool()]
    )
    conversation.say("go")
    use = conversation.until_idle("requires_action")[-1].stop_reason.event_ids[0]
    conversation.send(custom_result(use))
    conversation.until_idle()
    return conversation


def resume(
    http: httpx2.Client, session_id: str, *, after: int | None = None, query: bool = False, last: str
) -> list[Frame]:
    """The frames behind a position up to the event `last`."""
    headers = {} if after is None or query else {"last-event-id": str(after)}
    params = {"after": str(after)} if query else {}
    found = []
    path = f"/v1/sessions/{session_id}/events/stream"
    with http.stream("GET", path, headers=headers, params=params) as response:
        assert response.status_code == 200, response.read()
        for frame in frames(response):
            found.append(frame)
            if frame.data.get("id") == last:
                return found
    raise AssertionError(f"the stream ended without {last}")


def test_positions_only_grow_and_stand_on_everything_that_is_kept(http: httpx2.Client, rested: Conversation) -> None:
    log = rested.log()
    found = resume(http, rested.id, after=0, last=log[-1].id)
    assert [f.data["id"] for f in found] == [e.id for e in log]
    positions = [f.position for f in found]
    assert None not in positions and positions == sorted(set(positions))
    assert positions[0] is not None and positions[0] >= 1


def test_the_queued_copy_of_an_event_has_no_position(start: Any, http: httpx2.Client) -> None:
    conversation: Conversation = start(answer("hello"))
    with http.stream("GET", f"/v1/sessions/{conversation.id}/events/stream") as response:
        sent = conversation.say("hello")
        copies = []
        for frame in frames(response):
            if frame.data.get("id") == sent.id:
                copies.append(frame)
            if frame.event == "session.status_idle":
                break
    queued, taken = copies
    assert queued.data["processed_at"] is None and queued.position is None
    assert taken.data["processed_at"] is not None and taken.position is not None


@pytest.mark.parametrize("query", [False, True], ids=["Last-Event-ID", "?after="])
def test_resuming_behind_any_position_misses_nothing_and_repeats_nothing(
    http: httpx2.Client, rested: Conversation, query: bool
) -> None:
    log = rested.log()
    whole = resume(http, rested.id, after=0, last=log[-1].id)
    for index, frame in enumerate(whole[:-1]):
        assert resume(http, rested.id, after=frame.position, query=query, last=log[-1].id) == whole[index + 1 :]


def test_a_resumed_stream_goes_on_live(start: Any, http: httpx2.Client) -> None:
    conversation: Conversation = start(answer("one"), answer("two"))
    conversation.say("hello")
    conversation.until_idle()
    log = conversation.log()
    middle = resume(http, conversation.id, after=0, last=log[3].id)[-1]
    path = f"/v1/sessions/{conversation.id}/events/stream"
    with http.stream("GET", path, headers={"last-event-id": str(middle.position)}) as response:
        conversation.say("again")
        kept, idles = [], 0
        for frame in frames(response):
            if frame.position is not None:
                kept.append(frame.data["id"])
            idles += frame.event == "session.status_idle"
            if idles == 2:
                break
    conversation.until_idle()
    assert kept == [e.id for e in conversation.log()][4:]


def test_a_client_that_loses_its_connection_again_and_again_sees_each_event_once(
    start: Any, http: httpx2.Client, model: Model
) -> None:
    conversation: Conversation = start(answer(bash("echo hello")), answer("done"), tools=[toolset()])
    conversation.say("go")
    path = f"/v1/sessions/{conversation.id}/events/stream"
    seen: list[str] = []
    position, rested = 0, False
    while not rested:
        # One kept frame per connection.
        with http.stream("GET", path, headers={"last-event-id": str(position)}) as response:
            for frame in frames(response):
                if frame.position is not None:
                    assert frame.position > position
                    position = frame.position
                    seen.append(frame.data["id"])
                    rested = frame.event == "session.status_idle"
                    break
    assert seen == [e.id for e in conversation.log()]


def test_a_resumed_stream_shows_again_what_is_still_queued(start: Any, http: httpx2.Client, model: Model) -> None:
    hold = model.hold()
    conversation: Conversation = start(answer("one", hold=hold), answer("two"))
    conversation.say("hello")
    conversation.wait_for("span.model_request_start")
    model.until_waiting(hold)
    queued = conversation.say("queued")
    started = [e for e in conversation.log() if e.processed_at is not None]
    position = resume(http, conversation.id, after=0, last=started[-1].id)[-1].position
    path = f"/v1/sessions/{conversation.id}/events/stream"
    with http.stream("GET", path, headers={"last-event-id": str(position)}) as response:
        first = next(frames(response))
    assert first.data["id"] == queued.id and first.data["processed_at"] is None and first.position is None
    model.release(hold)
    conversation.until_idle()


def test_the_official_client_never_notices(start: Any) -> None:
    conversation: Conversation = start(answer("hello"))
    conversation.say("hello")
    events = conversation.until_idle()
    assert all(not e.model_extra for e in events)
    assert len(shapes(events)) == 10


@pytest.mark.parametrize("value", ["nonsense", "-1", "1.5", "99999999999999999999999999"])
def test_a_position_that_cannot_be_is_refused(http: httpx2.Client, make_session: Any, value: str) -> None:
    path = f"/v1/sessions/{make_session().id}/events/stream"
    assert http.get(path, params={"after": value}).status_code == 400


def test_a_thread_resumes_like_its_session(
    http: httpx2.Client, rested: Conversation, client: anthropic.Anthropic
) -> None:
    (thread,) = client.beta.sessions.threads.list(rested.id)
    log = rested.log()
    whole = resume(http, rested.id, after=0, last=log[-1].id)
    path = f"/v1/sessions/{rested.id}/threads/{thread.id}/stream"
    with http.stream("GET", path, headers={"last-event-id": str(whole[3].position)}) as response:
        found = []
        for frame in frames(response):
            found.append(frame.data["id"])
            if found[-1] == log[-1].id:
                break
    assert found == [e.id for e in log][4:]
