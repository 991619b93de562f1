"""Flow E: failures of the model, retries, and the end of retrying. The server tries three times, a few ms apart."""

from __future__ import annotations

from typing import Any

import anthropic
import pytest

from support.log import ANSWER, END, FAILED_END, RESCHEDULED, RUN, START, idle, shape, shapes, text
from support.process import ANTHROPIC_SECRET, Posthouse
from support.recorder import Conversation
from support.scripted import Model, answer, call, failure, thinking

TAKEN = ("user.message?", *RUN, "user.message")
OVERLOADED = failure(529, "overloaded_error", "come back later")
RETRIABLE = [
    (OVERLOADED, "model_overloaded_error"),
    (failure(429, "rate_limit_error"), "model_rate_limited_error"),
    (failure(500, "api_error"), "model_request_failed_error"),
    (failure(529, "overloaded_error", in_stream=True), "model_overloaded_error"),
    (answer("cut off in the middle of a longer sentence", cut_after=4), "model_request_failed_error"),
]
RETRIABLE_IDS = ["529", "429", "500", "529 in the stream", "disconnect"]


def error_word(kind: str, status: str) -> str:
    return f"session.error({kind}, {status})"


@pytest.mark.parametrize(("reply", "kind"), RETRIABLE, ids=RETRIABLE_IDS)
def test_e1_a_passing_failure_is_shown_and_tried_again(start: Any, model: Model, reply: Any, kind: str) -> None:
    conversation: Conversation = start(reply, answer("at last"))
    conversation.say("hello")
    # This order is our choice.
    events = conversation.expect(
        *TAKEN, START, FAILED_END, error_word(kind, "retrying"), *RESCHEDULED, *RUN, *ANSWER, *idle("end_turn")
    )
    failed_end = next(e for e in events if shape(e) == FAILED_END)
    usage = failed_end.model_usage
    assert (usage.input_tokens, usage.output_tokens) == (0, 0)
    assert (usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (0, 0)
    assert text(next(e for e in events if e.type == "agent.message")) == "at last"
    first, second = model.requests()
    assert first["body"] == second["body"], "the same request again"


def test_e1_what_a_failed_request_previewed_is_closed_by_its_end(start: Any) -> None:
    conversation: Conversation = start(
        answer(thinking("hm"), "one two three four five six", cut_after=9),
        answer("at last"),
        deltas=("agent.message", "agent.thinking"),
    )
    conversation.say("hello")
    events = conversation.until_idle()
    opened = [e.event.id for e in events if shape(e) == "event_start(agent.message)"]
    said = [e.id for e in events if e.type == "agent.message"]
    assert said == opened[-1:], "only the last preview became a message"
    ends = [i for i, e in enumerate(events) if shape(e) == FAILED_END]
    assert len(ends) == 1
    late = [e for e in events[ends[0] :] if e.type == "event_delta" and e.event_id in opened[:-1]]
    assert late == []


def test_e1_a_session_that_waits_for_a_retry_says_rescheduling(scripted: Any, model: Model, tmp_path: Any) -> None:
    # The back-off must be long enough to look at: a server of its own.
    server = Posthouse(tmp_path / "slow", scripted.url, POSTHOUSE_MODEL_RETRY_BASE_MS="60000").start()
    try:
        client = server.client()
        environment = client.beta.environments.create(name="e")
        agent = client.beta.agents.create(name="a", model=model.name)
        session = client.beta.sessions.create(agent=agent.id, environment_id=environment.id)
        model.script(OVERLOADED)
        conversation = Conversation(client, session.id)
        try:
            conversation.say("hello")
            conversation.wait_for("session.status_rescheduled")
            assert conversation.session().status == "rescheduling"
            (thread,) = client.beta.sessions.threads.list(session.id)
            assert thread.status == "rescheduling"
            assert [s.id for s in client.beta.sessions.list(statuses=["rescheduling"])] == [session.id]
            for request in (client.beta.sessions.archive, client.beta.sessions.delete):
                with pytest.raises(anthropic.BadRequestError):
                    request(session.id)
            conversation.send({"type": "user.interrupt"})
            events = conversation.until_idle()
            assert shapes(events, without=["user.interrupt?", "user.interrupt"])[-3:] == list(idle("end_turn"))
        finally:
            conversation.close()
    finally:
        server.stop()


def test_e2_when_all_tries_failed_the_turn_is_over(start: Any, model: Model) -> None:
    conversation: Conversation = start(OVERLOADED, OVERLOADED, OVERLOADED, answer("hello again"))
    conversation.say("hello")
    retried = (START, FAILED_END, error_word("model_overloaded_error", "retrying"), *RESCHEDULED, *RUN)
    exhausted = (START, FAILED_END, error_word("model_overloaded_error", "exhausted"))
    events = conversation.expect(*TAKEN, *retried, *retried, *exhausted, *idle("retries_exhausted"))
    assert events[-1].stop_details is None
    assert len(model.requests()) == 3
    conversation.nothing_more()
    conversation.say("hello?")
    conversation.expect(*TAKEN, *ANSWER, *idle("end_turn"))


def test_e2_messages_queued_behind_an_exhausted_turn_are_flushed(start: Any, model: Model) -> None:
    hold = model.hold()
    conversation: Conversation = start(
        OVERLOADED, OVERLOADED, answer("cut off at once", hold=hold, cut_after=1), answer("hello again")
    )
    conversation.say("one")
    for _ in range(3):
        conversation.wait_for(START)
    model.until_waiting(hold)
    queued = conversation.say("queued")
    model.release(hold)
    conversation.until_idle("retries_exhausted")
    (row,) = [e for e in conversation.log() if e.id == queued.id]
    assert row.processed_at is not None, "a flushed message is done with"
    assert len(model.requests()) == 3, "and never runs"
    conversation.say("next")
    conversation.until_idle()


@pytest.mark.parametrize(
    ("status", "kind", "error"),
    [
        (400, "invalid_request_error", "model_request_failed_error"),
        (401, "authentication_error", "model_request_failed_error"),
        (403, "permission_error", "model_request_failed_error"),
        (404, "not_found_error", "model_request_failed_error"),
        (413, "request_too_large", "model_request_failed_error"),
        (402, "billing_error", "billing_error"),
    ],
)
def test_e3_and_e5_a_lasting_failure_is_not_tried_again(
    start: Any, model: Model, status: int, kind: str, error: str
) -> None:
    conversation: Conversation = start(failure(status, kind), answer("hello again"))
    conversation.say("hello")
    conversation.expect(*TAKEN, START, FAILED_END)
    event = conversation.recorder.wait(
        lambda events: next((e for e in events if e.type == "session.error"), None), "session.error"
    )
    assert event.error.type == error
    assert len(model.requests()) == 1
    if event.error.retry_status.type == "terminal":
        check_terminated(conversation, error)
    else:
        conversation.expect(error_word(error, "exhausted"), *idle("retries_exhausted"))
        conversation.say("again")
        conversation.expect(*TAKEN, *ANSWER, *idle("end_turn"))


def check_terminated(conversation: Conversation, error: str) -> None:
    # This order is our choice.
    conversation.expect(error_word(error, "terminal"), "session.thread_status_terminated", "session.status_terminated")
    session = conversation.session()
    assert session.status == "terminated" and session.archived_at is None
    with pytest.raises(anthropic.APIStatusError) as refused:
        conversation.say("again")
    assert refused.value.status_code in (400, 409)


def test_e5_a_billing_failure_exhausts_the_turn(start: Any) -> None:
    conversation: Conversation = start(failure(402, "billing_error", "no credit"))
    conversation.say("hello")
    conversation.expect(*TAKEN, START, FAILED_END, error_word("billing_error", "exhausted"), *idle("retries_exhausted"))


def test_e4_a_turn_that_never_stops_using_tools_is_stopped(start: Any, model: Model) -> None:
    # A tool that does not exist is denied at once, so this is as many rounds as possible in little time.
    conversation: Conversation = start(*[answer(call("no_such_tool"))] * 600)
    conversation.say("go on for ever")
    last = conversation.recorder.wait(
        lambda events: events[-1] if events and events[-1].type == "session.status_idle" else None,
        "session.status_idle",
        seconds=50,
    )
    assert last.stop_reason.type == "retries_exhausted"
    tail = shapes(conversation.events)[-4:]
    assert tail == [error_word("tool_use_limit_reached_error", "exhausted"), *idle("retries_exhausted")]
    assert len(model.requests()) < 600


def test_an_answer_that_was_cut_at_the_token_limit_ends_the_turn(start: Any) -> None:
    conversation: Conversation = start(answer("a long answer that", stop="max_tokens"))
    conversation.say("hello")
    events = conversation.until_idle()
    assert END in shapes(events)


def test_a_wish_to_wait_is_honoured(start: Any, model: Model) -> None:
    conversation: Conversation = start(failure(429, "rate_limit_error", retry_after=1), answer("at last"))
    conversation.say("hello")
    conversation.until_idle()
    first, second = (request["at_ms"] for request in model.requests())
    assert second - first >= 1000


def test_the_provider_gets_its_key_and_nobody_else_sees_it(start: Any, model: Model, posthouse: Posthouse) -> None:
    conversation: Conversation = start(failure(401, "authentication_error", f"bad key {ANTHROPIC_SECRET}"))
    conversation.say("hello")
    conversation.until_idle("retries_exhausted")
    (request,) = model.requests()
    assert any(ANTHROPIC_SECRET in value for value in request["headers"].values())
    everything = [posthouse.process.transcript(), *(e.to_json() for e in conversation.log())]
    assert not any(ANTHROPIC_SECRET in part for part in everything)
