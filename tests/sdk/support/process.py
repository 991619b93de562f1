"""Starts the binaries under test and ends them, by their own process id and nothing else."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import threading
from pathlib import Path

import anthropic
import httpx2

from support import postgres

REPOSITORY = Path(__file__).resolve().parents[3]
BETA = "managed-agents-2026-04-01"
READY_SECONDS = 30.0
# Longer than the server waits for an answer that is on its way.
STOP_SECONDS = 30.0

API_KEY = "sk-posthouse-test-0123456789abcdef0123456789abcdef"
# What the server holds for its providers; no log line, error or event may show them.
ANTHROPIC_SECRET = "sk-provider-anthropic-5d1c0a7e"
OPENAI_SECRET = "sk-provider-openai-93b2ef41"


def binary(variable: str, name: str) -> Path:
    path = Path(os.environ.get(variable) or REPOSITORY / "target" / "debug" / name)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: build it, or name it in {variable}")
    return path


class Process:
    """A child whose first `http://…` on stdout is its address."""

    def __init__(self, command: list[str], environment: dict[str, str], stderr: Path) -> None:
        self._lines: queue.Queue[str | None] = queue.Queue()
        self.output: list[str] = []
        self.stderr_path = stderr
        with stderr.open("ab") as errors:
            self._child = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
            )
        # Drains stdout for as long as the child lives, so that it never blocks on a full pipe.
        threading.Thread(target=self._drain, daemon=True).start()
        self.url = self._wait_until_ready()

    @property
    def pid(self) -> int:
        return self._child.pid

    def _drain(self) -> None:
        assert self._child.stdout is not None
        for raw in self._child.stdout:
            line = raw.decode("utf-8", "replace")
            self.output.append(line)
            self._lines.put(line)
        self._lines.put(None)

    def _wait_until_ready(self) -> str:
        while True:
            try:
                line = self._lines.get(timeout=READY_SECONDS)
            except queue.Empty:
                self.kill()
                raise TimeoutError(f"no address within {READY_SECONDS} s: {self.transcript()}") from None
            if line is None:
                raise RuntimeError(f"ended with {self._child.wait(5)} before it was ready: {self.transcript()}")
            found = re.search(r"http://[A-Za-z0-9.\[\]:]*\d", line)
            if found:
                return found.group(0)

    def transcript(self) -> str:
        return "".join(self.output) + self.stderr_path.read_text("utf-8", "replace")

    def kill(self) -> None:
        """SIGKILL: the process gets no chance to tidy up."""
        self._child.send_signal(signal.SIGKILL)
        self._child.wait(STOP_SECONDS)

    def terminate(self) -> None:
        """SIGTERM."""
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """The exit status, once it has ended."""
        try:
            return self._child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def stop(self) -> int:
        """SIGTERM, and the exit status of an orderly end."""
        self.terminate()
        return self.wait()


class Posthouse:
    """One server on one data directory; it may be killed and started again."""

    def __init__(self, directory: Path, model_url: str, **settings: str) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._model_url = model_url
        self._settings = settings
        if postgres.is_asked_for():
            # One for each data directory, so that a server which is started again finds its sessions.
            self._settings = {"POSTHOUSE_DATABASE": postgres.cluster().database(), **settings}
        self._process: Process | None = None
        self._closing: list[anthropic.Anthropic | httpx2.Client] = []

    def command(self) -> list[str]:
        data = str(self.directory / "data")
        return [str(binary("POSTHOUSE_BIN", "posthouse")), "serve", "--listen", "127.0.0.1:0", "--data-dir", data]

    def environment(self) -> dict[str, str]:
        """A bare environment, so that nothing of the machine's own configuration reaches the server."""
        return {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "HOME": str(self.directory),
            "LANG": "C.UTF-8",
            "POSTHOUSE_API_KEY": API_KEY,
            "POSTHOUSE_MODEL_RETRY_BASE_MS": "5",
            "POSTHOUSE_MODEL_ATTEMPTS_MAX": "3",
            "ANTHROPIC_API_KEY": ANTHROPIC_SECRET,
            "ANTHROPIC_BASE_URL": self._model_url,
            "OPENAI_API_KEY": OPENAI_SECRET,
            "OPENAI_BASE_URL": f"{self._model_url}/v1",
            **self._settings,
        }

    def start(self) -> Posthouse:
        self._process = Process(self.command(), self.environment(), self.directory / "stderr.log")
        return self

    @property
    def process(self) -> Process:
        assert self._process is not None, "the server was not started"
        return self._process

    @property
    def url(self) -> str:
        return self.process.url

    def kill(self) -> None:
        self._close_clients()
        self.process.kill()

    def stop(self) -> int:
        self._close_clients()
        return self.process.stop()

    def _close_clients(self) -> None:
        while self._closing:
            self._closing.pop().close()

    def client(self, api_key: str | None = API_KEY, max_retries: int = 0, **options: object) -> anthropic.Anthropic:
        """The official client; an answer that differs from its types is an error."""
        client = anthropic.Anthropic(
            api_key=api_key,
            base_url=self.url,
            max_retries=max_retries,
            timeout=40.0,
            http_client=anthropic.DefaultHttpxClient(trust_env=False, timeout=40.0),
            _strict_response_validation=True,
            **options,
        )
        self._closing.append(client)
        return client

    def http(self, **headers: str) -> httpx2.Client:
        """A bare client for what the SDK cannot be brought to send."""
        client = httpx2.Client(
            base_url=self.url,
            trust_env=False,
            timeout=40.0,
            headers={"x-api-key": API_KEY, "anthropic-version": "2023-06-01", "anthropic-beta": BETA, **headers},
        )
        self._closing.append(client)
        return client
