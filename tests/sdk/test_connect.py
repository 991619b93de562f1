"""`posthouse vaults connect` with a real server in Python that has OAuth."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx2

from support.process import API_KEY, Posthouse, Process, binary
from support.scripted import ScriptedServer

SERVER = Path(__file__).parent / "support" / "oauth_server.py"


def connect(posthouse: Posthouse, server: str, vault: str) -> str:
    """Connects, with a browser that consents; gives the credential's id."""
    words = ["vaults", "connect", f"{server}/mcp", "--vault", vault, "--timeout", "30"]
    environment = {"PATH": "/usr/bin:/bin", "POSTHOUSE_URL": posthouse.url, "POSTHOUSE_API_KEY": API_KEY}
    child = subprocess.Popen(
        [str(binary("POSTHOUSE_BIN", "posthouse")), *words],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stderr is not None
    said = []
    for line in child.stderr:
        said.append(line)
        if "/authorize?" in line:
            with httpx2.Client(trust_env=False, follow_redirects=True) as browser:
                assert browser.get(line.strip()).status_code == 200
            break
    printed, rest = child.communicate(timeout=60)
    assert child.returncode == 0, "".join(said) + rest
    return printed.strip()


def test_a_server_of_mcps_python_library_is_connected_tried_and_renewed(
    scripted: ScriptedServer, tmp_path: Path
) -> None:
    environment = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "HOME": str(tmp_path)}
    server = Process([sys.executable, str(SERVER)], environment, tmp_path / "server.log")
    private = server.url.removeprefix("http://")
    posthouse = Posthouse(tmp_path / "posthouse", scripted.url, POSTHOUSE_ALLOW_PRIVATE_HOSTS=private).start()
    try:
        client = posthouse.client()
        vault = client.beta.vaults.create(display_name="python")
        credential = connect(posthouse, server.url, "python")

        def tried() -> tuple[str, str | None]:
            result = client.beta.vaults.credentials.mcp_oauth_validate(credential, vault_id=vault.id)
            assert result.has_refresh_token
            return result.status, result.refresh and result.refresh.status

        assert tried() == ("valid", None)
        httpx2.post(f"{server.url}/expire", trust_env=False)
        assert tried() == ("valid", "succeeded")
        assert tried() == ("valid", None)
    finally:
        posthouse.stop()
        server.kill()
