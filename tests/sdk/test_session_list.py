"""The list of sessions: each filter, both orders, and the cursor that goes both ways."""

from __future__ import annotations

from typing import Any

import anthropic
import httpx2
import pytest

from support.recorder import Conversation
from support.scripted import Model, answer
from support.wire import check_error

UNKNOWN = "01AAAAAAAAAAAAAAAAAAAAAA"


@pytest.fixture
def five(make_agent: Any, make_session: Any) -> list[Any]:
    """Five sessions of one agent, oldest first."""
    agent = make_agent()
    return [make_session(agent=agent.id, title=str(number)) for number in range(5)]


def titles(sessions: Any) -> list[str | None]:
    return [session.title for session in sessions]


def test_sessions_are_listed_newest_first_and_also_the_other_way(client: anthropic.Anthropic, five: list[Any]) -> None:
    agent = five[0].agent.id
    assert titles(client.beta.sessions.list(agent_id=agent)) == ["4", "3", "2", "1", "0"]
    assert titles(client.beta.sessions.list(agent_id=agent, order="desc")) == ["4", "3", "2", "1", "0"]
    assert titles(client.beta.sessions.list(agent_id=agent, order="asc")) == ["0", "1", "2", "3", "4"]


def test_a_listed_session_is_the_retrieved_one(client: anthropic.Anthropic, five: list[Any]) -> None:
    listed = client.beta.sessions.list(agent_id=five[0].agent.id, limit=1).data[0]
    retrieved = client.beta.sessions.retrieve(five[4].id)
    moving = {"stats"}
    assert {k: v for k, v in listed.to_dict().items() if k not in moving} == {
        k: v for k, v in retrieved.to_dict().items() if k not in moving
    }


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("limit", [1, 2, 3, 5])
def test_k12_pages_forward_and_back_hold_the_same_rows(
    client: anthropic.Anthropic, five: list[Any], order: Any, limit: int
) -> None:
    def page(cursor: str | None = None) -> Any:
        more = {"page": cursor} if cursor else {}
        return client.beta.sessions.list(agent_id=five[0].agent.id, order=order, limit=limit, **more)

    forward = [page()]
    assert forward[0].prev_page is None and "prev_page" in forward[0].model_fields_set
    while forward[-1].next_page is not None:
        forward.append(page(forward[-1].next_page))
    rows = [titles(p.data) for p in forward]
    expected = ["0", "1", "2", "3", "4"] if order == "asc" else ["4", "3", "2", "1", "0"]
    assert [title for row in rows for title in row] == expected

    # A trailing empty page is allowed; going back starts at the last page that has rows.
    while not rows[-1]:
        rows.pop()
        forward.pop()
    back = [forward[-1]]
    while back[-1].prev_page is not None:
        back.append(page(back[-1].prev_page))
    assert [titles(p.data) for p in back if p.data] == rows[::-1]


def test_the_sdk_follows_the_cursor_by_itself(client: anthropic.Anthropic, five: list[Any]) -> None:
    assert titles(client.beta.sessions.list(agent_id=five[0].agent.id, limit=2)) == ["4", "3", "2", "1", "0"]


def test_a_page_is_stable_while_sessions_are_created(
    client: anthropic.Anthropic, five: list[Any], make_session: Any
) -> None:
    agent = five[0].agent.id
    first = client.beta.sessions.list(agent_id=agent, limit=2)
    make_session(agent=agent, title="new")
    assert titles(first) == ["4", "3", "2", "1", "0"]


def test_k13_a_cursor_is_bound_to_its_order(client: anthropic.Anthropic, five: list[Any]) -> None:
    first = client.beta.sessions.list(agent_id=five[0].agent.id, limit=2)
    assert first.next_page is not None
    with pytest.raises(anthropic.BadRequestError):
        client.beta.sessions.list(agent_id=five[0].agent.id, limit=2, page=first.next_page, order="asc")


def test_a_cursor_outside_of_a_changed_time_bound_is_refused(client: anthropic.Anthropic, five: list[Any]) -> None:
    first = client.beta.sessions.list(agent_id=five[0].agent.id, limit=2)
    assert first.next_page is not None
    with pytest.raises(anthropic.BadRequestError):
        client.beta.sessions.list(
            agent_id=five[0].agent.id, limit=2, page=first.next_page, created_at_lt="2001-01-01T00:00:00Z"
        )


def test_the_limit_may_change_between_pages(client: anthropic.Anthropic, five: list[Any]) -> None:
    first = client.beta.sessions.list(agent_id=five[0].agent.id, limit=1)
    assert first.next_page is not None
    rest = client.beta.sessions.list(agent_id=five[0].agent.id, limit=3, page=first.next_page)
    assert titles(rest.data) == ["3", "2", "1"]


