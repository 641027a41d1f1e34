"""Ledgers that are changed, and what an entry costs in and beside a block."""

from __future__ import annotations

import hashlib
import json
import random
import statistics
import time
from collections.abc import Mapping
from typing import Any

from heliograph.agents.core.canonical import canonical_bytes
from heliograph.agents.core.identity import Identity, KeyRing
from heliograph.agents.mod_x.ledger import LedgerError, Notary, NotaryLedger, verify_chain, verify_proof
from heliograph.trials.check import Context

__all__ = ["cost", "tamper"]


def _parties(seed: int, notaries: int = 4) -> tuple[Identity, KeyRing, list[Notary], KeyRing]:
    def key(name: str) -> Identity:
        return Identity.from_seed(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=32).digest())

    peer = key("peer")
    ring = KeyRing({"peer": peer.public})
    signers = [Notary(key(f"notary {number}"), ring) for number in range(notaries)]
    trusted = KeyRing({f"notary {number}": one.identity.public for number, one in enumerate(signers)})
    return peer, ring, signers, trusted


def _change(data: bytes, how: str, noise: random.Random) -> bytes:
    if how == "byte":
        place = noise.randrange(len(data))
        return data[:place] + bytes([data[place] ^ noise.randrange(1, 256)]) + data[place + 1 :]
    lines = data.splitlines(keepends=True)
    place = noise.randrange(len(lines) - 1)
    if how == "remove":
        del lines[place]
    elif how == "repeat":
        lines.insert(place, lines[place])
    else:
        lines[place], lines[place + 1] = lines[place + 1], lines[place]
    return b"".join(lines)


def _plain_notices(data: bytes) -> bool:
    """The baseline: a log of JSON lines, which notices what no longer parses."""
    try:
        for line in data.splitlines():
            json.loads(line)
    except ValueError:
        return True
    return False


def tamper(context: Context) -> Mapping[str, Any]:
    """Share of changed chains and proofs that are found; unchanged ones pass."""
    params = context.workload.params
    noise = random.Random(context.seed)
    peer, ring, notaries, trusted = _parties(context.seed)
    ledger = NotaryLedger("peer", peer, notaries, anchor_every=10, wall_time=lambda: 0.0)
    for number in range(int(params["entries"])):
        ledger.append({"n": number, "what": noise.choice(("read", "pay"))}, high_value=noise.random() < 0.1)
    ledger.anchor()
    data = b"".join(canonical_bytes(entry) + b"\n" for entry in ledger.entries)
    found = plain = 0
    trials = int(params["trials"])
    for number in range(trials):
        changed = _change(data, ("byte", "remove", "repeat", "swap")[number % 4], noise)
        plain += _plain_notices(changed)
        try:
            verify_chain(changed, ring)
        except LedgerError:
            found += 1
    proofs = rejected = 0
    for _ in range(trials // 4):
        proof = ledger.prove(noise.randrange(1, ledger.anchored + 1))
        spelled = canonical_bytes(proof)
        place = noise.randrange(len(spelled))
        changed = spelled[:place] + bytes([spelled[place] ^ noise.randrange(1, 128)]) + spelled[place + 1 :]
        proofs += 1
        try:
            verify_proof(json.loads(changed), ring, trusted, 3)
        except (LedgerError, ValueError):
            rejected += 1
    untouched = len(verify_chain(data, ring)) == len(ledger.entries)
    untouched = untouched and all(verify_proof(ledger.prove(seq), ring, trusted, 3) for seq in (1, ledger.anchored))
    context.keep("found", {"trials": trials, "by the ledger": found, "by a plain log": plain, "proofs": proofs})
    return {
        "found": found / trials,
        "plain_found": plain / trials,
        "plain_misses": plain < trials,
        "all_found": [found == trials, rejected == proofs],
        "untouched_pass": bool(untouched),
    }


def cost(context: Context) -> Mapping[str, Any]:
    """Milliseconds and bytes that an entry adds: routine with its share of an anchor, or each in a block of its own."""
    params = context.workload.params
    high = context.contender == "all on the ledger"
    peer, _, notaries, _ = _parties(context.seed)
    ledger = NotaryLedger("peer", peer, notaries, anchor_every=100)
    record = {"caller": "peer-7", "capability": "hotel/find", "arguments": "0" * 64, "result": "1" * 64}
    times = []
    entries = int(params["entries"])
    for _ in range(entries):
        start = time.perf_counter()
        ledger.append(record, high_value=high)
        times.append(1000 * (time.perf_counter() - start))
    blocks = sum(len(canonical_bytes(block.to_builtins())) for block in ledger.blocks)
    return {"median_ms": statistics.median(times), "mean_ms": statistics.fmean(times), "block_bytes": blocks / entries}
