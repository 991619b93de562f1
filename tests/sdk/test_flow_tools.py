"""Flow C: built-in tools, custom tools and confirmations."""

from __future__ import annotations

import contextlib
from typing import Any

import anthropic
import pytest

from conftest import custom_tool, toolset
from support.log import ANSWER, END, RUN, START, Event, idle, shapes, text
from support.recorder import Conversation, confirm, custom_result, message, system_message
from support.scripted import Model, answer, bash, call, text_of, tool_results

TAKEN = ("user.message?", *RUN, "user.message")
# Where the second copy of a confirmation stands is our choice; these flows look at the rest.
ORDERED_BY_US = ("user.tool_confirmation?", "user.tool_confirmation")


def only(events: list[Event], kind: str) -> Event:
    (found,) = [e for e in events if e.type == kind]
    return found


# ---- C1: built-in tools


def test_c1_a_built_in_tool_runs_and_its_result_goes_to_the_model(start: Any, model: Model) -> None:
    conversation: Conversation = start(answer("Let me look.", bash("echo hello")), answer("done"), tools=[toolset()])
    conversation.say("go")
    events = conversation.expect(
        *TAKEN, START, "agent.message", "agent.tool_use", END, "agent.tool_result", *ANSWER, *idle("end_turn")
    )
    use, result = only(events, "agent.tool_use"), only(events, "agent.tool_result")
    assert (use.name, use.input, use.evaluated_permission) == ("bash", {"command": "echo hello"}, "allow")
    assert use.evaluation.to_dict() == {"type": "always_allow"} and use.session_thread_id is None
    assert result.tool_use_id == use.id and not result.is_error and text(result) == "hello"
    (given,) = tool_results(model.bodies()[1]).values()
    assert text_of(given) == "hello" and not given.get("is_error")


def test_c1_several_calls_in_one_answer_get_one_result_each(start: Any) -> None:
    calls = [bash(f"echo {number}") for number in range(3)]
    conversation: Conversation = start(answer(*calls), answer("done"), tools=[toolset()])
    conversation.say("go")
    events = conversation.expect(
        *TAKEN, START, *["agent.tool_use"] * 3, END, *["agent.tool_result"] * 3, *ANSWER, *idle("end_turn")
    )
    uses = {e.id: e.input["command"] for e in events if e.type == "agent.tool_use"}
    results = {e.tool_use_id: text(e) for e in events if e.type == "agent.tool_result"}
    assert {uses[id]: output for id, output in results.items()} == {"echo 0": "0", "echo 1": "1", "echo 2": "2"}


def test_c1_rounds_follow_one_another_within_one_run(start: Any) -> None:
    conversation: Conversation = start(
        answer(bash("echo one")), answer(bash("echo two")), answer("done"), tools=[toolset()]
    )
    conversation.say("go")
    one_round = (START, "agent.tool_use", END, "agent.tool_result")
    conversation.expect(*TAKEN, *one_round, *one_round, *ANSWER, *idle("end_turn"))


def test_c1_a_failing_tool_is_a_result_and_not_an_error_of_the_session(start: Any, model: Model) -> None:
    conversation: Conversation = start(answer(bash("echo oops; exit 3")), answer("I see"), tools=[toolset()])
    conversation.say("go")
    result = only(conversation.until_idle(), "agent.tool_result")
    assert result.is_error is True and text(result) == "oops"
    (given,) = tool_results(model.bodies()[1]).values()
    assert given["is_error"] is True


@pytest.mark.parametrize(
    ("tools", "called"),
    [
        ([{"type": "agent_toolset_20260401", "configs": [{"name": "bash", "enabled": False}]}], "bash"),
        ([toolset()], "no_such_tool"),
    ],
    ids=["disabled", "unknown"],
)
def test_a_tool_that_is_not_enabled_is_denied_without_asking(start: Any, tools: Any, called: str) -> None:
    conversation: Conversation = start(answer(call(called, command="echo")), answer("I see"), tools=tools)
    conversation.say("go")
    events = conversation.expect(*TAKEN, START, "agent.tool_use", END, "agent.tool_result", *ANSWER, *idle("end_turn"))
    use, result = only(events, "agent.tool_use"), only(events, "agent.tool_result")
    assert use.evaluated_permission == "deny" and use.evaluation is None
    assert result.is_error is True and text(result) == f"Permission to use {called} has been denied."


