"""``heliograph agents mcp_sec audit|issue|verify|pin|bench``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from heliograph.errors import BadInput, MissingExtra

__all__ = ["mcp_sec_app"]

mcp_sec_app = typer.Typer(
    help="Attested servers, flow control between them, and attacks on both.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
ConfigPath = Annotated[Path, typer.Argument(help="A JSON file with mcpServers.")]


def _missing(error: ModuleNotFoundError) -> MissingExtra:
    return MissingExtra((error.name or "mcp").split(".")[0], "agents")


def _print(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))


@mcp_sec_app.command()
def audit(
    config: ConfigPath,
    probe: Annotated[bool, typer.Option("--probe", help="Start or ask each server.")] = False,
    traffic: Annotated[
        Path | None, typer.Option(help="JSON lines of recorded requests and answers, played through the policy.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 if there is a finding.")] = False,
    as_json: AsJson = False,
) -> None:
    """What the servers of a configuration may do, what changed, and who could steer whom."""
    from dataclasses import asdict

    import msgspec

    try:
        from heliograph.agents.mcp_sec.policy import SecurityPolicy
        from heliograph.agents.mcp_sec.recorded import read_traffic, replay_traffic
        from heliograph.agents.mcp_sec.stage import security_stages
        from heliograph.agents.mcp_sec.survey import read_entries, survey
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    found = survey(config, probe=probe)
    verdicts = []
    if traffic is not None:
        exchanges = read_traffic(traffic)
        policy = SecurityPolicy.from_mapping({"folder": str(config.parent), **read_entries(config)[1], "pins": ""})
        (enforcer,) = security_stages(policy)
        verdicts = replay_traffic(exchanges, enforcer)  # type: ignore[arg-type]
    if as_json:
        body = asdict(found) | {"clean": found.clean}
        if traffic is not None:
            body["traffic"] = msgspec.to_builtins(verdicts)
        _print(body)
    else:
        typer.echo(f"{len(found.servers)} servers" + (f"; policy: {found.policy}" if found.policy else "; no policy"))
        for one in found.servers:
            tools = "" if one.tools is None else f", {one.tools} tools"
            asks = f", may ask for {' and '.join(one.may_ask)}" if one.may_ask else ""
            typer.echo(f"  {one.name}: {one.transport or 'no transport'}, {one.level}{tools}{asks}")
            for line in [*one.findings, *(f"tool {name}: {how}" for name, how in one.changes.items())]:
                typer.echo(f"    - {line}")
        for decision in dict.fromkeys(flow.decision for flow in found.flows):
            pairs = [f"{f.source} -> {f.target}" for f in found.flows if f.decision == decision]
            more = f" and {len(pairs) - 8} more" if len(pairs) > 8 else ""
            typer.echo(f"flows, {decision}: {', '.join(pairs[:8])}{more}")
        for verdict in verdicts:
            if verdict.denied:
                typer.echo(
                    f"line {verdict.line}: {verdict.server} {verdict.target}: {verdict.denied}: {verdict.message}"
                )
        if traffic is not None:
            typer.echo(f"{sum(bool(v.denied) for v in verdicts)} of {len(verdicts)} recorded requests would be refused")
    if strict and not (found.clean and not any(v.denied for v in verdicts)):
        raise typer.Exit(1)


@mcp_sec_app.command()
def issue(
    server: Annotated[str, typer.Option(help="Id of the server.")],
    key: Annotated[Path, typer.Option(help="PEM file of the issuer's Ed25519 key.")],
    server_key: Annotated[Path, typer.Option(help="PEM file of the server's Ed25519 key.")],
    issuer: Annotated[str, typer.Option(help="Name of the issuer, as in trust files.")],
    output: Annotated[Path, typer.Option(help="Where the certificate goes.")],
    tools: Annotated[Path | None, typer.Option(help="The server's tool list as JSON.")] = None,
    capabilities: Annotated[str, typer.Option(help="Names with commas between.")] = "tools",
    effects: Annotated[str, typer.Option(help="NAME=read|write|external, with commas between.")] = "",
    days: Annotated[float, typer.Option(help="That it is valid.")] = 90.0,
    create: Annotated[bool, typer.Option("--create", help="Make key files that do not exist.")] = False,
    trust: Annotated[Path | None, typer.Option(help="Add the issuer's public key to this trust file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Sign what a server may do."""
    try:
        from heliograph.agents.core.identity import Identity
        from heliograph.agents.mcp_sec.certificates import CapabilityCertificate, pins_of
        from heliograph.agents.mcp_sec.trust import new_issuer_file, write_whole
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    listed: list[Any] = []
    if tools is not None:
        try:
            raw = json.loads(tools.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BadInput(f"cannot read the tool list {tools}: {error}") from None
        listed = raw.get("tools", raw.get("result", {}).get("tools")) if isinstance(raw, dict) else raw
        if not isinstance(listed, list):
            raise BadInput(f'{tools} is no tool list: it needs an array, or {{"tools": [...]}}')
    sides: dict[str, Any] = {}
    for part in filter(None, effects.split(",")):
        name, _, effect = part.partition("=")
        if effect not in ("read", "write", "external"):
            raise BadInput(f"--effects takes NAME=read, NAME=write or NAME=external; got {part!r}")
        sides[name.strip()] = effect
    if output.exists():
        raise BadInput(f"{output} exists; a certificate is never written over")
    absent = [path for path in (key, server_key) if not path.exists()]
    if absent and not create:
        raise BadInput(f"there is no key {absent[0]}; --create makes it")
    wanted = [one.strip() for one in capabilities.split(",") if one.strip()]
    pins = pins_of(listed, sides)
    CapabilityCertificate.issue(  # refused before any key is written
        server,
        Identity.generate().public,
        Identity.generate(),
        issued_by=issuer,
        capabilities=wanted,
        tools=pins,
        days=days,
    )
    for path in absent:
        Identity.generate().save(path)
    signer, own = Identity.load(key), Identity.load(server_key)
    certificate = CapabilityCertificate.issue(
        server, own.public, signer, issued_by=issuer, capabilities=wanted, tools=pins, days=days
    )
    if trust is not None:
        new_issuer_file(trust, issuer, signer)
    write_whole(output, json.dumps(certificate.to_dict(), indent=2).encode() + b"\n")
    if as_json:
        _print(certificate.to_dict())
    else:
        typer.echo(f"{output}: {server}, {', '.join(certificate.capabilities)}, {len(pins)} tools, {days:g} days")


@mcp_sec_app.command()
def verify(
    certificate: Annotated[Path, typer.Argument(help="A certificate.")],
    trust: Annotated[Path, typer.Option(help="Trust file with issuers.")],
    server: Annotated[str, typer.Option(help="Id that the server must have; the certificate's by default.")] = "",
    self_signed: Annotated[bool, typer.Option("--self-signed", help="Accept one that the server signed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check a certificate; exit 1 and the reason if it is refused."""
    try:
        from heliograph.agents.mcp_sec.certificates import CapabilityCertificate, SecurityError
        from heliograph.agents.mcp_sec.denial import actions_for
        from heliograph.agents.mcp_sec.trust import TrustStore
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    store = TrustStore.load(trust)
    reason = message = ""
    try:
        found = CapabilityCertificate.load(certificate)
        store.check(found, server or found.server_id, self_signed=self_signed)
    except SecurityError as error:
        reason, message = error.reason, str(error)
    if as_json:
        _print(
            {
                "ok": not reason,
                "reason": reason,
                "message": message,
                "suggested_actions": list(actions_for(reason)) if reason else [],
            }
        )
    else:
        typer.echo(f"{certificate}: {reason}: {message}" if reason else f"{certificate}: good")
    if reason:
        raise typer.Exit(1)


@mcp_sec_app.command()
def pin(
    config: ConfigPath,
    names: Annotated[list[str] | None, typer.Argument(help="Servers; all of them by default.")] = None,
    pins: Annotated[Path | None, typer.Option(help="File for the pins, instead of the policy's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Ask servers and remember them as they are now: this approves changed tools and new keys."""
    import msgspec

    try:
        from heliograph.agents.mcp_sec.survey import pin_servers
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    found = pin_servers(config, names or [], pins)
    if as_json:
        _print(msgspec.to_builtins(found))
        return
    for name, one in found.items():
        level = f"attested, key {one.kid}" if one.attested else "unverified"
        typer.echo(f"{name}: {level}, {len(one.tools)} tools")


@mcp_sec_app.command()
def bench(
    agent: Annotated[str, typer.Option(help="worst, likelihood or chat.")] = "worst",
    arms: Annotated[str, typer.Option(help="Names with commas between.")] = "twin,mcp,mcp+prompt,mcpsec",
    isolation: Annotated[str, typer.Option(help="context, value or off.")] = "value",
    counts: Annotated[str, typer.Option(help="FAMILY=N, with commas between; all of the slim world by default.")] = "",
    seed: Annotated[int, typer.Option(help="Of the scenarios' details.")] = 0,
    model: Annotated[str, typer.Option(help="GGUF file or folder for likelihood; name of the model for chat.")] = "",
    url: Annotated[str, typer.Option(help="Of a server with the OpenAI interface, for chat.")] = "",
    as_json: AsJson = False,
) -> None:
    """Play attacks and their benign twins through the arms."""
    try:
        from heliograph.agents.core.lm import OpenAICompatible
        from heliograph.agents.mcp_sec.agents import BenchAgent, ChatAgent, LikelihoodAgent, WorstCaseAgent
        from heliograph.agents.mcp_sec.bench import AttackBench
        from heliograph.agents.mcp_sec.prefix import PrefixScorer
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    wanted: dict[str, int] = {}
    for part in filter(None, counts.split(",")):
        name, _, number = part.partition("=")
        if not number.isdigit():
            raise BadInput(f"--counts takes FAMILY=N; got {part!r}")
        wanted[name.strip()] = int(number)
    attacked: BenchAgent
    if agent == "worst":
        attacked = WorstCaseAgent()
    elif agent == "likelihood":
        attacked = LikelihoodAgent(PrefixScorer(model or None))
    elif agent == "chat":
        if not url or not model:
            raise BadInput("--agent chat needs --url and --model of a server with the OpenAI interface")
        attacked = ChatAgent(OpenAICompatible(url, model))
    else:
        raise BadInput(f"--agent is worst, likelihood or chat; got {agent!r}")
    found = AttackBench(attacked, arms=[one.strip() for one in arms.split(",") if one.strip()], isolation=isolation)
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("scenarios", total=1.0)
        report = found.run(
            counts=wanted or None,
            seed=seed,
            progress=lambda share, last: bar.update(task, completed=share, description=last),
        )
    if as_json:
        _print(report.to_dict())
        return
    typer.echo(f"{report.suite}; agent: {attacked.name}; isolation: {isolation}")
    for row in report.table():
        interval = f"{100 * row['low']:.0f}-{100 * row['high']:.0f} %"
        typer.echo(f"  {row['family']:<10} {row['arm']:<15} {row['part']:>4} of {row['whole']:<4} ({interval})")
    for arm in found.arms:
        useful, refused = report.utility(arm), report.false_denials(arm)
        typer.echo(f"  {arm}: task done in {useful.part} of {useful.whole} benign runs, {refused.part} with a refusal")
