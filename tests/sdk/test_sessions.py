"""Sessions as resources: create, retrieve, update, archive, delete. The listing is in `test_session_list.py`."""

from __future__ import annotations

from typing import Any

import anthropic
import httpx2
import pytest

from conftest import custom_tool, toolset
from support.log import ANSWER, RUN, idle, read_log, shape, shapes
from support.recorder import Conversation, message
from support.scripted import Model, answer, call
from support.wire import check_error

SESSION_KEYS = {
    "id", "type", "agent", "environment_id", "deployment_id", "title", "metadata", "vault_ids", "resources", "status",
    "budget", "usage", "stats", "outcome_evaluations", "created_at", "updated_at", "archived_at",
}  # fmt: skip
SNAPSHOT_KEYS = {
    "type", "id", "version", "name", "description", "model", "system", "tools", "mcp_servers", "skills", "multiagent",
    "execution_identity",
}  # fmt: skip


# ---- create (flow A)


def test_a1_a_new_session_is_idle_with_an_empty_log_and_one_thread(
    client: anthropic.Anthropic, make_session: Any, environment_id: str
) -> None:
    session = make_session()
    assert session.id.startswith("sesn_") and session.status == "idle"
    assert session.environment_id == environment_id
    assert (session.title, session.budget, session.deployment_id, session.archived_at) == (None, None, None, None)
    assert (session.metadata, session.vault_ids, session.resources, session.outcome_evaluations) == ({}, [], [], [])
    assert not session.usage.output_tokens and not session.usage.input_tokens
    assert client.beta.sessions.retrieve(session.id).to_dict(mode="json") | {"stats": None} == session.to_dict(
        mode="json"
    ) | {"stats": None}

    page = client.beta.sessions.events.list(session.id)
    assert page.data == [] and page.next_page is None and "next_page" in page.model_fields_set
    (thread,) = client.beta.sessions.threads.list(session.id)
    assert thread.id.startswith("sthr_") and thread.session_id == session.id
    assert (thread.parent_thread_id, thread.workflow_run_id, thread.stats, thread.usage) == (None, None, None, None)
    assert thread.status == "idle" and thread.agent.type == "agent"


def test_every_key_of_a_session_is_always_present(
    http: httpx2.Client, make_agent: Any, environment_id: str, client: anthropic.Anthropic
) -> None:
    body = http.post("/v1/sessions", json={"agent": make_agent().id, "environment_id": environment_id}).json()
    assert set(body) == SESSION_KEYS
    assert set(body["agent"]) == SNAPSHOT_KEYS
    client.beta.sessions.delete(body["id"])


def test_title_and_metadata_are_kept(client: anthropic.Anthropic, make_session: Any) -> None:
    session = make_session(title="A title", metadata={"a": "1"})
    assert (session.title, session.metadata) == ("A title", {"a": "1"})
    assert client.beta.sessions.retrieve(session.id).title == "A title"


def test_a_session_keeps_the_agent_it_was_made_with(
    client: anthropic.Anthropic, make_agent: Any, make_session: Any
) -> None:
    agent = make_agent(system="old", tools=[toolset()])
    latest = make_session(agent=agent.id)
    assert (latest.agent.id, latest.agent.version, latest.agent.system) == (agent.id, 1, "old")
    assert latest.agent.tools == agent.tools and latest.agent.model == agent.model
    client.beta.agents.update(agent.id, version=1, system="new")
    assert client.beta.sessions.retrieve(latest.id).agent == latest.agent
    assert make_session(agent=agent.id).agent.system == "new"
    client.beta.agents.archive(agent.id)
    assert client.beta.sessions.retrieve(latest.id).agent == latest.agent


def test_a_session_may_pin_a_version(client: anthropic.Anthropic, make_agent: Any, make_session: Any) -> None:
    agent = make_agent(system="one")
    client.beta.agents.update(agent.id, version=1, system="two")
    pinned = make_session(agent={"type": "agent", "id": agent.id, "version": 1})
    assert (pinned.agent.version, pinned.agent.system) == (1, "one")
    assert make_session(agent={"type": "agent", "id": agent.id}).agent.version == 2


