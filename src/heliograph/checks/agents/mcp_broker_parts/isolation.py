"""Many tenants before a careless server, honest calls and attacks: does anything of one tenant reach another?"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from heliograph.agents.core.audit import AuditLog, verify
from heliograph.agents.core.identity import TokenVerifier
from heliograph.agents.mcp_broker.context import CONTEXT_KEY, verify_context
from heliograph.agents.mcp_broker.pipeline import broker_stages
from heliograph.agents.mcp_broker.tokens import TOKEN_KEY
from heliograph.checks.agents.mcp_broker_parts.bench import (
    MARKER,
    SECRET,
    broker_options,
    careless_server,
    gateway_before,
    request,
    serving,
)
from heliograph.trials.check import Context

__all__ = ["ATTACKS", "KeyPair", "leaks", "measure"]

AUDIENCE, ISSUER = "https://gateway.example", "https://idp.example"
_MARKED = re.compile(re.escape(MARKER) + r"(t\d+)\.")


class KeyPair:
    """An issuer: a key, its public form, and tokens.

    Args:
        seed: of the key.
    """

    def __init__(self, seed: int = 1) -> None:
        self.private = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
        public = json.loads(jwt.algorithms.OKPAlgorithm.to_jwk(self.private.public_key()))
        self.jwks = {"keys": [{**public, "kid": "k1", "alg": "EdDSA"}]}

    def verifier(self) -> TokenVerifier:
        """That accepts its tokens."""
        return TokenVerifier(self.jwks, audience=AUDIENCE, issuer=ISSUER)

    def token(self, tenant: str, *, kid: str = "k1", **changes: Any) -> str:
        """For an agent of a tenant; a claim that is None is left out."""
        claims: dict[str, Any] = {"sub": f"agent-{tenant}", "iss": ISSUER, "aud": AUDIENCE, "exp": time.time() + 600}
        claims |= {"tenant_id": tenant, "roles": ["agent"], **changes}
        kept = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(kept, self.private, "EdDSA", headers={"kid": kid})


def leaks(text: str, tenant: str) -> list[str]:
    """Tenants other than this one whose records a text holds."""
    return sorted(set(_MARKED.findall(text)) - {tenant})


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unsigned(keys: KeyPair, victim: str) -> str:
    body = keys.token(victim).split(".")[1]
    return f"{_b64(json.dumps({'alg': 'none', 'kid': 'k1'}).encode())}.{body}."


def _confused(keys: KeyPair, victim: str) -> str:
    """Signed with the public key as if it were a shared secret."""
    head = _b64(json.dumps({"alg": "HS256", "kid": "k1", "typ": "JWT"}).encode())
    body = keys.token(victim).split(".")[1]
    raw = keys.private.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return f"{head}.{body}.{_b64(hmac.new(raw, f'{head}.{body}'.encode(), hashlib.sha256).digest())}"


def _swapped(keys: KeyPair, victim: str) -> str:
    head, _, signature = keys.token("t0" if victim != "t0" else "t1").split(".")
    return f"{head}.{keys.token(victim).split('.')[1]}.{signature}"


@dataclass(frozen=True)
class Stance:
    """Who attacks whom.

    Attributes:
        keys: of the issuer, which the attacker cannot use for tokens of others; some attacks assume that it can.
        own, victim: tenants.
    """

    keys: KeyPair
    own: str
    victim: str


@dataclass(frozen=True)
class Attack:
    """One way in.

    Attributes:
        name: of it.
        token: the attacker's bearer token; None for no header.
        tool, query: that it calls.
        meta: what it puts into ``_meta``.
        header: further headers.
        refused: the answer must be a refusal, not just free of foreign records.
    """

    name: str
    token: Callable[[Stance], str | None]
    tool: str = "find"
    query: str = "r"
    meta: Callable[[Stance], dict[str, Any]] = lambda _: {}
    header: Mapping[str, str] | None = None
    refused: bool = True


def _own(stance: Stance) -> str:
    return stance.keys.token(stance.own)


def _forged(stance: Stance) -> dict[str, Any]:
    return {CONTEXT_KEY: {"tenant": stance.victim, "user": f"agent-{stance.victim}", "scopes": [], "sig": "0" * 64}}


def _attacks() -> Iterator[Attack]:
    yield Attack("no token", lambda _: None)
    yield Attack("not a token", lambda _: "not.a.token")
    yield Attack("very long token", lambda _: "a" * 5000)
    yield Attack("unsigned", lambda s: _unsigned(s.keys, s.victim))
    yield Attack("public key as secret", lambda s: _confused(s.keys, s.victim))
    yield Attack("another key", lambda s: KeyPair(9).token(s.victim))
    yield Attack("unknown key id", lambda s: s.keys.token(s.victim, kid="k2"))
    yield Attack("content swapped", lambda s: _swapped(s.keys, s.victim))
    yield Attack("expired", lambda s: s.keys.token(s.victim, exp=time.time() - 3600))
    yield Attack("not valid yet", lambda s: s.keys.token(s.victim, nbf=time.time() + 3600))
    yield Attack("another audience", lambda s: s.keys.token(s.victim, aud="https://elsewhere.example"))
    yield Attack("another issuer", lambda s: s.keys.token(s.victim, iss="https://evil.example"))
    yield Attack("no subject", lambda s: s.keys.token(s.victim, sub=None))
    yield Attack("no expiry", lambda s: s.keys.token(s.victim, exp=None))
    yield Attack("no tenant", lambda s: s.keys.token(s.victim, tenant_id=None))
    yield Attack("no role", lambda s: s.keys.token(s.own, roles=[]))
    yield Attack("denied tool", _own, tool="delete_all")
    yield Attack("routing header names another tool", _own, tool="delete_all", header={"mcp-name": "find"})
    yield Attack("victim's token in the message", _own, meta=lambda s: {TOKEN_KEY: s.keys.token(s.victim)})
    yield Attack("forged context", _own, tool="context", meta=_forged, refused=False)
    yield Attack("victim's record by its id", _own, query="victim", refused=False)
    yield Attack("all records as text", _own, tool="dump", refused=False)
    yield Attack("records in an error text", _own, tool="fail", refused=False)


ATTACKS = tuple(_attacks())


async def _post(
    http: httpx2.AsyncClient, url: str, token: str | None, tool: str, query: str, **rest: Any
) -> tuple[int, str]:
    body, headers = request("tools/call", {"name": tool, "arguments": {"query": query}}, **rest.get("meta", {}))
    headers |= dict(rest.get("header") or {})
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
    answer = await http.post(url, json=body, headers=headers)
    return answer.status_code, answer.text


def _refused(status: int, text: str) -> bool:
    if status >= 400:
        return True
    return '"error"' in text or '"isError":true' in text.replace(" ", "")


async def _attack(http: httpx2.AsyncClient, url: str, attack: Attack, stance: Stance) -> bool:
    """Whether the attack failed."""
    own = stance.own
    query = f"r{stance.victim[1:]}-" if attack.query == "victim" else attack.query
    status, text = await _post(
        http,
        url,
        attack.token(stance),
        attack.tool,
        query,
        meta=attack.meta(stance),
        header=attack.header,
    )
    if leaks(text, own) or (attack.refused and not _refused(status, text)):
        return False
    if attack.tool == "context":
        told = json.loads(json.loads(text)["result"]["content"][0]["text"])["context"]
        return verify_context({CONTEXT_KEY: told}, SECRET.encode()).tenant == own
    return True


def _served(status: int, text: str, own: str) -> bool:
    """An honest call got all of its own records and no others."""
    found = _MARKED.findall(text)
    return status == 200 and set(found) == {own} and not _refused(status, text)


async def _run(context: Context, log_path: Path) -> dict[str, Any]:
    load, keys = context.workload, KeyPair()
    tenants: int = load["tenants"]
    isolated, served, open_leaks, broken = [], [], 0, []
    async with httpx2.AsyncClient(timeout=30, trust_env=False) as http, serving(careless_server(tenants)) as server:
        with AuditLog(log_path, fsync="never") as log:
            stages = broker_stages(broker_options(), log=log)
            async with gateway_before(server, stages, keys.verifier()) as url:
                for number in range(tenants):
                    own, victim = f"t{number}", f"t{(number + 1) % tenants}"
                    for _ in range(load["calls"]):
                        status, text = await _post(http, url, keys.token(own), "find", "r")
                        isolated.append(not leaks(text, own))
                        served.append(_served(status, text, own))
                    for attack in ATTACKS:
                        safe = await _attack(http, url, attack, Stance(keys, own, victim))
                        isolated.append(safe)
                        broken += [] if safe else [f"{own}: {attack.name}"]
                    context.progress((number + 1) / tenants, f"{len(broken)} attacks succeeded")
                body, headers = request("tools/list", {})
                headers["authorization"] = f"Bearer {keys.token('t0')}"
                listed = (await http.post(url, json=body, headers=headers)).text
                isolated.append("delete_all" not in listed and '"find"' in listed)
        async with gateway_before(server, (), keys.verifier()) as url:
            for number in range(tenants):
                _, text = await _post(http, url, keys.token(f"t{number}"), "find", "r")
                open_leaks += bool(leaks(text, f"t{number}"))
    context.keep("attacks that succeeded", broken[:50])
    context.keep("requests", len(isolated))
    chain = verify(log_path)
    return {
        "isolated": isolated,
        "served": served,
        "recorded": chain.ok and chain.lines >= 2 * len(served),
        "open_leaks": open_leaks == tenants,
    }


def measure(context: Context) -> Mapping[str, Any]:
    """Answers without foreign records, honest calls served whole, the audit chain, and the gateway without stages."""
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_run(context, Path(folder) / "audit.jsonl"))
