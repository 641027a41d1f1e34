"""``heliograph agents mod_x serve|discover|translate|ledger``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from heliograph.errors import BadInput, MissingExtra

__all__ = ["mod_x_app"]

mod_x_app = typer.Typer(
    help="Peers without a hub: serve tools, find them, translate messages, check ledgers.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


@mod_x_app.callback()
def _group() -> None:
    """Peers without a hub."""


def _load(path: Path) -> Any:
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
        return json.loads(text)
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot read JSON from {path}: {error}") from None


def _keys(path: Path) -> dict[str, bytes]:
    data = _load(path)
    try:
        keys = {str(name): bytes.fromhex(key) for name, key in data.items()}
    except (AttributeError, TypeError, ValueError):
        raise BadInput(f"{path} holds public keys in hexadecimal by name: {{NAME: KEY}}") from None
    return keys


def _extra(error: ModuleNotFoundError) -> MissingExtra:
    return MissingExtra((error.name or "mcp").split(".")[0], "agents")


@mod_x_app.command()
def serve(
    name: Annotated[str, typer.Argument(help="The peer's name, as the others know it.")],
    key: Annotated[Path, typer.Option(help="Its PEM key; made if absent.")],
    keys: Annotated[Path | None, typer.Option(help="JSON: public keys of all peers in hexadecimal, by name.")] = None,
    listen: Annotated[str, typer.Option(help="HOST:PORT for other peers; port 0 takes a free one.")] = "127.0.0.1:0",
    seed: Annotated[list[str] | None, typer.Option(help="NAME=HOST:PORT of a peer to begin with; repeatable.")] = None,
    mcp: Annotated[list[str] | None, typer.Option(help="URL of an MCP server whose tools it offers.")] = None,
    a2a: Annotated[list[str] | None, typer.Option(help="URL of an A2A agent whose skills it offers.")] = None,
    token: Annotated[str, typer.Option(envvar="HELIOGRAPH_MODX_TOKEN", help="Shared by peers beyond loopback.")] = "",
    ledger: Annotated[Path | None, typer.Option(help="File of its signed chain.")] = None,
    mcp_port: Annotated[int, typer.Option(help="Serve all capabilities to MCP clients here; 0 for not.")] = 0,
    a2a_port: Annotated[int, typer.Option(help="Serve all capabilities to A2A clients here; 0 for not.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Run a peer until Ctrl-C. It prints its address and public key, which the others need."""
    import asyncio

    try:
        import uvicorn

        from heliograph.agents.core.identity import Identity
        from heliograph.agents.mod_x import A2aAgent, McpAgent, ModXPeer, NotaryLedger, TcpMesh, serve_a2a, serve_mcp
    except ModuleNotFoundError as error:
        raise _extra(error) from error
    if not key.exists():
        Identity.generate().save(key)
    identity = Identity.load(key)
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise BadInput(f"--listen takes HOST:PORT; got {listen!r}")
    pairs = [entry.partition("=") for entry in seed or ()]
    if not all(other and address for other, _, address in pairs):
        raise BadInput("--seed takes NAME=HOST:PORT")
    peer = ModXPeer(
        name,
        identity,
        TcpMesh(host, int(port), token=token),
        keys=_keys(keys) if keys else None,
        seeds={other: address for other, _, address in pairs},
        ledger=NotaryLedger(name, identity, path=ledger) if ledger else None,
    )

    async def main() -> None:
        for url in mcp or ():
            await peer.attach(McpAgent(url))
        for url in a2a or ():
            await peer.attach(A2aAgent(url))
        async with peer:
            told = {"name": name, "address": peer.mesh.address, "public_key": identity.public.hex()}
            typer.echo(
                json.dumps(told) if as_json else f"{name} listens on {told['address']}, key {told['public_key']}"
            )
            apps: list[Any] = []
            if mcp_port:
                apps.append((serve_mcp(peer).streamable_http_app(), mcp_port))
            if a2a_port:
                apps.append((serve_a2a(peer, f"http://127.0.0.1:{a2a_port}"), a2a_port))
            servers = [uvicorn.Server(uvicorn.Config(app, port=on, log_level="warning")) for app, on in apps]
            if servers:
                await asyncio.gather(*(server.serve() for server in servers))
            else:
                await asyncio.Event().wait()

    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)