def test_overrides_replace_whole_fields_of_the_session_only(
    client: anthropic.Anthropic, make_agent: Any, make_session: Any
) -> None:
    agent = make_agent(system="base", description="d", tools=[toolset(), custom_tool("one")])
    session = make_session(
        agent={
            "type": "agent_with_overrides",
            "id": agent.id,
            "version": 1,
            "model": "claude-overridden",
            "system": "override",
            "tools": [custom_tool("two")],
        }
    )
    assert (session.agent.id, session.agent.version, session.agent.description) == (agent.id, 1, "d")
    assert session.agent.model.id == "claude-overridden" and session.agent.system == "override"
    assert [tool.to_dict().get("name") for tool in session.agent.tools] == ["two"]
    assert client.beta.agents.retrieve(agent.id) == agent


@pytest.mark.parametrize("nothing", [None, []])
def test_overrides_clear_with_null_and_with_an_empty_array(make_agent: Any, make_session: Any, nothing: Any) -> None:
    agent = make_agent(system="base", tools=[toolset()])
    session = make_session(
        agent={"type": "agent_with_overrides", "id": agent.id, "system": None, "tools": nothing, "mcp_servers": nothing}
    )
    assert session.agent.system is None and session.agent.tools == []


def test_overrides_that_are_omitted_inherit(make_agent: Any, make_session: Any) -> None:
    agent = make_agent(system="base", tools=[toolset()])
    session = make_session(agent={"type": "agent_with_overrides", "id": agent.id})
    assert (session.agent.system, session.agent.tools, session.agent.model) == ("base", agent.tools, agent.model)


def test_the_model_sees_the_overridden_agent(model: Model, make_agent: Any, make_session: Any, watch: Any) -> None:
    agent = make_agent(system="the base prompt", model="claude-never-asked")
    session = make_session(
        agent={"type": "agent_with_overrides", "id": agent.id, "model": model.name, "system": "the override prompt"}
    )
    model.script(answer("yes"))
    conversation = watch(session.id)
    conversation.say("hello")
    conversation.until_idle()
    (body,) = model.bodies()
    assert "the override prompt" in str(body["system"]) and "the base prompt" not in str(body["system"])


def test_a_null_model_override_is_refused(client: anthropic.Anthropic, make_agent: Any, environment_id: str) -> None:
    with pytest.raises(anthropic.BadRequestError, match="model"):
        client.beta.sessions.create(
            agent={"type": "agent_with_overrides", "id": make_agent().id, "model": None},
            environment_id=environment_id,
        )


def test_a2_initial_events_are_in_the_log_at_once_and_start_the_session(
    client: anthropic.Anthropic, model: Model, make_session: Any, watch: Any
) -> None:
    hold = model.hold()
    model.script(answer("hello", hold=hold))
    session = make_session(initial_events=[message("one"), message("two")])
    assert session.status == "running"
    sent = [e for e in read_log(client, session.id) if e.type == "user.message"]
    assert [e.content[0].text for e in sent] == ["one", "two"]
    assert all(e.id.startswith("sevt_") for e in sent)
    conversation = watch(session.id)
    model.release(hold)
    conversation.until_idle()
    assert shapes(conversation.log()) == [*RUN, "user.message", "user.message", *ANSWER, *idle("end_turn")]


def test_an_empty_list_of_initial_events_is_none(client: anthropic.Anthropic, make_session: Any) -> None:
    session = make_session(initial_events=[])
    assert session.status == "idle" and read_log(client, session.id) == []


def test_fifty_initial_events_are_allowed(model: Model, make_session: Any, watch: Any) -> None:
    hold = model.hold()
    model.script(answer("a lot", hold=hold))
    session = make_session(initial_events=[message(f"number {n}") for n in range(50)])
    conversation = watch(session.id)
    model.release(hold)
    conversation.until_idle()
    assert shapes(conversation.log()).count("user.message") == 50
    assert len(model.requests()) == 1


