"""An MCP server in Python with an authorization server of its own, at a free port. It says where."""

import socket

import uvicorn
from fastmcp import FastMCP
from fastmcp.server.auth.auth import ClientRegistrationOptions
from fastmcp.server.auth.providers.in_memory import InMemoryOAuthProvider
from starlette.requests import Request
from starlette.responses import Response

listener = socket.socket()
listener.bind(("127.0.0.1", 0))
base = f"http://127.0.0.1:{listener.getsockname()[1]}"
registration = ClientRegistrationOptions(enabled=True, valid_scopes=["tools"])
provider = InMemoryOAuthProvider(
    base_url=base, client_registration_options=registration, required_scopes=["tools"]
)
server = FastMCP("python", auth=provider)


@server.tool
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


@server.custom_route("/expire", methods=["POST"])
async def expire(request: Request) -> Response:
    """Ends all access tokens, but no refresh token."""
    provider.access_tokens.clear()
    return Response()


print(base, flush=True)
uvicorn.Server(uvicorn.Config(server.http_app(), log_level="warning")).run(sockets=[listener])
