"""What this version does not build is refused, and says so; it never pretends."""

from __future__ import annotations

import uuid
from typing import Any

import anthropic
import pytest

from conftest import toolset
from support.recorder import Conversation
from support.wire import check_error

SKILL = {"type": "anthropic", "skill_id": "xlsx"}


def refused(request: Any, names: str) -> None:
    with pytest.raises(anthropic.BadRequestError) as refusal:
        request()
    check_error(refusal.value.response, 400, names=names)


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"skills": [SKILL], "tools": [toolset()]}, "skills"),
        ({"multiagent": {"type": "coordinator", "agents": [{"type": "self"}]}}, "multiagent"),
        ({"multiagent": {"type": "multiagent_20261001"}}, "multiagent"),
        (
            {"execution_identity": {"type": "aws_role", "role_arn": "arn:aws:iam::123456789012:role/x"}},
            "execution_identity",
        ),
    ],
    ids=["skills", "coordinator", "multiagent", "aws_role"],
)
def test_an_agent_with_something_unbuilt_is_refused(
    client: anthropic.Anthropic, make_agent: Any, fields: dict[str, Any], names: str
) -> None:
    newest = client.beta.agents.list(limit=1).data
    refused(lambda: make_agent(**fields), names)
    assert client.beta.agents.list(limit=1).data == newest
    agent = make_agent()
    refused(lambda: client.beta.agents.update(agent.id, version=1, **fields), names)
    assert client.beta.agents.retrieve(agent.id) == agent


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"budget": {"type": "limit", "max_list_cost": {"amount": "100", "currency": "USD"}}}, "budget"),
        ({"resources": [{"type": "file", "file_id": "file_01AAAAAAAAAAAAAAAAAAAAAA"}]}, "resources"),
        ({"resources": [{"type": "memory_store", "memory_store_id": "memstore_01AAAAAAAAAAAAAAAAA"}]}, "resources"),
        (
            {
                "initial_events": [
                    {"type": "user.define_outcome", "description": "d", "rubric": {"type": "text", "content": "r"}}
                ]
            },
            "define_outcome",
        ),
    ],
    ids=["budget", "file", "memory store", "outcome"],
)
def test_a_session_with_something_unbuilt_is_refused(
    client: anthropic.Anthropic, make_agent: Any, environment_id: str, fields: dict[str, Any], names: str
) -> None:
    agent = make_agent()
    refused(
        lambda: client.beta.sessions.create(agent=agent.id, environment_id=environment_id, **fields),
        names,
    )
    assert client.beta.sessions.list(agent_id=agent.id).data == []


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        ({"skills": [SKILL], "tools": [toolset()]}, "skills"),
    ],
)
def test_overrides_with_something_unbuilt_are_refused(
    client: anthropic.Anthropic, make_agent: Any, environment_id: str, overrides: dict[str, Any], names: str
) -> None:
    agent = make_agent()
    chosen: Any = {"type": "agent_with_overrides", "id": agent.id, **overrides}
    refused(lambda: client.beta.sessions.create(agent=chosen, environment_id=environment_id), names)
    assert client.beta.sessions.list(agent_id=agent.id).data == []


def test_empty_lists_ask_for_nothing_and_are_accepted(make_session: Any) -> None:
    session = make_session(resources=[], vault_ids=[])
    assert (session.resources, session.vault_ids) == ([], [])


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"type": "self_hosted"}, "self_hosted"),
    ],
)
def test_an_environment_that_cannot_run_yet_takes_no_session(
    client: anthropic.Anthropic, make_agent: Any, config: Any, names: str
) -> None:
    agent = make_agent()
    environment = client.beta.environments.create(name=f"unbuilt {uuid.uuid4().hex}", config=config)
    refused(lambda: client.beta.sessions.create(agent=agent.id, environment_id=environment.id), names)
    client.beta.environments.delete(environment.id)


def test_a_session_in_a_limited_network_is_accepted(
    client: anthropic.Anthropic, make_session: Any
) -> None:
    environment = client.beta.environments.create(
        name=f"limited {uuid.uuid4().hex}",
        config={"type": "cloud", "networking": {"type": "limited", "allowed_hosts": ["example.com"]}},
    )
    assert make_session(environment_id=environment.id).status == "idle"


@pytest.mark.parametrize(
    ("event", "names"),
    [
        (
            {"type": "user.define_outcome", "description": "d", "rubric": {"type": "text", "content": "r"}},
            "define_outcome",
        ),
        (
            {"type": "user.tool_result", "tool_use_id": "sevt_01AAAAAAAAAAAAAAAAAAAAAA", "content": []},
            "tool_result",
        ),
    ],
)
def test_events_of_something_unbuilt_are_refused(start: Any, event: dict[str, Any], names: str) -> None:
    conversation: Conversation = start()
    refused(lambda: conversation.send(event), names)
    assert conversation.log() == []


def test_an_update_with_something_unbuilt_is_refused(start: Any) -> None:
    conversation: Conversation = start()
    update = conversation.client.beta.sessions.update
    budget: Any = {"type": "limit", "max_list_cost": {"amount": "100", "currency": "USD"}}
    refused(lambda: update(conversation.id, budget=budget), "budget")
    conversation.nothing_more()
