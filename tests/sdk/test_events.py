"""Events as a resource: what a send returns, how the list is filtered and paged, and what a stream is on the wire."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import anthropic
import httpx2
import pytest

from conftest import custom_tool, toolset
from support.log import ANSWER, RUN, idle, processed, read_log, shape, shapes
from support.recorder import Conversation, custom_result, interrupt, message, system_message
from support.scripted import Model, answer, bash, call, thinking
from support.wire import check_error, frames


@pytest.fixture
def rich(start: Any) -> Conversation:
    """A session at rest with some twenty events of many kinds."""
    conversation: Conversation = start(
        answer(thinking("hm"), "Let me look.", bash("echo hello"), call("lookup", word="ant")),
        answer("done"),
        tools=[toolset(), custom_tool()],
    )
    conversation.say("go")
    use = conversation.until_idle("requires_action")[-1].stop_reason.event_ids[0]
    conversation.send(custom_result(use))
    conversation.until_idle()
    return conversation


# ---- send


def test_a_send_echoes_its_events_in_order_with_ids(start: Any) -> None:
    conversation: Conversation = start(answer("hello"))
    sent = conversation.send(message("one"), message("two"), system_message("three"))
    assert len({e.id for e in sent}) == 3 and all(e.id.startswith("sevt_") for e in sent)
    assert [e.content[0].text for e in sent] == ["one", "two", "three"]
    conversation.until_idle()


def test_what_was_sent_is_listed_at_once(start: Any) -> None:
    conversation: Conversation = start(answer("one"), answer("two"), answer("three"))
    for number in range(3):
        sent = conversation.say(f"number {number}")
        assert sent.id in {e.id for e in conversation.log()}
    conversation.wait_for("session.status_idle(end_turn)")


def test_k20_one_bad_event_among_good_ones_stores_none(start: Any) -> None:
    conversation: Conversation = start()
    bad = [{"type": "user.message", "content": []}, {"type": "user.nonsense"}, custom_result("sevt_01AAAAAAAAAAAAA")]
    for event in bad:
        with pytest.raises(anthropic.BadRequestError, match=r"events\[1\]|events\.1"):
            conversation.send(message("good"), event, message("good"))
    assert conversation.log() == [] and conversation.events == []


def test_a_body_may_hold_a_long_text(start: Any, model: Model) -> None:
    conversation: Conversation = start(answer("long"))
    long = "x" * 2_000_000
    (sent,) = conversation.send(message(long))
    assert sent.content[0].text == long
    conversation.until_idle()
    assert long in str(model.bodies()[0]["messages"])


def test_any_text_survives_the_way_there_and_back(start: Any, model: Model) -> None:
    text = 'quote " backslash \\ newline \n tab \t nul-free \u2028 \U0001f600 \u0301 שלום \x7f data: x\n\nevent: y\n\n'
    conversation: Conversation = start(answer(text))
    conversation.say(text)
    events = conversation.until_idle()
    assert {e.content[0].text for e in events if e.type in ("user.message", "agent.message")} == {text}
    assert any(text == block.get("text") for m in model.bodies()[0]["messages"] for block in as_blocks(m))


def as_blocks(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


# ---- list


def test_k11_the_list_is_paged_in_both_orders(rich: Conversation) -> None:
    log = read_log(rich.client, rich.id)
    assert len(log) > 15
    for limit in (1, 2, 7, len(log), 1000):
        assert read_log(rich.client, rich.id, limit=limit) == log, limit
        assert read_log(rich.client, rich.id, limit=limit, order="desc") == log[::-1], limit
    first = rich.client.beta.sessions.events.list(rich.id, limit=2)
    assert first.data == log[:2] and first.next_page is not None
    assert not hasattr(first, "prev_page"), "only the list of sessions goes back"
    whole = rich.client.beta.sessions.events.list(rich.id)
    assert whole.data == log and whole.next_page is None, "the default page is long"


def test_k11_paging_ends_and_misses_nothing_while_events_are_appended(start: Any) -> None:
    conversation: Conversation = start(*[answer(f"answer {n}") for n in range(4)])
    conversation.say("hello")
    conversation.until_idle()
    found = []
    for number, event in enumerate(conversation.client.beta.sessions.events.list(conversation.id, limit=2)):
        found.append(event)
        if number in (3, 9, 15):
            conversation.say("more")
            conversation.until_idle()
    assert [e.id for e in found] == [e.id for e in conversation.log()]


def test_a_cursor_of_the_events_is_bound_to_its_order(rich: Conversation) -> None:
    first = rich.client.beta.sessions.events.list(rich.id, limit=2)
    assert first.next_page is not None
    with pytest.raises(anthropic.BadRequestError):
        rich.client.beta.sessions.events.list(rich.id, limit=2, page=first.next_page, order="desc")


def test_a_cursor_of_one_list_is_refused_by_another(http: httpx2.Client, rich: Conversation) -> None:
    first = rich.client.beta.sessions.events.list(rich.id, limit=2)
    check_error(http.get("/v1/agents", params={"page": first.next_page}), 400, names="page")
    check_error(http.get("/v1/sessions", params={"page": first.next_page}), 400, names="page")


def test_k14_events_are_filtered_by_type(rich: Conversation, http: httpx2.Client) -> None:
    log = read_log(rich.client, rich.id)
    for kind in {e.type for e in log}:
        assert read_log(rich.client, rich.id, types=[kind]) == [e for e in log if e.type == kind], kind
    two = {"agent.message", "user.message"}
    wanted = [e.id for e in log if e.type in two]
    assert [e.id for e in read_log(rich.client, rich.id, types=list(two), limit=1)] == wanted
    for query in ("types[]=agent.message&types%5B%5D=user.message", "types=agent.message&types=user.message"):
        body = http.get(f"/v1/sessions/{rich.id}/events?{query}").json()
        assert [e["id"] for e in body["data"]] == wanted
    assert read_log(rich.client, rich.id, types=["workflow_run.created"]) == []


def test_events_are_filtered_by_time(rich: Conversation) -> None:
    log = read_log(rich.client, rich.id)
    bound: datetime = log[5].processed_at
    assert read_log(rich.client, rich.id, created_at_gt=bound) == log[6:]
    assert read_log(rich.client, rich.id, created_at_gte=bound) == log[5:]
    assert read_log(rich.client, rich.id, created_at_lt=bound) == log[:5]
    assert read_log(rich.client, rich.id, created_at_lte=bound) == log[:6]
    assert read_log(rich.client, rich.id, created_at_gt=log[2].processed_at, created_at_lt=bound, limit=1) == log[3:5]
    assert read_log(rich.client, rich.id, created_at_gt=bound, order="desc") == log[:5:-1]


def test_times_are_in_utc_with_microseconds(http: httpx2.Client, rich: Conversation) -> None:
    for event in http.get(f"/v1/sessions/{rich.id}/events").json()["data"]:
        head, _, fraction = event["processed_at"].partition(".")
        assert len(head) == len("2026-11-20T09:00:00") and len(fraction) == 7 and fraction.endswith("Z"), event


def test_what_is_null_is_said_and_what_is_absent_is_not(http: httpx2.Client, rich: Conversation) -> None:
    by_type = {e["type"]: e for e in http.get(f"/v1/sessions/{rich.id}/events").json()["data"]}
    assert by_type["session.status_idle"]["stop_details"] is None
    assert by_type["session.usage"]["budget"] is None
    assert set(by_type["session.status_running"]) == {"id", "type", "processed_at"}
    assert set(by_type["span.model_request_start"]) == {"id", "type", "processed_at"}


# ---- stream


def test_a_stream_begins_with_what_comes_after_it_was_opened(start: Any, watch: Any) -> None:
    conversation: Conversation = start(answer("one"), answer("two"))
    conversation.say("hello")
    conversation.until_idle()
    late: Conversation = watch(conversation.id)
    late.say("again")
    late.expect("user.message?", *RUN, "user.message", *ANSWER, *idle("end_turn"))


def test_k1_a_client_that_reconnects_and_lists_has_every_event(start: Any, watch: Any, model: Model) -> None:
    hold = model.hold()
    first: Conversation = start(answer("one two", hold=hold), answer("three"))
    first.say("hello")
    first.wait_for("span.model_request_start")
    model.until_waiting(hold)
    first.close()
    seen = {e.id for e in processed(first.events)}
    second: Conversation = watch(first.id)
    listed = {e.id for e in processed(second.log())}
    assert seen <= listed
    model.release(hold)
    second.until_idle()
    assert seen | listed | {e.id for e in processed(second.events)} == {e.id for e in second.log()}


def test_k2_all_streams_get_all_events(start: Any, watch: Any) -> None:
    first: Conversation = start(answer(bash("echo hello")), answer("done"), tools=[toolset()])
    others = [watch(first.id) for _ in range(4)]
    first.say("hello")
    expected = [(e.id, e.processed_at) for e in first.until_idle()]
    for other in others:
        assert [(e.id, e.processed_at) for e in other.until_idle()] == expected


def test_a_stream_stays_open_over_many_turns(start: Any) -> None:
    conversation: Conversation = start(*[answer(str(n)) for n in range(5)])
    for number in range(5):
        conversation.say(str(number))
        conversation.expect("user.message?", *RUN, "user.message", *ANSWER, *idle("end_turn"))


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream", "*/*"])
def test_k15_and_k21_a_stream_is_server_sent_events_whatever_is_accepted(
    start: Any, http: httpx2.Client, accept: str
) -> None:
    conversation: Conversation = start(answer("one\ntwo"))
    with http.stream("GET", f"/v1/sessions/{conversation.id}/events/stream", headers={"accept": accept}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].split(";")[0] == "text/event-stream"
        assert response.headers["request-id"].startswith("req_")
        conversation.say("hello")
        seen = []
        for frame in frames(response):
            seen.append(frame)
            if frame.event == "session.status_idle":
                break
    assert [f.event for f in seen] == [e.type for e in conversation.until_idle()]


# ---- deterministic interleavings


def test_events_of_two_sessions_never_mix(start: Any, make_session: Any, watch: Any, model: Model) -> None:
    first: Conversation = start(answer("one"), answer("two"))
    second: Conversation = watch(make_session().id)
    first.say("hello")
    first.until_idle()
    assert second.events == [] and second.log() == []
    second.say("hello")
    second.until_idle()
    assert not {e.id for e in first.log()} & {e.id for e in second.log()}


def test_an_id_of_one_session_is_unknown_in_another(start: Any, make_session: Any, watch: Any) -> None:
    first: Conversation = start(answer(call("lookup", word="ant")), tools=[custom_tool()])
    first.say("hello")
    use = first.until_idle("requires_action")[-1].stop_reason.event_ids[0]
    second: Conversation = watch(make_session().id)
    with pytest.raises(anthropic.BadRequestError):
        second.send(custom_result(use))
    first.nothing_more()
    first.send(interrupt())
    assert shape(first.until_idle()[-1]) == "session.status_idle(end_turn)"
    assert shapes(second.log()) == []
