"""One server and one scripted model for the whole run; each test has its own model name, agent and sessions.

When a test ends, each session it made is brought to rest, its log is checked against the invariants, each of its
streams is compared with the list, and it is deleted.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import httpx2
import pytest

from support.log import check_log
from support.process import Posthouse, Process, binary
from support.recorder import Conversation, interrupt
from support.sandbox import Blocker
from support.scripted import Model, Reply, ScriptedServer

TOOLSET = {"type": "agent_toolset_20260401"}


def toolset(policy: str | None = None, **policies: str) -> dict[str, Any]:
    """The built-in tools, with a default policy and policies by tool name."""
    made: dict[str, Any] = dict(TOOLSET)
    if policy is not None:
        made["default_config"] = {"permission_policy": {"type": policy}}
    if policies:
        made["configs"] = [{"name": n, "permission_policy": {"type": p}} for n, p in policies.items()]
    return made


def custom_tool(name: str = "lookup", **schema: Any) -> dict[str, Any]:
    return {
        "type": "custom",
        "name": name,
        "description": "Looks a word up.",
        "input_schema": {"type": "object", "properties": {"word": {"type": "string"}}, **schema},
    }


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if report.when == "call":
        item.stash[CALL_PASSED] = report.passed
    return report


CALL_PASSED = pytest.StashKey[bool]()


@pytest.fixture(scope="session")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScriptedServer]:
    stderr = tmp_path_factory.mktemp("model") / "stderr.log"
    command = [str(binary("SCRIPTED_MODEL_BIN", "scripted-model")), "--listen", "127.0.0.1:0"]
    process = Process(command, {"PATH": "/usr/bin:/bin"}, stderr)
    yield ScriptedServer(process.url)
    process.kill()


@pytest.fixture(scope="session")
def posthouse(scripted: ScriptedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Posthouse]:
    server = Posthouse(tmp_path_factory.mktemp("server"), scripted.url).start()
    yield server
    server.stop()
    printed = server.process.transcript()
    assert "panicked" not in printed, printed


@pytest.fixture(scope="session")
def client(posthouse: Posthouse) -> anthropic.Anthropic:
    return posthouse.client()


@pytest.fixture(scope="session")
def http(posthouse: Posthouse) -> httpx2.Client:
    return posthouse.http()


@pytest.fixture(scope="session")
def environment_id(client: anthropic.Anthropic) -> str:
    return client.beta.environments.create(name=f"shared {uuid.uuid4().hex}").id


@pytest.fixture
def model(scripted: ScriptedServer) -> Iterator[Model]:
    made = Model(scripted)
    yield made
    made.release_all()
    made.check_requests()


@pytest.fixture
def make_agent(client: anthropic.Anthropic, model: Model) -> Callable[..., Any]:
    def make(**fields: Any) -> Any:
        return client.beta.agents.create(**{"name": "tester", "model": model.name, **fields})

    return make


@pytest.fixture
def make_session(
    request: pytest.FixtureRequest,
    client: anthropic.Anthropic,
    environment_id: str,
    make_agent: Callable[..., Any],
    model: Model,
) -> Iterator[Callable[..., Any]]:
    """Creates sessions of the test's own agent; at the end their logs are checked and they are deleted."""
    made: list[str] = []

    def make(*, agent: Any = None, agent_fields: dict[str, Any] | None = None, **fields: Any) -> Any:
        chosen = agent if agent is not None else make_agent(**(agent_fields or {})).id
        session = client.beta.sessions.create(**{"agent": chosen, "environment_id": environment_id, **fields})
        made.append(session.id)
        return session

    yield make
    model.release_all()
    passed = request.node.stash.get(CALL_PASSED, False)
    for session_id in made:
        try:
            come_to_rest(client, session_id)
        except anthropic.NotFoundError:
            continue  # The test deleted it.
        if passed:
            check_log(client, session_id)
        client.beta.sessions.delete(session_id)


@pytest.fixture
def watch(
    request: pytest.FixtureRequest, client: anthropic.Anthropic, model: Model, make_session: Callable[..., Any]
) -> Iterator[Callable[..., Conversation]]:
    """Opens a stream on a session. At the end it is compared with the list, before `make_session` deletes."""
    conversations: list[Conversation] = []

    def open_stream(session_id: str, *, deltas: tuple[str, ...] = ()) -> Conversation:
        conversation = Conversation(client, session_id, deltas)
        conversations.append(conversation)
        return conversation

    yield open_stream
    model.release_all()
    try:
        if request.node.stash.get(CALL_PASSED, False):
            for conversation in conversations:
                try:
                    come_to_rest(client, conversation.id)
                except anthropic.NotFoundError:
                    continue  # The test deleted it.
                if not conversation.recorder.ended:
                    conversation.check_stream()
    finally:
        for conversation in conversations:
            conversation.close()


@pytest.fixture
def start(
    make_session: Callable[..., Any], watch: Callable[..., Conversation], model: Model
) -> Callable[..., Conversation]:
    """A session with its stream open and the model's replies in place: what most flows begin with."""

    def begin(*replies: Reply, deltas: tuple[str, ...] = (), **fields: Any) -> Conversation:
        model.script(*replies)
        session = make_session(agent_fields=fields)
        return watch(session.id, deltas=deltas)

    return begin


def come_to_rest(client: anthropic.Anthropic, session_id: str) -> None:
    """Stops a session that a test left in the middle of something."""
    if client.beta.sessions.retrieve(session_id).status in ("idle", "terminated"):
        return
    conversation = Conversation(client, session_id)
    try:
        client.beta.sessions.events.send(session_id, events=[interrupt()])
        conversation.recorder.wait(
            lambda _: client.beta.sessions.retrieve(session_id).status in ("idle", "terminated"),
            "the session comes to rest",
        )
    finally:
        conversation.close()


@pytest.fixture
def blocker() -> Iterator[Blocker]:
    made = Blocker()
    yield made
    made.let_go()
