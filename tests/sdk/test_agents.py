"""Agents: create, retrieve, update with versions and optimistic concurrency, list, archive, versions."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anthropic
import httpx2
import pytest

from conftest import custom_tool, toolset
from support.wire import check_error

AGENT_KEYS = {
    "id", "type", "version", "name", "description", "system", "model", "tools", "mcp_servers", "skills", "multiagent",
    "metadata", "execution_identity", "created_at", "updated_at", "archived_at",
}  # fmt: skip


def test_a_minimal_agent_gets_every_default(client: anthropic.Anthropic) -> None:
    agent = client.beta.agents.create(name="tester", model="claude-minimal")
    assert agent.id.startswith("agent_") and agent.version == 1
    assert (agent.description, agent.system, agent.multiagent, agent.archived_at) == (None, None, None, None)
    assert (agent.tools, agent.mcp_servers, agent.skills, agent.metadata) == ([], [], [], {})
    assert agent.execution_identity.type == "service_account"
    assert agent.model.id == "claude-minimal" and agent.model.effort is not None
    assert agent.model.speed == "standard" and agent.model.inference_geo is None
    assert agent.created_at == agent.updated_at


def test_every_key_of_an_agent_is_always_present(http: httpx2.Client) -> None:
    body = http.post("/v1/agents", json={"name": "tester", "model": "claude-keys"}).json()
    assert set(body) == AGENT_KEYS
    assert body["created_at"].endswith("Z")


def test_a_full_agent_is_echoed_with_everything_resolved(client: anthropic.Anthropic) -> None:
    tool = custom_tool("look_up-1", required=["word"], additionalProperties=False, title="Words")
    agent = client.beta.agents.create(
        name="tester",
        model={"id": "claude-full", "effort": "low", "speed": "standard"},
        description="Looks words up.",
        system="Answer briefly.",
        tools=[
            {
                "type": "agent_toolset_20260401",
                "default_config": {"permission_policy": {"type": "always_ask"}},
                "configs": [{"name": "bash", "enabled": False}, {"name": "read", "type": "read"}],
            },
            tool,
        ],
        mcp_servers=[],
        skills=[],
        multiagent=None,
        execution_identity={"type": "service_account"},
        metadata={"team": "blue"},
    )
    built_in, custom = agent.tools
    assert built_in.type == "agent_toolset_20260401" and custom.type == "custom"
    assert built_in.default_config.to_dict() == {"enabled": True, "permission_policy": {"type": "always_ask"}}
    bash, read = (config.to_dict() for config in built_in.configs)
    assert bash == {"type": "bash", "name": "bash", "enabled": False, "permission_policy": {"type": "always_ask"}}
    assert read == {"type": "read", "name": "read", "enabled": True, "permission_policy": {"type": "always_ask"}}
    assert custom.to_dict() == tool
    assert agent.model.effort is not None and agent.model.effort.type == "low"
    assert (agent.description, agent.system, agent.metadata) == ("Looks words up.", "Answer briefly.", {"team": "blue"})
    assert client.beta.agents.retrieve(agent.id) == agent


def test_effort_may_be_a_word_or_an_object(client: anthropic.Anthropic) -> None:
    for effort in ("max", {"type": "max"}):
        agent = client.beta.agents.create(name="tester", model={"id": "claude-effort", "effort": effort})
        assert agent.model.effort is not None and agent.model.effort.type == "max"


def test_an_update_keeps_what_it_does_not_mention(client: anthropic.Anthropic) -> None:
    first = client.beta.agents.create(
        name="tester", model="claude-keep", description="d", system="s", tools=[toolset()], metadata={"a": "1"}
    )
    second = client.beta.agents.update(first.id, version=1, name="renamed")
    assert (second.version, second.name) == (2, "renamed")
    assert second.created_at == first.created_at and second.updated_at > first.updated_at
    unchanged = {"name", "version", "updated_at"}
    assert second.to_dict().keys() == first.to_dict().keys()
    assert {k: v for k, v in second.to_dict().items() if k not in unchanged} == {
        k: v for k, v in first.to_dict().items() if k not in unchanged
    }


@pytest.mark.parametrize("nothing", [None, ""])
def test_null_and_empty_text_clear_description_and_system(client: anthropic.Anthropic, nothing: str | None) -> None:
    agent = client.beta.agents.create(name="tester", model="claude-clear", description="d", system="s")
    cleared = client.beta.agents.update(agent.id, version=1, description=nothing, system=nothing)
    assert (cleared.description or None, cleared.system or None) == (None, None)


@pytest.mark.parametrize("nothing", [None, []])
def test_null_and_an_empty_array_clear_the_tools(client: anthropic.Anthropic, nothing: Any) -> None:
    agent = client.beta.agents.create(name="tester", model="claude-clear", tools=[toolset(), custom_tool()])
    assert client.beta.agents.update(agent.id, version=1, tools=nothing).tools == []


def test_arrays_are_replaced_whole_and_metadata_is_patched(client: anthropic.Anthropic) -> None:
    agent = client.beta.agents.create(
        name="tester", model="claude-patch", tools=[toolset(), custom_tool("one")], metadata={"a": "1", "b": "2"}
    )
    changed = client.beta.agents.update(
        agent.id, version=1, tools=[custom_tool("two")], metadata={"a": None, "c": "3", "never": None}
    )
    assert [tool.to_dict()["name"] for tool in changed.tools] == ["two"]
    assert changed.metadata == {"b": "2", "c": "3"}


def test_a_model_update_replaces_the_object_but_keeps_the_effort_of_the_same_model(
    client: anthropic.Anthropic,
) -> None:
    default = client.beta.agents.create(name="tester", model="claude-other").model.effort
    agent = client.beta.agents.create(name="tester", model={"id": "claude-one", "effort": "max"})
    same = client.beta.agents.update(agent.id, model={"id": "claude-one", "speed": "standard"})
    assert same.model.effort is not None and same.model.effort.type == "max"
    other = client.beta.agents.update(agent.id, model="claude-other")
    assert other.model.id == "claude-other" and other.model.effort == default


def test_an_update_that_changes_nothing_makes_no_version(client: anthropic.Anthropic) -> None:
    agent = client.beta.agents.create(name="tester", model="claude-same", metadata={"a": "1"})
    assert client.beta.agents.update(agent.id, version=1, name="tester", metadata={"a": "1"}) == agent
    assert [a.version for a in client.beta.agents.versions.list(agent.id)] == [1]


def test_an_update_against_an_old_version_is_a_conflict_and_changes_nothing(client: anthropic.Anthropic) -> None:
    agent = client.beta.agents.create(name="tester", model="claude-conflict")
    current = client.beta.agents.update(agent.id, version=1, name="second")
    for fields in ({"name": "third"}, {"name": "second"}):
        with pytest.raises(anthropic.ConflictError) as refused:
            client.beta.agents.update(agent.id, version=1, **fields)
        # Without it the SDK would send the same hopeless request twice more.
        assert refused.value.response.headers["x-should-retry"] == "false"
        check_error(refused.value.response, 409)
    assert client.beta.agents.retrieve(agent.id) == current


def test_without_a_version_the_last_write_wins(client: anthropic.Anthropic) -> None:
    agent = client.beta.agents.create(name="tester", model="claude-last")
    client.beta.agents.update(agent.id, name="second")
    assert client.beta.agents.update(agent.id, name="third").version == 3


def test_of_many_updates_against_one_version_exactly_one_wins(client: anthropic.Anthropic) -> None:
    agent = client.beta.agents.create(name="tester", model="claude-race")

    def rename(number: int) -> bool:
        try:
            client.beta.agents.update(agent.id, version=1, name=f"name {number}")
        except anthropic.ConflictError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(rename, range(16))) == 1
    assert client.beta.agents.retrieve(agent.id).version == 2


def test_old_versions_stay_readable(client: anthropic.Anthropic) -> None:
    first = client.beta.agents.create(name="first", model="claude-history")
    second = client.beta.agents.update(first.id, version=1, name="second")
    assert client.beta.agents.retrieve(first.id, version=1) == first
    assert client.beta.agents.retrieve(first.id, version=2) == second
    assert client.beta.agents.retrieve(first.id) == second
    with pytest.raises(anthropic.NotFoundError):
        client.beta.agents.retrieve(first.id, version=3)


def test_versions_are_listed_newest_first_page_by_page(client: anthropic.Anthropic) -> None:
    agent = client.beta.agents.create(name="0", model="claude-versions")
    for number in range(1, 5):
        client.beta.agents.update(agent.id, name=str(number))
    page = client.beta.agents.versions.list(agent.id, limit=2)
    assert [a.version for a in page.data] == [5, 4] and page.next_page is not None
    assert [a.version for a in page] == [5, 4, 3, 2, 1]
    assert [a.name for a in page] == ["4", "3", "2", "1", "0"]


def test_agents_are_listed_newest_first_in_their_latest_version(client: anthropic.Anthropic) -> None:
    made = [client.beta.agents.create(name=f"listed {n}", model="claude-list") for n in range(5)]
    made[2] = client.beta.agents.update(made[2].id, name="renamed")
    page = client.beta.agents.list(limit=2, created_at_gte=made[0].created_at)
    assert len(page.data) == 2
    assert [a for a in page if a.id in {m.id for m in made}] == made[::-1]


def test_agents_are_filtered_by_creation_time(client: anthropic.Anthropic) -> None:
    made = [client.beta.agents.create(name=f"timed {n}", model="claude-time") for n in range(3)]
    middle = made[1].created_at
    later = {a.id for a in client.beta.agents.list(created_at_gte=middle, limit=100)}
    earlier = {a.id for a in client.beta.agents.list(created_at_lte=middle, limit=100)}
    assert {m.id for m in made if m.created_at >= middle} <= later and made[0].id not in later - earlier
    assert {m.id for m in made if m.created_at <= middle} <= earlier and made[2].id not in earlier - later


def test_an_archived_agent_is_hidden_read_only_and_not_for_new_sessions(
    client: anthropic.Anthropic, environment_id: str
) -> None:
    agent = client.beta.agents.create(name=f"archived {uuid.uuid4()}", model="claude-archive")
    archived = client.beta.agents.archive(agent.id)
    assert archived.archived_at is not None and archived.version == agent.version
    assert client.beta.agents.archive(agent.id) == archived
    assert client.beta.agents.retrieve(agent.id) == archived
    assert agent.id not in {a.id for a in client.beta.agents.list(limit=5)}
    assert agent.id in {a.id for a in client.beta.agents.list(limit=5, include_archived=True)}
    with pytest.raises(anthropic.BadRequestError):
        client.beta.agents.update(agent.id, name="other")
    with pytest.raises(anthropic.BadRequestError):
        client.beta.sessions.create(agent=agent.id, environment_id=environment_id)
    assert client.beta.agents.retrieve(agent.id) == archived


def test_unknown_agents_are_not_found(client: anthropic.Anthropic) -> None:
    unknown = "agent_01AAAAAAAAAAAAAAAAAAAAAA"
    for request in (
        lambda: client.beta.agents.retrieve(unknown),
        lambda: client.beta.agents.update(unknown, name="n"),
        lambda: client.beta.agents.archive(unknown),
        lambda: client.beta.agents.versions.list(unknown),
    ):
        with pytest.raises(anthropic.NotFoundError) as refused:
            request()
        check_error(refused.value.response, 404)
