"""The built-in tools, as the model meets them in a real sandbox."""

from __future__ import annotations

from typing import Any

import pytest

from conftest import toolset
from support.log import text
from support.recorder import Conversation
from support.sandbox import Blocker
from support.scripted import Model, answer, bash, call, text_of, tool_results


class Hands:
    """A session whose model calls what the test wants called."""

    def __init__(self, conversation: Conversation, model: Model) -> None:
        self.conversation, self._model = conversation, model

    def use(self, *calls: dict[str, Any]) -> list[Any]:
        """The results of these calls, made in one answer of the model, in the order of the calls."""
        self._model.script(answer(*calls), answer("done"))
        self.conversation.say("go")
        events = self.conversation.until_idle()
        results = {e.tool_use_id: e for e in events if e.type == "agent.tool_result"}
        return [results[e.id] for e in events if e.type == "agent.tool_use"]

    def ok(self, one: dict[str, Any]) -> str:
        (result,) = self.use(one)
        assert not result.is_error, text(result)
        return text(result)

    def fails(self, one: dict[str, Any]) -> str:
        (result,) = self.use(one)
        assert result.is_error is True, text(result)
        return text(result)


@pytest.fixture
def hands(start: Any, model: Model) -> Hands:
    return Hands(start(tools=[toolset()]), model)


def test_the_shell_lives_from_call_to_call_and_from_turn_to_turn(hands: Hands) -> None:
    assert hands.ok(bash("pwd")).endswith("/workspace")
    hands.ok(bash("mkdir -p deep/er; cd deep/er; export COLOUR=blue"))
    assert hands.ok(bash('echo "$COLOUR in $(basename "$PWD")"')) == "blue in er"
    first, second = hands.use(bash("COLOUR=red"), bash("echo $COLOUR"))
    assert text(second) == "red"


def test_output_and_errors_come_merged_and_empty_output_is_said(hands: Hands) -> None:
    assert hands.ok(bash("echo out; echo err >&2")).split() == ["out", "err"]
    assert hands.ok(bash("true")) == "(no output)"
    assert hands.fails(bash("echo out; false")) == "out"
    assert hands.ok(bash("printf '\\033[31mred\\033[0m'")) == "red"


def test_a_restart_gives_a_new_shell(hands: Hands) -> None:
    hands.ok(bash("export COLOUR=blue"))
    assert hands.ok(call("bash", restart=True)) == "bash session restarted"
    assert hands.ok(bash("echo [$COLOUR]")) == "[]"
    assert "command is required" in hands.fails(call("bash"))


def test_a_command_that_overruns_is_killed_and_the_next_one_runs(hands: Hands, blocker: Blocker) -> None:
    assert "timed out" in hands.fails(bash(blocker.command, timeout_ms=200))
    blocker.until_gone()
    assert hands.ok(bash("echo ok")) == "ok"


def test_long_output_keeps_its_end(hands: Hands) -> None:
    output = hands.ok(bash("seq 1 100000"))
    assert len(output) <= 110_000 and "[output truncated]" in output and output.endswith("100000")


def test_files_are_written_read_edited_and_found(hands: Hands) -> None:
    body = "first line\nsecond line\nGrüße 🙂\n"
    assert "wrote" in hands.ok(call("write", file_path="notes/a.txt", content=body))
    assert hands.ok(call("read", file_path="notes/a.txt")) == body
    assert hands.ok(call("read", file_path="notes/a.txt", view_range=[2, 3])).rstrip("\n") == "second line\nGrüße 🙂"
    assert "edited" in hands.ok(
        call("edit", file_path="notes/a.txt", old_string="second line", new_string="another line")
    )
    assert hands.ok(bash("cat notes/a.txt")) == body.replace("second", "another").rstrip("\n")
    assert hands.ok(call("glob", pattern="**/*.txt")).endswith("/workspace/notes/a.txt")
    assert hands.ok(call("grep", pattern="an.*er")).endswith("a.txt:2:another line")
    assert hands.ok(call("glob", pattern="*.none")) == "no matches"
    assert hands.ok(call("grep", pattern="nowhere to be found")) == "no matches"


def test_mistakes_of_the_model_are_explained_to_it(hands: Hands) -> None:
    hands.ok(call("write", file_path="twice.txt", content="a a"))
    assert "appears 2 times" in hands.fails(call("edit", file_path="twice.txt", old_string="a", new_string="b"))
    assert "not found" in hands.fails(call("edit", file_path="twice.txt", old_string="z", new_string="b"))
    assert "2 replacement" in hands.ok(
        call("edit", file_path="twice.txt", old_string="a", new_string="b", replace_all=True)
    )
    hands.fails(call("read", file_path="not/there.txt"))
    assert "outside" in hands.fails(call("read", file_path="/etc/passwd"))
    hands.fails(call("glob", pattern="../*"))
    hands.fails(call("grep", pattern="("))
    for bad in (call("read"), call("write", file_path=3), call("edit", file_path="x", unknown=True)):
        hands.fails(bad)


def test_an_image_is_read_as_an_image(hands: Hands, model: Model) -> None:
    pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    hands.ok(bash(f"echo {pixel} | base64 -d > dot.png"))
    (result,) = hands.use(call("read", file_path="dot.png"))
    (block,) = result.content
    assert (block.type, block.source.media_type) == ("image", "image/png") and block.source.data == pixel


def test_deliverables_have_their_place_and_there_is_no_network(hands: Hands) -> None:
    assert (
        hands.ok(bash("echo report > /mnt/session/outputs/report.txt; cat /mnt/session/outputs/report.txt")) == "report"
    )
    hands.fails(bash("(exec 3<>/dev/tcp/1.1.1.1/80)"))


def test_nothing_of_the_server_is_in_the_sandbox(hands: Hands) -> None:
    seen = hands.ok(bash("env; cat /proc/*/environ 2>/dev/null | tr '\\0' '\\n'; true"))
    assert "sk-" not in seen and "POSTHOUSE_API_KEY" not in seen and "ANTHROPIC_" not in seen
    assert int(hands.ok(bash("ls /proc | grep -c '^[0-9]*$'"))) < 30


def test_two_sessions_do_not_share_a_workspace(hands: Hands, make_session: Any, watch: Any, model: Model) -> None:
    hands.ok(bash("echo mine > secret.txt"))
    other = Hands(watch(make_session(agent_fields={"tools": [toolset()]}).id), model)
    assert hands.ok(bash("cat secret.txt")) == "mine"
    other.fails(bash("cat secret.txt"))


def test_the_model_gets_what_the_event_shows(hands: Hands, model: Model) -> None:
    (result,) = hands.use(bash("echo hello"))
    (given,) = tool_results(model.bodies()[-1]).values()
    assert text_of(given) == text(result) == "hello"