def test_a_tool_that_is_not_enabled_is_not_offered_to_the_model(start: Any, model: Model) -> None:
    tools = [{"type": "agent_toolset_20260401", "configs": [{"name": "bash", "enabled": False}]}, custom_tool()]
    conversation: Conversation = start(answer("hello"), tools=tools)
    conversation.say("go")
    conversation.until_idle()
    offered = {tool["name"] for tool in model.bodies()[0]["tools"]}
    assert {"read", "write", "edit", "glob", "grep", "lookup"} <= offered and "bash" not in offered


# ---- C2: custom tools


def blocked_on_custom(start: Any, *more: Any, **fields: Any) -> tuple[Conversation, Event]:
    tools = [custom_tool()]
    conversation: Conversation = start(answer(call("lookup", word="ant")), *more, tools=tools, **fields)
    conversation.say("go")
    events = conversation.expect(*TAKEN, START, "agent.custom_tool_use", END, *idle("requires_action"))
    use = only(events, "agent.custom_tool_use")
    for event in events:
        if "idle" in event.type:
            assert event.stop_reason.event_ids == [use.id]
    return conversation, use


def test_c2_a_custom_tool_waits_for_its_client(start: Any, model: Model) -> None:
    conversation, use = blocked_on_custom(start, answer("done"))
    assert (use.name, use.input) == ("lookup", {"word": "ant"})
    assert not {"evaluated_permission", "evaluation"} & set(use.to_dict())
    assert conversation.session().status == "idle"
    (sent,) = conversation.send(custom_result(use.id, "an insect"))
    assert sent.processed_at is not None and sent.custom_tool_use_id == use.id
    events = conversation.expect("user.custom_tool_result", *RUN, *ANSWER, *idle("end_turn"))
    assert events[0].id == sent.id and text(events[0]) == "an insect"
    assert text_of(next(iter(tool_results(model.bodies()[1]).values()))) == "an insect"
    conversation.nothing_more()


def test_c2a_a_result_may_come_before_the_idle(start: Any) -> None:
    conversation: Conversation = start(answer(call("lookup", word="ant")), answer("done"), tools=[custom_tool()])
    conversation.say("go")
    use = conversation.wait_for("agent.custom_tool_use")
    conversation.send(custom_result(use.id))
    conversation.wait_for("session.status_idle(end_turn)")
    kinds = shapes(conversation.log())
    assert kinds.count("user.custom_tool_result") == 1 and kinds[-6:] == [*ANSWER, *idle("end_turn")]


def test_c2b_a_message_is_refused_while_a_result_is_awaited(start: Any) -> None:
    conversation, use = blocked_on_custom(start)
    with pytest.raises(anthropic.BadRequestError, match="waiting on responses to events") as refused:
        conversation.say("hello?")
    assert refused.value.api_message is not None
    assert use.id in refused.value.api_message and "events[0]" in refused.value.api_message
    conversation.nothing_more()


def test_c2b_an_answer_and_a_message_in_one_request_are_refused_together(start: Any) -> None:
    conversation, use = blocked_on_custom(start)
    with pytest.raises(anthropic.BadRequestError):
        conversation.send(message("hello?"), custom_result(use.id))
    conversation.nothing_more()


def test_c2c_a_failed_result_goes_to_the_model(start: Any, model: Model) -> None:
    conversation, use = blocked_on_custom(start, answer("I see"))
    conversation.send(custom_result(use.id, "no such word", is_error=True))
    result = only(conversation.until_idle(), "user.custom_tool_result")
    assert result.is_error is True
    (given,) = tool_results(model.bodies()[1]).values()
    assert given["is_error"] is True and text_of(given) == "no such word"


def test_c2d_a_result_for_an_unknown_call_is_refused(start: Any) -> None:
    conversation, use = blocked_on_custom(start)
    for wrong in ("sevt_01AAAAAAAAAAAAAAAAAAAAAA", "x", conversation.events[0].id):
        with pytest.raises(anthropic.BadRequestError):
            conversation.send(custom_result(wrong))
    conversation.nothing_more()
    # A built-in call's answer is of another kind.
    with pytest.raises(anthropic.BadRequestError):
        conversation.send(confirm(use.id))
    conversation.nothing_more()


def test_c2_a_result_without_content_is_enough(start: Any) -> None:
    conversation, use = blocked_on_custom(start, answer("done"))
    conversation.send({"type": "user.custom_tool_result", "custom_tool_use_id": use.id})
    conversation.until_idle()


