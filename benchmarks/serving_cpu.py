"""Tokens a second on a CPU: our engine against transformers and llama.cpp, on the real small model, in one run.

All arms take the same prompts (cold caches: every repeat has prompts of its own) and give the same number of tokens.
"equal" answers all have one length, which suits a static batch; "mixed" answers have lengths from 8 to 64, so that a
static batch computes rows that nobody waits for. "queue" is three times as many mixed requests, of which a batch runs
at once: transformers takes one batch after the other, the others take the next request as soon as one has ended. Our
arms and those of transformers take float32 weights, or bfloat16 where they say so; llama.cpp reads the file's own
quantised weights. Each arm is compared with transformers of its own format, and with transformers in float32. "ours,
again" is the first arm a second time: what it differs by is noise. "ours, warm prefix" finds all prompts in its prefix
cache, with the hit rate beside it. llama.cpp is asked over HTTP; what the client itself takes for as many tokens is
printed too. In the queue "first tokens" says when the last request had its first.

python benchmarks/serving_cpu.py --output record.json       (llama.cpp: pip install xllamacpp)
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from heliograph.data.language_models import smollm2_file
from heliograph.devices import this_machine
from heliograph.lm.core.load import LanguageModel, load_model
from heliograph.lm.core.sampling import SamplingParams
from heliograph.serving.core.engine import Engine
from heliograph.serving.core.request import Request

PROMPT_TOKENS = 64
WARM_UP = 99
"""Repeat whose prompts every arm gets first, untimed: at a new size each makes kernels and takes memory."""
LEFT_OUT = {
    "mixed": ("transformers, continuous",),
    "queue": ("transformers, continuous", "ours, again", "ours, overlapped", "ours, warm prefix"),
}
"""transformers' continuous batches take one length for all here; the others would only add time."""


@dataclass(frozen=True)
class Work:
    """Prompts, how long each answer is, and how many requests run at once."""

    prompts: tuple[tuple[int, ...], ...]
    lengths: tuple[int, ...]
    at_once: int

    @property
    def tokens(self) -> int:
        return sum(self.lengths)


Arm = Callable[[Work], tuple[float, float]]
"""Seconds of all, and seconds until every request had its first token."""


def ours(model: LanguageModel, *, overlap: bool = False, warm: bool = False) -> Arm:
    engine = Engine(model, max_sequences=64, max_tokens_per_step=1024, overlap=overlap)

    def run(work: Work) -> tuple[float, float]:
        if warm:
            engine.generate(work.prompts, SamplingParams(max_tokens=1, temperature=0, ignore_end=True))
        before = engine.stats()
        found = timed(work)
        after = engine.stats()
        asked = after.queried_tokens - before.queried_tokens
        run.hit_rate = (after.hit_tokens - before.hit_tokens) / asked  # type: ignore[attr-defined]
        return found

    def timed(work: Work) -> tuple[float, float]:
        begin, first = time.perf_counter(), 0.0
        queue = [
            engine.request(prompt, SamplingParams(max_tokens=n, temperature=0, ignore_end=True))
            for prompt, n in zip(work.prompts, work.lengths, strict=True)
        ]
        running: list[Request] = []
        waiting = deque(queue)
        while waiting or running:
            while waiting and len(running) < work.at_once:
                running.append(engine.add(waiting.popleft()))
            engine.step()
            running = [request for request in running if request.finish is None]
            if not first and all(request.num_output for request in queue):
                first = time.perf_counter() - begin
        return time.perf_counter() - begin, first

    return run


