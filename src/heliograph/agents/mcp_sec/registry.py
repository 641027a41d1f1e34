"""Servers as the gateway meets them: certificates, pins, the first listing, and what changes later."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from heliograph.agents.core.links import LinkInfo
from heliograph.agents.mcp_sec.certificates import CapabilityCertificate, SecurityError, pin_of
from heliograph.agents.mcp_sec.channel import ClientChannel, KeyOffer
from heliograph.agents.mcp_sec.denial import DenialLog
from heliograph.agents.mcp_sec.hello import read_hello
from heliograph.agents.mcp_sec.peers import Met, Peer, State, next_step, tool_change
from heliograph.agents.mcp_sec.policy import SecurityPolicy
from heliograph.agents.mcp_sec.trust import TrustStore
from heliograph.errors import BadInput

__all__ = ["Peers"]

_LINKS_KEPT = 256


class Peers:
    """All servers of a gateway.

    Args:
        trust: whom to believe.
        policy: what to enforce.
        denials: where changes are recorded.
        now: seconds since 1970.
    """

    def __init__(self, trust: TrustStore, policy: SecurityPolicy, denials: DenialLog, now: Callable[[], float]) -> None:
        self._trust, self._policy, self._denials, self._now = trust, policy, denials, now
        self._peers: dict[str, Peer] = {}

    def forget(self) -> None:
        """Meets every server anew; pins stay."""
        self._peers.clear()

    def peer(self, server: str) -> Peer:
        """What is known of a server."""
        found = self._peers.get(server)
        if found is None:
            found = self._peers[server] = Peer(server, self._trust.pin(server))
        return found

    def readmit(self, server: str) -> None:
        """Ends a disconnection early."""
        peer = self.peer(server)
        peer.until = 0.0
        peer.replays.clear()
        self._denials.note("mcpsec.readmitted", server=server)

    def approve(self, server: str, tool: str) -> None:
        """Takes a tool out of quarantine, as it was last listed.

        Raises:
            BadInput: it is not in quarantine.
        """
        peer = self.peer(server)
        if tool not in peer.quarantined or tool not in peer.listed:
            raise BadInput(f"{server} has no tool {tool!r} in quarantine")
        kept = [pin for pin in (peer.pin.approved_tools if peer.pin else ()) if pin.name != tool]
        self.remember(peer, approved_tools=(*kept, pin_of(peer.listed[tool])))
        change = peer.quarantined.pop(tool)
        self._denials.note("mcpsec.approved", server=server, tool=tool, change=change)

    def meet(self, peer: Peer, info: LinkInfo) -> Met:
        """The link that said this of its server: as met before, or introduced now."""
        now = self._now()
        if now < peer.until:
            return Met(
                info, State.REFUSED, reason="disconnected", message=f"{peer.name} replayed messages and is cut off"
            )
        met = peer.met.get(id(info))
        if met is None:
            met = self._introduce(peer, info, now)
            peer.met[id(info)] = met
            while len(peer.met) > _LINKS_KEPT:
                peer.met.popitem(last=False)
        else:
            peer.met.move_to_end(id(info))
        if met.certificate is not None and met.state is State.ATTESTED:
            try:
                self._trust.check_times(met.certificate, now, self._policy.skew_s)
            except SecurityError as error:
                return Met(info, State.REFUSED, reason=error.reason, message=str(error))
        return met

    def _introduce(self, peer: Peer, info: LinkInfo, now: float) -> Met:
        wanted = self._policy
        peer.pin = self._trust.pin(peer.name)
        try:
            hello = read_hello(info.capabilities)
            if hello is not None:
                return self._attest(peer, info, *hello, now)
        except SecurityError as error:
            return Met(info, State.REFUSED, reason=error.reason, message=str(error))
        step = next_step(wanted.mode, certified=False, pin=peer.pin)
        texts = {
            "downgrade": "had a certificate before and shows none now.",
            "unattested": "shows no certificate.",
        }
        message = texts.get(step.reason, "")
        if step.state is State.REFUSED:
            message = f"{peer.name} {message} This gateway asks for one."
        return Met(info, step.state, reason=step.reason, message=message, ask=step.ask)

    def _attest(
        self, peer: Peer, info: LinkInfo, certificate: CapabilityCertificate, offer: KeyOffer, now: float
    ) -> Met:
        wanted = self._policy
        expected = wanted.server_ids.get(peer.name, peer.name)
        self._trust.check(certificate, expected, now=now, skew_s=wanted.skew_s, self_signed=wanted.self_signed)
        offer.check(certificate, now, wanted.skew_s)
        own = certificate.issued_by == certificate.server_id
        change = peer.check_rotation(certificate, self_signed=own)
        if change or peer.pin is None or not peer.pin.attested:
            self.remember(
                peer,
                server_id=certificate.server_id,
                kid=certificate.key.kid,
                certificate=certificate.digest,
                capabilities=tuple(certificate.capabilities),
                tools=certificate.tools,
                since=now,
                self_signed=own,
            )
            self._denials.note("mcpsec.pinned", server=peer.name, kid=certificate.key.kid, change=change or "first use")
        channel = ClientChannel(
            certificate,
            offer,
            client_id=wanted.client_id,
            version=info.version,
            shared_secret=wanted.shared_secrets.get(peer.name, "").encode(),
            skew_s=wanted.skew_s,
            now=self._now,
        )
        return Met(info, State.ATTESTED, certificate, channel)

    def agree(self, peer: Peer, context: str) -> None:
        """A person wants to use it without a certificate."""
        peer.agreed.add(context)
        if peer.pin is None:
            self.remember(peer, since=self._now())
        self._denials.note("mcpsec.agreed", server=peer.name, context=context)

    def remember(self, peer: Peer, **changes: Any) -> None:
        """Changes its pin."""
        peer.pin = peer.remembered(**changes)
        self._trust.remember(peer.name, peer.pin)

    def check_list(
        self, peer: Peer, met: Met, info: LinkInfo, params: Mapping[str, Any], result: dict[str, Any]
    ) -> dict[str, Any]:
        """Without the tools that are not as they were approved."""
        tools = [t for t in result.get("tools") or () if isinstance(t, Mapping) and isinstance(t.get("name"), str)]
        approved = peer.approved(met.certificate)
        if approved is None:
            if params.get("cursor") is None:
                peer.first_list.clear()
            peer.first_list |= {str(tool["name"]): pin_of(tool) for tool in tools}
            if result.get("nextCursor") is None and peer.first_list:
                if not (peer.pin is not None and peer.pin.attested):  # a downgraded server pins nothing
                    self.remember(peer, tools=tuple(peer.first_list.values()), since=self._now())
                peer.first_list.clear()
            return result
        good = []
        for tool in tools:
            name = str(tool["name"])
            change = tool_change(approved.get(name), tool, info.version)
            peer.listed[name] = dict(tool)
            if not change:
                peer.quarantined.pop(name, None)
                good.append(tool)
                continue
            if peer.quarantined.get(name) != change:
                self._denials.note("mcpsec.quarantined", server=peer.name, tool=name, change=change)
            peer.quarantined[name] = change
        return {**result, "tools": good}
