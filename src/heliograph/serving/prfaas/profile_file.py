"""Two clusters as a JSON file: profiles, sizes, link, and the lengths of prompts.

::

    {
      "heliograph_service": 1,
      "remote": {"points": [[1024, 190.8, 0.44], [8192, 308.9, 0.72], [32768, 701.3, 1.84]]},
      "local": {"base_s": 0.39, "s_per_token": 0.000141},
      "n_remote": 4, "n_local": 8, "homogeneous_instances": 12,
      "egress_gbps": 100, "decode_tok_s": 800, "out_len": 1024,
      "lengths": {"mu": 9.9, "sigma": 1.0, "low": 128, "high": 131072}
    }

A point is (tokens, MiB of KV, seconds). ``lengths`` may also be a list of measured ones, or left out where a trace is
given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from heliograph.errors import BadInput
from heliograph.serving.prfaas.profile import MIB, PrefillProfile
from heliograph.serving.prfaas.service_model import (
    CASE_LENGTHS,
    EmpiricalLengths,
    Lengths,
    PrefillServiceModel,
    case_study,
)
from heliograph.serving.prfaas.simulate import SimPrompt
from heliograph.workload.arrivals import LogNormalLengths

__all__ = ["CASE_STUDY", "Service", "read_service", "uncached_lengths"]

CASE_STUDY = "case-study"
VERSION = 1


class _Side(msgspec.Struct, forbid_unknown_fields=True):
    points: list[tuple[int, float, float]] | None = None
    base_s: float | None = None
    s_per_token: float | None = None
    kv_base_mib: float = 0.0
    kv_mib_per_token: float = 0.0
    repair: bool = False


class _LogNormal(msgspec.Struct, forbid_unknown_fields=True):
    mu: float
    sigma: float
    low: int = 1
    high: int = 2**20


class _File(msgspec.Struct, forbid_unknown_fields=True):
    heliograph_service: int
    remote: _Side
    local: _Side
    n_remote: int
    n_local: int
    egress_gbps: float
    decode_tok_s: float
    out_len: float
    decode_batch: int = 32
    kv_ratio: float = 1.0
    homogeneous_instances: int | None = None
    lengths: _LogNormal | list[float] | None = None


@dataclass(frozen=True)
class Service:
    """What a file says.

    Attributes:
        model: of the clusters.
        lengths: of prompts; None where the file has none.
        homogeneous_instances: of the cluster of local instances alone that is compared.
        name: of the file.
    """

    model: PrefillServiceModel
    lengths: Lengths | None
    homogeneous_instances: int
    name: str


def read_service(path: Path | str) -> Service:
    """Reads a file; ``case-study`` is the paper's.

    Raises:
        BadInput: unreadable, or a field is missing, unknown or out of range; the message names it.
    """
    if str(path) == CASE_STUDY:
        return Service(case_study(), LogNormalLengths(*CASE_LENGTHS), 12, CASE_STUDY)
    path = Path(path)
    try:
        found = msgspec.json.decode(path.read_bytes(), type=_File)
    except OSError as error:
        raise BadInput(
            f"cannot read {path}: {error.strerror}; give a profile, or {CASE_STUDY} for the paper's"
        ) from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: {error}") from None
    if found.heliograph_service != VERSION:
        raise BadInput(f"{path} is of version {found.heliograph_service}; this program reads {VERSION}")
    try:
        lengths: Lengths | None
        if isinstance(found.lengths, _LogNormal):
            lengths = LogNormalLengths(found.lengths.mu, found.lengths.sigma, found.lengths.low, found.lengths.high)
        else:
            lengths = None if found.lengths is None else EmpiricalLengths(found.lengths)
        model = PrefillServiceModel(
            _profile("remote", found.remote),
            _profile("local", found.local),
            found.n_remote,
            found.n_local,
            found.egress_gbps,
            found.decode_tok_s,
            found.out_len,
            found.decode_batch,
            found.kv_ratio,
        )
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None
    instances = found.n_local if found.homogeneous_instances is None else found.homogeneous_instances
    if instances < 1:
        raise BadInput(f"{path}: homogeneous_instances is 1 or more; got {instances}")
    return Service(model, lengths, instances, path.name)


def _profile(name: str, side: _Side) -> PrefillProfile:
    formula = side.base_s is not None and side.s_per_token is not None
    if formula == (side.points is not None):
        raise BadInput(f"{name} needs either points or both base_s and s_per_token")
    try:
        if side.points is not None:
            return PrefillProfile.from_points(side.points, repair=side.repair)
        assert side.base_s is not None
        assert side.s_per_token is not None
        return PrefillProfile.linear(side.base_s, side.s_per_token, side.kv_base_mib * MIB, side.kv_mib_per_token * MIB)
    except BadInput as error:
        raise BadInput(f"{name}: {error}") from None


def uncached_lengths(prompts: Sequence[SimPrompt], block_tokens: int = 512) -> tuple[EmpiricalLengths, float]:
    """Lengths after the longest prefix that any earlier prompt left, in one cache without limit; and the share reused.

    Raises:
        BadInput: no prompts.
    """
    seen: set[Any] = set()
    found: list[float] = []
    for prompt in prompts:
        usable = min(len(prompt.names), (prompt.tokens - 1) // block_tokens)
        block = next((n for n in range(usable, 0, -1) if prompt.names[n - 1] in seen), 0)
        found.append(prompt.tokens - block * block_tokens)
        seen.update(prompt.names)
    lengths = EmpiricalLengths(found)
    whole = sum(prompt.tokens for prompt in prompts)
    return lengths, 1 - sum(found) / whole
