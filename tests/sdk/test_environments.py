"""Environments: all six operations, and both kinds of configuration."""

from __future__ import annotations

import uuid
from typing import Any

import anthropic
import httpx2
import pytest

from support.scripted import answer
from support.wire import check_error

ENVIRONMENT_KEYS = {
    "id", "type", "name", "description", "config", "metadata", "created_at", "updated_at", "archived_at",
}  # fmt: skip
NO_PACKAGES = {"apt": [], "cargo": [], "gem": [], "go": [], "npm": [], "pip": []}


def name() -> str:
    return f"environment {uuid.uuid4().hex}"


def config(environment: Any) -> dict[str, Any]:
    """The configuration without the optional type of its packages."""
    found = environment.config.to_dict()
    if "packages" in found:
        found["packages"].pop("type", None)
    return found


@pytest.mark.parametrize("given", [{}, {"config": None}, {"config": {"type": "cloud"}}])
def test_the_default_is_an_open_cloud_without_packages(client: anthropic.Anthropic, given: dict[str, Any]) -> None:
    environment = client.beta.environments.create(name=name(), **given)
    assert environment.id.startswith("env_")
    assert config(environment) == {"type": "cloud", "networking": {"type": "unrestricted"}, "packages": NO_PACKAGES}
    assert (environment.description, environment.metadata, environment.archived_at) == (None, {}, None)
    assert client.beta.environments.retrieve(environment.id) == environment


def test_every_key_of_an_environment_is_always_present(http: httpx2.Client) -> None:
    body = http.post("/v1/environments", json={"name": name()}).json()
    assert set(body) - {"scope"} == ENVIRONMENT_KEYS


def test_a_limited_network_and_packages_are_echoed_with_defaults_filled_in(client: anthropic.Anthropic) -> None:
    environment = client.beta.environments.create(
        name=name(),
        description="with packages",
        metadata={"a": "1"},
        config={
            "type": "cloud",
            "networking": {
                "type": "limited",
                "allowed_hosts": ["example.com", "*.example.org"],
                "allow_package_managers": True,
            },
            "packages": {"pip": ["requests==2.32.0"], "apt": ["jq"]},
        },
    )
    assert config(environment) == {
        "type": "cloud",
        "networking": {
            "type": "limited",
            "allowed_hosts": ["example.com", "*.example.org"],
            "allow_mcp_servers": False,
            "allow_package_managers": True,
        },
        "packages": {**NO_PACKAGES, "pip": ["requests==2.32.0"], "apt": ["jq"]},
    }


def test_a_self_hosted_environment_has_only_its_type(client: anthropic.Anthropic) -> None:
    environment = client.beta.environments.create(name=name(), config={"type": "self_hosted"})
    assert config(environment) == {"type": "self_hosted"}


def test_an_update_merges_the_configuration_field_by_field(client: anthropic.Anthropic) -> None:
    environment = client.beta.environments.create(
        name=name(),
        config={
            "type": "cloud",
            "networking": {"type": "limited", "allowed_hosts": ["example.com"], "allow_package_managers": True},
            "packages": {"pip": ["requests"]},
        },
    )
    merged = client.beta.environments.update(
        environment.id,
        config={
            "type": "cloud",
            "networking": {"type": "limited", "allow_mcp_servers": True},
            "packages": {"npm": ["x"]},
        },
    )
    assert config(merged)["networking"] == {
        "type": "limited",
        "allowed_hosts": ["example.com"],
        "allow_mcp_servers": True,
        "allow_package_managers": True,
    }
    assert config(merged)["packages"] == {**NO_PACKAGES, "pip": ["requests"], "npm": ["x"]}
    opened = client.beta.environments.update(
        environment.id, config={"type": "cloud", "networking": {"type": "unrestricted"}}
    )
    assert config(opened)["networking"] == {"type": "unrestricted"}
    assert config(opened)["packages"] == config(merged)["packages"]


def test_an_update_changes_name_description_and_metadata(client: anthropic.Anthropic) -> None:
    environment = client.beta.environments.create(name=name(), description="d", metadata={"a": "1", "b": "2", "c": "3"})
    renamed = name()
    changed = client.beta.environments.update(
        environment.id, name=renamed, description="", metadata={"a": None, "b": "", "d": "4"}
    )
    assert (changed.name, changed.description, changed.metadata) == (renamed, "", {"c": "3", "d": "4"})
    assert changed.updated_at > environment.updated_at and changed.created_at == environment.created_at
    assert client.beta.environments.update(environment.id, description=None).description is None


