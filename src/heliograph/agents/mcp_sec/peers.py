"""What the enforcer knows of each server, and how that changes.

UNKNOWN becomes ATTESTED by a valid certificate, and LEGACY or REFUSED without one. An attested server that comes back
without its certificate is a downgrade. A tool that is not as it was approved is in quarantine. Too many replays end the
use of a server for a while.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

import msgspec

from heliograph.agents.mcp_sec.certificates import CapabilityCertificate, SecurityError, ToolPin, pin_of
from heliograph.agents.mcp_sec.channel import ClientChannel
from heliograph.agents.mcp_sec.trust import ServerPin

__all__ = ["Met", "Peer", "State", "Step", "next_step", "tool_change"]

Mode = Literal["strict", "prompt", "permissive"]
OLD_LISTS = ("2024-11-05", "2025-03-26")
"""Versions whose tool lists lack titles and output schemas."""


class State(StrEnum):
    """Of a server."""

    UNKNOWN = "unknown"
    ATTESTED = "attested"
    LEGACY = "legacy"
    REFUSED = "refused"
    DISCONNECTED = "disconnected"


@dataclass(frozen=True)
class Step:
    """What to do with a server that was just met.

    Attributes:
        state: that it gets.
        ask: a person decides first.
        reason: of a refusal or question; "" for none.
    """

    state: State
    ask: bool = False
    reason: str = ""


def next_step(mode: Mode, *, certified: bool, pin: ServerPin | None) -> Step:
    """The state machine's edge for a server that shows a valid certificate, or none.

    Args:
        mode: of the policy.
        certified: it shows a certificate, and the certificate is good.
        pin: what is remembered of it.
    """
    if certified:
        return Step(State.ATTESTED)
    if pin is not None and pin.attested:
        # Once attested, a bare server is an attack or a fault: no mode lets it pass by itself.
        return Step(State.REFUSED, reason="downgrade") if mode == "strict" else Step(State.LEGACY, True, "downgrade")
    if mode == "strict":
        return Step(State.REFUSED, reason="unattested")
    known = pin is not None
    return Step(State.LEGACY, ask=mode == "prompt" and not known, reason="" if known else "unattested")


def tool_change(approved: ToolPin | None, listed: Mapping[str, Any], version: str) -> str:
    """How a listed tool differs from what was approved; "" if it does not."""
    if approved is None:
        return "new"
    now = pin_of(listed)
    changed = [
        word
        for word, before, after in (
            ("schema", approved.schema_sha256, now.schema_sha256),
            ("description", approved.description_sha256, now.description_sha256),
            ("annotations", approved.rest_sha256, now.rest_sha256),
        )
        if before != after and not (word == "annotations" and (not before or version in OLD_LISTS))
    ]
    return " and ".join(changed)


@dataclass
class Met:
    """One link to a server, as it was met.

    Attributes:
        info: what the server said of itself there; kept, so that its identity stays its own.
        state: of the link.
        certificate, channel: of an attested server.
        reason, message: of a refusal or question.
        ask: a person decides first.
    """

    info: Any
    state: State
    certificate: CapabilityCertificate | None = None
    channel: ClientChannel | None = None
    reason: str = ""
    message: str = ""
    ask: bool = False

    @property
    def assurance(self) -> Literal["attested", "unverified"]:
        """Of what comes over this link."""
        return "attested" if self.state is State.ATTESTED else "unverified"

    def may(self, capability: str) -> bool:
        """Whether the certificate allows a capability; a server without one may, at its lower level."""
        return self.certificate is None or capability in self.certificate.capabilities


@dataclass
class Peer:
    """One server.

    Attributes:
        name: in the gateway's configuration.
        pin: what is remembered.
        met: links by identity of what was said there, the latest last.
        first_list: tools of a first listing that has further pages.
        quarantined: tools by name, and what changed.
        listed: tools as last listed.
        replays: times of the latest.
        until: end of a disconnection.
        agreed: conversations whose user agreed to use it without a certificate.
    """

    name: str
    pin: ServerPin | None = None
    met: OrderedDict[int, Met] = field(default_factory=OrderedDict)
    first_list: dict[str, ToolPin] = field(default_factory=dict)
    quarantined: dict[str, str] = field(default_factory=dict)
    listed: dict[str, dict[str, Any]] = field(default_factory=dict)
    replays: deque[float] = field(default_factory=lambda: deque(maxlen=64))
    until: float = 0.0
    agreed: set[str] = field(default_factory=set)

    def state(self, now: float) -> State:
        """As of its latest link."""
        if now < self.until:
            return State.DISCONNECTED
        return next(reversed(self.met.values())).state if self.met else State.UNKNOWN

    def approved(self, certificate: CapabilityCertificate | None) -> Mapping[str, ToolPin] | None:
        """Tools as approved; None before any were seen."""
        if certificate is not None:
            by_hand = {} if self.pin is None else {pin.name: pin for pin in self.pin.approved_tools}
            return {**certificate.pins, **by_hand}
        if self.pin is None or self.pin.attested or not self.pin.tools:
            return None
        return {pin.name: pin for pin in (*self.pin.tools, *self.pin.approved_tools)}

    def check_rotation(self, certificate: CapabilityCertificate, *, self_signed: bool) -> str:
        """Whether a certificate may follow the pinned one; returns what changed, "" for nothing.

        Raises:
            SecurityError: a self-signed server shows another key ("key_changed").
        """
        if self.pin is None or not self.pin.attested or self.pin.certificate == certificate.digest:
            return ""
        if self.pin.kid == certificate.key.kid:
            return "renewed"
        if self_signed or self.pin.self_signed:
            raise SecurityError(
                f"{self.name} shows another key than the one that was pinned, and no issuer vouches for it; if you "
                "changed it, pin it again",
                "key_changed",
            )
        return "new key"

    def replayed(self, now: float, limit: int, span_s: float) -> bool:
        """Counts a replay; True if there were too many in the span."""
        self.replays.append(now)
        return sum(now - time <= span_s for time in self.replays) >= limit

    def remembered(self, **changes: Any) -> ServerPin:
        """Its pin with changes."""
        return msgspec.structs.replace(self.pin or ServerPin(), **changes)
