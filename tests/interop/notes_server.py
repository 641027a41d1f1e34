"""A server by the official Python SDK on standard input and output: two tools, a resource and a prompt."""

from mcp.server import MCPServer

server = MCPServer("notes")
KEPT: dict[str, str] = {"first": "a note"}


@server.tool()
def keep(name: str, text: str) -> int:
    """Keeps a note; the number of notes."""
    KEPT[name] = text
    return len(KEPT)


@server.tool()
def read(name: str) -> str:
    """A note's text."""
    return KEPT[name]


@server.resource("notes://first")
def first() -> str:
    """The first note."""
    return KEPT["first"]


@server.prompt()
def summarise(name: str) -> str:
    """Asks for a summary of a note."""
    return f"Summarise {KEPT.get(name, '')}"


if __name__ == "__main__":
    server.run()
