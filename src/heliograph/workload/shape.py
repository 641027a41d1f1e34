"""The shape of a decoder-only language model, and the bytes and operations that follow from it.

All counts follow from matrix sizes. Norm weights and biases, together below 0.1 % of a model of ordinary size, are left
out. A multiply-add counts as two operations. Notation: L layers, d hidden, H heads, H_kv key heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from heliograph.errors import BadInput

__all__ = [
    "AttentionClass",
    "AttentionKind",
    "AttentionShape",
    "LayerShape",
    "LlmShape",
    "MoeShape",
    "WeightFormat",
    "prefill_scores",
]

AttentionKind = Literal["mha", "gqa", "mqa", "mla", "linear"]
AttentionClass = Literal["mha", "gqa", "mqa", "mla", "sparse-mla", "hybrid", "linear", "unknown"]


@dataclass(frozen=True)
class AttentionShape:
    """The token mixer of one layer.

    Attributes:
        kind: "mla" keeps one latent a token for all heads; "linear" keeps a state of constant size instead of a cache.
        heads, kv_heads: of queries and of keys (linear layers: of values and of keys).
        head_dim: channels of a query or key; for latent attention without the rotated part.
        value_dim: channels of a value.
        window: tokens that a sliding or chunked layer sees; None for all.
        kv_lora_rank, rope_dim, q_lora_rank: of latent attention; a q_lora_rank of 0 means a plain query matrix.
        index_heads, index_dim, index_top_k: of a sparse indexer, which picks the keys that latent attention reads.
        convolution: width of a linear layer's short convolution.
        gated: whether a linear or full layer multiplies its output by a gate of the same size.
    """

    kind: AttentionKind
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    window: int | None = None
    kv_lora_rank: int = 0
    rope_dim: int = 0
    q_lora_rank: int = 0
    index_heads: int = 0
    index_dim: int = 0
    index_top_k: int = 0
    convolution: int = 0
    gated: bool = False

    def __post_init__(self) -> None:
        """Refuses sizes that do not fit each other."""
        if min(self.heads, self.kv_heads, self.head_dim, self.value_dim) < 1 or self.heads % self.kv_heads:
            raise BadInput(
                f"attention sizes do not fit: {self.heads} heads, {self.kv_heads} key heads, "
                f"{self.head_dim} and {self.value_dim} channels; key heads must divide heads"
            )
        if self.kind == "mla" and self.kv_lora_rank < 1:
            raise BadInput("latent attention needs kv_lora_rank, the size of its latent")
        if self.window is not None and self.window < 1:
            raise BadInput(f"a window is a number of tokens; got {self.window}")

    def parameters(self, hidden: int) -> int:
        """Numbers in this layer's matrices."""
        return sum(rows * columns for _, rows, columns in self.matrices(hidden))

    def matrices(self, hidden: int) -> tuple[tuple[str, int, int], ...]:
        """Name, inputs and outputs of each weight matrix."""
        if self.kind == "mla":
            return self._latent_matrices(hidden)
        keys, values = self.kv_heads * self.head_dim, self.heads * self.value_dim
        if self.kind == "linear":
            widths = 2 * keys + values
            gates = (("gate", hidden, values),) if self.gated else ()
            decay = (("decay", hidden, 2 * self.heads),)
            return (
                ("qkv", hidden, widths),
                ("convolution", self.convolution, widths),
                *gates,
                *decay,
                ("out", values, hidden),
            )
        queries = self.heads * self.head_dim
        return (
            ("query", hidden, queries * (2 if self.gated else 1)),
            ("key", hidden, keys),
            ("value", hidden, self.kv_heads * self.value_dim),
            ("out", values, hidden),
        )

    def _latent_matrices(self, hidden: int) -> tuple[tuple[str, int, int], ...]:
        query = self.heads * (self.head_dim + self.rope_dim)
        down = (("query_down", hidden, self.q_lora_rank),) if self.q_lora_rank else ()
        up = ("query_up" if self.q_lora_rank else "query", self.q_lora_rank or hidden, query)
        indexer: tuple[tuple[str, int, int], ...] = ()
        if self.index_heads:
            indexer = (
                ("index_query", self.q_lora_rank or hidden, self.index_heads * self.index_dim),
                ("index_key", hidden, self.index_dim),
                ("index_weight", hidden, self.index_heads),
            )
        return (
            *down,
            up,
            ("latent_down", hidden, self.kv_lora_rank + self.rope_dim),
            ("latent_up", self.kv_lora_rank, self.heads * (self.head_dim + self.value_dim)),
            ("out", self.heads * self.value_dim, hidden),
            *indexer,
        )

    def kv_numbers_per_token(self, ranks: int = 1) -> int:
        """Numbers that one token leaves in one rank's cache.

        A latent serves all heads, so each rank keeps it whole; key heads are divided, and repeated where too few.

        Raises:
            BadInput: ``ranks`` and the heads do not divide each other.
        """
        if self.heads % ranks:
            raise BadInput(f"{ranks} ranks do not divide {self.heads} heads")
        if self.kind == "mla":
            return self.kv_lora_rank + self.rope_dim + (self.index_dim if self.index_heads else 0)
        if self.kind == "linear":
            return 0
        if self.kv_heads % ranks and ranks % self.kv_heads:
            raise BadInput(f"{self.kv_heads} key heads can be neither divided among {ranks} ranks nor repeated evenly")
        return max(1, self.kv_heads // ranks) * (self.head_dim + self.value_dim)

    def kv_numbers(self, length: int, ranks: int = 1) -> int:
        """Numbers that a sequence of ``length`` tokens keeps in one rank, constant state included."""
        if self.kind == "linear":
            keys, values = self.kv_heads * self.head_dim, self.heads * self.value_dim
            state = self.heads * self.head_dim * self.value_dim + max(0, self.convolution - 1) * (2 * keys + values)
            return -(-state // ranks)
        return self.kv_numbers_per_token(ranks) * min(length, self.window or length)

    def attended(self, context: int) -> int:
        """Keys that a query reads when ``context`` keys exist."""
        seen = min(context, self.window or context)
        return min(seen, self.index_top_k) if self.index_heads and self.index_top_k else seen

    def score_flops(self, context: int, *, absorbed: bool = True) -> int:
        """Operations of scores and weighted sums for one query over ``context`` keys, beside the matrices.

        Args:
            context: keys that exist.
            absorbed: latent attention in the latent space, as decoding does; else with keys and values written out.
        """
        if self.kind == "linear":
            return 4 * self.heads * self.head_dim * self.value_dim
        keys = self.attended(context)
        if self.kind != "mla":
            return 2 * self.heads * (self.head_dim + self.value_dim) * keys
        wide = (2 * self.kv_lora_rank if absorbed else self.head_dim + self.value_dim) + self.rope_dim
        return 2 * self.heads * wide * keys + 2 * self.index_heads * self.index_dim * context


@dataclass(frozen=True)
class MoeShape:
    """A layer's experts.

    Attributes:
        experts: routed ones. top_k: of them, how many serve a token.
        hidden: inner size of an expert.
        shared_hidden: inner size of the expert that serves every token; 0 for none.
    """

    experts: int
    top_k: int
    hidden: int
    shared_hidden: int = 0

    def __post_init__(self) -> None:
        """Refuses sizes that do not fit each other."""
        if not 1 <= self.top_k <= self.experts or self.hidden < 1 or self.shared_hidden < 0:
            raise BadInput(
                f"expert sizes do not fit: {self.top_k} of {self.experts} experts, inner size {self.hidden}, "
                f"shared {self.shared_hidden}"
            )

    def touched(self, tokens: float) -> float:
        """Experts that a step of ``tokens`` tokens is expected to read, if each token picks at random."""
        return self.experts * float(1 - (1 - self.top_k / self.experts) ** tokens)


@dataclass(frozen=True)
class LayerShape:
    """One layer: its attention and either a feed-forward of inner size ``feed_forward`` or experts."""

    attention: AttentionShape
    feed_forward: int = 0
    moe: MoeShape | None = None


@dataclass(frozen=True)
class WeightFormat:
    """How weights are stored.

    Attributes:
        bits: of a quantised number, block scales included. method: as the checkpoint names it; "" for none.
        plain_bits: of the numbers that stay unquantised.
        experts_only: whether attention and dense parts stay unquantised.
    """

    bits: float = 16.0
    plain_bits: float = 16.0
    method: str = ""
    experts_only: bool = False


@dataclass(frozen=True)
class LlmShape:
    """A decoder-only language model, as far as bytes and operations are concerned.

    Attributes:
        name: the model type that the configuration gives.
        hidden, vocabulary, context: d, tokens known, and the longest sequence it is meant for.
        layers: one entry each.
        tied: whether the output matrix is the embedding.
        gated: whether feed-forward parts have three matrices (gate, up, down) or two.
        weights: how they are stored.
        vision: whether images enter beside text; vision_parameters: of that tower, 0 where the configuration is silent.
        unknowns: what could not be read with certainty, in words.
    """

    name: str
    hidden: int
    vocabulary: int
    context: int
    layers: tuple[LayerShape, ...]
    tied: bool = False
    gated: bool = True
    weights: WeightFormat = field(default_factory=WeightFormat)
    vision: bool = False
    vision_parameters: int = 0
    unknowns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuses an empty model."""
        if not self.layers or min(self.hidden, self.vocabulary, self.context) < 1:
            raise BadInput(
                f"a model needs layers, and positive sizes; got {len(self.layers)} layers, hidden {self.hidden}, "
                f"vocabulary {self.vocabulary}, context {self.context}"
            )

    @classmethod
    def from_config(cls, config: Path | str | Mapping[str, Any]) -> LlmShape:
        """From a Hugging Face ``config.json``: its path, its folder, or its fields.

        Raises:
            BadInput: unreadable, or a needed field is missing or contradicts another; the message names it.
        """
        from heliograph.workload.config_reader import read_shape

        return read_shape(config)

    @property
    def attention_class(self) -> AttentionClass:
        """The model's attention as deployment tables name it; "hybrid" where layers differ in kind or window."""
        if any(text.startswith("attention") for text in self.unknowns):
            return "unknown"
        kinds = {layer.attention.kind for layer in self.layers}
        windows = {layer.attention.window for layer in self.layers}
        if len(kinds) > 1 or (len(windows) > 1 and None in windows):
            return "hybrid"
        if any(layer.attention.index_heads for layer in self.layers):
            return "sparse-mla"
        return kinds.pop()

    @property
    def moe(self) -> MoeShape | None:
        """The experts of the first layer that has any."""
        return next((layer.moe for layer in self.layers if layer.moe), None)

    @property
    def heads(self) -> int:
        """Query heads of the first layer that is not linear (of the first layer where all are)."""
        chosen = next((x for x in self.layers if x.attention.kind != "linear"), self.layers[0])
        return chosen.attention.heads

    @property
    def matrices_a_feed_forward(self) -> int:
        """3 with a gate, else 2."""
        return 3 if self.gated else 2

    def layer_parameters(self, layer: LayerShape, experts: float | None = None) -> float:
        """Numbers in one layer's matrices; with ``experts``, only so many routed experts are counted."""
        total: float = layer.attention.parameters(self.hidden)
        wide = self.matrices_a_feed_forward * self.hidden
        if layer.moe is None:
            return total + wide * layer.feed_forward
        counted = layer.moe.experts if experts is None else experts
        return total + self.hidden * layer.moe.experts + wide * (counted * layer.moe.hidden + layer.moe.shared_hidden)

    @property
    def embedding_parameters(self) -> int:
        """Numbers of the embedding, and of the output matrix where it is not tied."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """All of them, the vision tower included where its size is known."""
        layers = sum(self.layer_parameters(layer) for layer in self.layers)
        return int(layers) + self.embedding_parameters + self.vision_parameters

    @property
    def active_parameters(self) -> int:
        """Those that a token passes through: of routed experts the top k, of the embedding one output matrix."""
        layers = sum(self.layer_parameters(layer, layer.moe.top_k if layer.moe else None) for layer in self.layers)
        return int(layers) + self.vocabulary * self.hidden

    @property
    def expert_parameters(self) -> int:
        """Those of the routed experts."""
        wide = self.matrices_a_feed_forward * self.hidden
        return sum(wide * layer.moe.experts * layer.moe.hidden for layer in self.layers if layer.moe)

    def weight_bytes(self, weights: WeightFormat | None = None) -> int:
        """Bytes of all weights; embeddings and vision stay unquantised."""
        form = weights or self.weights
        experts = self.expert_parameters
        plain = self.embedding_parameters + self.vision_parameters
        rest = self.parameters - experts - plain
        quantised = experts + (0 if form.experts_only else rest)
        return int((quantised * form.bits + (self.parameters - quantised) * form.plain_bits) / 8)

    def step_weight_bytes(self, tokens: float, weights: WeightFormat | None = None) -> float:
        """Bytes of weights that a step of ``tokens`` tokens reads: dense ones, and experts expected to be touched."""
        form = weights or self.weights
        wide = self.matrices_a_feed_forward * self.hidden
        experts = sum(wide * layer.moe.touched(tokens) * layer.moe.hidden for layer in self.layers if layer.moe)
        dense = sum(self.layer_parameters(layer, 0 if layer.moe else None) for layer in self.layers)
        dense_bits = form.plain_bits if form.experts_only else form.bits
        head = self.vocabulary * self.hidden * form.plain_bits
        return (experts * form.bits + dense * dense_bits + head) / 8

    def kv_bytes_per_token(self, number_bytes: float = 2.0, ranks: int = 1) -> float:
        """Bytes that one further token adds to one rank's cache, once every window is full.

        Raises:
            BadInput: ``ranks`` do not divide the heads.
        """
        unbounded = (layer.attention for layer in self.layers if layer.attention.window is None)
        return number_bytes * sum(attention.kv_numbers_per_token(ranks) for attention in unbounded)

    def kv_bytes(self, length: int, number_bytes: float = 2.0, ranks: int = 1) -> float:
        """Bytes that a sequence of ``length`` tokens keeps in one rank: cache, windows and constant states.

        Raises:
            BadInput: a negative length, or ``ranks`` do not divide the heads.
        """
        if length < 0:
            raise BadInput(f"a length is a number of tokens; got {length}")
        return number_bytes * sum(layer.attention.kv_numbers(length, ranks) for layer in self.layers)

    def decode_flops(self, context: int, batch: int = 1) -> float:
        """Operations of one decoding step of ``batch`` sequences, each of which attends to ``context`` keys."""
        scores = sum(layer.attention.score_flops(context) for layer in self.layers)
        return float(batch) * (2 * self.active_parameters + scores)

    def prefill_flops(self, tokens: int, past: int = 0) -> float:
        """Operations of computing ``tokens`` prompt tokens after ``past`` cached ones; one token's logits."""
        if tokens < 1 or past < 0:
            raise BadInput(f"a prefill needs at least one token and a past of 0 or more; got {tokens} and {past}")
        head = self.vocabulary * self.hidden
        total = 2.0 * (self.active_parameters - head) * tokens + 2.0 * head
        for attention, count in self._attentions().items():
            total += count * prefill_scores(attention, tokens, past)
        return total

    def _attentions(self) -> dict[AttentionShape, int]:
        found: dict[AttentionShape, int] = {}
        for layer in self.layers:
            found[layer.attention] = found.get(layer.attention, 0) + 1
        return found


def prefill_scores(attention: AttentionShape, tokens: int, past: int) -> float:
    """Scores of queries at positions ``past .. past + tokens - 1``, the sum over what each of them attends."""
    if attention.kind == "linear":
        return float(tokens * attention.score_flops(1))

    def summed(limit: int | None) -> float:
        first, last = past + 1, past + tokens
        if limit is None or last <= limit:
            return (first + last) * tokens / 2
        ramp = max(0, limit - past)  # queries that see fewer keys than the limit
        return (first + min(limit, last)) * ramp / 2 + limit * (tokens - ramp)

    top = attention.index_top_k if attention.index_heads and attention.index_top_k else None
    limits = [limit for limit in (attention.window, top) if limit is not None]
    keys = summed(min(limits) if limits else None)
    if attention.kind != "mla":
        return 2.0 * attention.heads * (attention.head_dim + attention.value_dim) * keys
    wide = attention.head_dim + attention.value_dim + attention.rope_dim
    return 2.0 * attention.heads * wide * keys + 2.0 * attention.index_heads * attention.index_dim * summed(None)
