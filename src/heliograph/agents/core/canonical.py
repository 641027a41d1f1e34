"""One spelling for one JSON value (RFC 8785), so that equal values have equal bytes, hashes and signatures."""

from __future__ import annotations

import hashlib
from typing import Any

import rfc8785

from heliograph.errors import BadInput

__all__ = ["canonical_bytes", "canonical_hash"]


def canonical_bytes(value: Any) -> bytes:
    """The canonical UTF-8 spelling of a JSON value.

    Raises:
        BadInput: NaN or infinity, an integer that a double cannot hold, or something that is not JSON.
    """
    try:
        return rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, UnicodeEncodeError, RecursionError) as error:
        raise BadInput(
            f"this value has no canonical JSON form ({error}); use finite numbers, integers within 2**53, text, lists "
            "and objects with text keys"
        ) from None


def canonical_hash(value: Any) -> str:
    """BLAKE2b-256 of the canonical spelling, in hexadecimal."""
    return hashlib.blake2b(canonical_bytes(value), digest_size=32).hexdigest()
