"""Bad input for each kind of request: refused with a 4xx and the standard body that names the field, never a 5xx, and
nothing has changed afterwards."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import anthropic
import httpx2
import pytest

from conftest import TOOLSET, custom_tool
from support.wire import check_error

UNKNOWN = "01AAAAAAAAAAAAAAAAAAAAAA"
LONG_ID = "x" * 129
ABSENT = object()


def many(count: int) -> dict[str, str]:
    return {f"key {n}": "v" for n in range(count)}


BAD_METADATA: list[tuple[Any, str]] = [
    (many(17), "metadata"),
    ({"k" * 65: "v"}, "metadata"),
    ({"": "v"}, "metadata"),
    ({"k": "v" * 513}, "metadata"),
    ({"k": 3}, "metadata"),
    ({"k": ["v"]}, "metadata"),
    ([], "metadata"),
    ("text", "metadata"),
]
BAD_TOOLS: list[tuple[Any, str]] = [
    ({}, "tools"),
    ("bash", "tools"),
    ([3], "tools"),
    ([{}], "type"),
    ([{"type": "bash_20250124", "name": "bash"}], "type"),
    ([TOOLSET, TOOLSET], "tools"),
    ([{**TOOLSET, "configs": [{"name": "bash"}, {"name": "bash"}]}], "bash"),
    ([{**TOOLSET, "configs": [{"name": "rm"}]}], "name"),
    ([{**TOOLSET, "configs": [{}]}], "name"),
    ([{**TOOLSET, "configs": [{"name": "bash", "type": "read"}]}], "type"),
    ([{**TOOLSET, "configs": [{"name": "bash", "enabled": "yes"}]}], "enabled"),
    ([{**TOOLSET, "configs": [{"name": "bash", "permission_policy": {"type": "perhaps"}}]}], "permission_policy"),
    ([{**TOOLSET, "configs": [{"name": "bash", "permission_policy": "always_ask"}]}], "permission_policy"),
    ([{**TOOLSET, "configs": [{"name": "bash", "surprise": 1}]}], "surprise"),
    ([{**TOOLSET, "default_config": {"surprise": 1}}], "surprise"),
    ([{**TOOLSET, "default_config": {"enabled": 1}}], "enabled"),
    ([{**TOOLSET, "surprise": 1}], "surprise"),
    ([{"type": "custom", "description": "d", "input_schema": {"type": "object"}}], "name"),
    ([{"type": "custom", "name": "n", "input_schema": {"type": "object"}}], "description"),
    ([{"type": "custom", "name": "n", "description": "d"}], "input_schema"),
    ([{**custom_tool(), "surprise": 1}], "surprise"),
    ([custom_tool("")], "name"),
    ([custom_tool("two words")], "name"),
    ([custom_tool("n" * 129)], "name"),
    ([custom_tool("bash")], "bash"),
    ([custom_tool("mcp__docs__search")], "mcp__"),
    ([custom_tool("twice"), custom_tool("twice")], "twice"),
    ([{**custom_tool(), "description": ""}], "description"),
    ([{**custom_tool(), "input_schema": {"type": "string"}}], "input_schema"),
    ([{**custom_tool(), "input_schema": {}}], "input_schema"),
    ([{**custom_tool(), "input_schema": []}], "input_schema"),
    ([custom_tool(properties={"a": {"$ref": "#/x"}})], "$ref"),
    ([custom_tool(oneOf=[{"type": "object"}])], "oneOf"),
    ([custom_tool(properties={"two words": {"type": "string"}})], "two words"),
    ([custom_tool(properties={"p" * 65: {"type": "string"}})], "properties"),
    ([custom_tool(f"tool_{n}") for n in range(257)], "tools"),
]
BAD_MODEL: list[tuple[Any, str]] = [
    ("", "model"),
    (3, "model"),
    ([], "model"),
    ({}, "model"),
    ({"id": 3}, "id"),
    ({"id": ""}, "id"),
    ({"id": "claude-x", "effort": "huge"}, "effort"),
    ({"id": "claude-x", "effort": {"type": "huge"}}, "effort"),
    ({"id": "claude-x", "effort": 3}, "effort"),
    ({"id": "claude-x", "speed": "warp"}, "speed"),
    ({"id": "claude-x", "inference_geo": "mars"}, "inference_geo"),
    ({"id": "claude-x", "surprise": 1}, "surprise"),
]


@dataclass(frozen=True)
class Case:
    """One field of a request set to something bad, or taken away."""

    field: str
    value: Any
    names: str

    def applied_to(self, body: dict[str, Any]) -> dict[str, Any]:
        changed = {**body, self.field: self.value}
        return {k: v for k, v in changed.items() if v is not ABSENT}

    def __str__(self) -> str:
        shown = "absent" if self.value is ABSENT else json.dumps(self.value)
        return f"{self.field}={shown if len(shown) < 60 else shown[:57] + '…'}"


def cases(field: str, *values: tuple[Any, str] | Any) -> list[Case]:
    return [Case(field, v[0], v[1]) if isinstance(v, tuple) else Case(field, v, field) for v in values]


def each(*groups: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [case for group in groups for case in group], ids=str)


@pytest.fixture(scope="module")
def agent(client: anthropic.Anthropic) -> Any:
    return client.beta.agents.create(
        name="target", model="claude-target", system="s", tools=[custom_tool("kept")], metadata=many(10)
    )


@pytest.fixture(scope="module")
def environment(client: anthropic.Anthropic) -> Any:
    return client.beta.environments.create(name=f"target {uuid.uuid4().hex}", metadata=many(10))


@pytest.fixture(scope="module")
def session(client: anthropic.Anthropic, agent: Any, environment: Any) -> Iterator[Any]:
    made = client.beta.sessions.create(agent=agent.id, environment_id=environment.id, metadata=many(10), title="target")
    yield made
    client.beta.sessions.delete(made.id)


class Picture:
    """All that the requests of this module could touch, as it was when it was last looked at."""

    def __init__(self, http: httpx2.Client, agent: Any, environment: Any, session: Any) -> None:
        self._http = http
        self._kept = [f"/v1/agents/{agent.id}", f"/v1/environments/{environment.id}"]
        self._session = f"/v1/sessions/{session.id}"
        self._last = self._take()

    def _take(self) -> list[Any]:
        newest = {"limit": 1, "include_archived": "true"}
        session = self._http.get(self._session).json() | {"stats": None}
        events = self._http.get(f"{self._session}/events", params={"limit": 1}).json()
        lists = [self._http.get(p, params=newest).json()["data"] for p in ("/v1/agents", "/v1/environments")]
        sessions = [row["id"] for row in self._http.get("/v1/sessions", params=newest).json()["data"]]
        return [session, events, lists, sessions, *(self._http.get(path).json() for path in self._kept)]

    def check(self) -> None:
        before, self._last = self._last, self._take()
        assert self._last == before


@pytest.fixture(scope="module")
def picture(http: httpx2.Client, agent: Any, environment: Any, session: Any) -> Picture:
    return Picture(http, agent, environment, session)


@pytest.fixture(autouse=True)
def unchanged(picture: Picture) -> Iterator[None]:
    yield
    picture.check()


# ---- agents

CREATE_AGENT = {"name": "tester", "model": "claude-x"}


@each(
    cases("name", ABSENT, None, "", "n" * 257, 3, ["n"]),
    cases("model", ABSENT, None, *BAD_MODEL),
    cases("description", "d" * 2049, 3),
    cases("system", "s" * 100_001, 3, {}),
    cases("tools", *BAD_TOOLS),
    cases("metadata", *BAD_METADATA, ({"k": None}, "metadata")),
    cases("mcp_servers", "x", 3),
    cases("skills", "x", 3),
    cases("multiagent", "x", 3),
    cases("execution_identity", "x", {}, {"type": "nobody"}),
    cases("surprise", 1, None, {}),
)
def test_bad_fields_of_a_new_agent(http: httpx2.Client, case: Case) -> None:
    check_error(http.post("/v1/agents", json=case.applied_to(CREATE_AGENT)), 400, names=case.names)


@each(
    cases("name", None, "", "n" * 257, 3),
    cases("model", None, *BAD_MODEL),
    cases("description", "d" * 2049, 3),
    cases("system", "s" * 100_001, 3),
    cases("tools", *BAD_TOOLS),
    cases("metadata", *BAD_METADATA[1:], (many(17), "metadata"), ({f"new {n}": "v" for n in range(7)}, "metadata")),
    cases("version", 0, -1, "one", 1.5),
    cases("execution_identity", "x", {"type": "nobody"}),
    cases("surprise", 1, None),
)
def test_bad_fields_of_an_agent_update(http: httpx2.Client, agent: Any, case: Case) -> None:
    body = case.applied_to({"system": "must not be taken"})
    check_error(http.post(f"/v1/agents/{agent.id}", json=body), 400, names=case.names)


# ---- environments


def config_cases(*, creating: bool) -> list[Case]:
    def cloud(**fields: Any) -> dict[str, Any]:
        return {"type": "cloud", **fields}

    def limited(**fields: Any) -> dict[str, Any]:
        return cloud(networking={"type": "limited", **fields})

    only_at_creation = [
        ({}, "type"),
        ({"type": "self_hosted", "packages": {}}, "packages"),
        ({"type": "self_hosted", "networking": {"type": "unrestricted"}}, "networking"),
    ]
    return cases(
        "config",
        *(only_at_creation if creating else []),
        "cloud",
        3,
        ({"type": "moon"}, "type"),
        (cloud(surprise=1), "surprise"),
        (cloud(networking="open"), "networking"),
        (cloud(networking={"type": "half"}), "type"),
        (cloud(networking={}), "type"),
        (cloud(networking={"type": "unrestricted", "allowed_hosts": []}), "allowed_hosts"),
        (limited(surprise=1), "surprise"),
        (limited(allowed_hosts="example.com"), "allowed_hosts"),
        (limited(allowed_hosts=[3]), "allowed_hosts"),
        (limited(allowed_hosts=["https://example.com"]), "allowed_hosts"),
        (limited(allowed_hosts=["example.com:443"]), "allowed_hosts"),
        (limited(allowed_hosts=["example.com/path"]), "allowed_hosts"),
        (limited(allowed_hosts=[""]), "allowed_hosts"),
        (limited(allowed_hosts=["a.*.com"]), "allowed_hosts"),
        (limited(allow_mcp_servers="yes"), "allow_mcp_servers"),
        (limited(allow_package_managers=1), "allow_package_managers"),
        (cloud(packages=[]), "packages"),
        (cloud(packages={"pip": "requests"}), "pip"),
        (cloud(packages={"pip": [3]}), "pip"),
        (cloud(packages={"conda": ["x"]}), "conda"),
        (
            cloud(networking={"type": "limited", "allowed_hosts": []}, packages={"pip": ["requests"]}),
            "allow_package_managers",
        ),
    )


@each(
    cases("name", ABSENT, None, "", "n" * 257, 3),
    cases("description", "d" * 1025, 3),
    cases("metadata", *BAD_METADATA),
    cases("scope", "account", "galaxy", 3),
    config_cases(creating=True),
    cases("surprise", 1, None),
)
def test_bad_fields_of_a_new_environment(http: httpx2.Client, case: Case) -> None:
    body = case.applied_to({"name": f"bad {uuid.uuid4().hex}"})
    check_error(http.post("/v1/environments", json=body), 400, names=case.names)


@each(
    cases("name", None, "", "n" * 257, 3),
    cases("description", "d" * 1025, 3),
    cases("metadata", *BAD_METADATA[1:], ({f"new {n}": "v" for n in range(7)}, "metadata")),
    cases("scope", "account", "galaxy"),
    config_cases(creating=False),
    cases("surprise", 1, None),
)
def test_bad_fields_of_an_environment_update(http: httpx2.Client, environment: Any, case: Case) -> None:
    body = case.applied_to({"description": "must not be taken"} if case.field != "description" else {})
    check_error(http.post(f"/v1/environments/{environment.id}", json=body), 400, names=case.names)


# ---- sessions


def agent_cases() -> list[Case]:
    def overrides(**fields: Any) -> dict[str, Any]:
        return {"type": "agent_with_overrides", "id": "AGENT", **fields}

    return cases(
        "agent",
        ABSENT,
        None,
        "",
        3,
        [],
        LONG_ID,
        ({}, "type"),
        ({"type": "robot", "id": "AGENT"}, "type"),
        ({"type": "agent"}, "id"),
        ({"type": "agent", "id": 3}, "id"),
        ({"type": "agent", "id": "AGENT", "version": 0}, "version"),
        ({"type": "agent", "id": "AGENT", "version": "one"}, "version"),
        ({"type": "agent", "id": "AGENT", "system": "s"}, "system"),
        (overrides(surprise=1), "surprise"),
        (overrides(name="n"), "name"),
        (overrides(model=None), "model"),
        (overrides(model=3), "model"),
        (overrides(system="s" * 100_001), "system"),
        (overrides(system=3), "system"),
        *((overrides(tools=tools), names) for tools, names in BAD_TOOLS),
    )


MESSAGE = {"type": "user.message", "content": [{"type": "text", "text": "hello"}]}


@each(
    agent_cases(),
    cases("environment_id", ABSENT, None, "", 3, LONG_ID),
    cases("title", "t" * 501, 3),
    cases("metadata", *BAD_METADATA),
    cases("vault_ids", "vlt_1", [3]),
    cases("resources", "x", [3], [{"type": "moon"}]),
    cases("initial_events", "x", {}, [3], [{}], [{"type": "moon"}], [{**MESSAGE, "content": "hello"}]),
    cases("budget", "x", 3),
    cases("surprise", 1, None),
)
def test_bad_fields_of_a_new_session(http: httpx2.Client, agent: Any, environment: Any, case: Case) -> None:
    body = case.applied_to({"agent": agent.id, "environment_id": environment.id})
    if isinstance(body.get("agent"), dict) and body["agent"].get("id") == "AGENT":
        body["agent"] = {**body["agent"], "id": agent.id}
    check_error(http.post("/v1/sessions", json=body), 400, names=case.names)


@each(
    cases("title", "", "t" * 501, 3),
    cases("metadata", *BAD_METADATA[1:], ({f"new {n}": "v" for n in range(7)}, "metadata")),
    cases("agent", "agent_1", [], ({"system": "s"}, "system"), ({"surprise": 1}, "surprise")),
    cases("agent", *(({"tools": tools}, names) for tools, names in BAD_TOOLS)),
    cases("agent", ({"mcp_servers": "x"}, "mcp_servers")),
    cases("budget", "x", 3),
    cases("vault_ids", "x", [], ["vlt_1"]),
    cases("environment_id", "env_1"),
    cases("surprise", 1, None),
)
def test_bad_fields_of_a_session_update(http: httpx2.Client, session: Any, case: Case) -> None:
    body = case.applied_to({"metadata": {"must not be": "taken"}} if case.field != "metadata" else {})
    check_error(http.post(f"/v1/sessions/{session.id}", json=body), 400, names=case.names)


# ---- events


def text_block(**fields: Any) -> dict[str, Any]:
    return {"type": "text", "text": "hello", **fields}


def user_message(*content: Any) -> dict[str, Any]:
    return {"type": "user.message", "content": list(content)}


def event(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": kind, **fields}


def image(source: Any) -> dict[str, Any]:
    return user_message({"type": "image", "source": source})


def document(source: Any, **fields: Any) -> dict[str, Any]:
    return user_message({"type": "document", "source": source, **fields})


PLAIN = {"type": "text", "media_type": "text/plain", "data": "x"}
USE = f"sevt_{UNKNOWN}"
BAD_EVENTS: list[tuple[Any, str]] = [
    (3, "events"),
    ({}, "type"),
    ({"type": 3}, "type"),
    (event("agent.message", content=[text_block()]), "type"),
    (event("session.status_idle"), "type"),
    (event("user.message"), "content"),
    (event("user.message", content=None), "content"),
    (event("user.message", content="hello"), "content"),
    (event("user.message", content={}), "content"),
    (user_message(), "content"),
    (user_message(3), "content"),
    (user_message({}), "content"),
    (user_message({"type": "video"}), "content"),
    (user_message({"type": "text"}), "text"),
    (user_message(text_block(text="")), "text"),
    (user_message(text_block(text=3)), "text"),
    (user_message(text_block(surprise=1)), "surprise"),
    (user_message({"type": "redacted"}), "redacted"),
    (user_message({"type": "search_result", "source": "s", "title": "t", "content": []}), "content"),
    ({**user_message(text_block()), "surprise": 1}, "surprise"),
    ({**user_message(text_block()), "id": USE}, "id"),
    ({**user_message(text_block()), "processed_at": None}, "processed_at"),
    (user_message({"type": "image"}), "source"),
    (image("x"), "source"),
    (image({"type": "moon"}), "type"),
    (image({"type": "base64", "data": "aGk="}), "media_type"),
    (image({"type": "base64", "media_type": "image/png"}), "data"),
    (image({"type": "base64", "media_type": "image/png", "data": "not base64!"}), "data"),
    (image({"type": "url"}), "url"),
    (image({"type": "url", "url": 3}), "url"),
    (user_message({"type": "document"}), "source"),
    (document({"type": "text", "media_type": "text/html", "data": "x"}), "media_type"),
    (document({"type": "text", "media_type": "text/plain"}), "data"),
    (document(PLAIN, title=3), "title"),
    (document(PLAIN, surprise=1), "surprise"),
    (event("user.interrupt", session_thread_id=3), "session_thread_id"),
    (event("user.interrupt", session_thread_id=LONG_ID), "session_thread_id"),
    (event("user.interrupt", surprise=1), "surprise"),
    (event("user.tool_confirmation", result="allow"), "tool_use_id"),
    (event("user.tool_confirmation", tool_use_id="", result="allow"), "tool_use_id"),
    (event("user.tool_confirmation", tool_use_id=LONG_ID, result="allow"), "tool_use_id"),
    (event("user.tool_confirmation", tool_use_id=USE), "result"),
    (event("user.tool_confirmation", tool_use_id=USE, result="maybe"), "result"),
    (event("user.tool_confirmation", tool_use_id=USE, result="allow"), USE),
    (event("user.tool_confirmation", tool_use_id=USE, result="deny", deny_message="m" * 10_001), "deny_message"),
    (event("user.tool_confirmation", tool_use_id=USE, result="deny", deny_message=3), "deny_message"),
    (event("user.tool_confirmation", tool_use_id=USE, result="allow", deny_message="m"), "deny_message"),
    (event("user.custom_tool_result"), "custom_tool_use_id"),
    (event("user.custom_tool_result", custom_tool_use_id=3), "custom_tool_use_id"),
    (event("user.custom_tool_result", custom_tool_use_id=USE), USE),
    (event("user.custom_tool_result", custom_tool_use_id=USE, content="x"), "content"),
    (event("user.custom_tool_result", custom_tool_use_id=USE, content=[{"type": "redacted"}]), "content"),
    (event("user.custom_tool_result", custom_tool_use_id=USE, is_error="yes"), "is_error"),
    (event("user.custom_tool_result", custom_tool_use_id=USE, surprise=1), "surprise"),
    (event("system.message"), "content"),
    (event("system.message", content=[]), "content"),
    (event("system.message", content=[{"type": "redacted"}]), "content"),
    (event("system.message", content=[text_block()] * 1001), "content"),
]


@pytest.mark.parametrize(("bad", "names"), BAD_EVENTS, ids=lambda value: json.dumps(value)[:60])
def test_bad_events(http: httpx2.Client, session: Any, bad: Any, names: str) -> None:
    path = f"/v1/sessions/{session.id}/events"
    check_error(http.post(path, json={"events": [bad]}), 400, names=names)
    # Also among good ones, and then its place is told.
    error = check_error(http.post(path, json={"events": [MESSAGE, bad]}), 400, names=names)
    assert "events[1]" in error["message"] or "events.1" in error["message"], error["message"]


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({}, "events"),
        ({"events": None}, "events"),
        ({"events": []}, "events"),
        ({"events": {}}, "events"),
        ({"events": MESSAGE}, "events"),
        ({"events": [MESSAGE], "surprise": 1}, "surprise"),
        (MESSAGE, ""),
    ],
    ids=str,
)
def test_bad_bodies_of_a_send(http: httpx2.Client, session: Any, body: Any, names: str) -> None:
    check_error(http.post(f"/v1/sessions/{session.id}/events", json=body), 400, names=names)


def test_an_unknown_field_is_refused_through_the_sdk_as_well(client: anthropic.Anthropic, session: Any) -> None:
    with pytest.raises(anthropic.BadRequestError, match="surprise"):
        client.beta.sessions.update(session.id, title="t", extra_body={"surprise": 1})
    with pytest.raises(anthropic.BadRequestError, match="surprise"):
        client.beta.agents.create(name="n", model="claude-x", extra_body={"surprise": 1})


# ---- bodies that are no JSON object at all

BAD_BODIES: dict[str, bytes] = {
    "empty": b"",
    "no JSON": b"name=x",
    "cut off": b'{"name": "x", "model"',
    "two values": b"{} {}",
    "an array": b"[]",
    "a text": b'"x"',
    "null": b"null",
    "a number": b"1e999",
    "not UTF-8": b'{"name": "\xff\xfe", "model": "claude-x"}',
    "half a surrogate pair": b'{"name": "\\ud800", "model": "claude-x", "surprise": 1}',
    "very deep": b'{"name": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "very deep and open": b"[" * 1_000_000,
    "a trailing comma": b'{"name": "x", "model": "claude-x",}',
    "a comment": b'{"name": "x" /* y */}',
    "NaN": b'{"name": NaN, "model": "claude-x"}',
}


@pytest.mark.parametrize("content", BAD_BODIES.values(), ids=BAD_BODIES.keys())
@pytest.mark.parametrize("path", ["/v1/agents", "/v1/environments", "/v1/sessions", "AGENT", "SESSION", "EVENTS"])
def test_bodies_that_are_no_object(http: httpx2.Client, agent: Any, session: Any, path: str, content: bytes) -> None:
    paths = {
        "AGENT": f"/v1/agents/{agent.id}",
        "SESSION": f"/v1/sessions/{session.id}",
        "EVENTS": f"/v1/sessions/{session.id}/events",
    }
    headers = {"content-type": "application/json"}
    if content == b"" and path in ("AGENT", "SESSION"):
        # An update that says nothing may be taken as one that changes nothing.
        assert http.post(paths[path], content=content, headers=headers).status_code in (200, 400)
        return
    check_error(http.post(paths.get(path, path), content=content, headers=headers), 400)


@pytest.mark.parametrize("path", ["/v1/agents", "/v1/sessions", "EVENTS"])
def test_a_body_over_32_mb_is_too_large(http: httpx2.Client, session: Any, path: str) -> None:
    content = b'{"name": "' + b"x" * (33 * 1024 * 1024) + b'"}'
    path = f"/v1/sessions/{session.id}/events" if path == "EVENTS" else path
    check_error(http.post(path, content=content, headers={"content-type": "application/json"}), 413)


def test_a_compressed_body_is_decoded_or_refused(http: httpx2.Client) -> None:
    headers = {"content-type": "application/json", "content-encoding": "br"}
    response = http.post("/v1/agents", content=b"\x00\x01\x02", headers=headers)
    assert 400 <= response.status_code < 500 and response.json()["type"] == "error"


# ---- ids in paths


@pytest.mark.parametrize(
    "bad", [UNKNOWN, f"agent_{UNKNOWN}", "x", "%20", "%00", "..%2f..%2fetc", "%F0%9F%98%80", "'%20or%201=1--", LONG_ID]
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/agents/{}x"),
        ("POST", "/v1/agents/{}x/archive"),
        ("GET", "/v1/agents/{}x/versions"),
        ("GET", "/v1/environments/{}"),
        ("DELETE", "/v1/environments/{}"),
        ("POST", "/v1/environments/{}/archive"),
        ("GET", "/v1/sessions/{}"),
        ("DELETE", "/v1/sessions/{}"),
        ("POST", "/v1/sessions/{}/archive"),
        ("GET", "/v1/sessions/{}/events"),
        ("GET", "/v1/sessions/{}/events/stream"),
        ("GET", "/v1/sessions/{}/threads"),
        ("GET", "/v1/sessions/SESSION/threads/{}"),
        ("POST", "/v1/sessions/SESSION/threads/{}/archive"),
        ("GET", "/v1/sessions/SESSION/threads/{}/events"),
        ("GET", "/v1/sessions/SESSION/threads/{}/stream"),
        ("GET", "/v1/models/{}"),
    ],
)
def test_ids_that_name_nothing(http: httpx2.Client, session: Any, method: str, path: str, bad: str) -> None:
    response = http.request(method, path.replace("SESSION", session.id).format(bad))
    check_error(response, 400, 404)


# ---- queries

BAD_LIMITS = ["limit=0", "limit=-1", "limit=100001", "limit=x", "limit=1.5", "limit=99999999999999999999"]
BAD_PAGES = ["page=x", "page=page_x", f"page={'x' * 5000}", "page=%00", "page=page_%F0%9F%98%80"]
BAD_TIMES = [
    f"created_at[{bound}]={value}" for bound in ("gte", "lte") for value in ("yesterday", "1", "2026-13-01T00:00:00Z")
]


def query_cases() -> Iterator[tuple[str, str]]:
    every: dict[str, list[str]] = {
        "/v1/agents": [*BAD_LIMITS, *BAD_PAGES, *BAD_TIMES, "limit=101", "include_archived=perhaps"],
        "/v1/agents/AGENT": ["version=0", "version=-1", "version=x"],
        "/v1/agents/AGENT/versions": [*BAD_LIMITS, *BAD_PAGES, "limit=101"],
        "/v1/environments": [*BAD_LIMITS, *BAD_PAGES, "include_archived=2"],
        "/v1/sessions": [
            *BAD_LIMITS, *BAD_PAGES, *BAD_TIMES, "created_at[gt]=x", "created_at[lt]=x", "order=sideways",
            "statuses[]=asleep", "statuses[]=idle&statuses[]=asleep", "agent_id=AGENT&agent_version=x",
            "include_archived=maybe",
        ],
        "/v1/sessions/SESSION/events": [
            *BAD_LIMITS, *BAD_PAGES, *BAD_TIMES, "created_at[gt]=x", "order=sideways", "types[]=nonsense",
            "types[]=event_start", "types[]=event_delta", "types[]=session.deleted",
            "types[]=agent.message&types[]=nonsense",
        ],
        "/v1/sessions/SESSION/events/stream": ["event_deltas[]=x", "event_deltas[]=agent.tool_use"],
        "/v1/sessions/SESSION/threads": [*BAD_LIMITS, *BAD_PAGES, "statuses[]=asleep"],
        "/v1/sessions/SESSION/threads/THREAD/events": [*BAD_LIMITS, *BAD_PAGES],
        "/v1/sessions/SESSION/threads/THREAD/stream": ["event_deltas[]=x"],
    }  # fmt: skip
    for path, queries in every.items():
        for query in queries:
            yield path, query


@pytest.mark.parametrize(("path", "query"), list(query_cases()), ids=lambda value: value[:70])
def test_bad_queries(
    http: httpx2.Client, client: anthropic.Anthropic, agent: Any, session: Any, path: str, query: str
) -> None:
    if "THREAD" in path:
        path = path.replace("THREAD", client.beta.sessions.threads.list(session.id).data[0].id)
    path = path.replace("AGENT", agent.id).replace("SESSION", session.id)
    query = query.replace("AGENT", agent.id)
    name = query.rsplit("&", 1)[-1].split("=")[0].split("[")[0]
    check_error(http.get(f"{path}?{query}"), 400, names=name)