@mod_x_app.command()
def discover(
    query: Annotated[str, typer.Argument(help="What is wanted, in words.")],
    capabilities: Annotated[
        Path, typer.Option(help="JSON: a list of capabilities or of MCP tools; - reads standard input.")
    ],
    top: Annotated[int, typer.Option(min=1, help="How many.")] = 5,
    method: Annotated[str, typer.Option(help="hybrid, embedding, bm25 or keyword.")] = "hybrid",
    as_json: AsJson = False,
) -> None:
    """Search a list of capabilities or tools."""
    try:
        import msgspec

        from heliograph.agents.mod_x import Capability, CapabilityIndex
    except ModuleNotFoundError as error:
        raise _extra(error) from error
    data = _load(capabilities)
    items = data.get("tools") if isinstance(data, dict) else data
    if not isinstance(items, list):
        raise BadInput(f'{capabilities} holds a list of capabilities, or {{"tools": [...]}} as MCP gives them')
    index = CapabilityIndex()
    for place, item in enumerate(items):
        plain = {"agent": "local", **item} if isinstance(item, dict) else item
        try:
            index.add(msgspec.convert(plain, Capability))
        except msgspec.ValidationError as error:
            raise BadInput(f"{capabilities}: entry {place} is no capability: {error}") from None
    hits = index.search(query, top=top, method=method)  # type: ignore[arg-type]
    if as_json:
        rows = [
            {"id": hit.capability.id, "score": hit.score, "description": hit.capability.description} for hit in hits
        ]
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        for hit in hits:
            typer.echo(f"{hit.score:7.3f}  {hit.capability.id}  {hit.capability.description}")


