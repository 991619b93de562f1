"""What a scripted server cannot show: that a real one takes our requests, and that we understand what it sends.

What the model says is its own affair: no test looks for words in it.
"""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable
from typing import Any

from anthropic.lib.sessions import accumulate_managed_agents_event

from llama_server import ANSWER_TOKENS_MAX, CONTEXT_TOKENS
from support.deadline import eventually
from support.log import END, FAILED_END, RUN, START, Event, idle, shapes, text
from support.process import Process
from support.recorder import Conversation, interrupt, message, system_message

# Long enough for the longest answer at four tokens a second.
TURN_SECONDS = 120.0
TAKEN = ("user.message?", *RUN, "user.message", START)
PREVIEWS = ("event_start(agent.message)", "event_delta")

Converse = Callable[..., Conversation]
Tell = Callable[[str], None]


def test_a_turn_streams_its_answer(converse: Converse, tell: Tell) -> None:
    conversation = converse(system="You are helpful. Answer briefly.")
    began = time.monotonic()
    conversation.say("Name three colours.")
    wait_for_delta(conversation)
    first_token = time.monotonic() - began
    events = until_idle(conversation)
    whole = time.monotonic() - began

    assert shapes(events, without=PREVIEWS) == [*TAKEN, "agent.message", END, *idle("end_turn")]
    check_previews(events)
    usage = last_usage(events)
    assert usage.input_tokens > 0 and usage.output_tokens > 0
    speed = (usage.output_tokens - 1) / max(whole - first_token, 1e-9)
    tell(f"first token after {first_token:.2f} s, {usage.output_tokens} tokens, {speed:.1f} tokens/s: {said(events)!r}")


def test_a_second_turn_goes_on_with_the_first(converse: Converse, tell: Tell) -> None:
    conversation = converse(system="You are helpful. Answer briefly.")
    conversation.say("Name three colours.")
    first = until_idle(conversation)
    conversation.send(message("Say hello."), system_message("The user is called Ada."))
    second = until_idle(conversation, turn=2)

    assert shapes(second, without=PREVIEWS) == [
        "user.message?", "system.message?", *RUN, "user.message", "system.message",
        START, "agent.message", END, *idle("end_turn"),
    ]  # fmt: skip
    check_previews(second)
    before, after = last_usage(first), last_usage(second)
    # The second request begins with the bytes of the first, so the server need not read them again.
    assert after.cache_read_input_tokens >= before.input_tokens + before.cache_read_input_tokens
    assert after.input_tokens > 0 and after.output_tokens > 0
    tell(
        f"second turn: {after.cache_read_input_tokens} tokens from the cache, {after.input_tokens} new: "
        f"{said(second)!r}"
    )


def test_an_interrupt_in_mid_answer_ends_it_here_and_at_the_model(
    converse: Converse, llama: Process, tell: Tell
) -> None:
    conversation = converse()
    spoken_before = counter(llama, "tokens_predicted_total")
    conversation.say("Write a very long story about a mouse.")
    wait_for_delta(conversation)
    conversation.send(interrupt())
    asked = time.monotonic()
    events = until_idle(conversation)
    assert shapes(events, without=PREVIEWS) == [
        *TAKEN, "user.interrupt?", FAILED_END, "user.interrupt", *idle("end_turn"),
    ]  # fmt: skip
    rested = time.monotonic() - asked
    start, end = (next(e for e in events if e.type == kind) for kind in (START, END))
    assert end.model_request_start_id == start.id
    assert "agent.message" not in shapes(conversation.log())

    # The connection is closed, and with it the server stops: nobody pays for words that nobody reads.
    eventually(lambda: counter(llama, "requests_processing") == 0, "the model server stops", TURN_SECONDS)
    stopped = time.monotonic() - asked
    spoken = counter(llama, "tokens_predicted_total") - spoken_before
    assert spoken < ANSWER_TOKENS_MAX
    tell(
        f"interrupt: idle after {rested * 1000:.0f} ms, the model at rest after {stopped * 1000:.0f} ms "
        f"and {spoken:.0f} tokens"
    )

    conversation.say("Say hello.")
    again = until_idle(conversation, turn=2)
    assert shapes(again, without=PREVIEWS) == [*TAKEN, "agent.message", END, *idle("end_turn")]


def test_a_conversation_that_outgrows_the_context_says_so(converse: Converse, tell: Tell) -> None:
    conversation = converse()
    conversation.say("word " * 2 * CONTEXT_TOKENS)
    events = until_idle(conversation, "retries_exhausted")
    error = next(e for e in events if e.type == "session.error").error
    assert "the conversation is too large for the model" in error.message
    assert not conversation.session().usage.output_tokens
    tell(f"too large: {error.type}: {error.message}")


def wait_for_delta(conversation: Conversation) -> None:
    conversation.recorder.wait(lambda events: any(e.type == "event_delta" for e in events), "a delta", TURN_SECONDS)


def until_idle(conversation: Conversation, reason: str = "end_turn", turn: int = 1) -> list[Event]:
    """Reads up to the end of that turn of the session, with the patience that a slow model needs."""
    conversation.recorder.wait(
        lambda events: sum(e.type == "session.status_idle" for e in events) >= turn, "the turn's end", TURN_SECONDS
    )
    return conversation.until_idle(reason)


def check_previews(events: list[Event]) -> None:
    """The deltas are the beginning of the message, in several pieces, and the SDK's accumulator ends at the message."""
    (spoken,) = [e for e in events if e.type == "agent.message"]
    deltas = [e for e in events if e.type == "event_delta"]
    assert len(deltas) > 1, "the answer came in one piece"
    assert {e.event_id for e in deltas} == {spoken.id}
    streamed = "".join(e.delta.content.text for e in deltas)
    assert text(spoken).startswith(streamed)
    snapshot = None
    for event in events:
        snapshot = accumulate_managed_agents_event(snapshot, event)
        if event is deltas[-1]:
            assert snapshot is not None and text(snapshot) == streamed
    assert snapshot == spoken


def last_usage(events: list[Event]) -> Any:
    return next(e for e in reversed(events) if e.type == END).model_usage


def said(events: list[Event]) -> str:
    return text(next(e for e in events if e.type == "agent.message"))


def counter(llama: Process, name: str) -> float:
    """One of the model server's own figures."""
    with urllib.request.urlopen(f"{llama.url}/metrics", timeout=TURN_SECONDS) as answer:
        lines = answer.read().decode().splitlines()
    (value,) = [line.rsplit(" ", 1)[1] for line in lines if line.startswith(f"llamacpp:{name} ")]
    return float(value)
