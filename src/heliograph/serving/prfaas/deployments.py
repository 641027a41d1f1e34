"""The deployments that are compared, each with a search of its own, made ready to run in virtual time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from heliograph.errors import BadInput
from heliograph.serving.prfaas.congestion import AdaptiveThreshold, CongestionMonitor
from heliograph.serving.prfaas.prefix_index import GlobalPrefixIndex
from heliograph.serving.prfaas.roles import RoleController
from heliograph.serving.prfaas.router import HybridRouter
from heliograph.serving.prfaas.service_model import Lengths, Plan, PrefillServiceModel
from heliograph.serving.prfaas.simulate import LeastLoadedSides, ServiceSimulation

__all__ = ["DEPLOYMENTS", "DeploymentName", "Options", "build", "plan_of"]

DeploymentName = Literal["prfaas", "homogeneous", "naive", "least-loaded", "earliest-finish"]
DEPLOYMENTS: tuple[DeploymentName, ...] = get_args(DeploymentName)


@dataclass(frozen=True)
class Options:
    """What can be switched on.

    Attributes:
        adaptive: the threshold follows the bandwidth left.
        roles: local instances change between prefill and decode.
        block_tokens: of prefix names; 0 for no prefix caches.
        cache_blocks: of each cluster; None for no limit.
        checkpoint_tokens: after which prefixes are usable; None for every block.
        bandwidth: (time, Gbit/s) changes.
        fallback_s: see :class:`ServiceSimulation`.
        pieces: of a cache.
        delay_s: between the clusters.
    """

    adaptive: bool = False
    roles: bool = False
    block_tokens: int = 0
    cache_blocks: int | None = None
    checkpoint_tokens: int | None = None
    bandwidth: Sequence[tuple[float, float]] = ()
    fallback_s: float | None = None
    pieces: int = 8
    delay_s: float = 0.01


def plan_of(name: DeploymentName, model: PrefillServiceModel, lengths: Lengths, homogeneous: int) -> Plan:
    """The best plan of a deployment.

    Raises:
        BadInput: an unknown name.
    """
    if name == "prfaas":
        return model.optimise(lengths)
    if name == "homogeneous":
        return model.homogeneous(lengths, n_local=homogeneous)
    if name == "naive":
        return model.naive(lengths)
    if name in ("least-loaded", "earliest-finish"):
        return model.least_loaded(lengths)
    raise BadInput(f"deployment {name!r} is not known; there are {', '.join(DEPLOYMENTS)}")


def build(
    name: DeploymentName,
    model: PrefillServiceModel,
    plan: Plan,
    options: Options = Options(),
) -> ServiceSimulation:
    """A simulation of a deployment."""
    if name in ("least-loaded", "earliest-finish"):
        router: Any = LeastLoadedSides("requests" if name == "least-loaded" else "seconds")
    else:
        index = None
        if options.block_tokens:
            index = GlobalPrefixIndex(("remote", "local"), options.block_tokens, options.cache_blocks)
        adaptive = None
        if options.adaptive and name == "prfaas":
            adaptive = AdaptiveThreshold(model, plan.t, plan.n_p)
        router = HybridRouter(plan, index, CongestionMonitor(), adaptive)
    roles = None
    if options.roles:
        roles = RoleController(replace(model, n_remote=plan.n_remote, n_local=plan.n_p + plan.n_d))
    return ServiceSimulation(
        model,
        plan,
        router,
        pieces=options.pieces,
        delay_s=options.delay_s,
        bandwidth=options.bandwidth,
        fallback_s=options.fallback_s,
        roles=roles,
        checkpoint_tokens=options.checkpoint_tokens,
    )
