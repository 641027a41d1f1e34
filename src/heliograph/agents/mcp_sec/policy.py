"""What to enforce, as options of a configuration file: the key ``heliograph.mcpsec`` of a gateway's file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from heliograph.agents.mcp_sec.certificates import SideEffect
from heliograph.errors import BadInput

__all__ = ["FlowPolicy", "GrantRule", "SecurityPolicy", "policy_schema"]

Positive = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A key that is not known is a mistake."""


class GrantRule(_Strict, frozen=True):
    """A flow that the operator allows for good: from one server to tools of another.

    Attributes:
        source, target: names of servers, or ``*``.
        tool: glob of the target's tool names.
    """

    source: str
    target: str
    tool: str = "*"


class FlowPolicy(_Strict, frozen=True):
    """What may go from one server to another.

    Attributes:
        isolation: "context" counts everything after a server's answer as influenced by it, "value" looks for its text
            in the arguments, "off" looks at nothing.
        on_flow: what to do about a flow without a grant; "ask" denies where nobody can be asked.
        grants: flows that are allowed.
        min_argument, min_shared, min_words: in "value": texts from this length count, if they share so many characters,
            or so many rare words.
        window: answers remembered in a conversation.
        asks_per_minute: questions to one person; more are denied.
        remember_s: how long an approval holds.
    """

    isolation: Literal["context", "value", "off"] = "value"
    on_flow: Literal["ask", "deny", "allow"] = "ask"
    grants: list[GrantRule] = []
    min_argument: Count = 8
    min_shared: Annotated[int, msgspec.Meta(ge=4, le=64)] = 12
    min_words: Count = 3
    window: Count = 32
    asks_per_minute: Count = 6
    remember_s: Positive = 600.0


class SecurityPolicy(_Strict, frozen=True):
    """All options.

    Attributes:
        mode: servers without a certificate are refused ("strict"), asked about ("prompt"), or let in at a lower level
            ("permissive").
        issuers: trust file.
        pins: file that remembers servers; without it a downgrade after a restart is not seen.
        grants: file of signed grants.
        key: PEM file of the gateway's own key, which signs grants.
        client_id: of this gateway towards servers.
        shared_secrets: by server; texts of 16 characters or more.
        server_ids: ids in certificates by server name, where they differ.
        self_signed: accept certificates that a server signed itself, pinned at first use.
        flow: between servers.
        tag: "meta" says the origin in ``_meta`` only, "text" in front of each text too.
        side_effects: of tools of servers without a certificate, by glob of SERVER.TOOL.
        skew_s: that clocks may differ.
        max_request_bytes: of one request.
        replays_to_disconnect, replay_span_s, disconnect_s: so many replays within the span end a server's use for so
            long.
        folder: relative paths are relative to it; in a gateway's file, to that file's folder.
    """

    mode: Literal["strict", "prompt", "permissive"] = "prompt"
    issuers: str = ""
    pins: str = ""
    grants: str = ""
    key: str = ""
    client_id: str = "heliograph"
    shared_secrets: dict[str, str] = {}
    server_ids: dict[str, str] = {}
    self_signed: bool = False
    flow: FlowPolicy = FlowPolicy()
    tag: Literal["meta", "text"] = "meta"
    side_effects: dict[str, SideEffect] = {}
    skew_s: Positive = 30.0
    max_request_bytes: Count = 4 * 1024 * 1024
    replays_to_disconnect: Count = 3
    replay_span_s: Positive = 60.0
    disconnect_s: Positive = 300.0
    folder: str = ""

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any]) -> SecurityPolicy:
        """From JSON values.

        Raises:
            BadInput: with the place of the mistake.
        """
        try:
            found = msgspec.convert(dict(options), cls)
        except msgspec.ValidationError as error:
            raise BadInput(f"options of the stage mcpsec: {error}") from None
        short = sorted(name for name, secret in found.shared_secrets.items() if len(secret) < 16)
        if short:
            raise BadInput(
                f"shared_secrets.{short[0]} needs 16 characters or more; make one with: openssl rand -hex 32"
            )
        return found

    def path(self, name: str) -> Path | None:
        """Where a file is; None if it is not named."""
        given = str(getattr(self, name))
        return Path(self.folder) / given if given else None


def policy_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of the options: a reference, and the definitions under ``$defs``."""
    return msgspec.json.schema(SecurityPolicy)
