"""Reading a session's log: its shape in short words, and the invariants G1 to G13 that hold for every log.

The checks speak only of what is public: the event list, the session, its thread.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import anthropic

Event = Any

# The head and the tail that every run of a session has, and one plain model request.
RUN = ("session.status_running", "session.thread_status_running")
RESCHEDULED = ("session.thread_status_rescheduled", "session.status_rescheduled")
START = "span.model_request_start"
END = "span.model_request_end"
FAILED_END = "span.model_request_end!"
ANSWER = (START, "agent.message", END)

QUEUED_KINDS = {"user.message", "user.interrupt", "user.tool_confirmation", "system.message"}
STREAM_ONLY = {"event_start", "event_delta", "session.deleted"}
TOOL_USES = {"agent.tool_use", "agent.mcp_tool_use", "agent.custom_tool_use"}
TOOL_RESULTS = {"agent.tool_result", "agent.mcp_tool_result", "user.tool_result", "user.custom_tool_result"}
STATUS = {
    "session.status_running": "running",
    "session.status_idle": "idle",
    "session.status_rescheduled": "rescheduling",
    "session.status_terminated": "terminated",
}


def idle(reason: str) -> tuple[str, str, str]:
    return (f"session.thread_status_idle({reason})", "session.usage", f"session.status_idle({reason})")


def shape(event: Event) -> str:
    """An event in one word: a queued copy ends in `?`, a failed request in `!`, an idle names its reason."""
    match event.type:
        case kind if kind in QUEUED_KINDS and event.processed_at is None:
            return f"{kind}?"
        case "session.status_idle" | "session.thread_status_idle":
            return f"{event.type}({event.stop_reason.type})"
        case "span.model_request_end" if event.is_error:
            return FAILED_END
        case "session.error":
            return f"session.error({event.error.type}, {event.error.retry_status.type})"
        case "event_start":
            return f"event_start({event.event.type})"
        case kind:
            return kind


def shapes(events: Iterable[Event], without: Sequence[str] = ()) -> list[str]:
    return [word for word in map(shape, events) if word not in without]


def processed(events: Iterable[Event]) -> list[Event]:
    """What of a stream must also be in the list: neither queued copies nor previews nor the farewell."""
    return [e for e in events if e.type not in STREAM_ONLY and e.processed_at is not None]


def answered_id(event: Event) -> str | None:
    for field in ("tool_use_id", "mcp_tool_use_id", "custom_tool_use_id"):
        if event.type in TOOL_RESULTS and getattr(event, field, None):
            return getattr(event, field)
    return None


def text(event: Event) -> str:
    return "".join(block.text for block in event.content or [] if block.type == "text")


def read_log(client: anthropic.Anthropic, session_id: str, **query: Any) -> list[Event]:
    return list(client.beta.sessions.events.list(session_id, **query))


def check_log(client: anthropic.Anthropic, session_id: str) -> list[Event]:
    """Asserts the invariants on the session's whole log and returns it."""
    log = read_log(client, session_id)
    done = [e for e in log if e.processed_at is not None]
    assert log[: len(done)] == done, "queued events come last"
    check_order(done)
    check_runs(done)
    check_model_requests(done)
    check_tool_calls(done)
    last = next((e for e in reversed(done) if e.type in STATUS), None)
    if last is None or last.type in ("session.status_idle", "session.status_terminated"):
        check_projections(client, session_id, done)
    assert [e.id for e in read_log(client, session_id, order="desc")] == [e.id for e in reversed(log)]
    return log


def check_order(done: list[Event]) -> None:
    for before, after in itertools.pairwise(done):
        assert before.processed_at < after.processed_at, f"G1: {shape(before)} then {shape(after)}"
    ids = [e.id for e in done]
    assert len(set(ids)) == len(ids), "G3: an id appears twice"
    assert all(i.startswith("sevt_") for i in ids)
    for event in done:
        assert event.type not in STREAM_ONLY, f"G8: {event.type} in a list"
        assert not event.model_extra, f"{event.type} has keys that the SDK does not know: {event.model_extra}"
    kinds = [e.type for e in done]
    if "session.status_terminated" in kinds:
        assert kinds.index("session.status_terminated") == len(kinds) - 1, "G13: something after the termination"


def check_runs(done: list[Event]) -> None:
    running = False
    for before, event in itertools.pairwise([None, *done]):
        match event.type:
            case "session.status_running":
                assert not running, "G9: two running events with nothing between"
                running = True
            case "session.status_rescheduled" | "session.status_terminated":
                running = False
            case "session.status_idle":
                assert before is not None and before.type == "session.usage", "G6: idle without its usage"
                running = False
    for event, after in itertools.pairwise(done):
        if event.type == "session.status_running":
            assert after.type == "session.thread_status_running", f"{after.type} right after the running event"


def check_model_requests(done: list[Event]) -> None:
    opened: str | None = None
    for event in done:
        if event.type == START:
            assert opened is None, "G5: nested model requests"
            opened = event.id
        elif event.type == END:
            assert event.model_request_start_id == opened, "G5: an end without its start"
            opened = None
    if done and done[-1].type in ("session.status_idle", "session.status_terminated"):
        assert opened is None, "G5: a model request was never closed"


def check_tool_calls(done: list[Event]) -> None:
    called: dict[str, int] = {}
    for event in done:
        if event.type in TOOL_USES:
            called[event.id] = 0
        elif (use := answered_id(event)) is not None:
            assert use in called, f"G7: a result for {use}, which was never called"
            called[use] += 1
            assert called[use] == 1, f"G7: {use} has two results"
    if done and done[-1].type == "session.status_idle":
        reason = done[-1].stop_reason
        awaited = set(reason.event_ids) if reason.type == "requires_action" else set()
        assert {use for use, results in called.items() if results == 0} == awaited, "G7: calls without a result"


def check_projections(client: anthropic.Anthropic, session_id: str, done: list[Event]) -> None:
    """What the server computes from the log agrees with the log."""
    session = client.beta.sessions.retrieve(session_id)
    threads = list(client.beta.sessions.threads.list(session_id))
    primary = threads[0]
    assert len(threads) == 1 and primary.parent_thread_id is None
    statuses = [STATUS[e.type] for e in done if e.type in STATUS]
    assert session.status == (statuses[-1] if statuses else "idle"), "G10"
    assert primary.status == session.status
    named = [e.session_thread_id for e in done if e.type.startswith("session.thread_status_")]
    assert set(named) <= {primary.id}, "G4: a thread event that names another thread"

    spans = [e.model_usage for e in done if e.type == END]
    assert (session.usage.output_tokens or 0) == sum(u.output_tokens for u in spans)
    assert (session.usage.input_tokens or 0) == sum(u.input_tokens for u in spans)
    assert (session.usage.cache_read_input_tokens or 0) == sum(u.cache_read_input_tokens for u in spans)
    if any(e.type == "session.status_idle" for e in done):
        assert primary.usage is not None and primary.stats is not None
        assert primary.usage.output_tokens == session.usage.output_tokens

    own = client.beta.sessions.threads.events.list(primary.id, session_id=session_id)
    assert [e.id for e in own if e.processed_at is not None] == [e.id for e in done]
