"""Flow D: interrupts, in every state of a session."""

from __future__ import annotations

from typing import Any

import anthropic
import pytest

from conftest import custom_tool, toolset
from support.log import ANSWER, END, FAILED_END, RUN, START, Event, answered_id, idle, shapes, text
from support.recorder import Conversation, custom_result, interrupt, message
from support.sandbox import Blocker
from support.scripted import Model, answer, bash, call, failure

TAKEN = ("user.message?", *RUN, "user.message")
INTERRUPTED = "Tool execution was interrupted before completion. Please retry."


def test_d1_an_interrupt_ends_a_model_request_and_the_turn(start: Any, model: Model) -> None:
    hold = model.hold()
    conversation: Conversation = start(answer("never said", hold=hold), answer("hello again"))
    conversation.say("hello")
    conversation.expect(*TAKEN, START)
    model.until_waiting(hold)
    (sent,) = conversation.send(interrupt())
    assert sent.processed_at is None
    # That the request ends before the interrupt is taken up, and as an error, is our choice.
    events = conversation.expect("user.interrupt?", FAILED_END, "user.interrupt", *idle("end_turn"))
    assert events[0].id == events[2].id == sent.id
    assert events[1].model_usage.output_tokens == 0
    conversation.check_settled()
    conversation.nothing_more()
    conversation.say("and now?")
    conversation.expect(*TAKEN, *ANSWER, *idle("end_turn"))


def test_d1_an_interrupted_preview_never_becomes_a_message(start: Any, model: Model) -> None:
    hold = model.hold()
    conversation: Conversation = start(
        answer("one two three", hold=hold, hold_after=1), deltas=("agent.message", "agent.thinking")
    )
    conversation.say("hello")
    conversation.wait_for("event_delta")
    conversation.send(interrupt())
    events = conversation.until_idle()
    assert shapes(events, without=["event_delta"]) == [
        "user.interrupt?", FAILED_END, "user.interrupt", *idle("end_turn"),
    ]  # fmt: skip
    assert "agent.message" not in shapes(conversation.log())


def test_d2_an_interrupt_with_a_message_ends_one_turn_and_begins_the_next(start: Any, model: Model) -> None:
    hold = model.hold()
    conversation: Conversation = start(answer("never said", hold=hold), answer("as you like"))
    conversation.say("do this")
    conversation.expect(*TAKEN, START)
    model.until_waiting(hold)
    sent = conversation.send(interrupt(), message("no, do that"))
    assert [e.processed_at for e in sent] == [None, None]
    events = conversation.expect(
        "user.interrupt?", "user.message?",
        FAILED_END, "user.interrupt", *idle("end_turn"),
        *RUN, "user.message", *ANSWER, *idle("end_turn"),
    )  # fmt: skip
    assert [e.id for e in events[:2]] == [e.id for e in sent]
    said = str(model.bodies()[1]["messages"])
    assert "do this" in said and "no, do that" in said and "never said" not in said


def test_d2_messages_that_were_queued_before_the_interrupt_are_not_lost(start: Any, model: Model) -> None:
    hold = model.hold()
    conversation: Conversation = start(answer("never said", hold=hold), answer("all right"))
    conversation.say("one")
    model.until_waiting(hold)
    conversation.say("queued")
    conversation.send(interrupt())
    conversation.wait_for("user.interrupt")
    conversation.wait_for("agent.message")
    conversation.until_idle()
    assert "queued" in str(model.bodies()[1]["messages"])


def test_d3_an_interrupt_ends_a_running_tool(start: Any, model: Model, blocker: Blocker) -> None:
    conversation: Conversation = start(answer(bash(blocker.command)), tools=[toolset()])
    conversation.say("wait")
    use = conversation.wait_for("agent.tool_use")
    blocker.until_running()
    assert conversation.session().status == "running"
    conversation.wait_for("span.model_request_end")
    conversation.send(interrupt())
    events = conversation.until_idle()
    # The result and its place are our choice.
    assert shapes(events, without=["user.interrupt?", "user.interrupt"]) == ["agent.tool_result", *idle("end_turn")]
    result = next(e for e in events if e.type == "agent.tool_result")
    assert (result.tool_use_id, result.is_error, text(result)) == (use.id, True, INTERRUPTED)
    blocker.until_gone()

    # The next turn has hands again.
    model.script(answer(bash("echo ok")), answer("done"))
    conversation.say("go on")
    again = [e for e in conversation.until_idle() if e.type == "agent.tool_result"]
    assert [text(e) for e in again] == ["ok"]


