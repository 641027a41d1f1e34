"""``heliograph agents mcp_broker checklist CONFIG``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from heliograph.errors import MissingExtra

__all__ = ["mcp_broker_app"]

mcp_broker_app = typer.Typer(
    help="The broker's stages of the gateway.", no_args_is_help=True, add_completion=False, rich_markup_mode=None
)


@mcp_broker_app.callback()
def _group() -> None:
    """The broker's stages of the gateway."""


@mcp_broker_app.command()
def checklist(
    config: Annotated[Path, typer.Argument(help="A gateway's configuration: mcpServers, and heliograph for policy.")],
    probe: Annotated[bool, typer.Option(help="Start or ask each server for its tools.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
) -> None:
    """Is a gateway ready for production? Exit 1 if an answer is no, or could not be had."""
    import asyncio
    from dataclasses import asdict

    try:
        from heliograph.agents.mcp_broker.readiness import checklist as answer
    except ModuleNotFoundError as error:
        raise MissingExtra((error.name or "mcp").split(".")[0], "agents") from error
    items = asyncio.run(answer(config, probe=probe))
    if as_json:
        typer.echo(json.dumps([asdict(item) for item in items], indent=2))
    else:
        for dimension in dict.fromkeys(item.dimension for item in items):
            typer.echo(dimension)
            for item in items:
                if item.dimension == dimension:
                    fix = f"; {item.fix}" if item.fix else ""
                    typer.echo(f"  {item.state:<7} {item.question} {item.why}{fix}")
        passed = sum(item.state == "pass" for item in items)
        typer.echo(f"{passed} of {len(items)} pass")
    if any(item.state != "pass" for item in items):
        raise typer.Exit(1)
