"""Flow B: plain turns, previews, messages while running, refusals and system messages."""

from __future__ import annotations

from typing import Any

import anthropic
import pytest
from anthropic.lib.sessions import accumulate_managed_agents_event

from support.log import ANSWER, END, RUN, START, Event, idle, read_log, shape, shapes, text
from support.recorder import Conversation, message, system_message
from support.scripted import Model, answer, refusal, thinking

BOTH = ("agent.message", "agent.thinking")


def test_b1_one_message_gets_one_answer(start: Any) -> None:
    usage = {"input_tokens": 11, "output_tokens": 7, "cache_read_input_tokens": 3, "cache_creation_input_tokens": 2}
    conversation: Conversation = start(answer("Hello there", usage=usage))
    sent = conversation.say("hello")
    assert sent.processed_at is None
    events = conversation.expect("user.message?", *RUN, "user.message", *ANSWER, *idle("end_turn"))
    queued, running, thread_running, taken, request, said, end, thread_idle, used, rest = events
    assert queued.id == taken.id == sent.id and taken.content == sent.content == queued.content
    assert taken.processed_at > thread_running.processed_at > running.processed_at
    assert [block.to_dict() for block in said.content] == [{"type": "text", "text": "Hello there"}]
    assert end.model_request_start_id == request.id and end.is_error is False
    assert end.model_usage.to_dict() | {"speed": None} == usage | {"speed": None}
    assert thread_running.agent_name == thread_idle.agent_name == "tester"
    assert thread_running.session_thread_id == thread_idle.session_thread_id
    assert rest.stop_details is None and "stop_details" in rest.model_fields_set
    assert used.budget is None and used.usage.output_tokens == 7
    conversation.check_settled()
    conversation.nothing_more()

    log = conversation.log()
    assert [e.id for e in log].count(sent.id) == 1
    assert shapes(log) == [*RUN, "user.message", *ANSWER, *idle("end_turn")]
    (thread,) = conversation.client.beta.sessions.threads.list(conversation.id)
    assert thread.id == thread_running.session_thread_id
    assert thread.usage is not None and thread.stats is not None
    session = conversation.session()
    assert (session.usage.input_tokens, session.usage.output_tokens) == (11, 7)
    assert session.usage.cache_read_input_tokens == 3
    assert session.stats.active_seconds is not None and session.stats.duration_seconds is not None


def test_b1_turn_after_turn_the_model_sees_the_whole_conversation(start: Any, model: Model) -> None:
    conversation: Conversation = start(answer("first answer"), answer("second answer"), system="Be brief.")
    for question in ("first question", "second question"):
        conversation.say(question)
        conversation.expect("user.message?", *RUN, "user.message", *ANSWER, *idle("end_turn"))
    body = model.bodies()[1]
    assert [m["role"] for m in body["messages"]][:3] == ["user", "assistant", "user"]
    said = str(body["messages"])
    assert said.index("first question") < said.index("first answer") < said.index("second question")
    assert "Be brief." in str(body["system"])


def test_b1_several_messages_in_one_request_are_one_turn(start: Any, model: Model) -> None:
    conversation: Conversation = start(answer("both"))
    conversation.send(message("one"), message("two"))
    conversation.expect(
        "user.message?", "user.message?", *RUN, "user.message", "user.message", *ANSWER, *idle("end_turn")
    )
    assert len(model.requests()) == 1


