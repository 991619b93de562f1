"""How an environment's sandboxes are made: settings in its metadata, packages, images, networks, saved workspaces."""

from __future__ import annotations

import uuid
from typing import Any

import anthropic
import pytest

from conftest import toolset
from support.log import text
from support.process import Posthouse
from support.recorder import Conversation
from support.scripted import Model, answer, bash


def environment(client: anthropic.Anthropic, **fields: Any) -> str:
    return client.beta.environments.create(name=f"hands {uuid.uuid4().hex}", **fields).id


def run(make_session: Any, watch: Any, model: Model, environment_id: str, command: str, **fields: Any) -> Any:
    """What this command comes to in a session of that environment."""
    model.script(answer(bash(command)), answer("done"))
    session = make_session(agent_fields={"tools": [toolset()]}, environment_id=environment_id, **fields)
    conversation: Conversation = watch(session.id)
    conversation.say("go")
    (result,) = [event for event in conversation.until_idle() if event.type == "agent.tool_result"]
    return result


@pytest.mark.parametrize(
    "metadata",
    [
        {"posthouse.policy": "lazy"},
        {"posthouse.policy": "speculative"},
        {"posthouse.policy": "pool", "posthouse.pool_size": "2"},
    ],
)
def test_every_policy_gives_a_sandbox(
    client: anthropic.Anthropic, make_session: Any, watch: Any, model: Model, metadata: dict[str, str]
) -> None:
    environment_id = environment(client, metadata=metadata)
    result = run(make_session, watch, model, environment_id, "echo $((6 * 7))")
    assert (text(result), result.is_error) == ("42", False)


@pytest.mark.parametrize(
    ("metadata", "key"),
    [
        ({"posthouse.policy": "eager"}, "posthouse.policy"),
        ({"posthouse.pool_size": "2"}, "posthouse.pool_size"),
        ({"posthouse.policy": "pool", "posthouse.pool_size": "65"}, "posthouse.pool_size"),
        ({"posthouse.image": "../etc"}, "posthouse.image"),
        ({"posthouse.polcy": "lazy"}, "posthouse.polcy"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(
    client: anthropic.Anthropic, metadata: dict[str, str], key: str
) -> None:
    with pytest.raises(anthropic.BadRequestError) as refused:
        environment(client, metadata=metadata)
    assert key in refused.value.message
    kept = environment(client, metadata={"team": "x"})
    with pytest.raises(anthropic.BadRequestError):
        client.beta.environments.update(kept, metadata=metadata)
    assert client.beta.environments.retrieve(kept).metadata == {"team": "x"}


def test_a_network_that_allows_nothing_says_what_would_allow_it(
    client: anthropic.Anthropic, make_session: Any, watch: Any, model: Model
) -> None:
    environment_id = environment(client, config={"type": "cloud", "networking": {"type": "limited"}})
    result = run(make_session, watch, model, environment_id, "curl -sS http://example.com/")
    assert "example.com" in text(result) and "allowed_hosts" in text(result)


def test_an_unknown_image_is_an_error_that_names_it(
    client: anthropic.Anthropic, make_session: Any, watch: Any, model: Model
) -> None:
    environment_id = environment(client, metadata={"posthouse.image": "no-such:1"})
    result = run(make_session, watch, model, environment_id, "true")
    assert result.is_error and "no-such:1" in text(result) and "posthouse images" in text(result)


def test_a_package_that_cannot_be_installed_is_a_session_error_and_the_session_goes_on(
    client: anthropic.Anthropic, make_session: Any, model: Model
) -> None:
    environment_id = environment(client, config={"type": "cloud", "packages": {"pip": ["/no/such/package"]}})
    model.script(answer(bash("true")), answer("done"))
    session = make_session(agent_fields={"tools": [toolset()]}, environment_id=environment_id)
    message = {"type": "user.message", "content": [{"type": "text", "text": "go"}]}
    client.beta.sessions.events.send(session.id, events=[message])
    while client.beta.sessions.retrieve(session.id).status != "idle":
        pass
    events = list(client.beta.sessions.events.list(session.id))
    (error,) = [event for event in events if event.type == "session.error"]
    (result,) = [event for event in events if event.type == "agent.tool_result"]
    assert "/no/such/package" in error.error.message and "pip" in error.error.message
    assert result.is_error and "/no/such/package" in text(result)
    assert events[-1].type == "session.status_idle" and events[-1].stop_reason.type == "end_turn"


def test_a_workspace_of_nothing_saved_is_refused(client: anthropic.Anthropic, make_session: Any) -> None:
    first = make_session()
    with pytest.raises(anthropic.BadRequestError) as refused:
        make_session(extra_body={"workspace": {"from_session": first.id}})
    assert "workspace.from_session" in refused.value.message


def test_nothing_is_saved_of_a_new_session(posthouse: Posthouse, http: Any, make_session: Any) -> None:
    session = make_session()
    answered = http.get(f"/v1/sessions/{session.id}/snapshots")
    assert answered.status_code == 200 and answered.json()["data"] == []
