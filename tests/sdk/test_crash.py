"""kill -9 of the server, at many moments: what was acknowledged is there once, sessions go on by themselves, and a
command in a sandbox is neither lost nor run twice."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import custom_tool, toolset
from support.log import ANSWER, FAILED_END, RUN, START, Event, check_log, idle, processed, read_log, shapes, text
from support.process import API_KEY, Posthouse
from support.recorder import Conversation, custom_result, message
from support.sandbox import Blocker
from support.scripted import Model, ScriptedServer, answer, bash, call
from support.wire import frames


class Survivor:
    """A server that is killed, and a session that is followed through its deaths."""

    def __init__(self, server: Posthouse, model: Model) -> None:
        self.server, self.model = server, model
        self.session_id = ""
        self._conversation: Conversation | None = None

    def begin(self, *replies: Any, tools: Any = (), environment: str = "crash") -> Conversation:
        self.model.script(*replies)
        client = self.server.client()
        names = {e.name: e.id for e in client.beta.environments.list(limit=1000)}
        environment_id = names.get(environment) or client.beta.environments.create(name=environment).id
        agent = client.beta.agents.create(name="tester", model=self.model.name, tools=list(tools))
        self.session_id = client.beta.sessions.create(agent=agent.id, environment_id=environment_id).id
        return self.follow()

    def follow(self) -> Conversation:
        self._conversation = Conversation(self.server.client(), self.session_id)
        return self._conversation

    def crash(self) -> None:
        """kill -9, and a new server on the same data directory."""
        if self._conversation is not None:
            self._conversation.recorder.expect_loss()
        self.server.process.kill()
        self.close()
        self.server.start()

    def close(self) -> None:
        if self._conversation is not None:
            self._conversation.close()

    def until_idle(self) -> list[Event]:
        """The whole log once the session rests. Opens the stream first, then looks: the recipe for reconnecting."""
        conversation = self.follow()
        rests = ("session.status_idle", "session.status_terminated")

        def at_rest(_: list[Event]) -> list[Event]:
            log = processed(conversation.log())
            return log if log and log[-1].type in rests else []

        conversation.recorder.wait(at_rest, "the session rests after the crash")
        conversation.close()
        return check_log(conversation.client, self.session_id)


@pytest.fixture(scope="module")
def server(scripted: ScriptedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Posthouse]:
    made = Posthouse(tmp_path_factory.mktemp("crash"), scripted.url).start()
    yield made
    made.stop()


@pytest.fixture
def survivor(server: Posthouse, model: Model) -> Iterator[Survivor]:
    made = Survivor(server, model)
    yield made
    made.close()


def test_everything_is_there_after_a_crash_at_rest(survivor: Survivor) -> None:
    conversation = survivor.begin(answer("hello"), answer("again"))
    conversation.say("hello")
    conversation.until_idle()
    client = conversation.client
    before = conversation.log()
    session, threads = conversation.session(), list(client.beta.sessions.threads.list(survivor.session_id))
    agents, environments = list(client.beta.agents.list()), list(client.beta.environments.list())
    survivor.crash()
    conversation = survivor.follow()
    client = conversation.client
    assert conversation.log() == before
    after = conversation.session()
    assert after.to_dict() | {"stats": None} == session.to_dict() | {"stats": None}
    assert list(client.beta.sessions.threads.list(survivor.session_id))[0].id == threads[0].id
    assert list(client.beta.agents.list()) == agents and list(client.beta.environments.list()) == environments
    conversation.say("and now?")
    conversation.expect("user.message?", *RUN, "user.message", *ANSWER, *idle("end_turn"))


def test_a_crash_in_the_middle_of_an_answer_asks_the_model_again(survivor: Survivor) -> None:
    hold = survivor.model.hold()
    conversation = survivor.begin(
        answer("one two three", hold=hold, hold_after=1), answer("at last"), answer("and that")
    )
    sent = conversation.say("hello")
    conversation.wait_for(START)
    survivor.model.until_waiting(hold)
    queued = conversation.say("queued")
    survivor.crash()
    log = survivor.until_idle()
    ids = [e.id for e in log]
    assert ids.count(sent.id) == 1 and ids.count(queued.id) == 1
    kinds = shapes(log)
    assert kinds[:5] == [*RUN, "user.message", START, FAILED_END], "the open request is closed as failed"
    assert kinds[-6:] == [*ANSWER, *idle("end_turn")]
    assert [text(e) for e in log if e.type == "agent.message"] == ["at last", "and that"]
    assert "queued" in str(survivor.model.bodies()[-1]["messages"])


def test_a_command_that_runs_while_the_server_dies_runs_once(survivor: Survivor, blocker: Blocker) -> None:
    command = f"echo run >> /workspace/runs; {blocker.command}; wc -l < /workspace/runs"
    conversation = survivor.begin(
        answer(bash(command)), answer(bash("wc -l < /workspace/runs")), answer("done"), tools=[toolset()]
    )
    conversation.say("go")
    conversation.wait_for("agent.tool_use")
    pid = blocker.until_running()
    survivor.crash()
    assert blocker.processes() == [pid], "the sandbox outlives the server"
    blocker.let_go()
    log = survivor.until_idle()
    first, second = (e for e in log if e.type == "agent.tool_result")
    assert text(first).split()[-1] == "1" and text(second) == "1"
    assert shapes(log)[-1] == "session.status_idle(end_turn)"


def test_a_command_that_ends_while_the_server_is_dead_is_not_lost(survivor: Survivor, blocker: Blocker) -> None:
    command = f"echo run >> /workspace/runs; {blocker.command}; wc -l < /workspace/runs"
    conversation = survivor.begin(
        answer(bash(command)), answer(bash("wc -l < /workspace/runs")), answer("done"), tools=[toolset()]
    )
    conversation.say("go")
    conversation.wait_for("agent.tool_use")
    blocker.until_running()
    conversation.recorder.expect_loss()
    survivor.server.process.kill()
    blocker.let_go()
    blocker.until_gone()
    survivor.server.start()
    log = survivor.until_idle()
    first, second = (e for e in log if e.type == "agent.tool_result")
    assert text(first).split()[-1] == "1" and text(second) == "1"


def test_a_command_survives_two_crashes(survivor: Survivor, blocker: Blocker) -> None:
    command = f"echo run >> /workspace/runs; {blocker.command}; wc -l < /workspace/runs"
    conversation = survivor.begin(answer(bash(command)), answer("done"), tools=[toolset()])
    conversation.say("go")
    conversation.wait_for("agent.tool_use")
    pid = blocker.until_running()
    survivor.crash()
    survivor.crash()
    assert blocker.processes() == [pid]
    blocker.let_go()
    (result,) = (e for e in survivor.until_idle() if e.type == "agent.tool_result")
    assert text(result).split()[-1] == "1"


@pytest.mark.parametrize(
    "moment",
    [
        "user.message?",
        "session.status_running",
        "user.message",
        START,
        "agent.tool_use",
        "agent.tool_result",
        "agent.message",
        "session.usage",
    ],
)
def test_at_whatever_moment_it_dies_the_turn_is_finished(survivor: Survivor, moment: str) -> None:
    # A request that was under way takes its reply with it, so there is one more of each than a calm run needs.
    count = bash("echo run >> /workspace/runs; wc -l < /workspace/runs")
    conversation = survivor.begin(answer(count), answer(count), answer("done"), answer("done"), tools=[toolset()])
    sent = conversation.say("go")
    conversation.wait_for(moment)
    survivor.crash()
    log = survivor.until_idle()
    assert [e.id for e in log].count(sent.id) == 1
    uses = [e.id for e in log if e.type == "agent.tool_use"]
    results = {e.tool_use_id: text(e) for e in log if e.type == "agent.tool_result"}
    assert [results[use] for use in uses] == [str(n + 1) for n in range(len(uses))], "each call ran once"
    assert shapes(log)[-1] == "session.status_idle(end_turn)"
    assert {e.id for e in processed(conversation.events)} <= {e.id for e in log}, "what was shown is kept"


def test_a_session_that_waits_for_its_client_still_waits(survivor: Survivor) -> None:
    conversation = survivor.begin(answer(call("lookup", word="ant")), answer("done"), tools=[custom_tool()])
    conversation.say("go")
    use = conversation.until_idle("requires_action")[-1].stop_reason.event_ids[0]
    before = conversation.log()
    survivor.crash()
    conversation = survivor.follow()
    assert conversation.session().status == "idle" and conversation.log() == before
    conversation.send(custom_result(use))
    conversation.expect("user.custom_tool_result", *RUN, *ANSWER, *idle("end_turn"))


def test_every_acknowledged_event_of_a_busy_server_is_there_once(survivor: Survivor) -> None:
    hold = survivor.model.hold()
    conversation = survivor.begin(answer("one", hold=hold), answer("one again"), answer("all the others"))
    acknowledged = [conversation.say(f"message {number}").id for number in range(200)]
    survivor.crash()
    survivor.model.release(hold)
    survivor.until_idle()
    listed = [e.id for e in read_log(survivor.server.client(), survivor.session_id, types=["user.message"])]
    assert sorted(listed) == sorted(acknowledged) and len(set(listed)) == len(listed)
    assert listed == acknowledged, "and in the order in which they were sent"


def test_a_resumed_stream_bridges_a_crash(survivor: Survivor) -> None:
    hold = survivor.model.hold()
    conversation = survivor.begin(answer("one", hold=hold), answer("two"))
    path = f"/v1/sessions/{survivor.session_id}/events/stream"
    seen: list[str] = []
    position = 0
    with survivor.server.http().stream("GET", path) as response:
        conversation.say("hello")
        for frame in frames(response):
            if frame.position is not None:
                seen.append(frame.data["id"])
                position = frame.position
            if frame.event == START:
                break
    survivor.model.until_waiting(hold)
    survivor.crash()
    with survivor.server.http().stream("GET", path, headers={"last-event-id": str(position)}) as response:
        for frame in frames(response):
            if frame.position is not None:
                seen.append(frame.data["id"])
            if frame.event == "session.status_idle":
                break
    assert seen == [e.id for e in survivor.until_idle()]


def test_an_orderly_stop_ends_streams_in_order_and_finishes_the_answer(survivor: Survivor) -> None:
    hold = survivor.model.hold()
    conversation = survivor.begin(answer("one two three", hold=hold, hold_after=1))
    conversation.say("hello")
    conversation.wait_for(START)
    survivor.model.until_waiting(hold)
    survivor.server.process.terminate()
    # The official client sees the end of a stream, and not that of a connection.
    seen = conversation.recorder.until_end()
    assert seen[-1].type == START
    survivor.model.release(hold)
    assert survivor.server.process.wait() == 0
    survivor.server.start()
    log = survivor.until_idle()
    assert processed(seen) == log[: len(processed(seen))], "the next stream goes on where this one ended"
    assert shapes(log) == [*RUN, "user.message", *ANSWER, *idle("end_turn")]


def test_an_orderly_stop_in_the_middle_of_a_call_hands_it_over_at_once(survivor: Survivor, blocker: Blocker) -> None:
    conversation = survivor.begin(
        answer(bash(f"{blocker.command}; echo over")), answer("done"), tools=[toolset()]
    )
    conversation.say("go")
    blocker.until_running()
    survivor.server.process.terminate()
    conversation.recorder.until_end()
    assert survivor.server.process.wait() == 0
    survivor.server.start()
    blocker.let_go()
    log = survivor.until_idle()
    (result,) = [e for e in log if e.type == "agent.tool_result"]
    assert "over" in text(result) and not result.is_error
    assert FAILED_END not in shapes(log)


def test_a_second_server_on_the_same_data_says_so_and_ends(server: Posthouse) -> None:
    second = subprocess.run(
        server.command(),
        env=server.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert second.returncode != 0
    assert b"http://" not in second.stdout
    assert str(server.directory / "data").encode() in second.stderr + second.stdout
    assert server.client().beta.agents.list(limit=1).data is not None


def test_the_key_and_the_provider_keys_are_not_in_the_data_directory(server: Posthouse) -> None:
    assert server.client().beta.agents.list(limit=1).data is not None
    secrets = [API_KEY.encode(), server.environment()["ANTHROPIC_API_KEY"].encode()]
    for path in Path(server.directory / "data").rglob("*"):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            assert not any(secret in content for secret in secrets), path


def test_the_first_message_may_come_right_after_the_start(survivor: Survivor) -> None:
    survivor.server.process.kill()
    survivor.server.start()
    conversation = survivor.begin(answer("hello"))
    conversation.send(message("hello"))
    conversation.until_idle()