def test_sessions_are_filtered_by_creation_time(client: anthropic.Anthropic, five: list[Any]) -> None:
    agent, bound = five[0].agent.id, five[2].created_at

    def found(**bounds: Any) -> list[str | None]:
        return titles(client.beta.sessions.list(agent_id=agent, order="asc", **bounds))

    def expected(holds: Any) -> list[str | None]:
        return [session.title for session in five if holds(session.created_at)]

    assert found(created_at_gt=bound) == expected(lambda t: t > bound)
    assert found(created_at_gte=bound) == expected(lambda t: t >= bound)
    assert found(created_at_lt=bound) == expected(lambda t: t < bound)
    assert found(created_at_lte=bound) == expected(lambda t: t <= bound)
    assert found(created_at_gt=five[0].created_at, created_at_lt=five[4].created_at) == expected(
        lambda t: five[0].created_at < t < five[4].created_at
    )


def test_a_time_bound_may_have_a_numeric_offset(http: httpx2.Client, five: list[Any]) -> None:
    agent = five[0].agent.id
    for bound, count in (
        ("2001-01-01T00:00:00+02:00", 5),
        ("2001-01-01T00:00:00Z", 5),
        ("2999-01-01T00:00:00-05:00", 0),
    ):
        found = http.get("/v1/sessions", params={"agent_id": agent, "created_at[gte]": bound}).json()
        assert len(found["data"]) == count, bound


def test_sessions_are_filtered_by_agent_and_version(
    client: anthropic.Anthropic, make_agent: Any, make_session: Any
) -> None:
    agent = make_agent()
    make_session(agent=agent.id, title="first version")
    client.beta.agents.update(agent.id, version=1, name="renamed")
    make_session(agent=agent.id, title="second version")
    listed = client.beta.sessions.list
    assert titles(listed(agent_id=agent.id)) == ["second version", "first version"]
    assert titles(listed(agent_id=agent.id, agent_version=1)) == ["first version"]
    assert titles(listed(agent_id=agent.id, agent_version=2)) == ["second version"]
    assert titles(listed(agent_id=agent.id, agent_version=3)) == []
    assert titles(listed(agent_id=f"agent_{UNKNOWN}")) == []


def test_sessions_are_filtered_by_status(
    client: anthropic.Anthropic, make_agent: Any, make_session: Any, model: Model, watch: Any
) -> None:
    agent = make_agent()
    hold = model.hold()
    model.script(answer("done", hold=hold))
    resting = make_session(agent=agent.id, title="idle")
    working = make_session(agent=agent.id, title="running")
    gone = make_session(agent=agent.id, title="terminated")
    conversation: Conversation = watch(working.id)
    conversation.say("hello")
    conversation.wait_for("span.model_request_start")
    client.beta.sessions.archive(gone.id)

    def found(*statuses: Any, **more: Any) -> set[str | None]:
        return set(titles(client.beta.sessions.list(agent_id=agent.id, statuses=list(statuses), **more)))

    assert found("idle") == {resting.title}
    assert found("running") == {working.title}
    assert found("idle", "running") == {resting.title, working.title}
    assert found("rescheduling") == set()
    assert found("terminated") == set()
    assert found("terminated", include_archived=True) == {gone.title}
    assert found("terminated", "idle", include_archived=True) == {gone.title, resting.title}
    model.release(hold)
    conversation.until_idle()
    assert found("running") == set()


def test_j11_archived_sessions_are_hidden_unless_asked_for(client: anthropic.Anthropic, five: list[Any]) -> None:
    agent = five[0].agent.id
    client.beta.sessions.archive(five[1].id)
    assert titles(client.beta.sessions.list(agent_id=agent)) == ["4", "3", "2", "0"]
    assert titles(client.beta.sessions.list(agent_id=agent, include_archived=False)) == ["4", "3", "2", "0"]
    assert titles(client.beta.sessions.list(agent_id=agent, include_archived=True)) == ["4", "3", "2", "1", "0"]


def test_deleted_sessions_are_not_listed(client: anthropic.Anthropic, five: list[Any]) -> None:
    client.beta.sessions.delete(five[1].id)
    listed = client.beta.sessions.list(agent_id=five[0].agent.id, include_archived=True)
    assert titles(listed) == ["4", "3", "2", "0"]


def test_filters_on_what_no_session_has_find_nothing(client: anthropic.Anthropic, five: list[Any]) -> None:
    agent = five[0].agent.id
    assert titles(client.beta.sessions.list(agent_id=agent, deployment_id=f"depl_{UNKNOWN}")) == []
    assert titles(client.beta.sessions.list(agent_id=agent, memory_store_id=f"memstore_{UNKNOWN}")) == []


def test_arrays_in_a_query_may_be_written_in_any_usual_way(http: httpx2.Client, five: list[Any]) -> None:
    agent = five[0].agent.id
    for name in ("statuses[]", "statuses%5B%5D", "statuses"):
        found = http.get(f"/v1/sessions?agent_id={agent}&{name}=idle&{name}=running").json()
        assert len(found["data"]) == 5, name
        found = http.get(f"/v1/sessions?agent_id={agent}&{name}=running").json()
        assert found["data"] == [], name


def test_a_broken_cursor_is_refused(http: httpx2.Client) -> None:
    for cursor in ("nonsense", "page_", "page_!!!!", "page_AAAA", "x" * 5000):
        check_error(http.get("/v1/sessions", params={"page": cursor}), 400, names="page")
