"""A refusal: one audit record, and one error that says what to do."""

from __future__ import annotations

from typing import Any

from heliograph.agents.core.audit import AuditError, AuditLog
from heliograph.agents.core.envelope import new_id
from heliograph.agents.core.interceptor import REJECTED_CODE, Rejected
from heliograph.errors import BadInput

__all__ = ["ACTIONS", "AUTH_CODE", "DenialLog", "actions_for"]

AUTH_CODE = -32014
"""JSON-RPC code with which a server refuses a message that it cannot authenticate."""

ACTIONS: dict[str, tuple[str, ...]] = {
    "unattested": ("request_attestation", "stop"),
    "server_id_mismatch": ("check_configuration", "stop"),
    "malformed": ("report", "stop"),
    "signature": ("reissue_certificate", "stop"),
    "unknown_issuer": ("add_issuer", "stop"),
    "self_signed": ("pin_by_hand", "stop"),
    "issuer_expired": ("renew_issuer", "stop"),
    "issuer_scope": ("reissue_certificate", "stop"),
    "expired": ("renew_certificate", "check_clock"),
    "not_yet_valid": ("check_clock", "stop"),
    "revoked": ("reissue_certificate", "stop"),
    "offer": ("report", "stop"),
    "key_changed": ("pin_by_hand", "stop"),
    "downgrade": ("report", "pin_by_hand"),
    "capability": ("reissue_certificate", "stop"),
    "quarantine": ("approve_tool", "stop"),
    "unlisted_tool": ("approve_tool", "stop"),
    "flow": ("request_grant", "stop"),
    "ask_refused": ("stop",),
    "ask_rate": ("wait", "request_grant"),
    "state": ("start_again", "report"),
    "disconnected": ("readmit", "stop"),
    "too_large": ("send_less",),
    "replay": ("retry_once", "report"),
    "mac": ("retry_once", "report"),
    "unauthenticated": ("report", "stop"),
    "wrong_key": ("retry_once", "report"),
    "not_canonical": ("repair_arguments",),
    "unknown_client": ("request_secret", "stop"),
    "version": ("update", "stop"),
    "store": ("retry_once", "report"),
}
"""What to do about each reason, the best first."""


def actions_for(reason: str) -> tuple[str, ...]:
    """What to do about a reason."""
    return ACTIONS.get(reason, ("report", "stop"))


class DenialLog:
    """Writes one record for each refusal and makes its error.

    Args:
        log: to write; counts only without one.

    Attributes:
        counts: refusals by reason.
        unrecorded: refusals that the log did not take; they stay refused.
    """

    def __init__(self, log: AuditLog | None = None) -> None:
        self.log = log
        self.counts: dict[str, int] = {}
        self.unrecorded = 0

    def deny(self, reason: str, message: str, *, by: str, **about: Any) -> Rejected:
        """The error to raise; the record is written.

        Args:
            reason: in one word.
            message: for people.
            by: which stage.
            about: who and what, without contents.
        """
        cause = new_id()
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self.note("mcpsec.denied", reason=reason, cause=cause, by=by, **about)
        record = {
            "v": 1,
            "category": "INVALID_INPUT" if reason in ("not_canonical", "too_large") else "PERMISSION_DENIED",
            "code": reason,
            "message": message,
            "retryable": reason in ("replay", "mac", "wrong_key", "store", "ask_rate"),
            "suggested_actions": list(actions_for(reason)),
            "side_effect": "none" if about.get("sent") is not True else "possible",
            "cause_id": cause,
        }
        return Rejected(message, code=REJECTED_CODE, data={"serf": record}, by=by)

    def note(self, event: str, **about: Any) -> None:
        """A record of something that is no refusal, or of one."""
        if self.log is None:
            return
        try:
            self.log.append({"event": event, **{key: value for key, value in about.items() if value is not None}})
        except (AuditError, BadInput):
            self.unrecorded += 1
