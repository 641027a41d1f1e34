"""What a configuration of MCP servers exposes: servers, certificates, pins, changes, and who could steer whom."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from heliograph.agents.core.config import read_config
from heliograph.agents.core.links import Call, LinkInfo, LinkLost, ignore, modern_meta
from heliograph.agents.core.upstream import Caller, Upstream, UpstreamSpec
from heliograph.agents.mcp_sec.certificates import CapabilityCertificate, SecurityError, ToolPin, pin_of, pins_of
from heliograph.agents.mcp_sec.hello import read_hello
from heliograph.agents.mcp_sec.peers import tool_change
from heliograph.agents.mcp_sec.policy import SecurityPolicy
from heliograph.agents.mcp_sec.trust import ServerPin, TrustStore
from heliograph.errors import BadInput

__all__ = ["Flow", "ServerReport", "Survey", "meet", "pin_servers", "read_entries", "survey"]

_SECRET = re.compile(r"(?i)token|secret|password|api.?key|credential")
_RUNNERS = {"npx", "uvx", "bunx", "pipx"}
PROBE_S = 20.0


@dataclass
class ServerReport:
    """One server.

    Attributes:
        name: in the file.
        transport: "stdio", "http" or "".
        level: "attested", "unverified", "refused" or "unknown" (not probed, never pinned).
        declared: capabilities that it declares, where it was probed.
        certified: capabilities of its certificate.
        may_ask: of sampling and elicitation, what the policy would let it ask for.
        tools: how many, where known.
        changes: tools that differ from what was pinned, and how.
        findings: in words.
    """

    name: str
    transport: str = ""
    level: Literal["attested", "unverified", "refused", "unknown"] = "unknown"
    declared: tuple[str, ...] = ()
    certified: tuple[str, ...] = ()
    may_ask: tuple[str, ...] = ()
    tools: int | None = None
    changes: dict[str, str] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Flow:
    """A way that content could take between two servers.

    Attributes:
        source, target: of it.
        decision: "granted", "ask", "deny", "allow" or "unwatched" (isolation is off).
    """

    source: str
    target: str
    decision: str


@dataclass(frozen=True)
class Survey:
    """All servers of a file.

    Attributes:
        servers: in its order.
        flows: all pairs, where there are at most 50 servers.
        policy: the mode and isolation that apply; "" where the file has no policy.
    """

    servers: tuple[ServerReport, ...]
    flows: tuple[Flow, ...]
    policy: str

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return not any(one.findings or one.changes for one in self.servers)


def read_entries(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The servers, and the policy of ours, as the file has them; other programs' files too.

    Raises:
        BadInput: not readable, or no such file.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise BadInput(f"{path} is not JSON: {error}") from None
    if not isinstance(raw, Mapping):
        raise BadInput(f"{path} is not a configuration: it needs an object with mcpServers")
    servers = raw.get("mcpServers", raw.get("servers", {}))
    if not isinstance(servers, Mapping) or not all(isinstance(one, Mapping) for one in servers.values()):
        raise BadInput(f"{path}: mcpServers is an object of objects")
    own = raw.get("heliograph", {})
    policy = own.get("mcpsec") if isinstance(own, Mapping) else None
    return servers, policy if isinstance(policy, Mapping) else {}


def _static(name: str, entry: Mapping[str, Any]) -> ServerReport:
    report = ServerReport(name)
    url, command = str(entry.get("url", "")), str(entry.get("command", ""))
    report.transport = "http" if url else "stdio" if command else ""
    if not report.transport:
        report.findings.append("has neither a url nor a command")
    if url.startswith("http://") and not re.match(r"http://(localhost|127\.|\[::1\])", url):
        report.findings.append("is reached without TLS")
    arguments = [str(one) for one in entry.get("args", ()) if isinstance(one, str)]
    if Path(command).name in _RUNNERS:
        package = next((one for one in arguments if not one.startswith("-")), "")
        if not re.search(r"[^/]@\d|==\d", package):
            report.findings.append(
                f"runs {package or 'a package'} without a fixed version: its tools may change any day"
            )
    for place in ("env", "headers"):
        values = entry.get(place)
        for key, value in values.items() if isinstance(values, Mapping) else ():
            if _SECRET.search(str(key)) and isinstance(value, str) and value and "${" not in value:
                report.findings.append(f"{place}.{key} is written out in the file; use ${{NAME}}")
    return report


async def meet(name: str, spec: UpstreamSpec) -> tuple[LinkInfo, list[dict[str, Any]]]:
    """What a server says of itself, and its tools.

    Raises:
        LinkLost: it cannot be reached.
    """
    upstream = Upstream(name, spec)
    try:
        async with asyncio.timeout(PROBE_S):
            link = await upstream.link(Caller(None, ""))
            tools: list[dict[str, Any]] = []
            cursor: dict[str, Any] = {}
            meta = {"_meta": modern_meta(link.info.version)} if link.info.modern else {}
            while "tools" in link.info.capabilities and len(tools) < 10_000:
                page = await link.call("tools/list", {**cursor, **meta}, Call(ignore))
                tools += [one for one in page.get("tools", ()) if isinstance(one, dict)]
                if page.get("nextCursor") is None:
                    break
                cursor = {"cursor": page["nextCursor"]}
            return link.info, tools
    except TimeoutError:
        raise LinkLost(f"{name} did not answer within {PROBE_S:g} s") from None
    finally:
        await upstream.close()


def _compare(report: ServerReport, approved: Sequence[ToolPin], tools: list[dict[str, Any]], version: str) -> None:
    report.tools = len(tools)
    known = {one.name: one for one in approved}
    if not known:
        return
    for tool in tools:
        change = tool_change(known.get(str(tool.get("name"))), tool, version)
        if change:
            report.changes[str(tool.get("name"))] = change
    gone = sorted(set(known) - {str(tool.get("name")) for tool in tools})
    report.changes |= dict.fromkeys(gone, "gone")


async def _probe(report: ServerReport, spec: UpstreamSpec, trust: TrustStore, policy: SecurityPolicy) -> None:
    try:
        info, tools = await meet(report.name, spec)
    except Exception as error:  # whatever a foreign server does is a finding
        report.findings.append(f"cannot be asked: {error}")
        return
    report.declared = tuple(sorted(set(info.capabilities) - {"extensions", "experimental"}))
    pin = trust.pin(report.name)
    certificate: CapabilityCertificate | None = None
    try:
        hello = read_hello(info.capabilities)
        if hello is None:
            report.level = "unverified"
            if pin is not None and pin.attested:
                report.findings.append("had a certificate before and shows none now: a downgrade")
        else:
            certificate = hello[0]
            expected = policy.server_ids.get(report.name, report.name)
            trust.check(certificate, expected, self_signed=policy.self_signed)
            report.level = "attested"
            report.certified = tuple(certificate.capabilities)
            extra = sorted(set(report.declared) & {"tools", "prompts", "resources"} - set(report.certified))
            report.findings += [f"declares {one} without being certified for it" for one in extra]
    except SecurityError as error:
        report.level = "refused"
        report.findings.append(str(error))
    approved = certificate.tools if certificate is not None else () if pin is None else pin.tools
    _compare(report, approved, tools, info.version)


def _policy(path: Path, options: Mapping[str, Any]) -> SecurityPolicy:
    return SecurityPolicy.from_mapping({"folder": str(path.parent), **options})


def trust_of(policy: SecurityPolicy) -> TrustStore:
    """The trust store that a policy names."""
    issuers, pins = policy.path("issuers"), policy.path("pins")
    return TrustStore(pins=pins) if issuers is None else TrustStore.load(issuers, pins=pins)


def survey(path: str | Path, *, probe: bool = False) -> Survey:
    """Looks at a configuration, a gateway's or another program's.

    Args:
        path: of the JSON file with ``mcpServers``.
        probe: start or ask each server; otherwise nothing is started and no network is used.

    Raises:
        BadInput: the file or its policy cannot be used.
    """
    path = Path(path)
    servers, options = read_entries(path)
    policy = _policy(path, options)
    trust = trust_of(policy)
    reports = {name: _static(name, entry) for name, entry in servers.items() if not entry.get("disabled")}
    for name, report in reports.items():
        pin = trust.pin(name)
        if pin is not None:
            report.level = "attested" if pin.attested else "unverified"
            report.certified, report.tools = pin.capabilities, len(pin.tools)
    if probe and reports:
        specs = read_config(path).specs

        async def everyone() -> None:
            gate = asyncio.Semaphore(8)

            async def one(report: ServerReport) -> None:
                async with gate:
                    await _probe(report, specs[report.name], trust, policy)

            await asyncio.gather(*(one(report) for report in reports.values() if report.name in specs))

        asyncio.run(everyone())
    for report in reports.values():
        if report.level == "attested":
            report.may_ask = tuple(one for one in ("sampling", "elicitation") if one in report.certified)
        elif policy.mode != "strict" and report.level != "refused":
            report.may_ask = ("sampling", "elicitation")
    named = f"{policy.mode}, isolation {policy.flow.isolation}" if options else ""
    return Survey(tuple(reports.values()), tuple(_flows(list(reports), policy, bool(options))), named)


def _flows(names: list[str], policy: SecurityPolicy, enforced: bool) -> list[Flow]:
    if len(names) > 50:
        return []
    granted = [(rule.source, rule.target) for rule in policy.flow.grants]
    found = []
    for source in names:
        for target in names:
            if source == target:
                continue
            if not enforced or policy.flow.isolation == "off":
                decision = "unwatched"
            elif any(a in ("*", source) and b in ("*", target) for a, b in granted):
                decision = "granted"
            else:
                decision = policy.flow.on_flow
            found.append(Flow(source, target, decision))
    return found


def pin_servers(path: str | Path, names: Sequence[str], pins: str | Path | None = None) -> dict[str, ServerPin]:
    """Asks servers and remembers them as they are now, whatever was remembered before.

    Args:
        path: a gateway's configuration.
        names: of servers; all of them if empty.
        pins: file for the pins; by default the one that the policy names.

    Raises:
        BadInput: no such server, no file for pins, or a server cannot be asked or shows a bad certificate.
    """
    import time

    path = Path(path)
    _, options = read_entries(path)
    policy = _policy(path, options)
    place = Path(pins) if pins is not None else policy.path("pins")
    if place is None:
        raise BadInput("name a file for the pins: --pins FILE, or heliograph.mcpsec.pins in the configuration")
    issuers = policy.path("issuers")
    trust = TrustStore(pins=place) if issuers is None else TrustStore.load(issuers, pins=place)
    specs = read_config(path).specs
    unknown = sorted(set(names) - set(specs))
    if unknown:
        raise BadInput(f"{path} has no enabled server {unknown[0]!r}; it has {', '.join(specs)}")
    found: dict[str, ServerPin] = {}
    for name in names or specs:
        try:
            info, tools = asyncio.run(meet(name, specs[name]))
            hello = read_hello(info.capabilities)
            if hello is not None:
                trust.check(hello[0], policy.server_ids.get(name, name), self_signed=policy.self_signed)
        except (LinkLost, SecurityError) as error:
            raise BadInput(f"cannot pin {name}: {error}") from None
        now = time.time()
        if hello is None:
            found[name] = ServerPin(tools=pins_of(tools), since=now)
            continue
        certificate = hello[0]
        beside = tuple(pin_of(t) for t in tools if tool_change(certificate.pins.get(t["name"]), t, info.version))
        found[name] = ServerPin(
            certificate.server_id,
            certificate.key.kid,
            certificate.digest,
            tuple(certificate.capabilities),
            certificate.tools,
            now,
            certificate.issued_by == certificate.server_id,
            beside,
        )
    for name, pin in found.items():
        trust.remember(name, pin)
    return found
