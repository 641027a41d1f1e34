"""Who can do this? Capabilities, their replicated index, and search by words, by meaning and by concepts.

    score(q, c) = w_e cos(E(q), E(c)) + w_l z(BM25(q, c)) + w_o onto(q, c) + w_r trust(agent) - w_c z(cost)

Each peer holds the whole index and answers by itself. Two indexes merge by taking, for each capability, the entry of
the highest version; that is commutative, associative and idempotent, so any order of gossip ends alike. The formula's
parts are named by arXiv:2507.04376, its form is ours.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from heliograph.agents.core.canonical import canonical_bytes, canonical_hash
from heliograph.agents.core.identity import Identity, IdentityError, KeyRing
from heliograph.errors import BadInput, MissingData

__all__ = [
    "Capability",
    "CapabilityIndex",
    "Embedder",
    "HashedNgrams",
    "Hit",
    "Trust",
    "Weights",
    "default_embedder",
    "words",
]

Method = Literal["hybrid", "embedding", "bm25", "keyword"]
DAY_S = 86_400.0


class Embedder(Protocol):
    """What turns texts into unit vectors."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Unit vectors, [len(texts), dimensions]."""
        ...


def words(text: str) -> list[str]:
    """Lower-case words; names in snake_case and camelCase are taken apart."""
    apart = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", text)
    return re.findall(r"[^\W_]+", apart.lower())


