"""A decoder some of whose layers see only a window: the caches of a hybrid model on weights that were trained without.

With every sixth layer full, SmolLM2 keeps and computes what a hybrid of that mix would; what it says is not what it was
trained to say. Called "windowed SmolLM2" wherever it is measured: bytes and seconds count, quality does not.

Shapes: T tokens, H heads, G key and value heads, D channels a head; one sequence at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from heliograph.errors import BadInput
from heliograph.lm.core.config import DecoderConfig, RopeSpec
from heliograph.lm.core.load import LanguageModel, random_model
from heliograph.workload.shape import AttentionShape, LayerShape, LlmShape

__all__ = [
    "WindowedKV",
    "continue_greedily",
    "prefill",
    "random_decoder",
    "windowed_attention",
    "windowed_layers",
    "windowed_shape",
]

ON_LAYER = Callable[[int, Tensor, Tensor], object]


def windowed_layers(layers: int, *, full_every: int = 6, window: int | None = 512) -> tuple[int | None, ...]:
    """The window of each layer: every ``full_every``-th sees all, the others ``window`` tokens; None sees all.

    Raises:
        BadInput: sizes below 1.
    """
    if layers < 1 or full_every < 1 or (window is not None and window < 1):
        raise BadInput(f"need layers, full_every and window of 1 or more; got {layers}, {full_every}, {window}")
    return tuple(None if (n + 1) % full_every == 0 else window for n in range(layers))


def windowed_shape(config: DecoderConfig, windows: Sequence[int | None]) -> LlmShape:
    """The model as far as bytes and operations are concerned."""
    return LlmShape(
        f"windowed {config.architecture}",
        config.hidden,
        config.vocabulary,
        config.context,
        tuple(
            LayerShape(
                AttentionShape("gqa", config.heads, config.kv_heads, config.head_dim, config.head_dim, window),
                config.feed_forward,
            )
            for window in windows
        ),
        config.tied,
    )


@dataclass(eq=False)
class WindowedKV:
    """Attention of one sequence that keeps, in each layer, no more keys and values than its window.

    Attributes:
        windows: of each layer; None keeps all.
        keys, values: kept, [T', G, D] each.
        length: tokens that went in.
        on_layer: called with (layer, keys, values) once a layer's are kept, before the layer's further computing.
    """

    windows: tuple[int | None, ...]
    on_layer: ON_LAYER | None = None

    def __post_init__(self) -> None:
        """Starts empty."""
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.length = 0

    @classmethod
    def filled(
        cls, windows: tuple[int | None, ...], keys: list[Tensor], values: list[Tensor], length: int
    ) -> WindowedKV:
        """From keys and values that were computed elsewhere.

        Raises:
            BadInput: a layer does not hold what its window asks for.
        """
        if not len(keys) == len(values) == len(windows):
            raise BadInput(f"{len(windows)} layers need keys and values each; got {len(keys)} and {len(values)}")
        for layer, (window, k, v) in enumerate(zip(windows, keys, values, strict=True)):
            wanted = length if window is None else min(length, window)
            if len(k) != wanted or len(v) != wanted:
                raise BadInput(f"layer {layer} keeps {wanted} tokens after {length}; got {len(k)} and {len(v)}")
        found = cls(windows)
        found.keys, found.values, found.length = list(keys), list(values), length
        return found

    @property
    def nbytes(self) -> int:
        """Of all that is kept."""
        return sum(part.numel() * part.element_size() for part in (*self.keys, *self.values))

    def copy(self) -> WindowedKV:
        """Another that starts from the same past."""
        found = WindowedKV(self.windows)
        found.keys, found.values, found.length = list(self.keys), list(self.values), self.length
        return found

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [1, T, H, D], k and v [1, T, G, D] to [1, T, H, D]."""
        new_k, new_v = k[0], v[0]
        if layer < len(self.keys):
            new_k = torch.cat([self.keys[layer], new_k])
            new_v = torch.cat([self.values[layer], new_v])
        else:
            self.keys.append(new_k)
            self.values.append(new_v)
        window = self.windows[layer]
        full = window is None or len(new_k) <= window
        heard = _full(q[0], new_k, new_v) if full else windowed_attention(q[0], new_k, new_v, window or 0)
        if window is not None and len(new_k) > window:
            new_k, new_v = new_k[-window:].clone(), new_v[-window:].clone()  # a view would keep all of it
        self.keys[layer], self.values[layer] = new_k, new_v
        if self.on_layer is not None:
            self.on_layer(layer, new_k, new_v)
        return heard[None]


def _full(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    past = len(k) - len(q)
    if past == 0:
        return _attend(q, k, v, None, causal=True)
    if len(q) == 1:
        return _attend(q, k, v, None)
    return _attend(q, k, v, torch.ones(len(q), len(k), dtype=torch.bool, device=q.device).tril(past))


def windowed_attention(q: Tensor, k: Tensor, v: Tensor, window: int, *, at_once: bool | None = None) -> Tensor:
    """The last T of T' tokens, [T, H, D], each hearing itself and the ``window`` - 1 before it; k and v [T', G, D].

    Block by block of queries, so that no score outside a window's reach is computed.

    Args:
        at_once: whether all blocks go through one call, which costs a few times the memory of keys and values and saves
            a GPU from many small calls; None for what suits the device.
    """
    block = max(64, window // 2)
    if at_once is None:
        at_once = q.is_cuda and len(q) > 2 * block
    return _all_blocks(q, k, v, window, block) if at_once else _each_block(q, k, v, window, block)


def _each_block(q: Tensor, k: Tensor, v: Tensor, window: int, block: int) -> Tensor:
    past = len(k) - len(q)
    found = []
    for start in range(0, len(q), block):
        stop = min(len(q), start + block)
        first = max(0, past + start - window + 1)
        keys = torch.arange(first, past + stop, device=q.device)
        at = torch.arange(past + start, past + stop, device=q.device)[:, None]
        allowed = (keys <= at) & (at - keys < window)
        part = slice(first, past + stop)
        found.append(_attend(q[start:stop], k[part], v[part], allowed))
    return torch.cat(found)


def _all_blocks(q: Tensor, k: Tensor, v: Tensor, window: int, block: int) -> Tensor:
    """Each block of queries, filled up at the end, with the ``window`` keys before it, filled up at the beginning."""
    past, count = len(k) - len(q), -(-len(q) // block)
    fill = count * block - len(q)
    missing = max(0, window - past)

    def spans(part: Tensor) -> Tensor:  # [blocks, H, window + block, D]
        padded = functional.pad(part[max(0, past - window) :], (0, 0, 0, 0, missing, fill))
        pieces = padded.unfold(0, window + block, block).transpose(2, 3)
        return pieces.repeat_interleave(q.shape[1] // part.shape[1], dim=1)

    queries = functional.pad(q, (0, 0, 0, 0, 0, fill)).reshape(count, block, *q.shape[1:]).transpose(1, 2)
    to, at = torch.arange(window + block, device=q.device), torch.arange(block, device=q.device)[:, None]
    begins = torch.arange(count, device=q.device)[:, None, None] * block
    allowed = (to > at) & (to - at <= window) & (begins + to >= missing)
    heard = functional.scaled_dot_product_attention(queries, spans(k), spans(v), attn_mask=allowed[:, None])
    return heard.transpose(1, 2).flatten(0, 1)[: len(q)]


def _attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, *, causal: bool = False) -> Tensor:
    """[T, H, D] with [T', G, D]."""
    queries, keys, values = (part.transpose(0, 1)[None] for part in (q, k, v))
    heard = functional.scaled_dot_product_attention(
        queries, keys, values, attn_mask=allowed, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1]
    )
    return heard[0].transpose(0, 1)


@torch.no_grad()
def prefill(model: LanguageModel, tokens: Sequence[int], kv: WindowedKV) -> int:
    """Computes a prompt after what ``kv`` holds already; the first token of the answer, the likeliest one.

    Raises:
        BadInput: no tokens, or more than the model's context.
    """
    if not tokens or kv.length + len(tokens) > model.config.context:
        raise BadInput(
            f"a prompt of {len(tokens)} tokens after {kv.length} does not fit; 1 to "
            f"{model.config.context - kv.length} do"
        )
    device = next(model.decoder.parameters()).device
    row = torch.tensor([list(tokens)], device=device)
    positions = torch.arange(kv.length, kv.length + len(tokens), device=device)[None]
    hidden = model.decoder(model.decoder.embed(row), positions, kv)
    kv.length += len(tokens)
    return int(model.decoder.logits(hidden[0, -1]).argmax())


def continue_greedily(model: LanguageModel, kv: WindowedKV, first: int, count: int) -> list[int]:
    """``count`` tokens, ``first`` included; each the likeliest after those before it."""
    answer = [first]
    while len(answer) < count:
        answer.append(prefill(model, [answer[-1]], kv))
    return answer[:count]


def random_decoder(
    seed: int = 0, layers: int = 6, *, wide: bool = False, device: str = "cpu", dtype: str = "float32"
) -> LanguageModel:
    """A model with random weights, small or wide, for measurements and for trying things out; it has no tokenizer."""
    hidden, head, context = (1024, 64, 131_072) if wide else (32, 8, 4096)
    config = DecoderConfig(
        "llama", vocabulary=256, layers=layers, hidden=hidden, feed_forward=3 * hidden, heads=hidden // head,
        kv_heads=hidden // head // 2, head_dim=head, context=context, norm_eps=1e-5, rope=RopeSpec(1e4, head),
    )  # fmt: skip
    return random_model(config, cast(Any, None), seed=seed, device=device, dtype=getattr(torch, dtype))
