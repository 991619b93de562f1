"""Vaults and their credentials: all operations, every rule, and no secret in any answer or log."""

from __future__ import annotations

import base64
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anthropic
import httpx2
import pytest

from support.process import Posthouse
from support.wire import check_error

VAULT_KEYS = {"id", "type", "display_name", "metadata", "created_at", "updated_at", "archived_at"}
CREDENTIAL_KEYS = {
    "id", "type", "vault_id", "auth", "display_name", "metadata", "created_at", "updated_at", "archived_at",
}  # fmt: skip
# Every secret of every test; nothing that is answered or written may show it.
SECRET = "planted/s3cret+with=signs"
TOKEN = "planted/t0ken+with=signs"


def bearer(url: str = "https://mcp.example.com/mcp", token: str = TOKEN) -> dict[str, Any]:
    return {"type": "static_bearer", "mcp_server_url": url, "token": token}


def variable(name: str = "API_KEY", **fields: Any) -> dict[str, Any]:
    networking = {"type": "unrestricted"}
    return {
        "type": "environment_variable", "secret_name": name, "secret_value": SECRET, "networking": networking, **fields,
    }  # fmt: skip


def oauth(url: str = "https://oauth.example.com/mcp", **fields: Any) -> dict[str, Any]:
    return {"type": "mcp_oauth", "mcp_server_url": url, "access_token": TOKEN, **fields}


def refresh(**fields: Any) -> dict[str, Any]:
    return {
        "refresh_token": SECRET,
        "client_id": "client",
        "token_endpoint": "https://auth.example.com/token",
        "token_endpoint_auth": {"type": "client_secret_basic", "client_secret": SECRET},
        **fields,
    }


@pytest.fixture
def vault(client: anthropic.Anthropic) -> Any:
    return client.beta.vaults.create(display_name=f"vault {uuid.uuid4().hex}")


def add(client: anthropic.Anthropic, vault: Any, auth: dict[str, Any], **fields: Any) -> Any:
    credential = client.beta.vaults.credentials.create(vault.id, auth=auth, **fields)  # type: ignore[arg-type]
    assert SECRET not in credential.to_json() and TOKEN not in credential.to_json()
    return credential


# ---- vaults


def test_a_vault_is_made_read_changed_and_listed(client: anthropic.Anthropic, http: httpx2.Client) -> None:
    vault = client.beta.vaults.create(display_name="mine", metadata={"a": "1", "b": "2"})
    assert vault.id.startswith("vlt_") and vault.type == "vault" and vault.archived_at is None
    assert client.beta.vaults.retrieve(vault.id) == vault
    assert set(http.get(f"/v1/vaults/{vault.id}").json()) == VAULT_KEYS
    assert client.beta.vaults.update(vault.id, display_name="mine").updated_at == vault.updated_at
    changed = client.beta.vaults.update(vault.id, display_name="ours", metadata={"a": None, "c": "3"})
    assert (changed.display_name, changed.metadata) == ("ours", {"b": "2", "c": "3"})
    assert changed.updated_at > vault.updated_at and changed.created_at == vault.created_at
    kept = http.post(f"/v1/vaults/{vault.id}", json={"display_name": None, "metadata": None}).json()
    assert kept["display_name"] == "ours"
    assert client.beta.vaults.list(limit=1).data == [changed]


def test_names_need_not_be_unique(client: anthropic.Anthropic) -> None:
    one, other = (client.beta.vaults.create(display_name="twin") for _ in range(2))
    assert one.id != other.id


def test_vaults_are_paged_newest_first_and_archived_ones_left_out(client: anthropic.Anthropic) -> None:
    made = [client.beta.vaults.create(display_name=f"page {n}").id for n in range(5)]
    client.beta.vaults.archive(made[2])
    seen = [v.id for v in client.beta.vaults.list(limit=2) if v.id in made]
    assert seen == [made[4], made[3], made[1], made[0]]
    seen = [v.id for v in client.beta.vaults.list(limit=2, include_archived=True) if v.id in made]
    assert seen == list(reversed(made))