@pytest.mark.parametrize(
    "events",
    [
        [message(f"number {n}") for n in range(51)],
        [{"type": "system.message", "content": [{"type": "text", "text": "x"}]}],
        [{"type": "user.interrupt"}],
        [{"type": "user.define_outcome", "description": "d", "rubric": {"type": "text", "content": "r"}}] * 2,
        [message("good"), {"type": "user.message", "content": []}, message("good")],
        [{"type": "user.message", "content": [{"type": "redacted"}]}],
    ],
    ids=["51 events", "system.message", "user.interrupt", "two outcomes", "one bad among good", "redacted"],
)
def test_bad_initial_events_create_nothing(
    client: anthropic.Anthropic, make_agent: Any, environment_id: str, events: list[Any]
) -> None:
    agent = make_agent()
    with pytest.raises(anthropic.BadRequestError, match="initial_events"):
        client.beta.sessions.create(agent=agent.id, environment_id=environment_id, initial_events=events)
    assert client.beta.sessions.list(agent_id=agent.id).data == []


@pytest.mark.parametrize(
    "fields",
    [
        {"agent": "agent_01AAAAAAAAAAAAAAAAAAAAAA"},
        {"agent": {"type": "agent", "id": "agent_01AAAAAAAAAAAAAAAAAAAAAA"}},
        {"environment_id": "env_01AAAAAAAAAAAAAAAAAAAAAA"},
    ],
    ids=["agent", "agent object", "environment"],
)
def test_a_session_of_something_unknown_is_refused(
    client: anthropic.Anthropic, make_agent: Any, environment_id: str, fields: dict[str, Any]
) -> None:
    with pytest.raises((anthropic.BadRequestError, anthropic.NotFoundError)) as refused:
        client.beta.sessions.create(**{"agent": make_agent().id, "environment_id": environment_id, **fields})
    check_error(refused.value.response, 400, 404)


def test_a_session_of_an_unknown_version_is_refused(
    client: anthropic.Anthropic, make_agent: Any, environment_id: str
) -> None:
    with pytest.raises((anthropic.BadRequestError, anthropic.NotFoundError)) as refused:
        client.beta.sessions.create(
            agent={"type": "agent", "id": make_agent().id, "version": 7}, environment_id=environment_id
        )
    check_error(refused.value.response, 400, 404)


# ---- update (flow J1 to J7)


def test_j1_a_change_of_title_and_metadata_is_one_event(start: Any) -> None:
    conversation: Conversation = start()
    before = conversation.session()
    changed = conversation.client.beta.sessions.update(conversation.id, title="New", metadata={"a": "1", "b": "2"})
    assert (changed.title, changed.metadata, changed.status) == ("New", {"a": "1", "b": "2"}, "idle")
    assert changed.updated_at > before.updated_at
    (event,) = conversation.expect("session.updated")
    assert (event.title, event.metadata) == ("New", {"a": "1", "b": "2"})
    assert not {"agent", "budget"} & event.model_fields_set
    conversation.nothing_more()


def test_j2_a_deleted_metadata_key_leaves_the_rest_in_the_event(start: Any) -> None:
    conversation: Conversation = start()
    update = conversation.client.beta.sessions.update
    update(conversation.id, metadata={"a": "1", "b": "2"})
    assert update(conversation.id, metadata={"a": None}).metadata == {"b": "2"}
    _, event = conversation.expect("session.updated", "session.updated")
    assert event.metadata == {"b": "2"} and "title" not in event.model_fields_set


def test_j3_emptied_metadata_is_absent_from_the_event(start: Any) -> None:
    conversation: Conversation = start()
    update = conversation.client.beta.sessions.update
    update(conversation.id, metadata={"a": "1"})
    assert update(conversation.id, metadata={"a": None}).metadata == {}
    _, event = conversation.expect("session.updated", "session.updated")
    assert "metadata" not in event.model_fields_set


