"""Decoding on a GPU: seconds a step against transformers, and the share of the memory's bandwidth that is reached.

Random weights of the shape of Llama 3 8B in bfloat16; every step must read all weights and all keys and values once, so
bytes over bandwidth bounds it from below. Both engines run in this process, alternately, on the same prompts.

python benchmarks/serving_decode.py --output record.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from heliograph.lm.core.config import DecoderConfig, RopeSpec
from heliograph.lm.core.generate import generate
from heliograph.lm.core.load import LanguageModel, random_model
from heliograph.lm.core.sampling import SamplingParams
from heliograph.serving.core.engine import Engine

SHAPES = {
    "8b": DecoderConfig("llama", 128256, 32, 4096, 14336, 32, 8, 128, 8192, 1e-5, RopeSpec(5e5, 128)),
    "tiny": DecoderConfig("llama", 512, 2, 64, 128, 4, 2, 16, 1024, 1e-5, RopeSpec(1e4, 16)),
}
SLIDING = replace(  # as Gemma 3: three layers of four see 20 tokens
    SHAPES["tiny"],
    architecture="gemma3",
    layers=4,
    qk_norm=True,
    post_norms=True,
    activation="gelu",
    query_scale=0.2,
    window=20,
    global_every=4,
    local_rope=RopeSpec(1e2, 16),
)


class Numbers:
    """A tokenizer for prompts that are numbers already."""

    size, end_tokens, begin_token, template = 0, (), None, ""

    def encode(self, text: str, *, special: bool = True) -> list[int]:  # noqa: ARG002
        return list(text.encode())

    def decode(self, tokens: Any, *, special: bool = False) -> str:  # noqa: ARG002
        return ""


def bandwidth(nbytes: int = 2**31) -> float:
    """Bytes a second that a copy within the device reads and writes."""
    source = torch.empty(nbytes, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times = []
    for _ in range(6):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return 2 * nbytes / statistics.median(times[1:])


def same_tokens() -> int:
    """Prompts of two small float32 models whose tokens equal a plain forward pass, on this device."""
    return sum(_same_tokens(shape) for shape in (SHAPES["tiny"], SLIDING))


def _same_tokens(shape: DecoderConfig) -> int:
    model = random_model(shape, Numbers(), device="cuda")  # type: ignore[arg-type]
    noise = torch.Generator().manual_seed(1)
    prompts = [torch.randint(512, (n,), generator=noise).tolist() for n in (1, 5, 17, 33, 64, 100, 3, 40)]
    params = SamplingParams(max_tokens=24, temperature=0)
    plain = generate(model, prompts, params)
    agreed = 0
    for settings in ({}, {"overlap": True}, {"num_blocks": 24, "overlap": True}, {"chunk_limit": 7}):
        with Engine(model, **({"num_blocks": 200} | settings)) as engine:  # type: ignore[arg-type]
            found = engine.generate(prompts, params)
        agreed += sum(a.tokens == b.tokens for a, b in zip(found, plain, strict=True))
    answers = f"{agreed} of {4 * len(prompts)} answers of {shape.architecture}"
    print(f"{answers} equal a plain forward pass (float32, recorded graphs)")
    assert agreed == 4 * len(prompts)
    return agreed


def ours(model: LanguageModel, prompts: list[list[int]], steps: int, overlap: bool) -> tuple[float, float]:
    """Seconds of the prompts' steps, and the median seconds of a decoding step, scheduling included."""
    with Engine(model, cache_bytes=2**33, max_sequences=64, max_tokens_per_step=4096, overlap=overlap) as engine:
        params = SamplingParams(max_tokens=steps + 8, temperature=0)
        for prompt in prompts:
            engine.add(engine.request(prompt, params))
        torch.cuda.synchronize()
        begin = time.perf_counter()
        while engine.stats().generated_tokens < len(prompts):
            engine.step()
        first = time.perf_counter() - begin
        for _ in range(4):  # the graph is recorded
            engine.step()
        times = []
        for _ in range(steps):
            begin = time.perf_counter()
            engine.step()
            times.append(time.perf_counter() - begin)
        for request in list(engine.core.requests):
            engine.abort(request)
    return first, statistics.median(times)


def theirs(model: Any, prompts: list[list[int]], steps: int) -> float:
    """Seconds a token of transformers' generate, the prompts' time taken off."""
    tokens = torch.tensor(prompts, device="cuda")
    seconds = []
    for count in (1, 1 + steps):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
        )
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return (seconds[1] - seconds[0]) / steps


def peer(config: DecoderConfig) -> Any:
    import transformers

    shape = transformers.LlamaConfig(
        vocab_size=config.vocabulary,
        hidden_size=config.hidden,
        intermediate_size=config.feed_forward,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        max_position_embeddings=config.context,
        rms_norm_eps=config.norm_eps,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(shape)
    model = model.to(torch.bfloat16).to_empty(device="cuda").eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=weight.shape[-1] ** -0.5) if weight.dim() > 1 else weight.fill_(1)
        rotary = model.model.rotary_emb
        steps = torch.arange(0, config.head_dim, 2, device="cuda").float() / config.head_dim
        rotary.inv_freq.copy_(config.rope.base**-steps)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--context", type=int, default=512, help="tokens of each prompt")
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    agreed = same_tokens()
    config = SHAPES[options.shape]
    model = random_model(config, Numbers(), dtype=torch.bfloat16, device="cuda")  # type: ignore[arg-type]
    weights = sum(p.nbytes for name, p in model.decoder.named_parameters() if "embedding" not in name)
    moved = bandwidth()
    other = None if options.no_peer else peer(config)
    print(f"weights {weights / 2**30:.1f} GiB; a copy moves {moved / 1e12:.2f} TB/s")
    rows = []
    for batch in map(int, options.batches.split(",")):
        noise = torch.Generator().manual_seed(batch)
        prompts = torch.randint(config.vocabulary, (batch, options.context), generator=noise).tolist()
        arms: dict[str, Callable[[], Any]] = {
            "ours": lambda prompts=prompts: ours(model, prompts, options.steps, False)[1],
            "overlap": lambda prompts=prompts: ours(model, prompts, options.steps, True)[1],
        }
        if other is not None:
            arms["transformers"] = lambda prompts=prompts: theirs(other, prompts, options.steps)
        times: dict[str, list[float]] = {name: [] for name in arms}
        for repeat in range(3):
            for name, arm in arms.items():
                seconds = arm()
                if repeat:  # the first round loads kernels
                    times[name].append(seconds)
        kv = 2 * config.layers * config.kv_heads * config.head_dim * 2
        needed = weights + batch * kv * (options.context + options.steps // 2)
        row: dict[str, Any] = {"batch": batch, "context": options.context, "bytes": needed, "bound_s": needed / moved}
        for name, found in times.items():
            seconds = statistics.median(found)
            row[name] = {
                "step_s": seconds,
                "tokens_per_s": batch / seconds,
                "share_of_bandwidth": needed / moved / seconds,
            }
            print(
                f"batch {batch:3d} {name:13s} {1e3 * seconds:7.2f} ms a step {batch / seconds:8.0f} tokens/s "
                f"{needed / moved / seconds:6.1%} of the bandwidth bound"
                + (f"  {statistics.median(times['transformers']) / seconds:.2f}x" if other is not None else "")
            )
        rows.append(row)
    if options.output:
        record = {
            "device": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "shape": options.shape,
            "weights_bytes": weights,
            "copy_bytes_per_s": moved,
            "equal_answers": agreed,
            "rows": rows,
        }
        options.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