def test_b1_images_and_documents_reach_the_model(start: Any, model: Model) -> None:
    pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    content = [
        {"type": "text", "text": "look"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": pixel}},
        {
            "type": "document",
            "title": "Notes",
            "source": {"type": "text", "media_type": "text/plain", "data": "a plain document"},
        },
    ]
    conversation: Conversation = start(answer("seen"))
    (sent,) = conversation.send({"type": "user.message", "content": content})
    assert [block.type for block in sent.content] == ["text", "image", "document"]
    conversation.until_idle()
    (body,) = model.bodies()
    assert pixel in str(body["messages"]) and "a plain document" in str(body["messages"])


def test_b1_a_thinking_block_is_an_event_without_content(start: Any) -> None:
    conversation: Conversation = start(answer(thinking("let me see"), "Hello"))
    conversation.say("hello")
    events = conversation.until_idle()
    assert shapes(events) == [
        "user.message?", *RUN, "user.message", START, "agent.thinking", "agent.message", END, *idle("end_turn"),
    ]  # fmt: skip
    thought = next(e for e in events if e.type == "agent.thinking")
    assert set(thought.to_dict()) == {"id", "type", "processed_at"}


def test_b1_thinking_is_given_back_to_the_model_with_its_signature(start: Any, model: Model) -> None:
    conversation: Conversation = start(answer(thinking("let me see"), "Hello"), answer("again"))
    for question in ("hello", "and again"):
        conversation.say(question)
        conversation.until_idle()
    # The scripted server itself refuses a thinking block that lost its signature; here it must be present at all.
    assistant = next(m for m in model.bodies()[1]["messages"] if m["role"] == "assistant")
    assert assistant["content"][0]["type"] == "thinking" and assistant["content"][0]["signature"]


@pytest.mark.parametrize("chunks", ["words", "bytes", "whole"])
def test_b1_an_answer_is_the_same_however_it_is_cut(start: Any, chunks: str) -> None:
    said = 'Grüße aus Köln: 你好, 🙂 and a "quoted" line\nwith another'
    conversation: Conversation = start(answer(said, chunks=chunks, pings=True))
    conversation.say("hello")
    (event,) = [e for e in conversation.until_idle() if e.type == "agent.message"]
    assert text(event) == said


# ---- previews


def test_b2_previews_come_before_the_events_they_announce(start: Any) -> None:
    said = "one two three four five six"
    conversation: Conversation = start(answer(thinking("hm"), said), deltas=BOTH)
    conversation.say("hello")
    events = conversation.until_idle()
    deltas = [e for e in events if e.type == "event_delta"]
    assert deltas
    assert shapes(events) == [
        "user.message?", *RUN, "user.message", START,
        "event_start(agent.thinking)", "agent.thinking",
        "event_start(agent.message)", *["event_delta"] * len(deltas), "agent.message",
        END, *idle("end_turn"),
    ]  # fmt: skip
    starts = [e for e in events if e.type == "event_start"]
    thought, spoken = (next(e for e in events if e.type == kind) for kind in ("agent.thinking", "agent.message"))
    assert [e.event.id for e in starts] == [thought.id, spoken.id]
    assert {e.event_id for e in deltas} == {spoken.id}
    assert {e.delta.index or 0 for e in deltas} == {0}
    assert said.startswith("".join(e.delta.content.text for e in deltas))
    for preview in (*starts, *deltas):
        assert not {"id", "processed_at", "session_thread_id"} & set(preview.to_dict())


def test_b2_the_accumulator_of_the_sdk_arrives_at_the_final_message(start: Any) -> None:
    conversation: Conversation = start(answer(thinking("hm"), "one two three four"), deltas=BOTH)
    conversation.say("hello")
    snapshot = None
    unfinished: list[str] = []
    for event in conversation.until_idle():
        snapshot = accumulate_managed_agents_event(snapshot, event)
        if event.type == "event_delta":
            assert snapshot is not None
            unfinished.append(text(snapshot))
    assert snapshot is not None and text(snapshot) == "one two three four"
    assert all("one two three four".startswith(part) for part in unfinished)


def test_b2_the_first_delta_comes_while_the_model_still_speaks(start: Any, model: Model) -> None:
    hold = model.hold()
    conversation: Conversation = start(answer("one two three", hold=hold, hold_after=1), deltas=("agent.message",))
    conversation.say("hello")
    first = conversation.wait_for("event_delta")
    assert "one two three".startswith(first.delta.content.text)
    assert "agent.message" not in shapes(conversation.events)
    model.release(hold)
    conversation.until_idle()


def test_b2_a_connection_sees_only_the_previews_it_asked_for(start: Any, watch: Any) -> None:
    plain: Conversation = start(answer(thinking("hm"), "one two three"))
    only_thinking: Conversation = watch(plain.id, deltas=("agent.thinking",))
    only_message: Conversation = watch(plain.id, deltas=("agent.message",))
    plain.say("hello")
    previews = {"event_start(agent.thinking)", "event_start(agent.message)", "event_delta"}

    def seen(conversation: Conversation) -> set[str]:
        return set(shapes(conversation.until_idle())) & previews

    assert seen(plain) == set()
    assert seen(only_thinking) == {"event_start(agent.thinking)"}
    assert seen(only_message) == {"event_start(agent.message)", "event_delta"}


def test_b2_previews_are_never_listed(start: Any) -> None:
    conversation: Conversation = start(answer(thinking("hm"), "one two three"), deltas=BOTH)
    conversation.say("hello")
    conversation.until_idle()
    assert not {"event_start", "event_delta"} & {e.type for e in conversation.log()}


@pytest.mark.parametrize("values", [["agent.tool_use"], ["agent.message", "nonsense"], ["agent.message"] * 101])
def test_b2_other_previews_and_too_many_are_refused(
    client: anthropic.Anthropic, make_session: Any, values: list[Any]
) -> None:
    with pytest.raises(anthropic.BadRequestError, match="event_deltas"):
        client.beta.sessions.events.stream(make_session().id, event_deltas=values)


def test_b2_a_connection_opened_in_the_middle_gets_no_preview_of_the_running_block(
    start: Any, watch: Any, model: Model
) -> None:
    hold = model.hold()
    first: Conversation = start(answer("one two three", hold=hold, hold_after=1), deltas=BOTH)
    first.say("hello")
    first.wait_for("event_delta")
    late: Conversation = watch(first.id, deltas=BOTH)
    model.release(hold)
    assert shapes(late.until_idle()) == ["agent.message", END, *idle("end_turn")]


# ---- messages while running


def test_b3_a_message_sent_while_running_is_the_next_turn_without_an_idle_between(start: Any, model: Model) -> None:
    hold = model.hold()
    conversation: Conversation = start(answer("first", hold=hold), answer("second"))
    conversation.say("one")
    conversation.expect("user.message?", *RUN, "user.message", START)
    model.until_waiting(hold)
    sent = conversation.say("two")
    assert sent.processed_at is None
    assert conversation.expect("user.message?")[0].id == sent.id
    # Until it is taken up, it is the last in the list.
    last = conversation.log()[-1]
    assert (last.id, last.processed_at) == (sent.id, None)
    model.release(hold)
    # That there is no idle between the turns is our choice.
    taken = conversation.expect("agent.message", END, "user.message", *ANSWER, *idle("end_turn"))[2]
    assert taken.id == sent.id
    assert "two" in str(model.bodies()[1]["messages"])


def test_b3_all_queued_messages_are_one_turn(start: Any, model: Model) -> None:
    hold = model.hold()
    conversation: Conversation = start(answer("first", hold=hold), answer("second"))
    conversation.say("one")
    model.until_waiting(hold)
    for number in range(3):
        conversation.say(f"queued {number}")
    model.release(hold)
    log = shapes(conversation.until_idle(), without=["user.message?"])
    assert log == [
        *RUN, "user.message", *ANSWER, "user.message", "user.message", "user.message", *ANSWER, *idle("end_turn"),
    ]  # fmt: skip
    said = str(model.bodies()[1]["messages"])
    assert said.index("queued 0") < said.index("queued 1") < said.index("queued 2")


# ---- refusals


@pytest.mark.parametrize(
    ("category", "explanation", "blocks"),
    [("cyber", "That would be an attack.", []), (None, None, ["I cannot"])],
)
def test_b4_a_refusal_is_a_stop_reason_and_no_error(
    start: Any, category: str | None, explanation: str | None, blocks: list[str]
) -> None:
    conversation: Conversation = start(refusal(category, explanation, *blocks), answer("gladly"))
    conversation.say("attack")
    events = conversation.until_idle("refusal")
    assert shapes(events, without=["agent.message"]) == [
        "user.message?", *RUN, "user.message", START, END, *idle("refusal"),
    ]  # fmt: skip
    for event in events:
        if event.type in ("session.status_idle", "session.thread_status_idle"):
            assert event.stop_details.to_dict() == {
                "type": "refusal", "category": category, "explanation": explanation,
            }  # fmt: skip
    conversation.say("something else")
    conversation.until_idle("end_turn")


# ---- system messages


def test_b5_a_system_message_follows_its_user_message(start: Any, model: Model) -> None:
    conversation: Conversation = start(answer("one"), answer("two"))
    first, second = conversation.send(message("hello"), system_message("The user is called Ada."))
    assert (first.processed_at, second.processed_at) == (None, None)
    conversation.expect(
        "user.message?", "system.message?", *RUN, "user.message", "system.message", *ANSWER, *idle("end_turn")
    )
    conversation.say("again")
    conversation.until_idle()
    assert all("called Ada" in str(body) for body in model.bodies()), "it stays for all later turns"


def test_b5_a_system_message_alone_is_taken_on_an_idle_session(start: Any) -> None:
    conversation: Conversation = start(answer("noted"), answer("hello"))
    (sent,) = conversation.send(system_message("The user is called Ada."))
    conversation.wait_for("system.message", id=sent.id)


@pytest.mark.parametrize(
    "events",
    [
        [message("a"), system_message("b"), system_message("c")],
        [system_message("b"), message("a")],
        [
            message("a"),
            {"type": "system.message", "content": [{"type": "image", "source": {"type": "url", "url": "https://a/b"}}]},
        ],
        [message("a"), {"type": "system.message", "content": []}],
    ],
    ids=["two", "first", "not text", "empty"],
)
def test_b5_other_places_and_contents_of_a_system_message_are_refused(start: Any, events: list[Any]) -> None:
    conversation: Conversation = start()
    with pytest.raises(anthropic.BadRequestError):
        conversation.send(*events)
    assert conversation.log() == []


# ---- on every flow


def test_every_event_that_a_stream_shows_is_already_in_the_list(start: Any) -> None:
    conversation: Conversation = start(answer(thinking("hm"), "one"), answer("two"))
    shown: list[Event] = []

    def check(event: Event) -> None:
        shown.append(event)
        assert event.id in {e.id for e in read_log(conversation.client, conversation.id)}, shape(event)

    with conversation.client.beta.sessions.events.stream(conversation.id) as stream:
        conversation.say("hello")
        for event in stream:
            check(event)
            if event.type == "session.status_idle":
                break
    assert shape(shown[-1]) == "session.status_idle(end_turn)"
