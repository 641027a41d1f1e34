"""``heliograph gateway CONFIG`` and ``heliograph gateway audit verify FILE``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from heliograph.agents.error_cascade_commands import error_cascade_app
from heliograph.agents.gwa_commands import gwa_app
from heliograph.agents.mcp_broker_commands import mcp_broker_app
from heliograph.agents.mcp_sec_commands import mcp_sec_app
from heliograph.agents.mod_x_commands import mod_x_app
from heliograph.errors import BadInput, MissingExtra

__all__ = ["agents_app", "gateway_app"]

agents_app = typer.Typer(
    help="Systems of agents, each with verbs of its own.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
agents_app.add_typer(error_cascade_app, name="error_cascade")
agents_app.add_typer(gwa_app, name="gwa")
agents_app.add_typer(mcp_broker_app, name="mcp_broker")
agents_app.add_typer(mcp_sec_app, name="mcp_sec")
agents_app.add_typer(mod_x_app, name="mod_x")


class _ConfigFirst(typer.core.TyperGroup):
    """``gateway FILE`` means ``gateway serve FILE``."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["serve", *args]
        return super().resolve_command(ctx, args)


gateway_app = typer.Typer(
    cls=_ConfigFirst,
    help="One address before any number of MCP servers: heliograph gateway CONFIG.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
audit_app = typer.Typer(help="Read a hash-chained audit log.", no_args_is_help=True, add_completion=False)
gateway_app.add_typer(audit_app, name="audit")

ConfigPath = Annotated[Path, typer.Argument(help="A JSON file with mcpServers, and heliograph for policy.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


def _say(text: str) -> None:
    typer.echo(text, err=True)


@gateway_app.command()
def serve(
    config: ConfigPath,
    port: Annotated[int | None, typer.Option(help="Instead of the file's port; 0 takes a free one.")] = None,
    stdio: Annotated[bool, typer.Option("--stdio", help="Serve one caller on standard input and output.")] = False,
    broker: Annotated[bool, typer.Option("--broker", help="Add the stage broker.")] = False,
    mcpsec: Annotated[bool, typer.Option("--mcpsec", help="Add the stage mcpsec.")] = False,
    governor: Annotated[bool, typer.Option("--governor", help="Add the stage governor.")] = False,
    watch: Annotated[float, typer.Option(help="Seconds between looks at the file; 0 for SIGHUP only.")] = 1.0,
    verbose: Annotated[bool, typer.Option("--verbose", help="Say more on standard error.")] = False,
) -> None:
    """Serve until SIGTERM or Ctrl-C; requests in flight are finished first."""
    import asyncio
    import logging

    try:
        import msgspec

        from heliograph.agents.core.config import read_config
        from heliograph.agents.core.service import GatewayService
    except ModuleNotFoundError as error:
        raise MissingExtra((error.name or "mcp").split(".")[0], "agents") from error
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, stream=sys.stderr, format="%(message)s")
    read = read_config(config)
    if port is not None:
        if not 0 <= port <= 65535:
            raise BadInput(f"a port lies between 0 and 65535; got {port}")
        listen = msgspec.structs.replace(read.policy.listen, port=port)
        read = msgspec.structs.replace(read, policy=msgspec.structs.replace(read.policy, listen=listen))
    wanted = {"broker": broker, "mcpsec": mcpsec, "governor": governor}
    service = GatewayService(read, {name: {} for name, on in wanted.items() if on})
    if stdio:
        asyncio.run(service.serve_stdio())
        return

    def announce(real_port: int) -> None:
        listen = read.policy.listen
        _say(f"gateway: http://{listen.host}:{real_port}{listen.path} before {', '.join(read.specs)}")

    asyncio.run(service.serve(on_start=announce, watch_s=watch))


@gateway_app.command()
def check(config: ConfigPath) -> None:
    """Check a configuration without serving it."""
    from heliograph.agents.core.config import read_config
    from heliograph.agents.core.stages import build_stage

    read = read_config(config)
    read.verifier()
    for stage in read.policy.stages:
        build_stage(stage.name, stage.options)
    if read.policy.mcpsec is not None:
        build_stage("mcpsec", {"folder": str(read.path.parent), **read.policy.mcpsec})
    _say(f"{config} is fine: {', '.join(read.specs)}")


@gateway_app.command()
def schema() -> None:
    """Print the JSON Schema of the configuration."""
    from heliograph.agents.core.config import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


@audit_app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="An audit log.")],
    head: Annotated[str, typer.Option(help="SEQ:HASH of the last line, kept elsewhere; shows a cut end.")] = "",
    as_json: AsJson = False,
) -> None:
    """Check the chain; exit 1 and the first bad line if it is broken."""
    from dataclasses import asdict

    from heliograph.agents.core.audit import Receipt
    from heliograph.agents.core.audit import verify as verify_file

    wanted = None
    if head:
        number, _, digest = head.partition(":")
        if not number.isdigit() or len(digest) != 64:
            raise BadInput(f"--head takes SEQ:HASH with 64 hexadecimal digits; got {head!r}")
        wanted = Receipt(int(number), digest)
    found = verify_file(file, head=wanted)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
    elif found.ok:
        torn = f"; {found.torn_bytes} bytes of an unfinished line at the end" if found.torn_bytes else ""
        typer.echo(f"{file}: {found.lines} lines, the chain holds{torn}; head {found.head.seq}:{found.head.hash}")
    else:
        typer.echo(f"{file}: line {found.bad_line} is bad: {found.reason}")
    if not found.ok:
        raise typer.Exit(1)
