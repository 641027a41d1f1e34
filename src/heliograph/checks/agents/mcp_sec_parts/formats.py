"""Codes, certificates, nonces and labels against references written another way, and planted mistakes."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

import msgspec
from mcp_types import JSONRPCRequest

from heliograph.agents.core.identity import Identity, IdentityError
from heliograph.agents.mcp_sec.certificates import CapabilityCertificate, SecurityError, pins_of
from heliograph.agents.mcp_sec.channel import ClientChannel, KeyOffer, ServerChannel
from heliograph.agents.mcp_sec.flow import FlowTracker
from heliograph.agents.mcp_sec.nonces import SharedNonces
from heliograph.agents.mcp_sec.trust import TrustStore
from heliograph.trials.check import Context

__all__ = ["measure"]


def _value(noise: random.Random, depth: int = 0) -> Any:
    kind = noise.randrange(8 if depth < 3 else 5)
    if kind == 0:
        return noise.choice((None, True, False))
    if kind == 1:
        return noise.randrange(-(2**53) + 1, 2**53)
    if kind == 2:
        return noise.choice((0.1, 1e-7, -0.0, 1e21, 2.5e300, noise.gauss(0, 1e6)))
    if kind < 5:
        return "".join(
            chr(noise.choice((65, 34, 92, 0x7F, 0xE9, 0x2028, 0x1F600, 10))) for _ in range(noise.randrange(9))
        )
    if kind < 7:
        return {str(noise.randrange(99)): _value(noise, depth + 1) for _ in range(noise.randrange(4))}
    return [_value(noise, depth + 1) for _ in range(noise.randrange(4))]


def _refuses(call: Any, *args: Any) -> bool:
    try:
        call(*args)
    except SecurityError:
        return True
    return False


def _messages(cases: int, noise: random.Random) -> tuple[list[bool], list[bool]]:
    """Whether what was signed verifies after the SDK wrote and read it, and whether one flipped bit is refused."""
    now = [1e9]
    issuer, key = Identity.generate(), Identity.generate()
    certificate = CapabilityCertificate.issue(
        "s", key.public, issuer, issued_by="i", capabilities=["tools"], now=now[0]
    )
    there = ServerChannel(certificate, key, now=lambda: now[0])
    offer = msgspec.convert(there.hello()["offer"], KeyOffer)
    here = ClientChannel(certificate, offer, client_id="c", version="v", now=lambda: now[0])
    passed, refused = [], []
    for number in range(cases):
        now[0] += 1.0
        signed, pending = here.sign("tools/call", {"name": "t", "arguments": {"x": _value(noise), "n": number}})
        wire = JSONRPCRequest(jsonrpc="2.0", id=number, method="tools/call", params=signed).model_dump_json()
        text = bytearray(json.dumps(signed).encode())
        text[noise.randrange(len(text))] ^= 1 << noise.randrange(8)
        try:
            flipped = json.loads(text)
        except ValueError:  # UnicodeDecodeError too
            flipped = None
        if isinstance(flipped, dict) and flipped != signed:
            refused.append(_refuses(there.check_request, "tools/call", flipped))
        params = JSONRPCRequest.model_validate_json(wire).params
        try:
            _, auth = there.check_request("tools/call", params)
            here.check_result(pending, there.sign_result(auth, "tools/call", {"x": _value(noise)}))
            passed.append(True)
        except SecurityError:
            passed.append(False)
        refused.append(_refuses(there.check_request, "tools/call", params))  # the same once more
    return passed, refused


def _certificates(cases: int, noise: random.Random) -> tuple[list[bool], list[bool]]:
    """Whether each fault has the reason that it was given, and a good certificate none."""
    issuer, key, other = (Identity.generate() for _ in range(3))
    tools = pins_of([{"name": "t", "inputSchema": {}}])
    fine: list[bool] = []
    refused: list[bool] = []
    for _ in range(cases):
        fault = noise.choice(
            ("", "server_id_mismatch", "expired", "not_yet_valid", "signature", "unknown_issuer", "revoked")
        )
        made = CapabilityCertificate.issue(
            "a" if fault != "server_id_mismatch" else "b",
            key.public,
            other if fault == "signature" else issuer,
            issued_by="nobody" if fault == "unknown_issuer" else "i",
            capabilities=["tools"],
            tools=tools,
            now={"expired": 1e6, "not_yet_valid": 1e9 + 1e5}.get(fault, 1e9 - 10),
        )
        trust = TrustStore({"i": issuer.public}, revoked=(key.kid,) if fault == "revoked" else ())
        try:
            trust.check(made, "a", now=1e9)
            found = ""
        except SecurityError as error:
            found = error.reason
        (refused if fault else fine).append(found == fault)
    return fine, refused


def reference_labels(events: list[tuple[str, bool]]) -> list[frozenset[str]]:
    """Who answered before each call, the called server left out: recomputed from the whole history each time."""
    return [
        frozenset(server for server, answered in events[:place] if answered) - {events[place][0]}
        for place in range(len(events))
    ]


def _labels(cases: int, noise: random.Random) -> tuple[list[bool], list[bool]]:
    """Whether context mode labels like the reference, and forgetting one answer is noticed."""
    equal, noticed = [], []
    for _ in range(cases):
        events = [(noise.choice("abc"), noise.random() < 0.7) for _ in range(noise.randrange(2, 14))]
        tracker, found = FlowTracker("context"), []
        for server, answers in events:
            found.append(tracker.label("c", server, {}).sources)
            if answers:
                tracker.delivered("c", server, "x")
        wanted = reference_labels(events)
        equal.append(found == wanted)
        lossy = reference_labels([events[0], *((s, False) for s, _ in events[1:])])
        if lossy != wanted:
            noticed.append(found != lossy)
    return equal, noticed


def _nonces(cases: int, noise: random.Random) -> list[bool]:
    """Whether no message is admitted twice, in a store that is too small."""
    store, now = SharedNonces(":memory:", window_s=10.0, capacity=4), 1e6
    admitted: set[int] = set()
    signed: dict[int, float] = {}
    fine: list[bool] = []
    for _ in range(cases):
        now += noise.random() * 3
        message = noise.randrange(30)
        signed.setdefault(message, now)
        try:
            store.admit("k", str(message), signed[message], now)
        except IdentityError:
            continue
        fine.append(message not in admitted)
        admitted.add(message)
    return fine


def measure(context: Context) -> Mapping[str, Any]:
    """Everything that must be equal, and everything that must be refused or noticed."""
    noise, cases = random.Random(context.seed), context.workload["cases"]
    passed, refused = _messages(cases, noise)
    fine, faults = _certificates(max(cases // 4, 20), noise)
    equal, noticed = _labels(cases, noise)
    context.keep("cases", {"messages": len(passed), "refused": len(refused), "certificates": len(fine) + len(faults)})
    return {"equal": [*passed, *fine, *equal, *_nonces(cases, noise)], "notices": [*refused, *faults, *noticed]}
