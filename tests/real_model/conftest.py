"""One model server and one Posthouse for the whole run. What the model said and how fast is told at the end."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest

from llama_server import MODEL
from support.log import check_log
from support.process import Posthouse, Process
from support.recorder import Conversation

TOLD: list[str] = []


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    command = [sys.executable, str(Path(__file__).with_name("llama_server.py"))]
    process = Process(command, {"PATH": os.environ["PATH"]}, tmp_path_factory.mktemp("llama") / "stderr.log")
    yield process
    process.kill()


@pytest.fixture(scope="session")
def posthouse(llama: Process, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Posthouse]:
    # One attempt: a retry would hide that a request went wrong.
    settings = {"OPENAI_BASE_URL": f"{llama.url}/v1", "POSTHOUSE_MODEL_ATTEMPTS_MAX": "1"}
    server = Posthouse(tmp_path_factory.mktemp("server"), llama.url, **settings).start()
    yield server
    server.stop()
    printed = server.process.transcript()
    assert "panicked" not in printed, printed


@pytest.fixture
def converse(posthouse: Posthouse) -> Iterator[Callable[..., Conversation]]:
    """Opens a session of a new agent without tools, with its stream; at the end its log is checked."""
    opened: list[Conversation] = []
    client: anthropic.Anthropic = posthouse.client()
    environment = client.beta.environments.create(name=f"real model {uuid.uuid4().hex}")

    def open_session(**fields: Any) -> Conversation:
        agent = client.beta.agents.create(name="small talker", model=MODEL, **fields)
        session = client.beta.sessions.create(agent=agent.id, environment_id=environment.id)
        opened.append(Conversation(client, session.id, deltas=("agent.message",)))
        return opened[-1]

    yield open_session
    for conversation in opened:
        conversation.check_stream()
        conversation.close()
        check_log(client, conversation.id)


@pytest.fixture
def tell() -> Callable[[str], None]:
    return TOLD.append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in TOLD:
        terminalreporter.write_line(line)