def test_an_archived_vault_takes_nothing_and_holds_nothing(client: anthropic.Anthropic, vault: Any) -> None:
    credential = add(client, vault, bearer())
    archived = client.beta.vaults.archive(vault.id)
    assert archived.archived_at is not None
    assert client.beta.vaults.archive(vault.id) == archived
    assert client.beta.vaults.retrieve(vault.id) == archived
    with pytest.raises(anthropic.BadRequestError, match="archived"):
        client.beta.vaults.update(vault.id, display_name="x")
    with pytest.raises(anthropic.BadRequestError, match="archived"):
        add(client, vault, variable())
    kept = client.beta.vaults.credentials.retrieve(credential.id, vault_id=vault.id)
    assert kept.archived_at == archived.archived_at and kept.auth == credential.auth
    with pytest.raises(anthropic.BadRequestError, match="archived"):
        client.beta.vaults.credentials.update(credential.id, vault_id=vault.id, display_name="x")
    deleted = client.beta.vaults.delete(vault.id)
    assert (deleted.id, deleted.type) == (vault.id, "vault_deleted")


def test_a_deleted_vault_is_gone_with_what_it_held(client: anthropic.Anthropic, vault: Any) -> None:
    credential = add(client, vault, bearer())
    assert client.beta.vaults.delete(vault.id).id == vault.id
    for ask in (
        lambda: client.beta.vaults.retrieve(vault.id),
        lambda: client.beta.vaults.delete(vault.id),
        lambda: client.beta.vaults.archive(vault.id),
        lambda: client.beta.vaults.update(vault.id, display_name="x"),
        lambda: client.beta.vaults.credentials.list(vault.id),
        lambda: client.beta.vaults.credentials.retrieve(credential.id, vault_id=vault.id),
        lambda: add(client, vault, bearer()),
    ):
        with pytest.raises(anthropic.NotFoundError):
            ask()


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({}, "display_name"),
        ({"display_name": ""}, "display_name"),
        ({"display_name": "x" * 256}, "display_name"),
        ({"display_name": "v", "metadata": {"k": 1}}, "metadata"),
        ({"display_name": "v", "surprise": 1}, "surprise"),
    ],
)
def test_bad_fields_of_a_vault(http: httpx2.Client, body: dict[str, Any], names: str) -> None:
    check_error(http.post("/v1/vaults", json=body), 400, names=names)


# ---- credentials


def test_each_kind_of_credential_shows_all_but_its_secrets(client: anthropic.Anthropic, vault: Any) -> None:
    later = datetime.now(UTC) + timedelta(days=1)
    made = add(client, vault, oauth(expires_at=later.isoformat(), refresh=refresh(scope="read", resource="r")))
    assert made.id.startswith("vcrd_") and (made.type, made.vault_id) == ("vault_credential", vault.id)
    assert made.auth.to_dict(mode="json", exclude_unset=False) | {"expires_at": None} == {
        "type": "mcp_oauth",
        "mcp_server_url": "https://oauth.example.com/mcp",
        "expires_at": None,
        "refresh": {
            "client_id": "client",
            "token_endpoint": "https://auth.example.com/token",
            "token_endpoint_auth": {"type": "client_secret_basic"},
            "scope": "read",
            "resource": "r",
        },
    }
    assert made.auth.expires_at == later
    made = add(client, vault, bearer(), display_name="d", metadata={"k": "v"})
    assert made.auth.to_dict() == {"type": "static_bearer", "mcp_server_url": "https://mcp.example.com/mcp"}
    assert (made.display_name, made.metadata) == ("d", {"k": "v"})
    limited = {"type": "limited", "allowed_hosts": ["api.example.com", "*.example.org", "192.0.2.1"]}
    made = add(client, vault, variable(networking=limited, injection_location={"header": True}))
    assert made.auth.to_dict() == {
        "type": "environment_variable",
        "secret_name": "API_KEY",
        "networking": limited,
        "injection_location": {"header": True, "body": False},
    }
    listed = client.beta.vaults.credentials.list(vault.id).data
    assert [c.auth.type for c in listed] == ["environment_variable", "static_bearer", "mcp_oauth"]
    for credential in listed:
        assert client.beta.vaults.credentials.retrieve(credential.id, vault_id=vault.id) == credential


def test_every_key_of_a_credential_is_always_present(http: httpx2.Client, vault: Any) -> None:
    made = http.post(f"/v1/vaults/{vault.id}/credentials", json={"auth": bearer()}).json()
    assert set(made) == CREDENTIAL_KEYS


