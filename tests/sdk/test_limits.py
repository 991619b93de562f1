"""Limits of the server's own, an extension: sessions that wait for their turn say so, and what is one too many is
refused with a time to come again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from support.deadline import eventually
from support.log import check_log
from support.process import Posthouse
from support.recorder import message
from support.scripted import Model, ScriptedServer, answer


@pytest.fixture(scope="module")
def server(scripted: ScriptedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Posthouse]:
    made = Posthouse(
        tmp_path_factory.mktemp("limits"),
        scripted.url,
        POSTHOUSE_SESSIONS_PER_BRAIN_MAX="2",
        POSTHOUSE_SESSIONS_WAITING_PER_WORKSPACE_MAX="1",
        POSTHOUSE_MODEL_REQUESTS_MAX="1",
    ).start()
    yield made
    made.stop()


def waits_for(client: anthropic.Anthropic, session_id: str) -> str | None:
    """Read from what the strictly validating client made of the answer."""
    waiting: Any = client.beta.sessions.retrieve(session_id).to_dict().get("waiting")
    assert waiting is None or set(waiting) == {"for", "since"}, waiting
    return waiting and waiting["for"]


def test_waiting_sessions_say_what_for_and_one_too_many_is_a_429(server: Posthouse, model: Model) -> None:
    hold = model.hold()
    model.script(answer("one", hold=hold), answer("two"), answer("three"))
    client = server.client()
    environment = client.beta.environments.create(name="limits").id
    agent = client.beta.agents.create(name="tester", model=model.name).id

    def begin() -> str:
        made = client.beta.sessions.create(agent=agent, environment_id=environment, initial_events=[message("hi")])
        return made.id

    first = begin()
    model.until_waiting(hold)
    assert waits_for(client, first) is None
    second = begin()
    eventually(lambda: waits_for(client, second) == "model", "the second waits for the model")
    third = begin()
    eventually(lambda: waits_for(client, third) == "brain", "the third waits for a brain")
    with pytest.raises(anthropic.RateLimitError) as refused:
        begin()
    assert int(refused.value.response.headers["retry-after"]) > 0
    assert len(client.beta.sessions.list().data) == 3

    model.release(hold)
    for session_id in (first, second, third):
        eventually(lambda: client.beta.sessions.retrieve(session_id).status == "idle", "it comes to rest")
        assert waits_for(client, session_id) is None
        check_log(client, session_id)