def test_c2_a_result_may_hold_every_kind_of_content(start: Any, model: Model) -> None:
    conversation, use = blocked_on_custom(start, answer("done"))
    found = {
        "type": "search_result",
        "source": "https://example.com/ants",
        "title": "Ants",
        "content": [{"type": "text", "text": "Ants are insects."}],
        "citations": {"enabled": True},
    }
    content = [{"type": "text", "text": "found:"}, found]
    (sent,) = conversation.send({"type": "user.custom_tool_result", "custom_tool_use_id": use.id, "content": content})
    assert [block.to_dict() for block in sent.content] == content
    conversation.until_idle()
    assert "Ants are insects." in str(model.bodies()[1]["messages"])


def test_c2_a_second_answer_to_one_call_runs_nothing(start: Any, model: Model) -> None:
    conversation, use = blocked_on_custom(start, answer("done"))
    conversation.send(custom_result(use.id))
    conversation.until_idle()
    # Refused or taken as a repetition, but never a conflict, which would be retried.
    with contextlib.suppress(anthropic.BadRequestError):
        conversation.send(custom_result(use.id))
    assert len(model.requests()) == 2
    assert shapes(conversation.log()).count("user.custom_tool_result") == 1


def test_c2_a_system_message_may_follow_an_answer(start: Any, model: Model) -> None:
    conversation, use = blocked_on_custom(start, answer("done"))
    conversation.send(custom_result(use.id), system_message("The user is called Ada."))
    conversation.until_idle()
    assert "called Ada" in str(model.bodies()[1])


# ---- C3 and C4: confirmations


def blocked_on_ask(start: Any, *more: Any, command: str = "echo ran") -> tuple[Conversation, Event]:
    conversation: Conversation = start(answer(bash(command)), *more, tools=[toolset("always_ask")])
    conversation.say("go")
    events = conversation.expect(*TAKEN, START, "agent.tool_use", END, *idle("requires_action"))
    use = only(events, "agent.tool_use")
    assert use.evaluated_permission == "ask" and use.evaluation.to_dict() == {"type": "always_ask"}
    assert events[-1].stop_reason.event_ids == [use.id]
    return conversation, use


def test_c3_an_allowed_call_runs(start: Any, model: Model) -> None:
    conversation, use = blocked_on_ask(start, answer("done"))
    (sent,) = conversation.send(confirm(use.id))
    assert sent.processed_at is None
    # That the run begins before the confirmation is taken up is our choice.
    events = conversation.expect(
        "user.tool_confirmation?", *RUN, "user.tool_confirmation", "agent.tool_result", *ANSWER, *idle("end_turn")
    )
    assert events[0].id == events[3].id == sent.id
    assert events[0].result == "allow" and events[0].tool_use_id == use.id
    result = events[4]
    assert result.tool_use_id == use.id and text(result) == "ran" and not result.is_error


def test_c4_a_denied_call_never_runs_and_the_model_hears_why(start: Any, model: Model) -> None:
    conversation, use = blocked_on_ask(start, answer("I see"))
    conversation.send(confirm(use.id, "deny", deny_message="not on a Monday"))
    events = conversation.expect(
        "user.tool_confirmation?", *RUN, "user.tool_confirmation", "agent.tool_result", *ANSWER, *idle("end_turn")
    )
    result = only(events, "agent.tool_result")
    assert result.tool_use_id == use.id and result.is_error is True
    assert "reject" in text(result).lower() and "not on a Monday" in text(result) and "ran" not in text(result).split()
    (given,) = tool_results(model.bodies()[1]).values()
    assert given["is_error"] is True and "not on a Monday" in text_of(given)


def test_c4_a_denial_needs_no_message(start: Any) -> None:
    conversation, use = blocked_on_ask(start, answer("I see"))
    conversation.send(confirm(use.id, "deny"))
    assert only(conversation.until_idle(), "agent.tool_result").is_error is True


def test_c4_a_deny_message_with_allow_is_refused(start: Any) -> None:
    conversation, use = blocked_on_ask(start)
    with pytest.raises(anthropic.BadRequestError, match="deny_message"):
        conversation.send(confirm(use.id, "allow", deny_message="but"))
    conversation.nothing_more()