def transformers_continuous(peer: Any, most: int) -> Arm:
    """Its continuous batching, with the manager kept between calls."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)
    config = ContinuousBatchingConfig(num_blocks=most * 4, max_batch_tokens=1024)

    def run(work: Work) -> tuple[float, float]:
        def generate(count: int) -> float:
            wanted = GenerationConfig(
                max_new_tokens=count, min_new_tokens=count, do_sample=False, eos_token_id=-1, pad_token_id=0
            )
            begin = time.perf_counter()
            # one length for all, the longest: a request of this interface has no limit of its own
            found = peer.generate_batch(
                [list(prompt) for prompt in work.prompts],
                generation_config=wanted,
                continuous_batching_config=config,
                persistent_manager=True,
                warmup=False,
            )
            assert all(len(each.generated_tokens) == count for each in found.values())
            return time.perf_counter() - begin

        first = generate(1)
        return generate(max(work.lengths)), first

    return run


def transformers_generate(peer: Any) -> Arm:
    def generate(prompts: Sequence[Sequence[int]], count: int) -> float:
        tokens = torch.tensor(prompts)
        begin = time.perf_counter()
        peer.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
        )
        return time.perf_counter() - begin

    def run(work: Work) -> tuple[float, float]:
        seconds = first = 0.0
        for begin in range(0, len(work.prompts), work.at_once):
            part = slice(begin, begin + work.at_once)
            first = seconds + generate(work.prompts[part], 1)
            seconds += generate(work.prompts[part], max(work.lengths[part]))
        return seconds, first

    return run


def llama_cpp(parallel: int) -> Arm:
    import httpx
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(smollm2_file())
    params.n_parallel, params.n_ctx, params.n_gpu_layers = parallel, parallel * 256, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = torch.get_num_threads()
    params.cache_prompt, params.port, params.verbosity = False, 0, -1
    server = xllamacpp.Server(params)
    url = server.listening_address
    client = httpx.Client(
        base_url=url, timeout=600, limits=httpx.Limits(max_connections=parallel, max_keepalive_connections=0)
    )

    def ask(prompt: Sequence[int], count: int, begin: float) -> float:
        first = 0.0
        body = {"prompt": list(prompt), "n_predict": count, "temperature": 0, "ignore_eos": True, "stream": True}
        got = 0
        with client.stream("POST", "/completion", json=body) as response:
            for line in response.iter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    first = first or time.perf_counter() - begin
                    got = max(got, json.loads(line[6:]).get("tokens_predicted", 0))
        assert got == count, f"{got} of {count} tokens"
        return first

    def run(work: Work) -> tuple[float, float]:
        begin = time.perf_counter()
        with ThreadPoolExecutor(work.at_once) as pool:
            firsts = list(pool.map(ask, work.prompts, work.lengths, [begin] * len(work.prompts)))
        return time.perf_counter() - begin, max(firsts)

    run.server = server  # type: ignore[attr-defined] # lives as long as the arm
    return run


def as_transformers(model: LanguageModel) -> Any:
    """The same weights in transformers' own class."""
    import transformers

    config = model.config
    shape = transformers.LlamaConfig(
        vocab_size=config.vocabulary,
        hidden_size=config.hidden,
        intermediate_size=config.feed_forward,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.context,
        rms_norm_eps=config.norm_eps,
        rope_theta=config.rope.base,
        tie_word_embeddings=config.tied,
    )
    peer = transformers.LlamaForCausalLM(shape).eval()
    inner = config.heads * config.head_dim, config.kv_heads * config.head_dim, config.kv_heads * config.head_dim

    def halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
        """Pairs of neighbours become pairs of halves, as that class turns them."""
        if not config.rope.interleaved:
            return weight
        parts = weight.view(heads, config.head_dim // 2, 2, -1)
        return parts.transpose(1, 2).reshape(weight.shape)

    with torch.no_grad():
        for mine, theirs in zip(model.decoder.blocks, peer.model.layers, strict=True):
            q, k, v = mine.query_key_value.weight.split(inner)
            theirs.self_attn.q_proj.weight.copy_(halves(q, config.heads))
            theirs.self_attn.k_proj.weight.copy_(halves(k, config.kv_heads))
            theirs.self_attn.v_proj.weight.copy_(v)
            theirs.self_attn.o_proj.weight.copy_(mine.out.weight)
            gate, up = mine.gate_up.weight.chunk(2)
            theirs.mlp.gate_proj.weight.copy_(gate)
            theirs.mlp.up_proj.weight.copy_(up)
            theirs.mlp.down_proj.weight.copy_(mine.down.weight)
            theirs.input_layernorm.weight.copy_(mine.attention_norm.weight)
            theirs.post_attention_layernorm.weight.copy_(mine.feed_forward_norm.weight)
        peer.model.embed_tokens.weight.copy_(model.decoder.embedding.weight)
        peer.model.norm.weight.copy_(model.decoder.norm.weight)
        peer.lm_head.weight.copy_(model.decoder.head.weight)
    return peer


def client_overhead(tokens: int) -> float:
    """Seconds that reading as many tokens from a stream takes when nothing computes them."""
    line = 'data: {"content": " a", "tokens_predicted": 1, "stop": false}'
    begin = time.perf_counter()
    for _ in range(tokens):
        json.loads(line[6:])
    return time.perf_counter() - begin


def make_work(model: LanguageModel, batch: int, kind: str, repeat: int) -> Work:
    noise = torch.Generator().manual_seed(1000 * repeat + 3 * batch + ("equal", "mixed", "queue").index(kind))
    count = 3 * batch if kind == "queue" else batch
    text = model.tokenizer.encode(Path(statistics.__file__).read_text(encoding="utf-8"))
    starts = torch.randint(len(text) - PROMPT_TOKENS, (count,), generator=noise).tolist()
    prompts = tuple(tuple(text[start : start + PROMPT_TOKENS]) for start in starts)
    if kind == "equal":
        return Work(prompts, (32,) * count, batch)
    return Work(prompts, tuple(torch.randint(8, 65, (count,), generator=noise).tolist()), batch)


def median_ratio(own: Sequence[tuple[float, float]], other: Sequence[tuple[float, float]]) -> float:
    """Of tokens a second, each repeat by itself."""
    return statistics.median(a[0] / b[0] for a, b in zip(own, other, strict=True))


def write_record(path: Path, peers: Sequence[str], repeats: int, rows: Sequence[dict[str, Any]]) -> None:
    """What was measured so far, and where."""
    machine = this_machine()
    amx = "amx_bf16" in Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else False
    record = {
        "machine": f"{machine.cores} cores, {machine.cpu}",
        "instructions": torch.backends.cpu.get_cpu_capability() + (", AMX" if amx else ""),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "model": "SmolLM2-135M-Instruct",
        "prefix_cache": "cold: prompts of a repeat are new to every arm; the arm 'warm prefix' has seen them",
        "client_s_per_1000_tokens": client_overhead(1000),
        "versions": {name: importlib.metadata.version(name) for name in ("transformers", *peers)},
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "repeats": repeats,
        "rows": rows,
    }
    path.write_text(json.dumps(record, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    model, half = (load_model("smollm2-135m", dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    batches = [int(n) for n in options.batches.split(",")]
    peer = as_transformers(model)
    arms: dict[str, Arm] = {
        "ours": ours(model),
        "ours, again": ours(model),
        "ours, overlapped": ours(model, overlap=True),
        "ours, warm prefix": ours(model, warm=True),
        "transformers": transformers_generate(peer),
        "transformers, continuous": transformers_continuous(peer, max(batches)),
        "ours, bfloat16": ours(half),
        "transformers, bfloat16": transformers_generate(as_transformers(half).bfloat16()),
    }
    peers = ["xllamacpp"]
    try:
        arms["llama.cpp"] = llama_cpp(max(batches))
    except ImportError:
        peers = []
        print("llama.cpp is left out: pip install xllamacpp")
    rows = []
    for batch in batches:
        for kind in ("equal", "mixed", "queue") if batch > 1 else ("equal",):
            chosen = {name: arm for name, arm in arms.items() if name not in LEFT_OUT.get(kind, ())}
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in chosen}
            first_use = make_work(model, batch, "equal", WARM_UP)
            for arm in chosen.values():
                arm(replace(first_use, lengths=(2,) * batch))
            for repeat in range(options.repeats):
                work = make_work(model, batch, kind, repeat)
                for name, arm in list(chosen.items()) if repeat % 2 == 0 else list(chosen.items())[::-1]:
                    seconds, first = arm(work)
                    found[name].append((work.tokens / seconds, first))
            for name, values in found.items():
                rate, first = (statistics.median(column) for column in zip(*values, strict=True))
                base = "transformers, bfloat16" if name.endswith("bfloat16") else "transformers"
                paired = median_ratio(values, found[base])
                row = {"batch": batch, "answers": kind, "arm": name, "tokens_per_s": rate, "first_token_s": first}
                hits = getattr(arms[name], "hit_rate", None)
                over = {"over_transformers": paired, "over_float32": median_ratio(values, found["transformers"])}
                rows.append(row | over | {"prefix_hit_rate": hits})
                print(
                    f"batch {batch:3d} {kind:5s} {name:24s} {rate:8.1f} tokens/s, first tokens after {first:6.2f} s, "
                    f"{paired:5.2f}x transformers, {over['over_float32']:5.2f}x in float32"
                    + ("" if hits is None else f", {hits:.0%} of prompts cached"),
                    flush=True,
                )
            if options.output:
                write_record(options.output, peers, options.repeats, rows)


if __name__ == "__main__":
    main()  # not in inference mode: weights that are made there are multiplied by slower code in bfloat16
