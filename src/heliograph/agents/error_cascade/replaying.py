"""The governor over messages that were sent already: a user's log, or the record of a governor itself."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from heliograph.agents.core.envelope import Envelope
from heliograph.agents.core.interceptor import Rejected
from heliograph.agents.error_cascade.claims import Claim
from heliograph.agents.error_cascade.governor import Counts, Governor
from heliograph.agents.error_cascade.lineage import LineageGraph, Root
from heliograph.agents.error_cascade.logs import LogMessage, MessageLog
from heliograph.errors import BadInput

__all__ = ["Refused", "Replayed", "replay", "replay_record"]


@dataclass(frozen=True)
class Refused:
    """A claim that would have been cut out of a message."""

    line: int
    message: str
    sender: str
    round: int
    claim: Claim
    why: str


@dataclass(frozen=True)
class Replayed:
    """What a governor would have done.

    Attributes:
        lineage: of the whole log.
        refused: claims that it would have cut out, by message.
        roots: where refused claims entered, widest reach first.
        counts: its work.
        too_large: lines of messages with more claims than are screened.
    """

    lineage: LineageGraph
    refused: tuple[Refused, ...]
    roots: tuple[Root, ...]
    counts: Counts
    too_large: tuple[int, ...]


def replay(log: MessageLog, governor: Governor, *, progress: Callable[[int, int], None] | None = None) -> Replayed:
    """Sends a log through a governor, as if each message had been handed in once.

    What it cuts out has in truth been delivered, so the agents of the log went on from it: the lineage shows that.

    Args:
        log: to send.
        governor: a fresh one, which may have been told trusted claims.
        progress: called with the messages done and all.
    """
    return asyncio.run(_replay(log, governor, progress))


async def _replay(log: MessageLog, governor: Governor, progress: Callable[[int, int], None] | None) -> Replayed:
    refused: list[Refused] = []
    too_large: list[int] = []
    heard: dict[tuple[str, str], list[str]] = {}
    for done, message in enumerate(log.messages, 1):
        governor.round = message.round
        env = message.to_envelope()
        if not env.parents:  # nobody said what it answers: what its sender has heard since it last spoke
            env = env.replace(parents=tuple(heard.pop((message.run, message.sender), ())[-16:]))
        try:
            await governor.screen(env, retries=False)
        except Rejected:
            too_large.append(message.line)
        else:
            refused += _refusals(message, env, governor)
        for agent in message.recipients or log.agents:
            if agent != message.sender:
                heard.setdefault((message.run, agent), []).append(message.id)
        if progress is not None:
            progress(done, len(log.messages))
    found = dict.fromkeys(one.claim.id for one in refused)
    roots = dict.fromkeys(root for id_ in found for root in governor.lineage.roots(id_))
    ranked = sorted(roots, key=lambda root: (-len(root.agents_reached), -root.claims_reached))
    return Replayed(governor.lineage, tuple(refused), tuple(ranked), governor.counts, tuple(too_large))


def _refusals(message: LogMessage, env: Envelope, governor: Governor) -> list[Refused]:
    """The claims of a message that are not live, which in the log were said all the same."""
    made = []
    for atom in governor.claims.split(env.payload, env.conv).atoms:
        node = governor.lineage.nodes.get(atom.claim.id)
        if node is None or node.live:
            continue
        governor.lineage.add(atom.claim, message=message.id, agent=message.sender, round=message.round)
        why = node.evidence[-1] if node.evidence else ""
        made.append(Refused(message.line, message.id, message.sender, message.round, atom.claim, why))
    return made


async def replay_record(record: Iterable[Mapping[str, Any]], governor: Governor) -> LineageGraph:
    """Repeats what a governor did, from its ``record``: same decisions, and the same lineage byte for byte.

    Look-ups are taken from the record. The messages must have been screened one after the other, by a governor with the
    same options, and the record must be whole.

    Args:
        record: of the first governor.
        governor: a fresh one with the same options; its verifier is replaced.

    Raises:
        BadInput: an entry is none of ours.
    """
    for number, entry in enumerate(record, 1):
        try:
            kind = entry["op"]
            if kind == "round":
                governor.round = int(entry["round"])
            elif kind == "confirm":
                await governor.confirm(_claim(entry["claim"]), entry["evidence"])
            elif kind == "revoke":
                await governor.revoke(_claim(entry["claim"]), entry["evidence"])
            elif kind == "release":
                await governor.release(_claim(entry["claim"]))
            elif kind == "message":
                await _again(entry, governor)
            else:
                raise ValueError(f"{kind!r} is nothing that a governor does")
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"entry {number} of the record cannot be repeated: {error}") from None
    return governor.lineage


async def _again(entry: Mapping[str, Any], governor: Governor) -> None:
    lookups = entry["lookups"]

    def recorded(claim: Claim) -> bool | None:
        answer = lookups.get(claim.id)
        if answer == "failed":
            raise RuntimeError("failed then too")
        return answer if isinstance(answer, bool) else None

    if governor.verifier is not None:
        governor.verifier = recorded
    with contextlib.suppress(Rejected):
        await governor.screen(Envelope.from_builtins(entry["env"]), retries=entry["retries"])


def _claim(plain: Mapping[str, Any]) -> Claim:
    return Claim(**{**plain, "sources": tuple(plain["sources"])})
