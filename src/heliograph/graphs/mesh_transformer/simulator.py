r"""MeshSimulator: a model that steps fields on a mesh forward in time, with what a roll-out needs around it.

The model sees normalised fields (and, where asked for, their last change and coordinates) beside a one-hot node type,
and answers with the normalised change to the next frame (arXiv:2508.18051, after arXiv:2010.03409):

.. math:: u_{t+1} = u_t + \sigma\, f((u_t - \mu_u) / \sigma_u, \mathrm{type}) + \mu

In a roll-out the boundary is given: vertices of other types than ``loss_types`` take their true values at every step.

Shapes: N vertices, E edges, T frames, C channels, D dimensions of space.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from heliograph.data.mesh import NODE_TYPES, NORMAL, OUTFLOW, MeshSchema, MeshTrajectory
from heliograph.errors import BadInput
from heliograph.graphs.core.support import Support
from heliograph.graphs.mesh_transformer.frame import MeshFrame
from heliograph.graphs.mesh_transformer.normaliser import RunningNormaliser
from heliograph.graphs.mesh_transformer.rollout import MeshScore, one_step, roll_out, score
from heliograph.graphs.mesh_transformer.supports import MeshSupport, SupportCache, adjacency

if TYPE_CHECKING:
    from heliograph.graphs.mesh_transformer.training import FitReport

__all__ = ["MeshSimulator"]


class MeshSimulator(nn.Module):
    """A model with its normalisers, its support, training and roll-out.

    Args:
        model: ``MeshTransformer``, ``MeshGraphNet``, or any module ``model(x, edge_index)`` from [N, in] to [N, C],
            where ``in`` is ``schema.input_width(history=..., positions=...)``.
        schema: channels and dimensions of the trajectories: ``trajectory.schema``.
        noise_std: of the Gaussian noise that training adds to the fields of normal vertices, in the fields' unit, one
            number or one a channel. The target stays the clean next frame, so that the model learns to correct.
        loss_types: node types that are predicted; all others are boundary.
        support: recipe of who hears whom.
        history: whether the model sees the last change of the fields, too.
        positions: whether it sees coordinates, too.

    Raises:
        BadInput: a model of another width, a noise that does not fit, no node type to predict.
    """

    largest: Tensor

    def __init__(
        self,
        model: nn.Module,
        schema: MeshSchema,
        *,
        noise_std: float | Sequence[float] = 0.0,
        loss_types: Sequence[int] = (NORMAL, OUTFLOW),
        support: MeshSupport | None = None,
        history: bool = False,
        positions: bool = False,
    ) -> None:
        super().__init__()
        noise = [float(noise_std)] * schema.channels if isinstance(noise_std, int | float) else [*map(float, noise_std)]
        if len(noise) != schema.channels or not all(math.isfinite(n) and n >= 0 for n in noise):
            raise BadInput(f"noise_std must be 0 or more, one number or {schema.channels}; got {noise_std}")
        if not loss_types or not set(loss_types) <= set(range(NODE_TYPES)):
            raise BadInput(f"loss_types must name node types from 0 to {NODE_TYPES - 1}; got {tuple(loss_types)}")
        config = getattr(model, "config", None)
        wanted = (schema.input_width(history=history, positions=positions), schema.channels)
        found = (getattr(config, "in_dim", wanted[0]), getattr(config, "out_dim", wanted[1]))
        if found != wanted:
            raise BadInput(
                f"the model maps {found[0]} channels to {found[1]}; this schema needs {wanted[0]} to {wanted[1]}"
            )
        self.model, self.schema = model, schema
        self.noise_std, self.loss_types = tuple(noise), tuple(int(t) for t in loss_types)
        self.support = adjacency() if support is None else support
        self.history, self.positions = history, positions
        seen = wanted[0] - NODE_TYPES
        self.input_normaliser, self.change_normaliser = RunningNormaliser(seen), RunningNormaliser(schema.channels)
        described = getattr(model, "uses_edge_features", False)
        self.edge_normaliser = RunningNormaliser(schema.dimensions + 1) if described else None
        self.register_buffer("largest", torch.zeros(schema.channels))
        self.cache = SupportCache()

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.largest.device

    def forward(self, frame: MeshFrame, fields: Tensor, change: Tensor | None = None) -> Tensor:
        """The normalised change to the next frame, [N, C].

        Args:
            frame: the meshes.
            fields: [N, C], in their unit.
            change: [N, C], the last one; needed with ``history``.
        """
        seen = [fields]
        if self.history:
            if change is None:
                raise BadInput("this simulator has history: give the last change of the fields")
            seen.append(change)
        if self.positions:
            seen.append(frame.pos)
        x = torch.cat([self.input_normaliser(torch.cat(seen, dim=1)), frame.code], dim=1)
        batch = frame.support.batch
        if self.edge_normaliser is not None:
            geometry = self.edge_normaliser(frame.geometry)
            out: Tensor = self.model(x, None, frame.pos, batch, edge_attr=geometry, support=frame.support)
        elif hasattr(self.model, "uses_edge_features"):
            out = self.model(x, None, frame.pos, batch, support=frame.support)
        else:
            out = self.model(x, frame.edge_index)
        return out

    def step(self, frame: MeshFrame, fields: Tensor, change: Tensor | None = None) -> Tensor:
        """The next frame, [N, C], boundary included as predicted."""
        return fields + self.change_normaliser.inverse(self(frame, fields, change))

    def fit(self, trajectories: Sequence[MeshTrajectory], **options: Any) -> FitReport:
        """Trains in place; see :func:`heliograph.graphs.mesh_transformer.training.fit_simulator` for the options."""
        from heliograph.graphs.mesh_transformer.training import fit_simulator

        return fit_simulator(self, trajectories, **options)

    def rollout(
        self,
        trajectory: MeshTrajectory,
        steps: int | None = None,
        *,
        start: int | None = None,
        callback: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Steps on from one true frame, each step from the last prediction.

        Args:
            trajectory: the mesh, the first frame and the boundary's values. Beyond its end the boundary stays as last.
            steps: how many; to the trajectory's end where None.
            start: the frame to begin from; the first one that has what the model sees where None.
            callback: called after each step with its number.

        Returns:
            [steps, N, C] on the CPU: frames ``start + 1`` and on.

        Raises:
            BadInput: not trained yet, or a start or trajectory that does not fit.
            RolloutDivergence: a value above 10 times the largest of training, or not a number; the step is named and
                the frames before it are kept.
        """
        return roll_out(self, trajectory, steps, start, callback)

    def score(self, trajectories: Sequence[MeshTrajectory]) -> MeshScore:
        """One-step and roll-out errors, and those of a field that does not move.

        Raises:
            BadInput: as :meth:`rollout`.
        """
        return score(self, trajectories)

    def one_step(self, trajectory: MeshTrajectory) -> Tensor:
        """The next frame after each true frame, boundary given: [T - 1, N, C] (one less with history), on the CPU."""
        return one_step(self, trajectory)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """In eval mode and without gradients; the mode is restored."""
        was_training = self.training
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.train(was_training)

    def mesh_of(self, trajectory: MeshTrajectory, seed: int = 0) -> MeshFrame:
        """A trajectory's mesh on this simulator's device.

        Args:
            trajectory: whose mesh.
            seed: of random edges, where the recipe has some; 0 in roll-outs.
        """
        kinds = torch.from_numpy(trajectory.node_type).to(self.device)
        free = torch.isin(kinds, torch.tensor(self.loss_types, device=self.device))
        return MeshFrame(
            torch.from_numpy(trajectory.pos).to(self.device),
            nn.functional.one_hot(kinds, NODE_TYPES).float(),
            (kinds == NORMAL).float().unsqueeze(1),
            free.nonzero().squeeze(1),
            ~free.unsqueeze(1),
            self._support_of(trajectory, seed),
        )

    def save(self, folder: Path, *, overwrite: bool = False) -> None:
        """Writes a folder of ``simulator.json`` and ``weights.pt``, as a whole or not at all.

        Raises:
            BadInput: the folder exists, or the model is none of this library.
        """
        from heliograph.graphs.mesh_transformer.persistence import save_simulator

        save_simulator(self, Path(folder), overwrite=overwrite)

    @classmethod
    def load(cls, folder: Path) -> MeshSimulator:
        """The simulator that :meth:`save` wrote, in eval mode. Runs no code of the folder.

        Raises:
            BadInput: no such folder, another format, or weights that do not fit.
        """
        from heliograph.graphs.mesh_transformer.persistence import load_simulator

        return load_simulator(Path(folder))

    def _support_of(self, trajectory: MeshTrajectory, seed: int) -> Support:
        key = f"{trajectory.connectivity}:{self.device}"
        if self.support.needs_positions:
            key += hashlib.sha256(trajectory.pos.tobytes() + trajectory.node_type.tobytes()).hexdigest()

        def build() -> Support:
            made = self.support.build(
                torch.from_numpy(trajectory.edge_index),
                trajectory.num_vertices,
                torch.from_numpy(trajectory.pos),
                torch.from_numpy(trajectory.node_type),
                seed=seed,
            )
            return made.to(self.device)

        return self.cache.get(self.support, key, seed, build)

    def require(self, trajectories: Sequence[MeshTrajectory]) -> None:
        """Refuses trajectories that this simulator cannot step.

        Raises:
            BadInput: none, other channels or dimensions, too few frames, or no vertex to predict.
        """
        if not trajectories:
            raise BadInput("there are no trajectories")
        for trajectory in trajectories:
            if trajectory.schema != self.schema:
                raise BadInput(
                    f"trajectory {trajectory.name or '?'} has {trajectory.schema}, the simulator {self.schema}"
                )
            if trajectory.frames < 2 + int(self.history):
                raise BadInput(
                    f"trajectory {trajectory.name or '?'} has {trajectory.frames} frames, too few for a step"
                )
            if not np.isin(trajectory.node_type, self.loss_types).any():
                raise BadInput(f"trajectory {trajectory.name or '?'} has no vertex of the types {self.loss_types}")