@mod_x_app.command()
def translate(
    message: Annotated[Path, typer.Argument(help="A JSON message; - reads standard input.")],
    source: Annotated[str, typer.Option("--from", help="mcp, a2a, jsonrpc, nats or envelope.")],
    target: Annotated[str, typer.Option("--to", help="The same.")],
    carry: Annotated[bool, typer.Option(help="Put what has no field into metadata.")] = True,
    strict: Annotated[bool, typer.Option("--strict", help="Fail where something would be lost.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print a message in another protocol's form; what is lost is named on standard error."""
    try:
        from heliograph.agents.mod_x.wire import translate as turn
    except ModuleNotFoundError as error:
        raise _extra(error) from error
    done = turn(_load(message), source, target, carry=carry, strict=strict)  # type: ignore[arg-type]
    if as_json:
        whole = {"message": done.message, "carried": done.carried, "lost": list(done.lost)}
        typer.echo(json.dumps(whole, indent=2, ensure_ascii=False))
    else:
        typer.echo(json.dumps(done.message, indent=2, ensure_ascii=False))
        if done.lost:
            typer.echo(f"lost: {', '.join(done.lost)}", err=True)


@mod_x_app.command()
def ledger(
    file: Annotated[Path, typer.Argument(help="A chain, or with --notaries a proof.")],
    keys: Annotated[Path, typer.Option(help="JSON: public keys of peers in hexadecimal, by name.")],
    head: Annotated[str, typer.Option(help="Hash of the last entry, kept elsewhere; shows a cut end.")] = "",
    notaries: Annotated[Path | None, typer.Option(help="JSON: public keys of notaries, to check a proof.")] = None,
    quorum: Annotated[int, typer.Option(help="Signatures needed; 0 for 2f+1 of the notaries given.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Check a ledger's chain, or a proof; exit 1 with the first fault if it does not hold."""
    try:
        from heliograph.agents.core.identity import KeyRing
        from heliograph.agents.mod_x.ledger import LedgerError, quorum_of, verify_chain, verify_proof
    except ModuleNotFoundError as error:
        raise _extra(error) from error
    peers = KeyRing(_keys(keys))
    found: dict[str, Any]
    try:
        if notaries is not None:
            trusted = _keys(notaries)
            entry = verify_proof(_load(file), peers, KeyRing(trusted), quorum or quorum_of(len(trusted)))
            found = {"ok": True, "entry": entry, "reason": ""}
        else:
            try:
                data = file.read_bytes()
            except OSError as error:
                raise BadInput(f"cannot read {file}: {error.strerror}") from None
            entries = verify_chain(data, peers, head=head)
            found = {"ok": True, "entries": len(entries), "head": entries[-1]["hash"] if entries else "", "reason": ""}
    except LedgerError as error:
        found = {"ok": False, "bad_entry": error.entry, "reason": error.reason}
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
    elif not found["ok"]:
        where = f"entry {found['bad_entry']}: " if found["bad_entry"] else ""
        typer.echo(f"{file}: {where}{found['reason']}")
    elif "entries" in found:
        typer.echo(f"{file}: {found['entries']} entries, the chain holds; head {found['head']}")
    else:
        typer.echo(f"{file}: the proof holds; entry {found['entry']['seq']} of {found['entry']['peer']}")
    if not found["ok"]:
        raise typer.Exit(1)


@mod_x_app.command()
def trip(
    city: Annotated[str, typer.Option(help="Where to.")] = "London",
    start: Annotated[str, typer.Option(help="First day, as 2024-05-16.")] = "2024-05-16",
    nights: Annotated[int, typer.Option(help="To stay.")] = 3,
    budget: Annotated[float, typer.Option(help="For all together.")] = 900.0,
    origin: Annotated[str, typer.Option(help="Where a flight starts.")] = "Paris",
    want: Annotated[list[str] | None, typer.Option(help="flight, hotel, restaurant or car; repeatable.")] = None,
    diet: Annotated[str, typer.Option(help="Such as vegan; of the restaurant.")] = "",
    car_type: Annotated[str, typer.Option(help="Such as SUV.")] = "",
    least_rating: Annotated[float, typer.Option(help="Of hotel and car rental.")] = 0.0,
    fail: Annotated[list[str] | None, typer.Option(help="A peer that goes out of service, such as hotels-1.")] = None,
    after: Annotated[int, typer.Option(min=0, help="Steps until it does.")] = 0,
    proofs: Annotated[Path | None, typer.Option(help="Folder for what verifies the trip offline.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
) -> None:
    """Plan a trip over AgentDojo's travel suite, by agents of several parties without a hub."""
    import asyncio

    from heliograph.agents.core.identity import KeyRing
    from heliograph.agents.mod_x.travel import WANTS, TravelGoal, TravelMesh, verify_bundle, write_bundle

    goal = TravelGoal(
        city,
        start,
        nights,
        budget,
        origin,
        tuple(want or WANTS),
        diet=diet,
        car_type=car_type,
        least_rating=least_rating,
    )

    async def plan() -> dict[str, Any]:
        async with TravelMesh() as mesh:
            found = await mesh.plan_trip(goal, failing=fail or (), after=after)
            verify_bundle(found.bundle, KeyRing(mesh.keys), KeyRing(mesh.notaries))
            if proofs is not None:
                write_bundle(found, mesh, proofs)
            outcome = found.outcome
            return {
                "itinerary": found.itinerary,
                "steps": outcome.steps,
                "failures": outcome.failures,
                "replans": outcome.replans,
            }

    told = asyncio.run(plan())
    if as_json:
        typer.echo(json.dumps(told, indent=2, ensure_ascii=False))
        return
    for step in told["steps"]:
        typer.echo(f"done    {step}")
    for step, reason in told["failures"].items():
        typer.echo(f"failed  {step}: {reason}")
    for what, chosen in told["itinerary"]["choice"].items():
        typer.echo(f"{what}: {chosen['name'] if isinstance(chosen, dict) else chosen}")
    typer.echo(f"{len(told['steps'])} steps are proven; new plans: {told['replans']}")
