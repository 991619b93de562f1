"""Raw answers: the standard error body, and the frames of an event stream as they come over the wire."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2

ERROR_TYPES = {
    400: {"invalid_request_error"},
    401: {"authentication_error"},
    403: {"permission_error"},
    404: {"not_found_error"},
    # The reference names both for 409.
    409: {"conflict_error", "invalid_request_error"},
    413: {"request_too_large"},
}


def check_error(response: httpx2.Response, *statuses: int, names: str | None = None) -> dict[str, Any]:
    """The response is the standard error with one of these statuses, and names the field that was wrong."""
    assert response.status_code in statuses, f"{response.status_code}: {response.text[:500]}"
    assert response.headers["content-type"].split(";")[0] == "application/json"
    body = response.json()
    assert set(body) == {"type", "error", "request_id"}, body
    assert body["type"] == "error"
    error = body["error"]
    assert set(error) <= {"type", "message", "details"}
    assert error["type"] in ERROR_TYPES[response.status_code], error
    assert isinstance(error["message"], str) and error["message"]
    assert body["request_id"] == response.headers["request-id"]
    assert body["request_id"].startswith("req_")
    if names is not None:
        assert names in error["message"], f"{error['message']!r} does not name {names!r}"
    return error


@dataclass(frozen=True)
class Frame:
    """One server-sent event: its name, its data, and the position in the log if it has one."""

    event: str | None
    data: dict[str, Any]
    position: int | None


def frames(response: httpx2.Response) -> Iterator[Frame]:
    """The frames of a stream without its heartbeats. Checks what every frame must be."""
    fields: dict[str, str] = {}
    for line in response.iter_lines():
        if line == "":
            if fields.get("event") not in (None, "ping") or "data" in fields and fields.get("event") != "ping":
                yield parse(fields)
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            assert name not in fields, f"two {name} lines in one frame"
            fields[name] = value.removeprefix(" ")


def parse(fields: dict[str, str]) -> Frame:
    data = json.loads(fields["data"])
    assert fields.get("event") == data["type"], "the name of a frame is the type of its event"
    position = int(fields["id"]) if "id" in fields else None
    return Frame(fields["event"], data, position)