def test_a_call_under_the_auto_policy_asks_as_there_is_no_judge(start: Any) -> None:
    conversation: Conversation = start(answer(bash("echo ran")), answer("done"), tools=[toolset("auto")])
    conversation.say("go")
    use = only(conversation.until_idle("requires_action"), "agent.tool_use")
    assert use.evaluated_permission == "ask"
    assert use.evaluation.to_dict() == {
        "type": "auto", "evaluated_permission": {"type": "ask", "reason_code": "indeterminate"},
    }  # fmt: skip
    conversation.send(confirm(use.id))
    conversation.until_idle()


# ---- C5 and mixed calls


def blocked_on_two(start: Any, *more: Any) -> tuple[Conversation, Event, Event]:
    conversation: Conversation = start(
        answer(bash("echo ran"), call("lookup", word="ant")),
        *more,
        tools=[toolset("always_ask"), custom_tool()],
    )
    conversation.say("go")
    events = conversation.expect(
        *TAKEN, START, "agent.tool_use", "agent.custom_tool_use", END, *idle("requires_action")
    )
    asked, custom = only(events, "agent.tool_use"), only(events, "agent.custom_tool_use")
    assert set(events[-1].stop_reason.event_ids) == {asked.id, custom.id}
    return conversation, asked, custom


@pytest.mark.parametrize("confirmed_first", [True, False])
def test_c5_a_partial_answer_names_what_is_still_missing(start: Any, confirmed_first: bool) -> None:
    conversation, asked, custom = blocked_on_two(start, answer("done"))
    answers = [(confirm(asked.id), custom), (custom_result(custom.id), asked)]
    (first, missing), (second, _) = answers if confirmed_first else answers[::-1]

    conversation.send(first)
    part = conversation.until_idle("requires_action")
    without = [*ORDERED_BY_US, "user.custom_tool_result"]
    # That the thread's idle and the usage are repeated with it is our choice; that nothing runs is not.
    assert shapes(part, without=without) == list(idle("requires_action"))
    assert part[-1].stop_reason.event_ids == [missing.id]
    with pytest.raises(anthropic.BadRequestError, match="waiting on responses to events"):
        conversation.say("hello?")

    conversation.send(second)
    rest = conversation.until_idle()
    assert shapes(rest, without=without) == [*RUN, "agent.tool_result", *ANSWER, *idle("end_turn")]
    assert only(rest, "agent.tool_result").tool_use_id == asked.id
    assert shapes(conversation.log()).count("user.tool_confirmation") == 1


def test_c5_both_answers_in_one_request_are_one_run(start: Any) -> None:
    conversation, asked, custom = blocked_on_two(start, answer("done"))
    sent = conversation.send(confirm(asked.id), custom_result(custom.id))
    assert [e.type for e in sent] == ["user.tool_confirmation", "user.custom_tool_result"]
    events = conversation.until_idle()
    without = [*ORDERED_BY_US, "user.custom_tool_result"]
    assert shapes(events, without=without) == [*RUN, "agent.tool_result", *ANSWER, *idle("end_turn")]


def test_an_allowed_call_beside_an_asking_one_runs_at_once(start: Any) -> None:
    tools = [toolset("always_ask", bash="always_allow")]
    conversation: Conversation = start(
        answer(bash("echo allowed"), call("write", file_path="note.txt", content="asked")),
        answer("done"),
        tools=tools,
    )
    conversation.say("go")
    events = conversation.expect(
        *TAKEN, START, "agent.tool_use", "agent.tool_use", END, "agent.tool_result", *idle("requires_action")
    )
    allowed, asking = (e for e in events if e.type == "agent.tool_use")
    assert (allowed.evaluated_permission, asking.evaluated_permission) == ("allow", "ask")
    assert events[-1].stop_reason.event_ids == [asking.id]
    with pytest.raises(anthropic.BadRequestError):
        conversation.send(confirm(allowed.id))
    conversation.send(confirm(asking.id))
    rest = conversation.until_idle()
    assert only(rest, "agent.tool_result").tool_use_id == asking.id


def test_one_bad_answer_among_good_ones_refuses_them_all(start: Any) -> None:
    conversation, asked, custom = blocked_on_two(start)
    with pytest.raises(anthropic.BadRequestError):
        conversation.send(confirm(asked.id), custom_result("sevt_01AAAAAAAAAAAAAAAAAAAAAA"))
    conversation.nothing_more()
    assert set(conversation.log()[-1].stop_reason.event_ids) == {asked.id, custom.id}
