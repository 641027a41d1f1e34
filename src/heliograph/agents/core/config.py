"""The gateway's configuration file: the usual ``mcpServers`` JSON, and beside it a key ``heliograph`` for policy.

The JSON Schema is published as ``gateway.schema.json`` next to this module (:func:`json_schema` makes it). Values may
hold ``${NAME}`` for a variable of the environment, so that secrets stay out of the file.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from heliograph.agents.core.identity import Principal, StaticTokens, TokenVerifier
from heliograph.agents.core.stages import stage_schema
from heliograph.agents.core.upstream import UpstreamSpec
from heliograph.errors import BadInput

__all__ = ["Audit", "Auth", "GatewayConfig", "Listen", "Policy", "Rate", "Stage", "json_schema", "read_config"]

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]


class McpServer(msgspec.Struct, frozen=True):
    """One entry of ``mcpServers``; keys of other programs are left alone."""

    url: str = ""
    headers: dict[str, str] = {}
    command: str = ""
    args: list[str] = []
    env: dict[str, str] = {}
    cwd: str = ""
    disabled: bool = False


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of ours: a key that we do not know is a mistake."""


class Listen(_Strict, frozen=True):
    """Where callers reach the gateway. A host beyond loopback needs ``auth``."""

    host: str = "127.0.0.1"
    port: Port = 8080
    path: Annotated[str, msgspec.Meta(pattern="^/")] = "/mcp"
    allowed_hosts: list[str] = []
    allowed_origins: list[str] = []
    max_body_bytes: Count = 4 * 1024 * 1024
    max_sessions: Count = 10_000


class Token(_Strict, frozen=True):
    """A bearer token and whose it is."""

    token: str
    subject: str
    tenant: str = ""
    scopes: list[str] = []
    roles: list[str] = []


class Auth(_Strict, frozen=True):
    """Who may call: fixed tokens, or JSON Web Tokens checked against the keys in a file."""

    tokens: list[Token] = []
    jwks: str = ""
    issuer: str = ""
    audience: str = ""


class Audit(_Strict, frozen=True):
    """Where requests are recorded."""

    path: str
    arguments: Literal["hash", "full"] = "hash"
    fsync: Literal["always", "interval", "never"] = "interval"
    fail_open: bool = False


class Rate(_Strict, frozen=True):
    """How often one caller may call one tool."""

    per_second: Positive
    burst: Annotated[float, msgspec.Meta(ge=1)] = 1.0


class Limits(_Strict, frozen=True):
    """Limits of one upstream, or of all under the name ``*``."""

    era: Literal["auto", "sessions"] | None = None
    timeout_s: Positive | None = None
    connect_timeout_s: Positive | None = None
    max_response_bytes: Count | None = None
    max_concurrency: Count | None = None
    max_sessions: Count | None = None


class Stage(_Strict, frozen=True):
    """An interceptor by its registered name."""

    name: str
    options: dict[str, Any] = {}


class Policy(_Strict, frozen=True):
    """Everything that is ours."""

    listen: Listen = Listen()
    auth: Auth | None = None
    audit: Audit | None = None
    rate: Rate | None = None
    upstreams: dict[str, Limits] = {}
    stages: list[Stage] = []
    mcpsec: dict[str, Any] | None = None
    separator: str = "."
    drain_s: Positive = 10.0


class _File(msgspec.Struct, frozen=True, rename={"servers": "mcpServers", "policy": "heliograph"}):
    """The whole file."""

    servers: dict[str, McpServer]
    policy: Policy = Policy()


class GatewayConfig(msgspec.Struct, frozen=True):
    """A file that was read and checked.

    Attributes:
        path: of the file.
        specs: how to reach each upstream.
        policy: ours.
    """

    path: Path
    specs: dict[str, UpstreamSpec]
    policy: Policy

    def verifier(self) -> StaticTokens | TokenVerifier | None:
        """What checks bearer tokens; None without ``auth``.

        Raises:
            BadInput: the key set cannot be used, or ``auth`` names neither tokens nor keys.
        """
        auth = self.policy.auth
        if auth is None:
            return None
        if bool(auth.tokens) == bool(auth.jwks):
            raise BadInput(f"{self.path}: heliograph.auth needs tokens or jwks, one of them")
        if auth.jwks:
            return TokenVerifier.from_file(self.path.parent / auth.jwks, audience=auth.audience, issuer=auth.issuer)
        return StaticTokens(
            {
                entry.token: Principal(entry.subject, entry.tenant, frozenset(entry.scopes), frozenset(entry.roles))
                for entry in auth.tokens
            }
        )


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of the file."""
    schema = msgspec.json.schema(_File)
    own = stage_schema("mcpsec")
    if own is not None:
        schema["$defs"] |= own.pop("$defs")
        schema["$defs"]["Policy"]["properties"]["mcpsec"] = {"anyOf": [own, {"type": "null"}], "default": None}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "heliograph gateway", **schema}


def read_config(path: str | Path, environment: Mapping[str, str] | None = None) -> GatewayConfig:
    """Reads and checks a file.

    Args:
        path: of the file.
        environment: for ``${NAME}``; this process's by default.

    Raises:
        BadInput: not readable, not JSON, or a value is wrong; the message names its path in the file.
    """
    path = Path(path)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise BadInput(f"{path} is not JSON: {error}") from None
    expanded = _expand(raw, os.environ if environment is None else environment, "$")
    try:
        file = msgspec.convert(expanded, _File)
    except msgspec.ValidationError as error:
        raise BadInput(f"{path}: {error}") from None
    unknown = sorted(set(file.policy.upstreams) - set(file.servers) - {"*"})
    if unknown:
        raise BadInput(f"{path}: $.heliograph.upstreams.{unknown[0]} is no entry of mcpServers")
    specs = {}
    for name, server in file.servers.items():
        if server.disabled:
            continue
        try:
            specs[name] = _spec(server, file.policy, name, path)
        except BadInput as error:
            raise BadInput(f"{path}: $.mcpServers.{name}: {error}") from None
    if not specs:
        raise BadInput(f"{path}: $.mcpServers has no enabled server; a gateway needs at least one")
    return GatewayConfig(path, specs, file.policy)


def _spec(server: McpServer, policy: Policy, name: str, path: Path) -> UpstreamSpec:
    limits: dict[str, Any] = {}
    for key in ("*", name):
        if key in policy.upstreams:
            given = msgspec.structs.asdict(policy.upstreams[key])
            limits |= {field: value for field, value in given.items() if value is not None}
    return UpstreamSpec(
        url=server.url,
        headers=server.headers,
        command=server.command,
        args=tuple(server.args),
        env=server.env,
        cwd=str(path.parent / server.cwd) if server.cwd else "",
        **limits,
    )


def _expand(value: Any, environment: Mapping[str, str], where: str) -> Any:
    if isinstance(value, str):

        def put(match: re.Match[str]) -> str:
            name = match.group(1)
            if name not in environment:
                raise BadInput(f"{where} needs the variable {name}, which the environment does not have")
            return environment[name]

        return re.sub(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}", put, value)
    if isinstance(value, dict):
        return {key: _expand(item, environment, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, environment, f"{where}[{number}]") for number, item in enumerate(value)]
    return value