def test_an_update_that_changes_nothing_leaves_the_time_alone(client: anthropic.Anthropic) -> None:
    environment = client.beta.environments.create(name=name(), metadata={"a": "1"})
    assert client.beta.environments.update(environment.id, metadata={"a": "1"}) == environment


def test_the_kind_of_an_environment_cannot_change(client: anthropic.Anthropic) -> None:
    environment = client.beta.environments.create(name=name())
    with pytest.raises(anthropic.BadRequestError) as refused:
        client.beta.environments.update(environment.id, config={"type": "self_hosted"})
    assert refused.value.error_code == "invalid_config_type_change"
    assert client.beta.environments.retrieve(environment.id) == environment


def test_a_name_is_unique_among_the_environments_in_use(client: anthropic.Anthropic) -> None:
    environment = client.beta.environments.create(name=name())
    with pytest.raises(anthropic.ConflictError) as refused:
        client.beta.environments.create(name=environment.name)
    assert refused.value.response.headers["x-should-retry"] == "false"
    client.beta.environments.archive(environment.id)
    assert client.beta.environments.create(name=environment.name).id != environment.id


def test_environments_are_listed_newest_first_page_by_page(client: anthropic.Anthropic) -> None:
    made = [client.beta.environments.create(name=name()) for _ in range(5)]
    page = client.beta.environments.list(limit=2)
    assert page.data == made[:2:-1] and page.next_page is not None
    found = []
    for environment in page:
        found.append(environment)
        if environment.id == made[0].id:
            break
    assert found == made[::-1]


def test_an_archived_environment_is_hidden_read_only_and_not_for_new_sessions(
    client: anthropic.Anthropic, make_agent: Any
) -> None:
    environment = client.beta.environments.create(name=name())
    archived = client.beta.environments.archive(environment.id)
    assert archived.archived_at is not None
    assert client.beta.environments.archive(environment.id) == archived
    assert environment.id not in {e.id for e in client.beta.environments.list(limit=5)}
    assert environment.id in {e.id for e in client.beta.environments.list(limit=5, include_archived=True)}
    with pytest.raises(anthropic.BadRequestError) as refused:
        client.beta.environments.update(environment.id, description="d")
    assert refused.value.error_code == "environment_archived"
    with pytest.raises(anthropic.BadRequestError):
        client.beta.sessions.create(agent=make_agent().id, environment_id=environment.id)
    assert client.beta.environments.retrieve(environment.id) == archived


def test_a_deleted_environment_is_gone(client: anthropic.Anthropic) -> None:
    environment = client.beta.environments.create(name=name())
    deleted = client.beta.environments.delete(environment.id)
    assert deleted.to_dict() == {"id": environment.id, "type": "environment_deleted"}
    for request in (
        client.beta.environments.retrieve,
        client.beta.environments.delete,
        client.beta.environments.archive,
        client.beta.environments.update,
    ):
        with pytest.raises(anthropic.NotFoundError) as refused:
            request(environment.id)
        check_error(refused.value.response, 404)


def test_an_archived_environment_may_be_deleted(client: anthropic.Anthropic) -> None:
    environment = client.beta.environments.create(name=name())
    client.beta.environments.archive(environment.id)
    assert client.beta.environments.delete(environment.id).id == environment.id


def test_an_environment_that_a_session_uses_is_not_deleted(client: anthropic.Anthropic, make_session: Any) -> None:
    environment = client.beta.environments.create(name=name())
    session = make_session(environment_id=environment.id)
    with pytest.raises(anthropic.ConflictError) as refused:
        client.beta.environments.delete(environment.id)
    assert refused.value.response.headers["x-should-retry"] == "false"
    assert client.beta.environments.retrieve(environment.id) == environment
    client.beta.sessions.delete(session.id)
    client.beta.environments.delete(environment.id)


def test_a_session_goes_on_in_an_archived_environment(
    client: anthropic.Anthropic, make_session: Any, watch: Any, model: Any
) -> None:
    environment = client.beta.environments.create(name=name())
    session = make_session(environment_id=environment.id)
    client.beta.environments.archive(environment.id)
    model.script(answer("still here"))
    conversation = watch(session.id)
    conversation.say("hello")
    conversation.until_idle()