@pytest.mark.parametrize("change", [{}, {"title": "T"}, {"metadata": {"a": "1"}}, {"metadata": {"none": None}}])
def test_j4_an_update_without_effect_emits_nothing(start: Any, change: dict[str, Any]) -> None:
    conversation: Conversation = start()
    update = conversation.client.beta.sessions.update
    update(conversation.id, title="T", metadata={"a": "1"})
    conversation.expect("session.updated")
    before = conversation.session()
    assert update(conversation.id, **change).updated_at == before.updated_at
    conversation.nothing_more()


def test_j5_new_tools_replace_the_snapshot_and_hold_from_the_next_turn(start: Any, model: Model) -> None:
    conversation: Conversation = start(answer("one"), answer("two"), tools=[custom_tool("first")])
    conversation.say("hello")
    conversation.until_idle()
    changed = conversation.client.beta.sessions.update(conversation.id, agent={"tools": [custom_tool("second")]})
    (event,) = conversation.expect("session.updated")
    assert event.agent == changed.agent and event.model_fields_set == {"id", "type", "processed_at", "agent"}
    assert [tool.to_dict()["name"] for tool in changed.agent.tools] == ["second"]
    conversation.say("again")
    conversation.until_idle()
    first, second = model.bodies()
    assert [tool["name"] for tool in first["tools"]] == ["first"]
    assert [tool["name"] for tool in second["tools"]] == ["second"]


def test_j5_an_empty_array_clears_the_tools(start: Any) -> None:
    conversation: Conversation = start(tools=[toolset()])
    assert conversation.client.beta.sessions.update(conversation.id, agent={"tools": []}).agent.tools == []


def test_j6_the_agent_of_a_running_session_does_not_change(start: Any, model: Model) -> None:
    hold = model.hold()
    conversation: Conversation = start(answer("done", hold=hold))
    conversation.say("hello")
    conversation.wait_for("span.model_request_start")
    before = conversation.session()
    with pytest.raises(anthropic.BadRequestError):
        conversation.client.beta.sessions.update(conversation.id, agent={"tools": []}, title="not taken either")
    after = conversation.session()
    assert (after.agent, after.title) == (before.agent, before.title)
    assert "session.updated" not in shapes(conversation.log())
    # Its title may change at any time.
    assert conversation.client.beta.sessions.update(conversation.id, title="taken").title == "taken"
    conversation.wait_for("session.updated")
    model.release(hold)
    conversation.until_idle()


@pytest.mark.parametrize("vaults", [[], ["vlt_01AAAAAAAAAAAAAAAAAAAAAA"]])
def test_j7_vaults_are_never_updated(start: Any, vaults: list[str]) -> None:
    conversation: Conversation = start()
    with pytest.raises(anthropic.BadRequestError, match="vault_ids"):
        conversation.client.beta.sessions.update(conversation.id, vault_ids=vaults)
    conversation.nothing_more()


@pytest.mark.parametrize("agent", [{"system": "x"}, {"model": "claude-x"}, {"name": "x"}, {"skills": []}])
def test_only_tools_and_servers_of_the_agent_can_change(start: Any, agent: dict[str, Any]) -> None:
    conversation: Conversation = start()
    with pytest.raises(anthropic.BadRequestError):
        conversation.client.beta.sessions.update(conversation.id, agent=agent)
    conversation.nothing_more()


# ---- archive and delete (flow J8 to J14)


def test_j8_archiving_an_idle_session_terminates_it(start: Any) -> None:
    conversation: Conversation = start(answer("done"))
    conversation.say("hello")
    conversation.until_idle()
    archived = conversation.client.beta.sessions.archive(conversation.id)
    assert archived.status == "terminated" and archived.archived_at is not None
    # The order of the two is ours.
    conversation.expect("session.thread_status_terminated", "session.status_terminated")
    conversation.nothing_more()
    (thread,) = conversation.client.beta.sessions.threads.list(conversation.id)
    assert thread.status == "terminated"
    again = conversation.client.beta.sessions.archive(conversation.id)
    assert (again.archived_at, again.updated_at) == (archived.archived_at, archived.updated_at)
    conversation.nothing_more()


