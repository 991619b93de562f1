"""Threads: the five operations on the one primary thread of a session."""

from __future__ import annotations

from typing import Any

import anthropic
import pytest

from support.log import ANSWER, RUN, idle, shapes
from support.recorder import Conversation, Recorder
from support.scripted import Model, answer
from support.wire import check_error


def test_a_session_has_one_primary_thread_with_its_agent(client: anthropic.Anthropic, make_session: Any) -> None:
    session = make_session(agent_fields={"system": "Be brief.", "description": "d"})
    page = client.beta.sessions.threads.list(session.id)
    (thread,) = page.data
    assert page.next_page is None
    assert client.beta.sessions.threads.retrieve(thread.id, session_id=session.id) == thread
    snapshot = session.agent.to_dict()
    snapshot.pop("multiagent", None)
    assert thread.agent.to_dict() == snapshot
    assert (thread.type, thread.session_id, thread.archived_at) == ("session_thread", session.id, None)


def test_every_key_of_a_thread_is_always_present(http: Any, make_session: Any) -> None:
    (thread,) = http.get(f"/v1/sessions/{make_session().id}/threads").json()["data"]
    assert set(thread) == {
        "id", "type", "session_id", "parent_thread_id", "workflow_run_id", "agent", "status", "stats", "usage",
        "archived_at", "created_at", "updated_at",
    }  # fmt: skip


def test_threads_are_filtered_by_status(start: Any, model: Model) -> None:
    hold = model.hold()
    conversation: Conversation = start(answer("done", hold=hold))
    threads = conversation.client.beta.sessions.threads

    def found(*statuses: Any) -> int:
        return len(threads.list(conversation.id, statuses=list(statuses)).data)

    assert (found("idle"), found("running"), found("running", "idle")) == (1, 0, 1)
    conversation.say("hello")
    conversation.wait_for("span.model_request_start")
    assert (found("idle"), found("running"), found("running", "idle")) == (0, 1, 1)
    model.release(hold)
    conversation.until_idle()
    assert (found("idle"), found("running"), found("terminated")) == (1, 0, 0)
    conversation.client.beta.sessions.archive(conversation.id)
    assert (found("idle"), found("terminated")) == (0, 1)


def test_usage_and_stats_of_a_thread_appear_with_its_first_run(start: Any) -> None:
    conversation: Conversation = start(answer("done", usage={"input_tokens": 4, "output_tokens": 9}))
    threads = conversation.client.beta.sessions.threads
    (before,) = threads.list(conversation.id)
    assert before.usage is None and before.stats is None
    conversation.say("hello")
    conversation.until_idle()
    after = threads.retrieve(before.id, session_id=conversation.id)
    assert after.usage is not None and (after.usage.input_tokens, after.usage.output_tokens) == (4, 9)
    assert after.stats is not None and after.stats.active_seconds is not None


def test_the_events_of_the_primary_thread_are_those_of_the_session(start: Any) -> None:
    conversation: Conversation = start(answer("done"))
    conversation.say("hello")
    conversation.until_idle()
    (thread,) = conversation.client.beta.sessions.threads.list(conversation.id)
    events = conversation.client.beta.sessions.threads.events.list(thread.id, session_id=conversation.id, limit=2)
    assert len(events.data) == 2 and events.next_page is not None
    assert list(events) == conversation.log()


def test_the_stream_of_the_primary_thread_is_that_of_the_session(start: Any) -> None:
    conversation: Conversation = start(answer("one two three"))
    client = conversation.client
    (thread,) = client.beta.sessions.threads.list(conversation.id)
    own = Recorder(
        lambda: client.beta.sessions.threads.events.stream(
            thread.id, session_id=conversation.id, event_deltas=["agent.message"]
        )
    )
    try:
        conversation.say("hello")
        whole = conversation.until_idle()
        own.wait(lambda events: any(e.type == "session.status_idle" for e in events), "session.status_idle")
        kinds = shapes(own.events, without=["event_start(agent.message)", "event_delta"])
        assert kinds == shapes(whole) == ["user.message?", *RUN, "user.message", *ANSWER, *idle("end_turn")]
        assert "event_delta" in shapes(own.events)
    finally:
        own.close()


def test_the_primary_thread_is_not_archived_by_itself(start: Any) -> None:
    conversation: Conversation = start()
    (thread,) = conversation.client.beta.sessions.threads.list(conversation.id)
    with pytest.raises(anthropic.BadRequestError) as refused:
        conversation.client.beta.sessions.threads.archive(thread.id, session_id=conversation.id)
    check_error(refused.value.response, 400)
    assert conversation.client.beta.sessions.threads.retrieve(thread.id, session_id=conversation.id) == thread
    conversation.nothing_more()


def test_an_unknown_thread_is_not_found_by_name(client: anthropic.Anthropic, make_session: Any) -> None:
    session, other = make_session(), make_session()
    threads = client.beta.sessions.threads
    for unknown in ("sthr_01AAAAAAAAAAAAAAAAAAAAAA", threads.list(other.id).data[0].id):
        for request in (threads.retrieve, threads.archive, threads.events.list, threads.events.stream):
            with pytest.raises(anthropic.NotFoundError, match="Thread not found") as refused:
                request(unknown, session_id=session.id)
            assert refused.value.type == "not_found_error"