def test_a_key_is_taken_until_its_credential_is_archived_or_deleted(client: anthropic.Anthropic, vault: Any) -> None:
    first = add(client, vault, bearer("https://MCP.example.com:443/mcp/"))
    for again in (bearer("https://mcp.example.com/mcp"), oauth("https://mcp.example.com/mcp//")):
        with pytest.raises(anthropic.ConflictError):
            add(client, vault, again)
    add(client, vault, bearer("https://mcp.example.com/other"))
    archived = client.beta.vaults.credentials.archive(first.id, vault_id=vault.id)
    assert archived.archived_at is not None and archived.auth == first.auth
    assert client.beta.vaults.credentials.archive(first.id, vault_id=vault.id) == archived
    second = add(client, vault, oauth("https://mcp.example.com/mcp"))
    with pytest.raises(anthropic.ConflictError):
        add(client, vault, bearer())
    gone = client.beta.vaults.credentials.delete(second.id, vault_id=vault.id)
    assert (gone.id, gone.type) == (second.id, "vault_credential_deleted")
    add(client, vault, bearer())
    add(client, vault, variable("A"))
    with pytest.raises(anthropic.ConflictError):
        add(client, vault, variable("A"))
    shown = {c.id for c in client.beta.vaults.credentials.list(vault.id)}
    assert first.id not in shown
    shown = {c.id for c in client.beta.vaults.credentials.list(vault.id, include_archived=True)}
    assert first.id in shown and second.id not in shown


def test_a_vault_holds_twenty_and_pages_them(client: anthropic.Anthropic, vault: Any) -> None:
    made = [add(client, vault, variable(f"V{n}")).id for n in range(20)]
    with pytest.raises(anthropic.BadRequestError, match="20"):
        add(client, vault, variable("ONE_MORE"))
    assert [c.id for c in client.beta.vaults.credentials.list(vault.id, limit=7)] == list(reversed(made))
    client.beta.vaults.credentials.archive(made[0], vault_id=vault.id)
    add(client, vault, variable("ONE_MORE"))


def test_an_update_changes_what_it_names(client: anthropic.Anthropic, vault: Any) -> None:
    update = client.beta.vaults.credentials.update
    made = add(client, vault, oauth(refresh=refresh(scope="read")), display_name="d")
    changed = update(
        made.id,
        vault_id=vault.id,
        display_name=None,
        metadata={"k": "v"},
        auth={
            "type": "mcp_oauth",
            "access_token": TOKEN,
            "refresh": {
                "refresh_token": SECRET,
                "scope": "",
                "token_endpoint_auth": {"type": "client_secret_post", "client_secret": SECRET},
            },
        },
    )
    assert SECRET not in changed.to_json() and TOKEN not in changed.to_json()
    assert (changed.display_name, changed.metadata, changed.auth.refresh.scope) == (None, {"k": "v"}, None)
    assert changed.auth.refresh.token_endpoint_auth.type == "client_secret_basic"
    made = add(client, vault, variable())
    limited: Any = {"type": "limited", "allowed_hosts": ["a.example"]}
    changed = update(
        made.id,
        vault_id=vault.id,
        auth={"type": "environment_variable", "networking": limited, "injection_location": {"body": False}},
    )
    assert changed.auth.networking.to_dict() == limited
    assert changed.auth.injection_location.to_dict() == {"header": True, "body": False}


