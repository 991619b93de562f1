"""What every request must carry and every response carries: keys, beta header, versions, request ids."""

from __future__ import annotations

from typing import Any

import anthropic
import httpx2
import pytest

from support.process import API_KEY, BETA, Posthouse
from support.recorder import Conversation, message
from support.scripted import answer
from support.wire import check_error

BETA_PATHS = ["/v1/agents", "/v1/environments", "/v1/sessions"]


@pytest.fixture(scope="module")
def bare(posthouse: Posthouse) -> httpx2.Client:
    """A client that sends no header of ours by itself."""
    client = posthouse.http()
    for name in ("x-api-key", "anthropic-beta", "anthropic-version"):
        del client.headers[name]
    return client


# ---- the key


def test_both_ways_to_send_the_key_work(posthouse: Posthouse, bare: httpx2.Client) -> None:
    for credential in ({"x-api-key": API_KEY}, {"authorization": f"Bearer {API_KEY}"}):
        response = bare.get("/v1/agents", headers={"anthropic-beta": BETA, **credential})
        assert response.status_code == 200, response.text
    assert posthouse.client(api_key=None, auth_token=API_KEY).beta.agents.list(limit=1).data is not None
    assert posthouse.client(api_key=API_KEY).beta.agents.list(limit=1).data is not None


@pytest.mark.parametrize(
    "credential",
    [
        {},
        {"x-api-key": "wrong"},
        {"x-api-key": ""},
        {"x-api-key": API_KEY + "x"},
        {"x-api-key": API_KEY[:-1]},
        {"authorization": "Bearer wrong"},
        {"authorization": "Bearer"},
        {"authorization": f"Basic {API_KEY}"},
        {"authorization": API_KEY},
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/agents"),
        ("POST", "/v1/agents"),
        ("GET", "/v1/models"),
        ("GET", "/v1/sessions/sesn_01AAAAAAAAAAAAAAAAAAAAAA/events/stream"),
        ("DELETE", "/v1/environments/env_01AAAAAAAAAAAAAAAAAAAAAA"),
    ],
)
def test_without_a_good_key_nothing_is_said(
    bare: httpx2.Client, credential: dict[str, str], method: str, path: str
) -> None:
    response = bare.request(method, path, headers={"anthropic-beta": BETA, **credential})
    check_error(response, 401)
    assert API_KEY not in response.text


def test_a_bad_key_is_the_authentication_error_of_the_sdk(posthouse: Posthouse) -> None:
    client = posthouse.client(api_key="sk-wrong")
    for request in (client.beta.agents.list, client.models.list, lambda: client.beta.sessions.events.stream("sesn_1")):
        with pytest.raises(anthropic.AuthenticationError) as refused:
            request()
        assert refused.value.type == "authentication_error" and refused.value.request_id


# ---- the beta header


@pytest.mark.parametrize("path", BETA_PATHS)
@pytest.mark.parametrize("beta", [None, "", "files-api-2025-04-14", "managed-agents"])
def test_k17_without_the_beta_header_a_request_is_refused(http: httpx2.Client, path: str, beta: str | None) -> None:
    request = http.build_request("GET", path, headers={"anthropic-beta": beta or ""})
    if beta is None:
        del request.headers["anthropic-beta"]
    check_error(http.send(request), 400, 404, names="anthropic-beta")


def test_k17_without_the_beta_header_nothing_is_created(
    http: httpx2.Client, client: anthropic.Anthropic, make_agent: Any, environment_id: str
) -> None:
    agent = make_agent()
    body = {"agent": agent.id, "environment_id": environment_id}
    check_error(http.post("/v1/sessions", json=body, headers={"anthropic-beta": ""}), 400, 404)
    assert client.beta.sessions.list(agent_id=agent.id).data == []


@pytest.mark.parametrize(
    "beta",
    [
        f"files-api-2025-04-14,{BETA}",
        f"{BETA} , another-2030-01-01",
        f"{BETA},{BETA}",
        f"an-unknown-beta-2031-01-01,{BETA}",
    ],
)
def test_the_beta_header_is_read_as_a_set(http: httpx2.Client, beta: str) -> None:
    assert http.get("/v1/agents", headers={"anthropic-beta": beta}).status_code == 200


def test_the_beta_header_may_repeat(bare: httpx2.Client) -> None:
    headers = [("x-api-key", API_KEY), ("anthropic-beta", "files-api-2025-04-14"), ("anthropic-beta", BETA)]
    assert bare.get("/v1/agents", headers=headers).status_code == 200


def test_betas_of_the_caller_come_beside_the_one_of_the_sdk(client: anthropic.Anthropic) -> None:
    assert client.beta.agents.list(limit=1, betas=["files-api-2025-04-14"]).data is not None


# ---- other headers and the query flag


@pytest.mark.parametrize("version", ["2023-06-01", "2026-10-21", "2031-01-01"])
def test_every_version_of_the_api_is_taken(http: httpx2.Client, version: str) -> None:
    assert http.get("/v1/agents", headers={"anthropic-version": version}).status_code == 200


@pytest.mark.parametrize("path", [*BETA_PATHS, "/v1/models"])
def test_the_old_beta_flag_in_the_query_is_ignored(http: httpx2.Client, path: str) -> None:
    assert http.get(f"{path}?beta=true").status_code == 200


