"""Repositories in sessions, as the official SDK sees them: attached, shown, rotated, cloned, and what is said when they cannot be."""

from __future__ import annotations

import queue
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest

from conftest import toolset
from support.log import text
from support.process import Posthouse, binary
from support.recorder import Conversation
from support.scripted import Model, ScriptedServer, answer, bash

TOKEN = "ghp_sdk_token_0123456789"
SECONDS = 30.0


class Git:
    """A git server with tokens, behind TLS."""

    def __init__(self, folder: Path) -> None:
        self.authority = folder / "authority.pem"
        self._lines: queue.Queue[str] = queue.Queue()
        self._child = subprocess.Popen(
            [str(binary("GIT_SERVER_BIN", "git-server")), str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        threading.Thread(target=self._drain, daemon=True).start()
        self.host = self._lines.get(timeout=SECONDS).rsplit("//", 1)[1]

    def _drain(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            self._lines.put(line.strip())

    def ask(self, *words: str) -> str:
        assert self._child.stdin is not None
        self._child.stdin.write(" ".join(words) + "\n")
        self._child.stdin.flush()
        return self._lines.get(timeout=SECONDS)

    def url(self, repository: str) -> str:
        return f"https://{self.host}/{repository}"

    def stop(self) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait(SECONDS)


@pytest.fixture(scope="module")
def git(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Git]:
    server = Git(tmp_path_factory.mktemp("git"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def posthouse(
    scripted: ScriptedServer, git: Git, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Posthouse]:
    """A server of this module's own, whose operator allows that git server."""
    server = Posthouse(
        tmp_path_factory.mktemp("server"),
        scripted.url,
        POSTHOUSE_GIT_ALLOW_HOSTS=git.host,
        POSTHOUSE_GIT_CA_FILE=str(git.authority),
        POSTHOUSE_ALLOW_PRIVATE_HOSTS=git.host,
    ).start()
    yield server
    server.stop()
    printed = server.process.transcript()
    assert "panicked" not in printed and TOKEN not in printed, printed


@pytest.fixture(scope="module")
def client(posthouse: Posthouse) -> anthropic.Anthropic:
    return posthouse.client()


@pytest.fixture(scope="module")
def environment_id(client: anthropic.Anthropic) -> str:
    networking = {"type": "limited"}
    return client.beta.environments.create(name="git", config={"type": "cloud", "networking": networking}).id


@pytest.fixture
def repository(git: Git, request: pytest.FixtureRequest) -> str:
    name = f"team/{request.node.name.split('[')[0]}"
    git.ask("commit", name, "main", "README.md", "hello")
    git.ask("allow", TOKEN, name, "write")
    return name


def resource(url: str, **fields: Any) -> dict[str, Any]:
    return {"type": "github_repository", "url": url, "authorization_token": TOKEN, **fields}


def test_a_repository_is_shown_without_its_token(
    client: anthropic.Anthropic, make_session: Any, git: Git, repository: str
) -> None:
    checkout = {"type": "branch", "name": "main"}
    session = make_session(resources=[resource(git.url(repository), checkout=checkout, mount_path="/workspace/here")])
    (shown,) = session.resources
    assert shown.id.startswith("sesrsc_")
    assert shown.to_dict(mode="json") == {
        "id": shown.id,
        "type": "github_repository",
        "url": git.url(repository),
        "mount_path": "/workspace/here",
        "checkout": checkout,
        "created_at": shown.created_at.isoformat().replace("+00:00", "Z"),
        "updated_at": shown.updated_at.isoformat().replace("+00:00", "Z"),
    }
    assert client.beta.sessions.retrieve(session.id).resources == session.resources
    assert list(client.beta.sessions.resources.list(session.id)) == session.resources
    assert client.beta.sessions.resources.retrieve(shown.id, session_id=session.id) == shown


def test_a_token_is_rotated_and_a_repository_stays(
    client: anthropic.Anthropic, make_session: Any, git: Git, repository: str
) -> None:
    session = make_session(resources=[resource(git.url(repository))])
    (shown,) = session.resources
    rotated = client.beta.sessions.resources.update(shown.id, session_id=session.id, authorization_token="ghp_new")
    assert rotated.updated_at > shown.updated_at
    assert "ghp_new" not in rotated.to_json()
    with pytest.raises(anthropic.BadRequestError):
        client.beta.sessions.resources.delete(shown.id, session_id=session.id)
    with pytest.raises(anthropic.BadRequestError) as refused:
        client.beta.sessions.resources.add(session.id, type="file", file_id="file_01")
    assert "not supported by this server" in str(refused.value)
    with pytest.raises(anthropic.NotFoundError):
        client.beta.sessions.resources.retrieve("sesrsc_none", session_id=session.id)


def test_lists_of_repositories_have_pages(
    client: anthropic.Anthropic, make_session: Any, git: Git, repository: str
) -> None:
    places = [f"/workspace/{letter}" for letter in "abc"]
    session = make_session(resources=[resource(git.url(repository), mount_path=place) for place in places])
    page = client.beta.sessions.resources.list(session.id, limit=2)
    assert [one.mount_path for one in page.data] == places[:2]
    assert [one.mount_path for one in page] == places


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"url": "https://github.com/o/r.git"}, "resources[0].url"),
        ({"url": "git@github.com:o/r"}, "resources[0].url"),
        ({"url": "https://elsewhere.example/o/r"}, "resources[0].url"),
        ({"authorization_token": ""}, "resources[0].authorization_token"),
        ({"mount_path": "/etc/x"}, "resources[0].mount_path"),
        ({"mount_path": "/workspace/../x"}, "resources[0].mount_path"),
        ({"checkout": {"type": "commit", "sha": "xyz"}}, "resources[0].checkout.sha"),
        ({"checkout": {"type": "branch", "name": "-x"}}, "resources[0].checkout.name"),
    ],
)
def test_what_cannot_be_attached_is_refused_by_name(make_session: Any, fields: dict[str, Any], path: str) -> None:
    with pytest.raises(anthropic.BadRequestError) as refused:
        make_session(resources=[resource("https://github.com/o/r") | fields])
    assert path in str(refused.value) and TOKEN not in str(refused.value)


def test_two_at_one_path_are_refused(make_session: Any) -> None:
    with pytest.raises(anthropic.BadRequestError) as refused:
        make_session(resources=[resource("https://github.com/o/r"), resource("https://github.com/p/r")])
    assert "resources[1].mount_path" in str(refused.value)


def test_an_agent_pulls_and_pushes(
    make_session: Any, watch: Any, model: Model, git: Git, repository: str
) -> None:
    name = repository.split("/")[1]
    command = (
        f"cd /workspace/{name} && cat README.md && git config user.name a && git config user.email a@b"
        " && git commit -q --allow-empty -m ours && git push -q && git pull -q && echo pushed"
    )
    model.script(answer(bash(command)), answer("done"))
    session = make_session(agent_fields={"tools": [toolset()]}, resources=[resource(git.url(repository))])
    conversation: Conversation = watch(session.id)
    conversation.say("go")
    (result,) = [event for event in conversation.until_idle() if event.type == "agent.tool_result"]
    assert (text(result), result.is_error) == ("hellopushed", False)
    assert git.ask("log", repository, "main") == "2"


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"authorization_token": "ghp_wrong"}, "repository_authentication_error"),
        ({"url": "nothing"}, "repository_not_found_error"),
        ({"checkout": {"type": "branch", "name": "nowhere"}}, "repository_checkout_error"),
    ],
)
def test_a_session_goes_on_without_a_repository_that_cannot_be_had(
    make_session: Any, watch: Any, model: Model, git: Git, repository: str, fields: dict[str, Any], kind: str
) -> None:
    wanted = resource(git.url(repository)) | fields
    if wanted["url"] == "nothing":
        wanted["url"] = git.url("team/nothing")
    model.script(answer(bash("ls /workspace | wc -l")), answer("done"))
    session = make_session(agent_fields={"tools": [toolset()]}, resources=[wanted])
    conversation: Conversation = watch(session.id)
    conversation.say("go")
    events = conversation.until_idle()
    (error,) = [event.error for event in events if event.type == "session.error"]
    assert (error.type, error.repository_url, error.retry_status.type) == (kind, wanted["url"], "retrying")
    (result,) = [event for event in events if event.type == "agent.tool_result"]
    assert text(result) == "0"