@pytest.mark.parametrize(
    ("auth", "names"),
    [
        ({"type": "static_bearer", "token": TOKEN}, "auth.type"),
        ({"type": "mcp_oauth", "mcp_server_url": "https://oauth.example.com/mcp"}, "mcp_server_url"),
        ({"type": "mcp_oauth", "refresh": {"client_id": "other"}}, "client_id"),
        ({"type": "mcp_oauth", "refresh": {"token_endpoint": "https://other.example"}}, "token_endpoint"),
        ({"type": "mcp_oauth", "refresh": {"resource": "r"}}, "resource"),
        ({"type": "mcp_oauth", "expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"type": "mcp_oauth", "access_token": f"{TOKEN} "}, "access_token"),
    ],
)
def test_what_cannot_change(
    client: anthropic.Anthropic, http: httpx2.Client, vault: Any, auth: dict[str, Any], names: str
) -> None:
    made = add(client, vault, oauth(refresh=refresh()))
    response = http.post(f"/v1/vaults/{vault.id}/credentials/{made.id}", json={"auth": auth})
    check_error(response, 400, names=names)
    assert TOKEN not in response.text
    assert client.beta.vaults.credentials.retrieve(made.id, vault_id=vault.id) == made


def test_a_public_client_gets_no_secret_and_a_plain_token_no_refresh(http: httpx2.Client, vault: Any) -> None:
    path = f"/v1/vaults/{vault.id}/credentials"
    public = http.post(path, json={"auth": oauth(refresh=refresh(token_endpoint_auth={"type": "none"}))}).json()
    secret = {"type": "client_secret_post", "client_secret": SECRET}
    auth = {"type": "mcp_oauth", "refresh": {"token_endpoint_auth": secret}}
    check_error(http.post(f"{path}/{public['id']}", json={"auth": auth}), 400, names="client_secret")
    plain = http.post(path, json={"auth": oauth("https://plain.example.com")}).json()
    assert plain["auth"]["expires_at"] is None and plain["auth"]["refresh"] is None
    auth = {"type": "mcp_oauth", "refresh": {"refresh_token": SECRET}}
    check_error(http.post(f"{path}/{plain['id']}", json={"auth": auth}), 400, names="refresh")


BAD = f"{SECRET} in the wrong place"


@pytest.mark.parametrize(
    ("auth", "names"),
    [
        (None, "auth"),
        (BAD, "auth"),
        ({"type": BAD}, "auth.type"),
        (bearer(token=BAD), "auth.token"),
        (bearer(token="x" * 8193), "auth.token"),
        (bearer(url=BAD), "auth.mcp_server_url"),
        (bearer(url="ftp://a.example"), "auth.mcp_server_url"),
        ({**bearer(), "surprise": BAD}, "surprise"),
        (oauth(expires_at=BAD), "auth.expires_at"),
        (oauth(refresh=refresh(token_endpoint_auth={"type": BAD})), "token_endpoint_auth"),
        (oauth(refresh={}), "refresh_token"),
        (variable("1A"), "secret_name"),
        (variable(BAD), "secret_name"),
        (variable(networking={"type": "limited", "allowed_hosts": []}), "allowed_hosts"),
        (variable(networking={"type": "limited", "allowed_hosts": [BAD]}), "allowed_hosts"),
        (variable(networking={"type": "limited", "allowed_hosts": ["a.example"] * 17}), "allowed_hosts"),
        (variable(injection_location=None), "injection_location"),
        (variable(injection_location={"header": None, "body": True}), "injection_location"),
        (variable(injection_location={"header": False, "body": False}), "injection_location"),
        (variable(secret_value="x" * 4097), "secret_value"),
    ],
    ids=lambda value: None if isinstance(value, str) else "auth",
)
def test_a_refusal_names_the_field_and_repeats_no_value(
    http: httpx2.Client, vault: Any, auth: Any, names: str
) -> None:
    response = http.post(f"/v1/vaults/{vault.id}/credentials", json={"auth": auth})
    check_error(response, 400, names=names)
    assert SECRET not in response.text and "wrong place" not in response.text


def test_a_broken_body_is_not_repeated(http: httpx2.Client, vault: Any) -> None:
    broken = f'{{"auth": {{"type": "static_bearer", "token": "{SECRET}", }}'
    response = http.post(
        f"/v1/vaults/{vault.id}/credentials", content=broken, headers={"content-type": "application/json"}
    )
    check_error(response, 400)
    assert SECRET not in response.text


def test_a_credential_of_another_vault_is_not_found(client: anthropic.Anthropic, vault: Any) -> None:
    other = client.beta.vaults.create(display_name="other")
    made = add(client, vault, bearer())
    credentials = client.beta.vaults.credentials
    for ask in (
        lambda: credentials.retrieve(made.id, vault_id=other.id),
        lambda: credentials.update(made.id, vault_id=other.id, display_name="x"),
        lambda: credentials.archive(made.id, vault_id=other.id),
        lambda: credentials.delete(made.id, vault_id=other.id),
        lambda: credentials.mcp_oauth_validate(made.id, vault_id=other.id),
    ):
        with pytest.raises(anthropic.NotFoundError):
            ask()
    assert credentials.retrieve(made.id, vault_id=vault.id) == made


def test_only_oauth_credentials_are_tried_out(client: anthropic.Anthropic, vault: Any) -> None:
    credentials = client.beta.vaults.credentials
    with pytest.raises(anthropic.BadRequestError):
        credentials.mcp_oauth_validate(add(client, vault, bearer()).id, vault_id=vault.id)
    # An address that the server may not ask: nothing is learned.
    made = add(client, vault, oauth("http://127.0.0.1:9/mcp", refresh=refresh()))
    verdict = credentials.mcp_oauth_validate(made.id, vault_id=vault.id)
    assert (verdict.type, verdict.status) == ("vault_credential_validation", "unknown")
    assert (verdict.credential_id, verdict.vault_id, verdict.has_refresh_token) == (made.id, vault.id, True)
    assert verdict.mcp_probe is not None and verdict.mcp_probe.to_dict(exclude_unset=False) == {
        "method": "initialize",
        "http_response": None,
    }
    assert verdict.refresh is None
    credentials.archive(made.id, vault_id=vault.id)
    with pytest.raises(anthropic.BadRequestError, match="archived"):
        credentials.mcp_oauth_validate(made.id, vault_id=vault.id)


# ---- sessions


def test_a_session_keeps_its_vaults_in_order(client: anthropic.Anthropic, make_session: Any) -> None:
    one, two = (client.beta.vaults.create(display_name=f"v{n}") for n in range(2))
    session = make_session(vault_ids=[two.id, one.id])
    assert session.vault_ids == [two.id, one.id]
    client.beta.vaults.delete(one.id)
    assert client.beta.sessions.retrieve(session.id).vault_ids == [two.id, one.id]
    with pytest.raises(anthropic.BadRequestError, match="vault_ids"):
        client.beta.sessions.update(session.id, vault_ids=[two.id])


def test_a_session_takes_only_vaults_that_can_be_spent(
    client: anthropic.Anthropic, make_agent: Any, environment_id: str, vault: Any
) -> None:
    agent = make_agent()

    def make(*ids: str) -> Any:
        return client.beta.sessions.create(agent=agent.id, environment_id=environment_id, vault_ids=list(ids))

    with pytest.raises(anthropic.NotFoundError, match="vlt_nobody"):
        make(vault.id, "vlt_nobody")
    with pytest.raises(anthropic.BadRequestError, match="vault_ids"):
        make(vault.id, vault.id)
    client.beta.vaults.archive(vault.id)
    with pytest.raises(anthropic.BadRequestError, match="archived"):
        make(vault.id)
    assert client.beta.sessions.list(agent_id=agent.id).data == []


# ---- what is written down


def forms(secret: str) -> list[bytes]:
    """The secret as it is, in an address, in hexadecimal digits, and the middle of it as base64 at each offset."""
    found = [secret, quote(secret, safe=""), secret.encode().hex(), secret.encode().hex().upper()]
    found += [base64.b64encode(b"x" * n + secret.encode()).decode()[4:-4] for n in range(3)]
    return [text.encode() for text in found]


def holding(paths: list[Path], secret: str) -> list[str]:
    return [str(p) for p in paths if p.is_file() and any(form in p.read_bytes() for form in forms(secret))]


def test_no_file_and_no_log_line_holds_a_secret(scripted: Any, tmp_path: Path) -> None:
    server = Posthouse(tmp_path / "server", scripted.url, POSTHOUSE_LOG="trace").start()
    try:
        client = server.client()
        vault = client.beta.vaults.create(display_name="v")
        made = add(client, vault, bearer())
        add(client, vault, variable())
        add(client, vault, oauth("http://127.0.0.1:9", refresh=refresh()))
        client.beta.vaults.credentials.update(
            made.id, vault_id=vault.id, auth={"type": "static_bearer", "token": TOKEN}
        )
        with pytest.raises(anthropic.BadRequestError):
            add(client, vault, bearer("https://other.example", f"{TOKEN} "))
        with pytest.raises(anthropic.ConflictError):
            add(client, vault, bearer())
        for credential in client.beta.vaults.credentials.list(vault.id):
            if credential.auth.type == "mcp_oauth":
                client.beta.vaults.credentials.mcp_oauth_validate(credential.id, vault_id=vault.id)
        client.beta.vaults.archive(vault.id)
    finally:
        server.stop()
    written = list(tmp_path.rglob("*"))
    assert any(p.name == "posthouse.db" for p in written) and "request" in server.process.transcript()
    for secret in (SECRET, TOKEN):
        assert holding(written, secret) == []
        printed = server.process.transcript().encode()
        assert not any(form in printed for form in forms(secret))


def test_the_search_finds_what_is_there(tmp_path: Path) -> None:
    for number, form in enumerate(forms(SECRET)):
        (tmp_path / str(number)).write_bytes(b"before " + form + b" behind")
    assert len(holding(list(tmp_path.iterdir()), SECRET)) == len(forms(SECRET))
