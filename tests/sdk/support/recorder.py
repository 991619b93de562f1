"""One SDK stream, read to its end by a thread of its own, and the conversation that a test holds over it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import anthropic

from support.deadline import DEADLINE_SECONDS
from support.log import Event, processed, read_log, shape, shapes


class Recorder:
    """Keeps every event of one stream. The subscription is in place when the constructor returns."""

    def __init__(self, open_stream: Callable[[], Any]) -> None:
        self._stream = open_stream()
        self._changed = threading.Condition()
        self._closing = False
        self.events: list[Event] = []
        self.failure: BaseException | None = None
        self.ended = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for event in self._stream:
                with self._changed:
                    self.events.append(event)
                    self._changed.notify_all()
        except BaseException as error:  # handed over to the thread that waits
            if not self._closing:
                self.failure = error
        with self._changed:
            self.ended = True
            self._changed.notify_all()

    def wait(self, found: Callable[[list[Event]], Any], what: str, seconds: float = DEADLINE_SECONDS) -> Any:
        """Waits until `found` is true of the events so far, and returns what it found."""
        end = time.monotonic() + seconds
        with self._changed:
            while True:
                result = found(self.events)
                if result:
                    return result
                if self.failure is not None:
                    raise AssertionError(f"the stream failed while waiting for {what}") from self.failure
                if self.ended:
                    raise AssertionError(f"the stream ended while waiting for {what}: {shapes(self.events)}")
                if not self._changed.wait(max(0.0, end - time.monotonic())) and time.monotonic() >= end:
                    raise AssertionError(f"not within {seconds} s: {what}; the stream has {shapes(self.events)}")

    def until_end(self, seconds: float = DEADLINE_SECONDS) -> list[Event]:
        self._thread.join(seconds)
        assert not self._thread.is_alive(), f"the stream did not end: {shapes(self.events)}"
        if self.failure is not None:
            raise AssertionError("the stream failed") from self.failure
        return self.events

    def expect_loss(self) -> None:
        """From now on it is no failure if the connection breaks."""
        self._closing = True

    def close(self) -> None:
        self.expect_loss()
        # Closing the response under a thread that reads from it is not safe; ending the connection is.
        connection: socket.socket = self._stream.response.extensions["network_stream"].get_extra_info("socket")
        with contextlib.suppress(OSError):  # The server was faster.
            connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(DEADLINE_SECONDS)
        assert not self._thread.is_alive(), "the reader of a stream did not end"


class Conversation:
    """A session, one open stream on it, and the place up to which the test has read."""

    def __init__(self, client: anthropic.Anthropic, session_id: str, deltas: Sequence[str] = ()) -> None:
        self.client = client
        self.id = session_id
        options = {"event_deltas": list(deltas)} if deltas else {}
        self.recorder = Recorder(lambda: client.beta.sessions.events.stream(session_id, **options))
        self._read_up_to = 0

    @property
    def events(self) -> list[Event]:
        return list(self.recorder.events)

    def send(self, *events: dict[str, Any]) -> list[Event]:
        sent = self.client.beta.sessions.events.send(self.id, events=events)
        assert sent.data is not None and [e.type for e in sent.data] == [e["type"] for e in events]
        return sent.data

    def say(self, text: str) -> Event:
        return self.send(message(text))[0]

    def wait_for(self, word: str, **fields: Any) -> Event:
        """The next unread event of that shape and those fields; reading goes on behind it."""

        def found(events: list[Event]) -> int | None:
            for index in range(self._read_up_to, len(events)):
                event = events[index]
                if shape(event) == word and all(getattr(event, k, None) == v for k, v in fields.items()):
                    return index + 1
            return None

        self._read_up_to = self.recorder.wait(found, f"{word} {fields or ''}")
        return self.recorder.events[self._read_up_to - 1]

    def expect(self, *words: str, without: Sequence[str] = ()) -> list[Event]:
        """Exactly these shapes come next, in this order."""

        def found(events: list[Event]) -> tuple[int, list[Event]] | None:
            unread = [(i, e) for i, e in enumerate(events) if i >= self._read_up_to and shape(e) not in without]
            for (_, event), word in zip(unread, words, strict=False):
                if shape(event) != word:
                    raise AssertionError(f"expected {list(words)}, got {shapes((e for _, e in unread), without)}")
            if len(unread) < len(words):
                return None
            part = unread[: len(words)]
            return part[-1][0] + 1, [e for _, e in part]

        self._read_up_to, part = self.recorder.wait(found, f"exactly {list(words)}")
        return part

    def until_idle(self, reason: str = "end_turn", settled: bool = True) -> list[Event]:
        """Reads up to the next idle of the session and returns what was read."""
        start = self._read_up_to

        def found(events: list[Event]) -> int | None:
            for index in range(start, len(events)):
                if events[index].type == "session.status_idle":
                    return index + 1
            return None

        self._read_up_to = self.recorder.wait(found, "session.status_idle")
        part = self.recorder.events[start : self._read_up_to]
        assert shape(part[-1]) == f"session.status_idle({reason})", shapes(part)
        if settled:
            self.check_settled()
        return part

    def check_settled(self) -> None:
        """G10 and G12: what a stream has shown is at once true of the session and its list."""
        assert self.client.beta.sessions.retrieve(self.id).status == "idle", "G10"
        listed = {e.id for e in read_log(self.client, self.id)}
        assert {e.id for e in processed(self.events)} <= listed, "G12"

    def nothing_more(self) -> None:
        """Nothing was streamed behind what the test has read, as far as the list can tell."""
        behind = processed(self.recorder.events[self._read_up_to :])
        listed = read_log(self.client, self.id)
        seen = processed(self.recorder.events[: self._read_up_to])
        assert not behind and (not seen or listed[-1].id == seen[-1].id), shapes([*behind, *listed])

    def check_stream(self) -> None:
        """G2: without queued copies and previews the stream is the list, from where it was opened."""
        log = [e for e in read_log(self.client, self.id) if e.processed_at is not None]
        if not log:
            return
        self.recorder.wait(lambda events: any(e.id == log[-1].id for e in processed(events)), "the list's last event")
        streamed = [e.id for e in processed(self.events)]
        assert streamed == [e.id for e in log][-len(streamed) :], "G2: stream and list differ"
        kinds = [e.type for e in self.events]
        if "session.status_terminated" in kinds:
            assert set(kinds[kinds.index("session.status_terminated") + 1 :]) <= {"session.deleted"}, "G13"

    def log(self) -> list[Event]:
        return read_log(self.client, self.id)

    def session(self) -> Any:
        return self.client.beta.sessions.retrieve(self.id)

    def close(self) -> None:
        self.recorder.close()


def message(text: str) -> dict[str, Any]:
    return {"type": "user.message", "content": [{"type": "text", "text": text}]}


def system_message(text: str) -> dict[str, Any]:
    return {"type": "system.message", "content": [{"type": "text", "text": text}]}


def interrupt(**fields: Any) -> dict[str, Any]:
    return {"type": "user.interrupt", **fields}


def confirm(tool_use_id: str, result: str = "allow", **fields: Any) -> dict[str, Any]:
    return {"type": "user.tool_confirmation", "tool_use_id": tool_use_id, "result": result, **fields}


def custom_result(custom_tool_use_id: str, text: str = "done", **fields: Any) -> dict[str, Any]:
    content = [{"type": "text", "text": text}]
    return {"type": "user.custom_tool_result", "custom_tool_use_id": custom_tool_use_id, "content": content, **fields}
