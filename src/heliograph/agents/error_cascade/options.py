"""The gateway's stage ``governor``: options as they stand in a configuration file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec

from heliograph.agents.core.interceptor import Interceptor
from heliograph.agents.error_cascade.claims import EveryClaim, StructuredClaims
from heliograph.agents.error_cascade.governor import Governor
from heliograph.agents.error_cascade.judges import ExactJudge
from heliograph.errors import BadInput

__all__ = ["GovernorOptions", "governor_stages", "options_schema"]

Natural = Annotated[int, msgspec.Meta(ge=0)]


class GovernorOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file may say.

    Attributes:
        policy: speed, balanced or strict. A gateway has no verifier of its own, so without one of yours (in a program)
            the three differ only in what happens when the judge fails.
        hubs: senders whose claims "balanced" verifies.
        text: read claims in texts too.
        trusted: claims that hold everywhere, as ``[subject, predicate, object]`` or objects with these keys.
        multivalued: predicates with several values.
        tolerance: within which numbers are the same.
        max_retries: before red claims are cut out.
        quorum, expire_rounds, on_failure: as in :class:`Governor`.
    """

    policy: Literal["speed", "balanced", "strict"] = "balanced"
    hubs: list[str] = []
    text: bool = True
    trusted: list[Any] = []
    multivalued: list[str] = []
    tolerance: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 1e-6
    max_retries: Natural = 2
    quorum: Annotated[int, msgspec.Meta(ge=1)] = 1
    expire_rounds: Natural = 0
    on_failure: Literal["open", "closed"] | None = None

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any]) -> GovernorOptions:
        """From plain JSON values.

        Raises:
            BadInput: an option is unknown or wrong; the message names its path.
        """
        try:
            return msgspec.convert(dict(options), cls)
        except msgspec.ValidationError as error:
            raise BadInput(f"options of the stage governor: {error}") from None


def governor_stages(options: GovernorOptions) -> Sequence[Interceptor]:
    """The governor that a file asks for.

    Raises:
        BadInput: an entry of ``trusted`` is no claim.
    """
    governor = Governor(
        options.policy,
        hubs=options.hubs,
        claims=EveryClaim() if options.text else StructuredClaims(),
        judge=ExactJudge(multivalued=options.multivalued, tolerance=options.tolerance),
        max_retries=options.max_retries,
        quorum=options.quorum,
        expire_rounds=options.expire_rounds,
        on_failure=options.on_failure,
    )
    trusted = StructuredClaims(max(1, len(options.trusted))).split({"claims": options.trusted})
    if trusted.unscreened:
        raise BadInput(
            "options of the stage governor: trusted holds [subject, predicate, object] or objects with these"
        )
    for atom in trusted.atoms:
        governor.trust(atom.claim)
    return (governor,)


def options_schema() -> dict[str, Any]:
    """The JSON Schema of the options."""
    return msgspec.json.schema(GovernorOptions)
