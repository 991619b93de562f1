"""The scripted model server as one test sees it: its own model name, its own replies, its own holds."""

from __future__ import annotations

import itertools
import uuid
from typing import Any

import httpx2

from support.deadline import eventually

Reply = dict[str, Any]


def answer(*blocks: dict[str, Any] | str, **more: Any) -> Reply:
    """One answer of the model; a bare string is a text block."""
    return {"blocks": [{"text": b} if isinstance(b, str) else b for b in blocks], **more}


def thinking(text: str) -> dict[str, Any]:
    return {"thinking": text}


def call(tool: str, **arguments: Any) -> dict[str, Any]:
    return {"tool": tool, "input": arguments}


def bash(command: str, **more: Any) -> dict[str, Any]:
    return call("bash", command=command, **more)


def failure(status: int, kind: str, message: str = "scripted failure", **more: Any) -> Reply:
    return {"error": {"status": status, "type": kind, "message": message, **more}}


def refusal(category: str | None, explanation: str | None, *blocks: dict[str, Any] | str) -> Reply:
    details = {"type": "refusal", "category": category, "explanation": explanation}
    return answer(*blocks, stop="refusal", stop_details=details)


class ScriptedServer:
    def __init__(self, url: str) -> None:
        self.url = url
        self.http = httpx2.Client(base_url=url, trust_env=False, timeout=20.0)

    def post(self, path: str, body: dict[str, Any]) -> None:
        self.http.post(path, json=body).raise_for_status()

    def get(self, path: str, **query: str) -> dict[str, Any]:
        response = self.http.get(path, params=query)
        response.raise_for_status()
        return response.json()


class Model:
    """A model name that no other test uses."""

    def __init__(self, server: ScriptedServer, family: str = "claude") -> None:
        self._server = server
        self._unique = uuid.uuid4().hex[:12]
        self._numbers = itertools.count(1)
        self._holds: list[str] = []
        self.name = f"{family}-test-{self._unique}"

    def script(self, *replies: Reply) -> None:
        self._server.post("/_script", {"model": self.name, "replies": list(replies)})

    def requests(self) -> list[dict[str, Any]]:
        return self._server.get("/_requests", model=self.name)["requests"]

    def bodies(self) -> list[dict[str, Any]]:
        return [request["body"] for request in self.requests()]

    def check_requests(self) -> None:
        """No request was one that the real service would have refused."""
        violations = [request["violation"] for request in self.requests() if request.get("violation")]
        assert not violations, violations

    def hold(self) -> str:
        """A new hold; whatever still waits on it is let go when the test ends."""
        name = f"hold-{self._unique}-{next(self._numbers)}"
        self._holds.append(name)
        return name

    def until_waiting(self, hold: str) -> None:
        eventually(lambda: self._server.get("/_waiting", hold=hold)["waiting"] > 0, f"a request waits on {hold}")

    def release(self, hold: str) -> None:
        self._server.post("/_release", {"hold": hold})

    def release_all(self) -> None:
        while self._holds:
            self.release(self._holds.pop())


def tool_results(body: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The tool results in an Anthropic request body, by the provider's call id."""
    return {
        block["tool_use_id"]: block
        for message in body["messages"]
        if isinstance(message["content"], list)
        for block in message["content"]
        if block["type"] == "tool_result"
    }


def text_of(block: dict[str, Any]) -> str:
    """The text of a tool result, whichever of its two forms was sent."""
    content = block.get("content", "")
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
