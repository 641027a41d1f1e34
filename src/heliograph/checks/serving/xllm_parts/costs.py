"""The formula of step times that virtual time runs on: fitted on this machine, kept for the trials of a run."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from heliograph.data.keep import cache_home
from heliograph.devices import this_machine
from heliograph.serving.core.cost_model import MEDIAN_ERROR_LIMIT, CostModel, measured_shapes
from heliograph.trials.check import Context, Workload

__all__ = ["STATED", "fitted_cost", "measure"]

STATED = asdict(CostModel(0.02, 0.001, 1e-6, 0.001, 2e-6, 0.0, "stated, not measured", 46080))
"""Coefficients for the smoke preset, which measures no time."""


def measure(context: Context) -> Mapping[str, Any]:
    """Fits anew and keeps the result; whether half of the steps are met within the limit."""
    cost = _fit(context.workload, context.device)
    _path(context.workload, context.device).write_text(json.dumps(asdict(cost)), encoding="utf-8")
    context.keep("cost", asdict(cost))
    # a decoding batch must take longer than one request, and a prompt longer than its half: a model of noise would not
    grows = [
        cost.decode_seconds(16, 16 * 256) > cost.decode_seconds(1, 256),
        cost.prefill_seconds(256) > cost.prefill_seconds(128),
    ]
    return {"median_error": cost.median_error, "within": [cost.median_error <= MEDIAN_ERROR_LIMIT], "grows": grows}


def fitted_cost(load: Workload, device: str = "cpu") -> CostModel:
    """The kept fit of this machine; made where there is none. Stated coefficients where the workload holds them."""
    if "cost" in load.params:
        return CostModel(**load["cost"])
    path = _path(load, device)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.is_file():
            path.write_text(json.dumps(asdict(_fit(load, device))), encoding="utf-8")
        return CostModel.load(path)


def _fit(load: Workload, device: str) -> CostModel:
    import torch

    from heliograph.lm.core.load import load_model
    from heliograph.serving.core.torch_executor import TorchExecutor

    torch.set_num_threads(1)
    model = load_model(load["model"], device=device)
    config, grid = model.config, load["grid"]
    blocks = max(grid["batches"]) * (max(grid["contexts"]) // 16 + 1) + 64
    executor = TorchExecutor(model, blocks, 16)
    rows = measured_shapes(executor.run_shape, **{name: tuple(v) for name, v in grid.items()}, repeats=load["repeats"])
    nbytes = 2 * config.layers * config.kv_heads * config.head_dim * 4
    return CostModel.fit(rows, machine=this_machine().cpu, kv_bytes_per_token=nbytes)


def _path(load: Workload, device: str) -> Path:
    import torch

    machine = this_machine()
    facts = [machine.cpu, machine.system, torch.__version__, device, load["model"], load["grid"], load["repeats"]]
    name = hashlib.blake2b(json.dumps(facts).encode(), digest_size=8).hexdigest()
    folder = cache_home() / "xllm"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"cost-{name}.json"