def test_j8_a_session_that_waits_for_an_answer_may_be_archived(start: Any) -> None:
    conversation: Conversation = start(answer(call("lookup", word="a")), tools=[custom_tool()])
    conversation.say("hello")
    conversation.until_idle("requires_action")
    assert conversation.client.beta.sessions.archive(conversation.id).status == "terminated"


def test_j9_and_j13_a_running_session_is_neither_archived_nor_deleted(start: Any, model: Model) -> None:
    hold = model.hold()
    conversation: Conversation = start(answer("done", hold=hold))
    conversation.say("hello")
    conversation.wait_for("span.model_request_start")
    for request in (conversation.client.beta.sessions.archive, conversation.client.beta.sessions.delete):
        with pytest.raises(anthropic.BadRequestError) as refused:
            request(conversation.id)
        check_error(refused.value.response, 400)
    model.release(hold)
    conversation.until_idle()
    assert conversation.session().archived_at is None


def test_j10_an_archived_session_takes_no_events_and_no_updates(start: Any) -> None:
    conversation: Conversation = start(answer("done"))
    conversation.say("hello")
    conversation.until_idle()
    conversation.client.beta.sessions.archive(conversation.id)
    length = len(conversation.log())
    for event in (message("more"), {"type": "user.interrupt"}):
        with pytest.raises(anthropic.ConflictError) as refused:
            conversation.send(event)
        check_error(refused.value.response, 409)
        assert refused.value.response.headers["x-should-retry"] == "false"
    with pytest.raises(anthropic.APIStatusError) as refused_update:
        conversation.client.beta.sessions.update(conversation.id, title="late")
    check_error(refused_update.value.response, 400, 409)
    assert len(conversation.log()) == length and conversation.session().title is None


def test_an_archived_session_stays_readable(start: Any) -> None:
    conversation: Conversation = start(answer("done"))
    conversation.say("hello")
    conversation.until_idle()
    conversation.client.beta.sessions.archive(conversation.id)
    log = conversation.log()
    assert "agent.message" in shapes(log) and log[-1].type == "session.status_terminated"
    (thread,) = conversation.client.beta.sessions.threads.list(conversation.id)
    own = conversation.client.beta.sessions.threads.events.list(thread.id, session_id=conversation.id)
    assert [e.id for e in own] == [e.id for e in log]


@pytest.mark.parametrize("archived", [False, True])
def test_j12_a_deleted_session_says_farewell_and_ends_its_streams(start: Any, archived: bool) -> None:
    conversation: Conversation = start(answer("done"))
    conversation.say("hello")
    conversation.until_idle()
    if archived:
        conversation.client.beta.sessions.archive(conversation.id)
    deleted = conversation.client.beta.sessions.delete(conversation.id)
    assert deleted.to_dict() == {"id": conversation.id, "type": "session_deleted"}
    if not archived:
        # Streams of an archived session may already have been ended by the server.
        assert shape(conversation.recorder.until_end()[-1]) == "session.deleted"


def test_j14_after_a_deletion_everything_below_is_not_found(start: Any) -> None:
    conversation: Conversation = start(answer("done"))
    conversation.say("hello")
    conversation.until_idle()
    sessions, id = conversation.client.beta.sessions, conversation.id
    thread = sessions.threads.list(id).data[0].id
    sessions.delete(id)
    conversation.recorder.until_end()
    for request in (
        lambda: sessions.retrieve(id),
        lambda: sessions.update(id, title="t"),
        lambda: sessions.archive(id),
        lambda: sessions.delete(id),
        lambda: sessions.events.list(id),
        lambda: sessions.events.send(id, events=[message("x")]),
        lambda: sessions.events.stream(id),
        lambda: sessions.threads.list(id),
        lambda: sessions.threads.retrieve(thread, session_id=id),
        lambda: sessions.threads.archive(thread, session_id=id),
        lambda: sessions.threads.events.list(thread, session_id=id),
        lambda: sessions.threads.events.stream(thread, session_id=id),
    ):
        with pytest.raises(anthropic.NotFoundError) as refused:
            request()
        assert refused.value.type == "not_found_error"