def test_the_workspace_of_the_key_is_told_and_must_match(client: anthropic.Anthropic, http: httpx2.Client) -> None:
    own = http.get("/v1/agents").headers["anthropic-workspace-id"]
    assert own.startswith("wrkspc_")
    assert client.beta.agents.list(limit=1, workspace_id=own).data is not None
    response = http.get("/v1/agents", headers={"anthropic-workspace-id": "wrkspc_01AAAAAAAAAAAAAAAAAAAAAA"})
    check_error(response, 400, 403)


def test_telemetry_headers_are_ignored(http: httpx2.Client) -> None:
    headers = {"x-stainless-retry-count": "2", "x-stainless-helper": "session-tool-runner", "x-stainless-lang": "js"}
    assert http.get("/v1/agents", headers=headers).status_code == 200


# ---- what comes back


def test_k19_every_response_has_a_request_id_of_its_own(
    start: Any, http: httpx2.Client, client: anthropic.Anthropic
) -> None:
    conversation: Conversation = start(answer("hello"))
    seen = []
    for method, path in (
        ("GET", "/v1/agents"),
        ("GET", "/v1/models"),
        ("GET", f"/v1/sessions/{conversation.id}"),
        ("POST", f"/v1/sessions/{conversation.id}/archive"),
        ("GET", "/v1/sessions/sesn_nobody"),
        ("POST", "/v1/sessions"),
        ("GET", "/v1/no/such/path"),
        ("PUT", "/v1/agents"),
    ):
        response = http.request(method, path)
        seen.append(response.headers["request-id"])
        if response.status_code >= 400:
            assert response.json()["request_id"] == seen[-1]
    with client.beta.sessions.events.with_streaming_response.stream(conversation.id) as stream:
        seen.append(stream.request_id)
    assert all(id and id.startswith("req_") for id in seen) and len(set(seen)) == len(seen)


def test_the_sdk_shows_the_request_id(client: anthropic.Anthropic) -> None:
    response = client.beta.agents.with_raw_response.list(limit=1)
    assert response.request_id is not None and response.request_id.startswith("req_")
    assert response.workspace_id is not None


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/no/such/path"),
        ("GET", "/v1/deployments"),
        ("GET", "/v1/files"),
        ("GET", "/"),
        ("GET", "/v1/agents/"),
    ],
)
def test_what_is_not_built_is_not_found(http: httpx2.Client, method: str, path: str) -> None:
    check_error(http.request(method, path), 404)


def test_a_method_that_a_path_does_not_have_is_refused(http: httpx2.Client) -> None:
    for method, path in (("PUT", "/v1/agents"), ("DELETE", "/v1/agents/agent_1"), ("PATCH", "/v1/sessions/sesn_1")):
        response = http.request(method, path)
        assert response.status_code in (404, 405)
        assert response.json()["type"] == "error"


def test_k16_a_post_without_a_body_is_a_post(start: Any, http: httpx2.Client) -> None:
    conversation: Conversation = start()
    response = http.post(
        f"/v1/sessions/{conversation.id}/archive", headers={"content-type": "application/json"}, content=b""
    )
    assert response.status_code == 200 and response.json()["status"] == "terminated"
    response = http.request(
        "DELETE", f"/v1/sessions/{conversation.id}", headers={"content-type": "application/json"}, content=b""
    )
    assert response.status_code == 200 and response.json()["type"] == "session_deleted"


# ---- the error classes of the SDK


def test_each_kind_of_refusal_is_its_error_class(
    client: anthropic.Anthropic, posthouse: Posthouse, make_agent: Any, start: Any
) -> None:
    agent = make_agent()
    client.beta.agents.update(agent.id, version=1, name="second")
    conversation: Conversation = start()
    client.beta.sessions.archive(conversation.id)
    cases: list[tuple[type[anthropic.APIStatusError], int, Any]] = [
        (anthropic.BadRequestError, 400, lambda: client.beta.agents.create(name="", model="claude-x")),
        (anthropic.AuthenticationError, 401, lambda: posthouse.client(api_key="no").beta.agents.list()),
        (anthropic.NotFoundError, 404, lambda: client.beta.agents.retrieve("agent_nobody")),
        (anthropic.ConflictError, 409, lambda: client.beta.agents.update(agent.id, version=1, name="third")),
        (anthropic.ConflictError, 409, lambda: conversation.send(message("late"))),
    ]
    for expected, status, request in cases:
        with pytest.raises(expected) as refused:
            request()
        error = refused.value
        assert error.status_code == status and error.type is not None and error.api_message
        assert error.request_id is not None and error.request_id.startswith("req_")
        check_error(error.response, status)


def test_a_conflict_is_not_repeated_by_a_client_that_retries(posthouse: Posthouse, make_agent: Any) -> None:
    sent: list[httpx2.Request] = []
    client = posthouse.client(max_retries=2)
    client._client.event_hooks = {"request": [sent.append]}
    agent = make_agent()
    with pytest.raises(anthropic.ConflictError):
        client.beta.agents.update(agent.id, version=9, name="n")
    assert len(sent) == 1