class HashedNgrams:
    """Vectors of letter groups: sees shared stems, not meaning. For machines without a table of word vectors.

    Args:
        dimensions: of a vector.
    """

    def __init__(self, dimensions: int = 512) -> None:
        if dimensions < 1:
            raise BadInput(f"dimensions is 1 or more; got {dimensions}")
        self.dimensions = dimensions

    def embed(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Unit vectors, [len(texts), dimensions]; that of an empty text is zero."""
        rows = np.zeros((len(texts), self.dimensions))
        for row, text in zip(rows, texts, strict=True):
            for word in words(text):
                padded = f"<{word}>"
                for start in range(max(1, len(padded) - 2)):
                    digest = hashlib.blake2b(
                        padded[start : start + 3].encode("utf-8", "surrogatepass"), digest_size=8
                    ).digest()
                    number = int.from_bytes(digest, "big")
                    row[number % self.dimensions] += 1.0 if number >> 63 else -1.0
        length = np.linalg.norm(rows, axis=1, keepdims=True)
        return np.asarray(rows / np.where(length > 0, length, 1.0))


def default_embedder() -> Embedder:
    """Word vectors of the ``wordllama`` package if it is installed, letter groups otherwise."""
    from heliograph.agents.core.lm import StaticEmbedding

    try:
        return StaticEmbedding()
    except MissingData:
        return HashedNgrams()


class Capability(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something that an agent can do.

    Attributes:
        name: unique with the agent.
        agent: that does it.
        description: one or two sentences.
        inputs: type by argument name.
        outputs: types that it gives.
        concepts: of the ontology, dotted: "travel.hotel.search" is a "travel.hotel" and a "travel".
        effects: "read", "write" or "external".
        cost_ms, price: usual cost of a call.
        undo: name of the same agent's capability that takes a call back; "" if none.
        schema: JSON Schema of the arguments; empty for one made of ``inputs``.
        version: a higher one replaces a lower one.
        withdrawn: it is no longer offered; signed like the rest, so that nobody can withdraw another's.
        kid, sig: who vouches for it; see :meth:`signed`.
    """

    name: str
    agent: str
    description: str = ""
    inputs: dict[str, str] = {}
    outputs: tuple[str, ...] = ()
    concepts: tuple[str, ...] = ()
    effects: Literal["read", "write", "external"] = "read"
    cost_ms: float = 0.0
    price: float = 0.0
    undo: str = ""
    schema: dict[str, Any] = {}
    version: int = 1
    withdrawn: bool = False
    kid: str = ""
    sig: str = ""

    @property
    def id(self) -> str:
        """Unique among all agents."""
        return f"{self.agent}/{self.name}"

    def text(self) -> str:
        """What search reads."""
        return f"{' '.join(words(self.name))}. {self.description}"

    def signed(self, identity: Identity) -> Capability:
        """The same, vouched for by a key."""
        bare = msgspec.structs.replace(self, kid=identity.kid, sig="")
        value = identity.sign(canonical_bytes(msgspec.to_builtins(bare)))
        return msgspec.structs.replace(bare, sig=base64.b64encode(value).decode())

    def check(self, keys: KeyRing) -> None:
        """Refuses a descriptor that its agent did not sign.

        Raises:
            IdentityError: unsigned, changed, or by another's key.
        """
        if not self.sig:
            raise IdentityError(f"the capability {self.id} is not signed", "unsigned")
        try:
            value = base64.b64decode(self.sig, validate=True)
        except ValueError:
            raise IdentityError(f"the signature of {self.id} is not base64", "signature") from None
        bare = msgspec.structs.replace(self, sig="")
        owner = keys.verify(self.kid, canonical_bytes(msgspec.to_builtins(bare)), value)
        if owner != self.agent:
            raise IdentityError(f"{owner} signed a capability of {self.agent}", "signature")


@dataclass(frozen=True)
class Weights:
    """Weights of the score's parts."""

    embedding: float = 1.0
    lexical: float = 0.5
    ontology: float = 0.5
    trust: float = 0.25
    cost: float = 0.1


@dataclass(frozen=True)
class Hit:
    """One answer.

    Attributes:
        capability: found.
        score: higher is better; comparable within one search only.
    """

    capability: Capability
    score: float


class Trust:
    """How often an agent's outcomes were good: mean of a Beta distribution that forgets by halves.

    Args:
        half_life_s: after which an outcome counts half.
    """

    def __init__(self, half_life_s: float = 30 * DAY_S) -> None:
        if not half_life_s > 0:
            raise BadInput(f"half_life_s is above 0; got {half_life_s}")
        self.half_life_s = half_life_s
        self._seen: dict[str, tuple[float, float, float]] = {}

    def observe(self, agent: str, good: bool, now: float, weight: float = 1.0) -> None:
        """Adds an outcome; another's report has a weight below 1."""
        if not 0 <= weight <= 1:
            raise BadInput(f"a weight lies in 0..1; got {weight}")
        good_sum, bad_sum = self._at(agent, now)
        self._seen[agent] = (good_sum + weight * good, bad_sum + weight * (not good), now)

    def mean(self, agent: str, now: float) -> float:
        """In 0..1; one half for an unknown agent."""
        good, bad = self._at(agent, now)
        return (good + 1) / (good + bad + 2)

    def _at(self, agent: str, now: float) -> tuple[float, float]:
        good, bad, then = self._seen.get(agent, (0.0, 0.0, now))
        left = 0.5 ** (max(0.0, now - then) / self.half_life_s)
        return good * left, bad * left


def _rank(capability: Capability) -> tuple[int, bool, bytes]:
    # A withdrawal wins over the same version; the bytes only settle what a faulty writer made twice.
    return capability.version, capability.withdrawn, canonical_bytes(msgspec.to_builtins(capability))


@dataclass
class _Texts:
    """What search needs of all live capabilities; made anew after a change."""

    capabilities: list[Capability] = field(default_factory=list)
    counts: list[Counter[str]] = field(default_factory=list)
    frequency: Counter[str] = field(default_factory=Counter)
    vectors: NDArray[np.float64] | None = None


class CapabilityIndex:
    """All known capabilities, on one peer.

    Args:
        embedder: for meaning; :func:`default_embedder` at the first search that needs it, if None.
        keys: of agents; if given, unsigned or forged descriptors are refused.
        trust: of agents.
    """

    def __init__(
        self, embedder: Embedder | None = None, *, keys: KeyRing | None = None, trust: Trust | None = None
    ) -> None:
        self._embedder, self.keys, self.trust = embedder, keys, trust or Trust()
        self._entries: dict[str, Capability] = {}
        self._away: set[str] = set()
        self._texts: _Texts | None = None
        self._digest = ""

    def add(self, capability: Capability) -> bool:
        """Learns of a capability; False if a newer entry is known.

        Raises:
            BadInput: no name or agent, or a cost that is negative.
            IdentityError: keys were given, and its agent did not sign it.
        """
        if not capability.name or not capability.agent or not capability.cost_ms >= 0 or not capability.price >= 0:
            raise BadInput(f"a capability has a name, an agent and costs of 0 or more; got {capability}")
        return self._take(capability)

    def remove(self, capability_id: str, identity: Identity | None = None) -> None:
        """Withdraws a capability, here and wherever this index is merged into; an unknown one is no error.

        Args:
            capability_id: of it.
            identity: its agent's key; needed where indexes check signatures.
        """
        known = self._entries.get(capability_id)
        if known is not None:
            gone = msgspec.structs.replace(known, withdrawn=True, kid="", sig="")
            self._take(gone.signed(identity) if identity else gone)

    def _take(self, capability: Capability) -> bool:
        known = self._entries.get(capability.id)
        if known == capability:
            return False
        if self.keys is not None:
            capability.check(self.keys)
        if known is not None and _rank(known) >= _rank(capability):
            return False
        self._entries[capability.id] = capability
        self._texts, self._digest = None, ""
        return True

    def digest(self) -> str:
        """Equal where two indexes know the same."""
        if not self._digest:
            self._digest = canonical_hash(self.snapshot())
        return self._digest

    def snapshot(self) -> list[dict[str, Any]]:
        """Everything known, as JSON values, for :meth:`merge` elsewhere."""
        return [msgspec.to_builtins(capability) for _, capability in sorted(self._entries.items())]

    def merge(self, snapshot: Iterable[Any]) -> int:
        """Learns from another index; forged and malformed entries are left out. Returns how many were new."""
        changed = 0
        for item in snapshot:
            try:
                changed += self.add_if_newer(item)
            except (IdentityError, BadInput, msgspec.ValidationError):
                continue
        return changed

    def add_if_newer(self, item: Any) -> bool:
        """Learns of one capability in JSON values."""
        return self.add(msgspec.convert(item, Capability))

    def set_away(self, agents: Iterable[str]) -> None:
        """Agents whose capabilities are not offered now, because they are thought dead."""
        away = set(agents)
        if away != self._away:
            self._away, self._texts = away, None

    def __len__(self) -> int:
        return len(self.all())

    def __iter__(self) -> Iterator[Capability]:
        return iter(self.all())

    def get(self, capability_id: str) -> Capability | None:
        """A live capability by its id."""
        known = self._entries.get(capability_id)
        return None if known is None or known.withdrawn or known.agent in self._away else known

    def all(self) -> list[Capability]:
        """Live ones, by id."""
        return self._prepared().capabilities

    def _prepared(self) -> _Texts:
        if self._texts is None:
            texts = _Texts()
            for _, capability in sorted(self._entries.items()):
                if not capability.withdrawn and capability.agent not in self._away:
                    texts.capabilities.append(capability)
                    texts.counts.append(Counter(words(capability.text())))
                    texts.frequency.update(texts.counts[-1].keys())
            self._texts = texts
        return self._texts

    def search(
        self,
        query: str,
        *,
        top: int = 5,
        method: Method = "hybrid",
        weights: Weights | None = None,
        output: str = "",
        available: Iterable[str] | None = None,
        concepts: Sequence[str] = (),
        allowed: Callable[[Capability], bool] | None = None,
        now: float = 0.0,
    ) -> list[Hit]:
        """The best capabilities for a wish in words.

        Args:
            query: what is wanted.
            top: how many.
            method: "hybrid" is the formula; "embedding", "bm25" and "keyword" are its baselines.
            weights: of the formula.
            output: type that it must give.
            available: types that the asker can give as inputs; None for any.
            concepts: that it should be about.
            allowed: policy.
            now: seconds, for trust.

        Raises:
            BadInput: an empty query, ``top`` below 1, or an unknown method.
        """
        if not query.strip() or top < 1 or method not in ("hybrid", "embedding", "bm25", "keyword"):
            raise BadInput(f"a search has words, top 1 or more and a known method; got {query!r}, {top}, {method!r}")
        texts = self._prepared()
        have = None if available is None else set(available)
        keep = [
            place
            for place, capability in enumerate(texts.capabilities)
            if (not output or any(subsumes(output, given) for given in capability.outputs))
            and (have is None or set(capability.inputs.values()) <= have)
            and (allowed is None or allowed(capability))
        ]
        if not keep:
            return []
        scores = self._scores(query, texts, method, weights or Weights(), concepts, now)[keep]
        order = sorted(range(len(keep)), key=lambda i: (-scores[i], texts.capabilities[keep[i]].id))
        return [Hit(texts.capabilities[keep[i]], float(scores[i])) for i in order[:top]]

    def _scores(
        self, query: str, texts: _Texts, method: Method, weights: Weights, concepts: Sequence[str], now: float
    ) -> NDArray[np.float64]:
        if method == "keyword":
            asked = set(words(query))
            return np.array([len(asked & set(words(one.name))) for one in texts.capabilities], dtype=float)
        if method == "bm25":
            return _bm25(words(query), texts)
        meaning = self._cosines(query, texts)
        if method == "embedding":
            return meaning
        about = [
            max((_closeness(a, b) for a in concepts for b in one.concepts), default=0.0) for one in texts.capabilities
        ]
        trust = [self.trust.mean(one.agent, now) for one in texts.capabilities]
        cost = np.array([one.cost_ms + one.price for one in texts.capabilities])
        total = weights.embedding * meaning + weights.lexical * _z(_bm25(words(query), texts))
        total += weights.ontology * np.array(about) + weights.trust * np.array(trust)
        return np.asarray(total - weights.cost * _z(cost))

    def _cosines(self, query: str, texts: _Texts) -> NDArray[np.float64]:
        if self._embedder is None:
            self._embedder = default_embedder()
        if texts.vectors is None:
            texts.vectors = self._embedder.embed([one.text() for one in texts.capabilities])
        return np.asarray(texts.vectors @ self._embedder.embed([query])[0])


def subsumes(general: str, special: str) -> bool:
    """Whether a dotted type is the other or above it: "travel.hotel" subsumes "travel.hotel.room"."""
    return special == general or special.startswith(f"{general}.")


def _closeness(one: str, other: str) -> float:
    """1 / (1 + steps on the tree of dotted names); 0 where nothing is shared."""
    a, b = one.split("."), other.split(".")
    shared = 0
    while shared < min(len(a), len(b)) and a[shared] == b[shared]:
        shared += 1
    return 1 / (1 + len(a) + len(b) - 2 * shared) if shared else 0.0


def _z(values: NDArray[np.float64]) -> NDArray[np.float64]:
    spread = float(values.std())
    return np.asarray((values - values.mean()) / spread if spread > 0 else np.zeros_like(values))


def _bm25(query: Sequence[str], texts: _Texts, k1: float = 1.5, b: float = 0.75) -> NDArray[np.float64]:
    """Okapi BM25 with the usual constants."""
    count = len(texts.counts)
    lengths = np.array([sum(one.values()) for one in texts.counts], dtype=float)
    usual = float(lengths.mean()) or 1.0
    scores = np.zeros(count)
    for word in query:
        held = texts.frequency.get(word, 0)
        if held:
            weight = math.log(1 + (count - held + 0.5) / (held + 0.5))
            times = np.array([one.get(word, 0) for one in texts.counts], dtype=float)
            scores += weight * times * (k1 + 1) / (times + k1 * (1 - b + b * lengths / usual))
    return scores
