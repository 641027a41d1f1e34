"""What a server says of itself when it is met: its certificate and the offer of a key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from heliograph.agents.mcp_sec.certificates import CapabilityCertificate, SecurityError
from heliograph.agents.mcp_sec.channel import KeyOffer, own_fields

__all__ = ["read_hello"]


def read_hello(capabilities: Any) -> tuple[CapabilityCertificate, KeyOffer] | None:
    """From a server's capabilities; None if it shows no certificate.

    Raises:
        SecurityError: it shows something else than a certificate and an offer ("malformed").
    """
    if not isinstance(capabilities, Mapping):
        return None
    found = own_fields(capabilities.get("extensions"))
    if found is None:
        found = own_fields(capabilities.get("experimental"))
    if found is None:
        return None
    if not isinstance(found, Mapping) or found.get("v") != 1:
        raise SecurityError("the server's attestation is not of version 1", "version")
    certificate = CapabilityCertificate.from_dict(found.get("certificate"))
    try:
        offer = msgspec.convert(found.get("offer"), KeyOffer)
    except msgspec.ValidationError as error:
        raise SecurityError(f"not a key offer: {error}", "malformed") from None
    return certificate, offer
