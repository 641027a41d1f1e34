"""The operators of one step of a language model, with their operations and the bytes of each tensor.

A graph is plain data: operators in an order in which they may run, each naming the tensors that it reads and writes.
Weights are read once a step, caches once a sequence; a fused kernel moves less, an eager one about this much.
Legend: T tokens of the step, d hidden, H heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from heliograph.errors import BadInput
from heliograph.workload.shape import AttentionShape, LayerShape, LlmShape, prefill_scores

__all__ = ["Gemm", "OpGraph", "Operator", "TensorUse", "gemms", "step_graph"]

Role = Literal["weight", "activation", "cache"]
OperatorKind = Literal["gemm", "attention", "scan", "elementwise", "gather"]


@dataclass(frozen=True)
class Gemm:
    """``count`` products of a [rows, inner] by an [inner, columns] matrix."""

    name: str
    rows: int
    inner: int
    columns: int
    count: int = 1

    @property
    def flops(self) -> int:
        """Operations of all of them."""
        return 2 * self.rows * self.inner * self.columns * self.count


@dataclass(frozen=True)
class TensorUse:
    """A tensor that an operator touches: its name in the graph, its bytes, and what it is."""

    name: str
    nbytes: float
    role: Role


@dataclass(frozen=True)
class Operator:
    """One operation of a step.

    Attributes:
        name: unique in the graph; kind: what a scheduler needs to know; layer: -1 outside the layers.
        flops: a multiply-add counts two.
        reads, writes: tensors, by name and bytes.
    """

    name: str
    kind: OperatorKind
    layer: int
    flops: float
    reads: tuple[TensorUse, ...]
    writes: tuple[TensorUse, ...]

    @property
    def nbytes(self) -> float:
        """Bytes that it reads and writes."""
        return sum(use.nbytes for use in (*self.reads, *self.writes))

    @property
    def intensity(self) -> float:
        """Operations a byte."""
        return self.flops / self.nbytes if self.nbytes else 0.0


@dataclass(frozen=True)
class OpGraph:
    """Operators in an order in which they may run; an edge is a tensor written by one and read by another."""

    operators: tuple[Operator, ...]

    def __post_init__(self) -> None:
        """Refuses names used twice and activations that nobody wrote."""
        names = [operator.name for operator in self.operators]
        if len(set(names)) != len(names):
            raise BadInput("two operators of a graph share a name")
        written: set[str] = {"tokens"}
        for operator in self.operators:
            for use in operator.reads:
                if use.role == "activation" and use.name not in written:
                    raise BadInput(f"operator {operator.name} reads {use.name}, which no earlier operator wrote")
            written |= {use.name for use in operator.writes}

    @property
    def flops(self) -> float:
        """Operations of the step."""
        return sum(operator.flops for operator in self.operators)

    def nbytes(self, *roles: Role) -> float:
        """Bytes moved, of these roles or of all."""
        uses = (use for operator in self.operators for use in (*operator.reads, *operator.writes))
        return sum(use.nbytes for use in uses if not roles or use.role in roles)

    def edges(self) -> Iterator[tuple[str, str]]:
        """Pairs of operators: who writes a tensor, who reads it."""
        writer: dict[str, str] = {}
        for operator in self.operators:
            for use in operator.reads:
                if use.name in writer:
                    yield writer[use.name], operator.name
            writer.update({use.name: operator.name for use in operator.writes})

    def roofline_s(self, flops_per_s: float, bytes_per_s: float) -> float:
        """Seconds at the roof of each operator in turn: the larger of its operations' and its bytes' time."""
        if not (flops_per_s > 0 and bytes_per_s > 0):
            raise BadInput(f"rates must be positive; got {flops_per_s} operations/s and {bytes_per_s} bytes/s")
        return sum(max(op.flops / flops_per_s, op.nbytes / bytes_per_s) for op in self.operators)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def gemms(shape: LlmShape, tokens: int) -> tuple[Gemm, ...]:
    """The matrix products of a step of ``tokens`` tokens, equal ones counted together, the largest first.

    Experts appear with the number that a step is expected to touch and with equal shares of the tokens.
    """
    if tokens < 1:
        raise BadInput(f"a step has at least one token; got {tokens}")
    found: dict[tuple[str, int, int, int], int] = {}

    def add(name: str, rows: int, inner: int, columns: int, count: int = 1) -> None:
        if rows and count:
            key = (name, rows, inner, columns)
            found[key] = found.get(key, 0) + count

    for layer in shape.layers:
        for name, inner, columns in layer.attention.matrices(shape.hidden):
            if name != "convolution":
                add(f"attention.{name}", tokens, inner, columns)
        for name, rows, inner, columns, count in _feed_forward(shape, layer, tokens):
            add(name, rows, inner, columns, count)
    add("head", tokens, shape.hidden, shape.vocabulary)
    rows_ = [Gemm(name, rows, inner, columns, count) for (name, rows, inner, columns), count in found.items()]
    return tuple(sorted(rows_, key=lambda gemm: -gemm.flops))


def _feed_forward(shape: LlmShape, layer: LayerShape, tokens: int) -> Iterator[tuple[str, int, int, int, int]]:
    wide = 2 if shape.gated else 1
    if layer.moe is None:
        yield "feed_forward.up", tokens, shape.hidden, wide * layer.feed_forward, 1
        yield "feed_forward.down", tokens, layer.feed_forward, shape.hidden, 1
        return
    moe = layer.moe
    yield "experts.router", tokens, shape.hidden, moe.experts, 1
    touched = max(1, round(moe.touched(tokens)))
    share = -(-tokens * moe.top_k // touched)
    yield "experts.up", share, shape.hidden, wide * moe.hidden, touched
    yield "experts.down", share, moe.hidden, shape.hidden, touched
    if moe.shared_hidden:
        yield "experts.shared_up", tokens, shape.hidden, wide * moe.shared_hidden, 1
        yield "experts.shared_down", tokens, moe.shared_hidden, shape.hidden, 1


def step_graph(
    shape: LlmShape, *, new_tokens: int, context: int = 0, batch: int = 1, number_bytes: float = 2.0
) -> OpGraph:
    """The operators of one step.

    Args:
        shape: the model.
        new_tokens: tokens that each sequence adds: its prompt's for a prefill, 1 for decoding.
        context: cached tokens of each sequence before the step.
        batch: sequences.
        number_bytes: of an activation or cached number; weights have the bytes of their own format.

    Raises:
        BadInput: sizes that are not positive.
    """
    if new_tokens < 1 or batch < 1 or context < 0 or not number_bytes > 0:
        raise BadInput(
            f"sizes of a step must be positive; got {new_tokens} tokens, {batch} sequences, context {context}"
        )
    return OpGraph(tuple(_Builder(shape, new_tokens, context, batch, number_bytes).operators()))


class _Builder:
    def __init__(self, shape: LlmShape, new_tokens: int, context: int, batch: int, number_bytes: float) -> None:
        self.shape, self.new, self.context, self.batch = shape, new_tokens, context, batch
        self.tokens, self.number = new_tokens * batch, number_bytes
        form = shape.weights
        self.plain = form.plain_bits / 8
        self.dense = self.plain if form.experts_only else form.bits / 8
        self.expert = form.bits / 8

    def operators(self) -> Iterator[Operator]:
        wide = self.tokens * self.shape.hidden
        stream = self.use("stream.0", wide)
        yield Operator(
            "embedding", "gather", -1, 0.0,
            (TensorUse("tokens", 4.0 * self.tokens, "activation"), TensorUse("embedding", wide * self.plain, "weight")),
            (stream,),
        )  # fmt: skip
        for number, layer in enumerate(self.shape.layers):
            after = self.use(f"layer.{number}.attended", wide)
            yield from self.attention(number, layer.attention, stream, after)
            stream = self.use(f"stream.{number + 1}", wide)
            yield from self.feed_forward(number, layer, after, stream)
        read = self.batch * self.shape.hidden  # the last token of each sequence
        logits = self.use("logits", self.batch * self.shape.vocabulary)
        weight = TensorUse("head", self.shape.hidden * self.shape.vocabulary * self.plain, "weight")
        last = TensorUse(stream.name, read * self.number, "activation")
        yield Operator(
            "head", "gemm", -1, 2.0 * self.batch * self.shape.hidden * self.shape.vocabulary, (last, weight), (logits,)
        )

    def use(self, name: str, numbers: float) -> TensorUse:
        return TensorUse(name, numbers * self.number, "activation")

    def attention(self, layer: int, mixer: AttentionShape, stream: TensorUse, after: TensorUse) -> Iterator[Operator]:
        tag = f"layer.{layer}.attention"
        *inputs, out = [m for m in mixer.matrices(self.shape.hidden) if m[0] != "out"] + [
            m for m in mixer.matrices(self.shape.hidden) if m[0] == "out"
        ]
        size = sum(rows * columns for _, rows, columns in inputs)
        made = self.use(f"{tag}.inputs", self.tokens * sum(columns for *_, columns in inputs))
        weight = TensorUse(f"{tag}.weights", size * self.dense, "weight")
        yield Operator(f"{tag}.project", "gemm", layer, 2.0 * self.tokens * size, (stream, weight), (made,))
        mixed = self.use(f"{tag}.mixed", self.tokens * mixer.heads * mixer.value_dim)
        kind: OperatorKind = "scan" if mixer.kind == "linear" else "attention"
        held = self.batch * mixer.kv_numbers(self.context) * self.number
        added = self.tokens * mixer.kv_numbers_per_token() * self.number
        if mixer.kind == "linear":
            held = added = self.batch * mixer.kv_numbers(1) * self.number
        yield Operator(
            f"{tag}.mix", kind, layer, self.batch * self.scores(mixer),
            (made, TensorUse(f"{tag}.cache", held, "cache")),
            (mixed, TensorUse(f"{tag}.cache_new", added, "cache")),
        )  # fmt: skip
        weight = TensorUse(f"{tag}.out_weights", out[1] * out[2] * self.dense, "weight")
        yield Operator(
            f"{tag}.out", "gemm", layer, 2.0 * self.tokens * out[1] * out[2], (mixed, weight, stream), (after,)
        )

    def scores(self, mixer: AttentionShape) -> float:
        if self.new == 1:
            return float(mixer.score_flops(self.context + 1))

        return prefill_scores(mixer, self.new, self.context)

    def feed_forward(self, layer: int, part: LayerShape, after: TensorUse, stream: TensorUse) -> Iterator[Operator]:
        tag, hidden = f"layer.{layer}.feed_forward", self.shape.hidden
        matrices = self.shape.matrices_a_feed_forward * hidden
        if part.moe is None:
            size = matrices * part.feed_forward
            weight = TensorUse(f"{tag}.weights", size * self.dense, "weight")
            yield Operator(tag, "gemm", layer, 2.0 * self.tokens * size, (after, weight), (stream,))
            return
        moe = part.moe
        routed = self.use(f"{tag}.routes", self.tokens * moe.experts)
        router = TensorUse(f"{tag}.router_weights", hidden * moe.experts * self.plain, "weight")
        yield Operator(
            f"{tag}.router", "gemm", layer, 2.0 * self.tokens * hidden * moe.experts, (after, router), (routed,)
        )
        size = matrices * moe.hidden
        weight = TensorUse(f"{tag}.expert_weights", moe.touched(self.tokens) * size * self.expert, "weight")
        flops = 2.0 * self.tokens * moe.top_k * size
        made = self.use(f"{tag}.routed", self.tokens * hidden) if moe.shared_hidden else stream
        yield Operator(f"{tag}.experts", "gemm", layer, flops, (after, routed, weight), (made,))
        if moe.shared_hidden:
            size = matrices * moe.shared_hidden
            weight = TensorUse(f"{tag}.shared_weights", size * self.expert, "weight")
            yield Operator(f"{tag}.shared", "gemm", layer, 2.0 * self.tokens * size, (after, made, weight), (stream,))
