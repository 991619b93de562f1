"""MCP servers, as the official SDK sees them: a real server in Python, and the reference server in Node."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest

from conftest import toolset
from support.log import text
from support.process import REPOSITORY, Posthouse
from support.recorder import Conversation
from support.scripted import Model, ScriptedServer, answer, call

EVERYTHING = REPOSITORY / "target/mcp-servers/node_modules/@modelcontextprotocol/server-everything/dist/index.js"
START_SECONDS = 60.0
# The server under test must be told which ports it may reach before it is known which are free. These are below those
# that the system gives away by itself.
PORTS = random.sample(range(20_000, 30_000), 64)


def free_port() -> int:
    while True:
        port = PORTS.pop()
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class Server:
    """A server in a process of its own; a port that somebody took meanwhile is tried again."""

    def __init__(self, command: Any, path: str) -> None:
        for _ in range(5):
            port = free_port()
            words, environment = command(port)
            self._child = subprocess.Popen(
                words, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            deadline = time.monotonic() + START_SECONDS
            while self._child.poll() is None and time.monotonic() < deadline:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                except OSError:
                    time.sleep(0.05)
                else:
                    self.url = f"http://127.0.0.1:{port}{path}"
                    return
            self.stop()
        raise RuntimeError("the MCP server does not start")

    def stop(self) -> None:
        self._child.kill()
        self._child.wait()


def python(token: str) -> Server:
    script = str(Path(__file__).parent / "support" / "mcp_server.py")
    return Server(lambda port: ([sys.executable, script, str(port), token], None), "/mcp")


def everything(transport: str, path: str) -> Server:
    if not EVERYTHING.exists():
        raise FileNotFoundError(f"{EVERYTHING} does not exist: `cargo xtask check` installs it")
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
    return Server(lambda port: (["node", str(EVERYTHING), transport], {**environment, "PORT": str(port)}), path)


@pytest.fixture(scope="module")
def posthouse(scripted: ScriptedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Posthouse]:
    """A server that may reach this machine, as the shared one may not."""
    made = Posthouse(
        tmp_path_factory.mktemp("mcp"),
        scripted.url,
        POSTHOUSE_ALLOW_PRIVATE_HOSTS="127.0.0.1",
        POSTHOUSE_ALLOW_PORTS=",".join(map(str, PORTS)),
    ).start()
    yield made
    made.stop()
    printed = made.process.transcript()
    assert "panicked" not in printed, printed


@pytest.fixture(scope="module")
def client(posthouse: Posthouse) -> anthropic.Anthropic:
    return posthouse.client()


@pytest.fixture(scope="module")
def environment_id(client: anthropic.Anthropic) -> str:
    return client.beta.environments.create(name=f"mcp {uuid.uuid4().hex}").id


@pytest.fixture(scope="module")
def adder(posthouse: Posthouse) -> Iterator[Server]:
    server = python("none")
    yield server
    server.stop()


def agent_fields(*urls: str, policy: str | None = "always_allow", builtin: bool = False) -> dict[str, Any]:
    names = [f"server{number}" for number in range(len(urls))]
    tools: list[dict[str, Any]] = [toolset()] if builtin else []
    for name in names:
        entry: dict[str, Any] = {"type": "mcp_toolset", "mcp_server_name": name}
        if policy is not None:
            entry["default_config"] = {"permission_policy": {"type": policy}}
        tools.append(entry)
    servers = [{"type": "url", "name": name, "url": url} for name, url in zip(names, urls, strict=True)]
    return {"mcp_servers": servers, "tools": tools}


def of_kind(events: Any, kind: str) -> list[Any]:
    return [event for event in events if event.type == kind]


def test_an_agent_is_shown_with_its_servers_and_toolsets(client: anthropic.Anthropic, make_agent: Any) -> None:
    agent = make_agent(**agent_fields("https://mcp.example.com/mcp", policy=None))
    assert [server.to_dict() for server in agent.mcp_servers] == [
        {"type": "url", "name": "server0", "url": "https://mcp.example.com/mcp"}
    ]
    (entry,) = agent.tools
    assert (entry.type, entry.mcp_server_name, entry.configs) == ("mcp_toolset", "server0", [])
    assert entry.default_config.permission_policy.type == "always_ask"
    with pytest.raises(anthropic.BadRequestError, match="mcp_servers"):
        client.beta.agents.update(agent.id, version=agent.version, tools=[])
    assert client.beta.agents.update(agent.id, version=agent.version, tools=[], mcp_servers=[]).mcp_servers == []


def test_a_call_runs_at_the_server(make_session: Any, watch: Any, model: Model, adder: Server) -> None:
    model.script(answer(call("mcp__server0__add", a=2, b=40)), answer("done"))
    session = make_session(agent_fields=agent_fields(adder.url))
    conversation: Conversation = watch(session.id)
    conversation.say("go")
    events = conversation.until_idle()
    (use,) = of_kind(events, "agent.mcp_tool_use")
    assert (use.mcp_server_name, use.name, use.input) == ("server0", "add", {"a": 2, "b": 40})
    assert (use.evaluated_permission, use.evaluation.type) == ("allow", "always_allow")
    (result,) = of_kind(events, "agent.mcp_tool_result")
    assert (result.mcp_tool_use_id, text(result), result.is_error) == (use.id, "42", False)


@pytest.mark.parametrize(("verdict", "expected"), [("allow", "42"), ("deny", "rejected")])
def test_a_call_is_asked_about_unless_the_agent_says_otherwise(
    make_session: Any, watch: Any, model: Model, adder: Server, verdict: str, expected: str
) -> None:
    model.script(answer(call("mcp__server0__add", a=2, b=40)), answer("done"))
    session = make_session(agent_fields=agent_fields(adder.url, policy=None))
    conversation: Conversation = watch(session.id)
    conversation.say("go")
    events = conversation.until_idle("requires_action")
    (use,) = of_kind(events, "agent.mcp_tool_use")
    assert use.evaluated_permission == "ask"
    conversation.send({"type": "user.tool_confirmation", "tool_use_id": use.id, "result": verdict})
    (result,) = of_kind(conversation.until_idle(), "agent.mcp_tool_result")
    assert expected in text(result)


@pytest.mark.parametrize(("transport", "path"), [("streamableHttp", "/mcp"), ("sse", "/sse")])
def test_the_reference_server_is_used_over_both_transports(
    make_session: Any, watch: Any, model: Model, transport: str, path: str
) -> None:
    server = everything(transport, path)
    try:
        model.script(
            answer(call("mcp__server0__echo", message="hi"), call("mcp__server0__get-tiny-image")), answer("done")
        )
        session = make_session(agent_fields=agent_fields(server.url))
        conversation: Conversation = watch(session.id)
        conversation.say("go")
        echo, image = of_kind(conversation.until_idle(), "agent.mcp_tool_result")
        assert text(echo) == "Echo: hi"
        assert "image" in [block.type for block in image.content]
    finally:
        server.stop()


def test_a_server_that_is_not_there_is_an_error_and_the_others_are_used(
    make_session: Any, watch: Any, model: Model, adder: Server
) -> None:
    model.script(answer(call("mcp__server0__add", a=1, b=1)), answer("done"))
    session = make_session(agent_fields=agent_fields(adder.url, f"http://127.0.0.1:{free_port()}/mcp"))
    conversation: Conversation = watch(session.id)
    conversation.say("go")
    events = conversation.until_idle()
    (error,) = of_kind(events, "session.error")
    assert (error.error.type, error.error.mcp_server_name) == ("mcp_connection_failed_error", "server1")
    assert error.error.retry_status.type == "retrying"
    (result,) = of_kind(events, "agent.mcp_tool_result")
    assert text(result) == "2"


def test_a_server_that_wants_a_credential_is_an_error_of_its_own(make_session: Any, watch: Any, model: Model) -> None:
    server = python("a-token")
    try:
        model.script(answer("without"))
        session = make_session(agent_fields=agent_fields(server.url))
        conversation: Conversation = watch(session.id)
        conversation.say("go")
        (error,) = of_kind(conversation.until_idle(), "session.error")
        assert (error.error.type, error.error.mcp_server_name) == ("mcp_authentication_failed_error", "server0")
    finally:
        server.stop()


def test_a_credential_of_a_vault_opens_the_server_and_is_seen_by_nobody(
    client: anthropic.Anthropic, posthouse: Posthouse, make_session: Any, watch: Any, model: Model
) -> None:
    token = f"token-{uuid.uuid4().hex}"
    server = python(token)
    try:
        vault = client.beta.vaults.create(display_name="v")
        address = server.url.replace("http://", "HTTP://") + "/"
        credential = client.beta.vaults.credentials.create(
            vault.id, auth={"type": "static_bearer", "token": token, "mcp_server_url": address}
        )
        add = call("mcp__server0__add", a=1, b=2)
        model.script(answer(add), answer("done"), answer(add), answer("without"))
        session = make_session(agent_fields=agent_fields(server.url), vault_ids=[vault.id])
        conversation: Conversation = watch(session.id)
        conversation.say("go")
        events = conversation.until_idle()
        (result,) = of_kind(events, "agent.mcp_tool_result")
        assert (text(result), result.is_error) == ("3", False)
        printed = posthouse.process.transcript()
        assert credential.id in printed, "the audit names the credential"
        assert token not in printed and token not in "".join(event.to_json() for event in events)

        client.beta.vaults.credentials.archive(credential.id, vault_id=vault.id)
        conversation.say("again")
        events = conversation.until_idle()
        (result,) = of_kind(events, "agent.mcp_tool_result")
        assert result.is_error and "not connected" in text(result)
        (error,) = of_kind(events, "session.error")
        assert error.error.type == "mcp_authentication_failed_error"
    finally:
        server.stop()


def test_a_long_result_is_in_a_file_that_the_agent_can_read(
    make_session: Any, watch: Any, model: Model, adder: Server
) -> None:
    model.script(
        answer(call("mcp__server0__long_text", length=150_000)),
        answer(call("bash", command="cat /tmp/tool-outputs/*.txt | wc -c")),
        answer("done"),
    )
    session = make_session(agent_fields=agent_fields(adder.url, builtin=True))
    conversation: Conversation = watch(session.id)
    conversation.say("go")
    events = conversation.until_idle()
    (shown,) = of_kind(events, "agent.mcp_tool_result")
    assert len(text(shown)) < 12_000 and "all of it is in /tmp/tool-outputs/" in text(shown)
    (counted,) = of_kind(events, "agent.tool_result")
    assert text(counted).strip() == "150000"


def test_a_session_may_change_its_servers_while_it_is_idle(
    client: anthropic.Anthropic, make_session: Any, watch: Any, model: Model, adder: Server
) -> None:
    session = make_session(agent_fields={"tools": []})
    changed: Any = agent_fields(adder.url)
    with pytest.raises(anthropic.BadRequestError, match="mcp_server"):
        client.beta.sessions.update(session.id, agent={"tools": changed["tools"]})
    updated = client.beta.sessions.update(session.id, agent=changed)
    assert updated.agent.mcp_servers[0].url == adder.url
    model.script(answer(call("mcp__server0__add", a=3, b=4)), answer("done"))
    conversation: Conversation = watch(session.id)
    conversation.say("go")
    (result,) = of_kind(conversation.until_idle(), "agent.mcp_tool_result")
    assert text(result) == "7"
