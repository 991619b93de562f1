"""A private PostgreSQL for a test run, when the servers are to keep their sessions in one."""

from __future__ import annotations

import atexit
import functools
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import uuid
from pathlib import Path

ASKED = "POSTHOUSE_TEST_STORE"


def is_asked_for() -> bool:
    """Whether `POSTHOUSE_TEST_STORE=postgres` is set."""
    return os.environ.get(ASKED) == "postgres"


@functools.cache
def cluster() -> Cluster:
    return Cluster()


class Cluster:
    """Runs until the tests end."""

    def __init__(self) -> None:
        # The server refuses to run as root.
        self._user = ordinary_user() if os.geteuid() == 0 else None
        self._folder = Path(tempfile.mkdtemp(prefix="posthouse-postgres-"))
        if self._user:
            shutil.chown(self._folder, self._user)
        atexit.register(self._stop)
        data = str(self._folder / "data")
        self._run("initdb", "-D", data, "-A", "trust", "-U", "posthouse", "-E", "UTF8", "--locale=C", "--no-sync")
        self._port = free_port()
        options = f"-p {self._port} -k {self._folder} -c fsync=off -c max_connections=400"
        self._run("pg_ctl", "-D", data, "-l", str(self._folder / "log"), "-w", "-o", options, "start")

    def database(self) -> str:
        """A fresh database's address."""
        name = f"test_{uuid.uuid4().hex}"
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self._port), "-U", "posthouse", "-T", "template0", name)
        return f"postgres://posthouse@127.0.0.1:{self._port}/{name}"

    def _run(self, name: str, *arguments: str) -> None:
        command = [program(name), *arguments]
        output = self._folder / "commands"
        # Not a pipe: the server would keep it open.
        with output.open("ab") as written:
            done = subprocess.run(command, user=self._user, cwd="/", stdout=written, stderr=written, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{name} failed:\n{output.read_text('utf-8', 'replace')}")

    def _stop(self) -> None:
        command = [program("pg_ctl"), "-D", str(self._folder / "data"), "-m", "immediate", "stop"]
        subprocess.run(command, user=self._user, cwd="/", capture_output=True, check=False)
        shutil.rmtree(self._folder, ignore_errors=True)


def program(name: str) -> str:
    """One of the server's programs: where Debian has them, the newest first, or on PATH."""
    for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        if (folder / name).exists():
            return str(folder / name)
    if found := shutil.which(name):
        return found
    raise RuntimeError("PostgreSQL is not installed: `apt-get install postgresql`, or put its programs on PATH")


def ordinary_user() -> str:
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