def test_d4_an_interrupt_of_an_idle_session_changes_nothing(start: Any, model: Model) -> None:
    conversation: Conversation = start(answer("hello"), answer("again"))
    conversation.say("hello")
    conversation.until_idle()
    (sent,) = conversation.send(interrupt())
    taken = conversation.wait_for("user.interrupt", id=sent.id)
    assert taken.processed_at is not None
    assert conversation.session().status == "idle" and len(model.requests()) == 1
    conversation.nothing_more()
    conversation.say("and now?")
    conversation.until_idle()


def test_d4_an_interrupt_of_a_session_that_never_ran(start: Any) -> None:
    conversation: Conversation = start()
    conversation.send(interrupt())
    conversation.wait_for("user.interrupt")
    assert conversation.session().status == "idle"
    assert shapes(conversation.log()) == ["user.interrupt"]


@pytest.mark.parametrize("named", [False, True], ids=["whole session", "primary thread"])
def test_d5_an_interrupt_closes_the_calls_that_wait_for_the_client(start: Any, model: Model, named: bool) -> None:
    conversation: Conversation = start(
        answer(bash("echo ran"), call("lookup", word="ant")),
        answer("hello"),
        tools=[toolset("always_ask"), custom_tool()],
    )
    conversation.say("go")
    uses = conversation.until_idle("requires_action")[-1].stop_reason.event_ids
    (thread,) = conversation.client.beta.sessions.threads.list(conversation.id)
    conversation.send(interrupt(**{"session_thread_id": thread.id} if named else {}))
    events = conversation.until_idle()
    kinds = shapes(events, without=["user.interrupt?", "user.interrupt"])
    assert len(kinds) == 5 and kinds[2:] == list(idle("end_turn")), "no run, no model request"
    results = results_by_call(events)
    assert set(results) == set(uses)
    assert all(e.is_error is True and text(e) == INTERRUPTED for e in results.values())
    assert len(model.requests()) == 1

    for late in (custom_result(uses[-1]), custom_result(uses[0])):
        with pytest.raises(anthropic.BadRequestError):
            conversation.send(late)
    conversation.say("hello")
    conversation.until_idle()


def test_d5_an_interrupt_before_a_message_lifts_the_wait(start: Any) -> None:
    conversation: Conversation = start(answer(call("lookup", word="ant")), answer("hello"), tools=[custom_tool()])
    conversation.say("go")
    conversation.until_idle("requires_action")
    conversation.send(interrupt(), message("never mind"))
    conversation.wait_for("agent.message")
    conversation.until_idle()


def test_an_interrupt_of_an_unknown_thread_is_refused(start: Any) -> None:
    conversation: Conversation = start()
    with pytest.raises((anthropic.BadRequestError, anthropic.NotFoundError)):
        conversation.send(interrupt(session_thread_id="sthr_01AAAAAAAAAAAAAAAAAAAAAA"))
    assert conversation.log() == []


def test_a_null_thread_means_the_whole_session(start: Any) -> None:
    conversation: Conversation = start()
    conversation.send(interrupt(session_thread_id=None))
    conversation.wait_for("user.interrupt")


def test_an_interrupt_while_a_retry_waits_ends_the_turn(start: Any, model: Model) -> None:
    hold = model.hold()
    conversation: Conversation = start(
        failure(529, "overloaded_error"), answer("never said", hold=hold), answer("hello")
    )
    conversation.say("hello")
    conversation.wait_for("session.status_rescheduled")
    model.until_waiting(hold)
    conversation.send(interrupt())
    conversation.wait_for("user.interrupt")
    assert END not in shapes(conversation.until_idle())
    conversation.say("again")
    conversation.until_idle()


def results_by_call(events: list[Event]) -> dict[str, Event]:
    return {id: e for e in events if (id := answered_id(e)) is not None}
