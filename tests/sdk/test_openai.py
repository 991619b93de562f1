"""The same flows with a model behind the OpenAI wire format: nothing of it shows in the events."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from conftest import custom_tool, toolset
from support.log import ANSWER, END, FAILED_END, RESCHEDULED, RUN, START, idle, shape, shapes, text
from support.process import OPENAI_SECRET
from support.recorder import Conversation, confirm, custom_result, interrupt
from support.scripted import Model, ScriptedServer, answer, bash, call, failure

TAKEN = ("user.message?", *RUN, "user.message")


@pytest.fixture
def model(scripted: ScriptedServer) -> Iterator[Model]:
    made = Model(scripted, family="gpt")
    yield made
    made.release_all()
    made.check_requests()


def test_plain_turns_with_previews(start: Any, model: Model) -> None:
    usage = {"input_tokens": 11, "output_tokens": 7}
    conversation: Conversation = start(
        answer("one two three", usage=usage), answer("four", usage=usage), deltas=("agent.message",), system="Be brief."
    )
    conversation.say("hello")
    events = conversation.until_idle()
    without = ["event_start(agent.message)", "event_delta"]
    assert shapes(events, without=without) == [*TAKEN, *ANSWER, *idle("end_turn")]
    deltas = "".join(e.delta.content.text for e in events if e.type == "event_delta")
    assert deltas and "one two three".startswith(deltas)
    conversation.say("and?")
    conversation.until_idle()
    assert conversation.session().usage.output_tokens == 14
    first, second = model.requests()
    assert first["path"] == "/v1/chat/completions"
    assert f"Bearer {OPENAI_SECRET}" in first["headers"].values()
    assert [m["role"] for m in second["body"]["messages"]] == ["system", "user", "assistant", "user"]
    assert "Be brief." in str(second["body"]["messages"][0])


@pytest.mark.parametrize("chunks", ["words", "bytes", "whole"])
def test_an_answer_is_the_same_however_it_is_cut(start: Any, chunks: str) -> None:
    said = 'Grüße aus Köln: 你好, 🙂 and a "quoted" line\nwith another'
    conversation: Conversation = start(answer(said, chunks=chunks))
    conversation.say("hello")
    (event,) = [e for e in conversation.until_idle() if e.type == "agent.message"]
    assert text(event) == said


def test_tools_of_every_kind(start: Any, model: Model) -> None:
    conversation: Conversation = start(
        answer(
            "Let me look.", bash("echo hello"), call("lookup", word="ant"), call("write", file_path="a", content="b")
        ),
        answer("done"),
        tools=[toolset(write="always_ask"), custom_tool()],
    )
    conversation.say("go")
    events = conversation.expect(
        *TAKEN, START, "agent.message", "agent.tool_use", "agent.custom_tool_use", "agent.tool_use", END,
        "agent.tool_result", *idle("requires_action"),
    )  # fmt: skip
    custom, asking = next(e for e in events if e.type == "agent.custom_tool_use"), events[8]
    assert asking.evaluated_permission == "ask"
    conversation.send(custom_result(custom.id, "an insect"), confirm(asking.id, "deny", deny_message="not now"))
    conversation.until_idle()
    messages = model.bodies()[1]["messages"]
    answers = [m for m in messages if m["role"] == "tool"]
    assert len(answers) == 3
    assert [("hello" in str(a), "an insect" in str(a), "not now" in str(a)) for a in answers] == [
        (True, False, False), (False, True, False), (False, False, True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (failure(429, "rate_limit_error"), "model_rate_limited_error"),
        (failure(500, "api_error"), "model_request_failed_error"),
        (answer("cut off in the middle of a sentence", cut_after=3), "model_request_failed_error"),
    ],
    ids=["429", "500", "disconnect"],
)
def test_a_passing_failure_is_tried_again(start: Any, reply: Any, kind: str) -> None:
    conversation: Conversation = start(reply, answer("at last"))
    conversation.say("hello")
    conversation.expect(
        *TAKEN, START, FAILED_END, f"session.error({kind}, retrying)", *RESCHEDULED, *RUN, *ANSWER, *idle("end_turn")
    )


def test_an_interrupt_ends_the_request(start: Any, model: Model) -> None:
    hold = model.hold()
    conversation: Conversation = start(answer("never said", hold=hold), answer("hello"))
    conversation.say("hello")
    model.until_waiting(hold)
    conversation.send(interrupt())
    events = conversation.until_idle()
    assert FAILED_END in shapes(events) and "agent.message" not in shapes(events)
    conversation.say("again")
    assert shape(conversation.until_idle()[-1]) == "session.status_idle(end_turn)"
