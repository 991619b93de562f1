"""An MCP server that wants a bearer: `mcp_server.py PORT TOKEN`."""

import sys

from fastmcp import FastMCP
from fastmcp.server.auth.providers.jwt import StaticTokenVerifier

port, token = int(sys.argv[1]), sys.argv[2]
verifier = StaticTokenVerifier(tokens={token: {"client_id": "test", "scopes": []}})
server = FastMCP("python", auth=verifier if token != "none" else None)


@server.tool
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


@server.tool(annotations={"readOnlyHint": True})
def long_text(length: int) -> str:
    """A text of that many characters."""
    return "x" * length


server.run(transport="http", host="127.0.0.1", port=port, show_banner=False)
