r"""Flow past a cylinder in a channel by finite elements: a source of mesh trajectories that needs no download.

Incompressible Navier-Stokes equations in two dimensions, Taylor-Hood elements (P2 velocity, P1 pressure), Chorin's
projection with an implicit, linearised convection and Temam's term, which keeps the kinetic energy from growing on
coarse meshes. One step of length dt, with M the mass and K the stiffness matrix:

.. math:: (M / dt + \nu K + C(u^n) + \tfrac12 D(u^n))\, u^* = M u^n / dt, \qquad
          (\nabla p, \nabla q) = -(q, \nabla \cdot u^*) / dt, \qquad
          M u^{n+1} = M u^* + dt\, (p, \nabla \cdot v)

Boundary: a parabolic inflow at the left, u = 0 on walls and cylinder, p = 0 at the right. scikit-fem assembles, SciPy
factorises. Units: metres, seconds.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray
from scipy.sparse.linalg import splu
from scipy.spatial import Delaunay

from heliograph.errors import HeliographError, MissingExtra

__all__ = ["HEIGHT", "LENGTH", "ChannelFlow", "ChannelMesh", "FlowBlewUp", "channel_mesh", "simulate_channel"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LENGTH, HEIGHT = 1.6, 0.41
INTERIOR, INFLOW, OUTFLOW, WALL = range(4)
SPEED_LIMIT = 3.0
RING_POINTS = 16


class FlowBlewUp(HeliographError, FloatingPointError):
    """The solution left the range that this flow can have; ``step`` says when."""

    def __init__(self, step: int, speed: float, limit: float) -> None:
        super().__init__(f"the speed reached {speed:.3g} m/s at step {step}, above {limit:.3g}: the mesh is too coarse")
        self.step, self.speed, self.limit = step, speed, limit

    def __reduce__(self) -> tuple[type[FlowBlewUp], tuple[int, float, float]]:
        return type(self), (self.step, self.speed, self.limit)


@dataclass(frozen=True, eq=False)
class ChannelMesh:
    """points [N, 2] in metres, triangles [F, 3], the cylinder's centre and radius, and each vertex's part [N].

    ``part`` is INTERIOR, INFLOW, OUTFLOW or WALL of this module; the cylinder is a wall.
    """

    points: Floats
    triangles: Ints
    part: Ints
    centre: tuple[float, float]
    radius: float


@dataclass(frozen=True, eq=False)
class ChannelFlow:
    """A trajectory: velocity [T, N, 2] at the vertices, its mesh, the peak of the inflow in m/s, and draws rejected."""

    mesh: ChannelMesh
    velocity: Floats
    inflow: float
    rejected: int


def simulate_channel(
    vertices: int,
    frames: int,
    warmup: int,
    random: np.random.Generator,
    *,
    dt: float = 0.02,
    viscosity: float = 1e-3,
    attempts: int = 20,
) -> ChannelFlow:
    """One trajectory past a cylinder of random place and size; draws that blow up are rejected and drawn again.

    Args:
        vertices: of the mesh, about.
        frames: steps kept, T.
        warmup: steps before the first kept one, from an impulsive start.
        random: draws the cylinder (radius 0.04 to 0.07 m), the inflow's peak (0.8 to 1.6 m/s) and the mesh.
        dt: seconds a step.
        viscosity: kinematic, in m2/s; the Reynolds number of the cylinder is about 40 to 150 at the default.
        attempts: draws before giving up.

    Raises:
        FlowBlewUp: every draw blew up. MissingExtra: scikit-fem is absent.
    """
    for attempt in range(attempts):
        mesh = channel_mesh(vertices, random)
        inflow = float(random.uniform(0.8, 1.6))
        solver = _Projection(mesh, inflow, dt, viscosity)
        kept = np.empty((frames, len(mesh.points), 2))
        try:
            for step in range(warmup + frames):
                solver.advance(step)
                if step >= warmup:
                    kept[step - warmup] = solver.at_vertices()
        except FlowBlewUp:
            if attempt == attempts - 1:
                raise
            continue
        return ChannelFlow(mesh, kept, inflow, attempt)
    raise ValueError(f"attempts must be 1 or more; got {attempts}")


def channel_mesh(vertices: int, random: np.random.Generator) -> ChannelMesh:
    """A jittered triangular mesh of about this many vertices, finer at a cylinder of random place and size."""
    radius = float(random.uniform(0.04, 0.07))
    centre = (float(random.uniform(0.25, 0.45)), float(random.uniform(0.16, 0.25)))
    state = random.bit_generator.state
    spacing = float(np.sqrt(LENGTH * HEIGHT / vertices / 0.8))
    for _ in range(4):  # the same draw at a corrected spacing
        random.bit_generator.state = state
        points, ring = _scatter(spacing, centre, radius, random)
        spacing *= float(np.sqrt(len(points) / vertices))
    triangles = Delaunay(points).simplices.astype(np.int64)
    on_ring = np.arange(len(points)) < ring
    a, b, c = (points[triangles[:, corner]] for corner in range(3))
    doubled = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    kept = ~on_ring[triangles].all(1) & (np.abs(doubled) > 1e-4 * spacing**2)
    triangles, doubled = triangles[kept], doubled[kept]
    triangles[doubled < 0] = triangles[doubled < 0][:, ::-1]
    part = np.full(len(points), INTERIOR)
    x, y = points.T
    part[x == 0] = INFLOW
    part[x == LENGTH] = OUTFLOW
    part[(y == 0) | (y == HEIGHT) | on_ring] = WALL
    return ChannelMesh(points, triangles, part, centre, radius)


def _scatter(
    spacing: float, centre: tuple[float, float], radius: float, random: np.random.Generator
) -> tuple[Floats, int]:
    """Points [N, 2], the cylinder's own first, and how many those are."""
    count = max(RING_POINTS, round(2 * np.pi * radius / (0.6 * spacing)))
    gap = 2 * np.pi * radius / count
    rings = []
    reach = radius
    for number in range(3):
        angle = 2 * np.pi * (np.arange(count) + 0.5 * number) / count
        rings.append(np.stack([centre[0] + reach * np.cos(angle), centre[1] + reach * np.sin(angle)], axis=1))
        if gap >= spacing:
            break
        reach += 0.9 * gap
        gap = 2 * np.pi * reach / count
    rows = max(4, round(HEIGHT / (spacing * np.sqrt(3) / 2)))
    columns = max(4, round(LENGTH / spacing))
    width = LENGTH / columns
    grid = []
    for row in range(rows + 1):
        inner = (np.arange(1, columns) if row % 2 == 0 else np.arange(columns) + 0.5) * width
        x = np.concatenate([[0.0], inner, [LENGTH]])
        grid.append(np.stack([x, np.full(len(x), HEIGHT * row / rows)], axis=1))
    points = np.concatenate(grid)
    points[:, 1][points[:, 1] > HEIGHT - 1e-12] = HEIGHT
    inside = (points[:, 0] > 0) & (points[:, 0] < LENGTH) & (points[:, 1] > 0) & (points[:, 1] < HEIGHT)
    points[inside] += random.uniform(-0.15, 0.15, size=(int(inside.sum()), 2)) * width
    last = float(np.hypot(*(rings[-1][0] - centre)))
    far = np.hypot(points[:, 0] - centre[0], points[:, 1] - centre[1]) > last + 0.55 * min(spacing, gap * 1.3)
    margin = 0.3 * spacing
    outer = [ring[(ring[:, 1] > margin) & (ring[:, 1] < HEIGHT - margin)] for ring in rings[1:]]
    return np.concatenate([rings[0], *outer, points[far | ~inside]]), count


class _Projection:
    """The discrete equations of one mesh, and its present velocity [P, 2] at the P nodes of P2."""

    def __init__(self, mesh: ChannelMesh, inflow: float, dt: float, viscosity: float) -> None:
        fem = _scikit_fem()
        grid = fem.MeshTri(mesh.points.T.copy(), mesh.triangles.T.copy())
        self.quadratic = fem.Basis(grid, fem.ElementTriP2(), intorder=5)
        linear = self.quadratic.with_element(fem.ElementTriP1())
        self.dt, self.limit, self.vertices = dt, SPEED_LIMIT * inflow, grid.p.shape[1]
        # element matrices as [F, i, j] tables: shape functions at the quadrature points
        weight = self.quadratic.dx  # [F, Q]
        value = np.stack(
            [np.broadcast_to(np.asarray(f[0]), weight.shape) for f in self.quadratic.basis], 1
        )  # [F, 6, Q]
        slope = np.stack([np.asarray(f[0].grad).transpose(1, 0, 2) for f in self.quadratic.basis], 1)  # [F, 6, 2, Q]
        flat = np.stack([np.broadcast_to(np.asarray(f[0]), weight.shape) for f in linear.basis], 1)  # [F, 3, Q]
        slant = np.stack([np.asarray(f[0].grad).transpose(1, 0, 2) for f in linear.basis], 1)  # [F, 3, 2, Q]
        self.nodes = self.quadratic.element_dofs.T.astype(np.int64)  # [F, 6]
        corners = linear.element_dofs.T.astype(np.int64)
        size, count = int(self.quadratic.N), int(linear.N)
        mass = np.einsum("fiq,fjq,fq->fij", value, value, weight)
        self.mass = _assemble(mass, self.nodes, self.nodes, size, size)
        self.steady = mass / dt + viscosity * np.einsum("fiaq,fjaq,fq->fij", slope, slope, weight)
        self.divergence = [
            _assemble(np.einsum("fiq,fjq,fq->fij", flat, slope[:, :, a], weight), corners, self.nodes, count, size)
            for a in range(2)
        ]
        # (i, u_k . grad j) with Temam's half of (i, j div u_k): [F, k, a, i, j]
        transport = np.einsum("fiq,fkq,fjaq,fq->fkaij", value, value, slope, weight, optimize=True)
        self.transport = transport + 0.5 * np.einsum(
            "fiq,fjq,fkaq,fq->fkaij", value, value, slope, weight, optimize=True
        )
        self._set_boundary(inflow)
        pressure = _assemble(np.einsum("fiaq,fjaq,fq->fij", slant, slant, weight), corners, corners, count, count)
        outlet = linear.get_dofs(lambda x: np.isclose(x[0], LENGTH)).all()
        self.open = np.setdiff1d(np.arange(count), outlet)
        self.solve_pressure = splu(pressure[self.open][:, self.open].tocsc())
        self.solve_mass = splu(self.mass[self.free][:, self.free].tocsc())
        self.pattern = _Pattern(self.nodes, self.free, size)

    def _set_boundary(self, inflow: float) -> None:
        x, y = self.quadratic.doflocs
        facets = self.quadratic.mesh.boundary_facets()
        edge = self.quadratic.get_dofs(facets).all()
        # an end of the outlet touches a wall: all but its inner nodes are held
        held = edge[~(np.isclose(x[edge], LENGTH) & (y[edge] > 1e-9) & (y[edge] < HEIGHT - 1e-9))]
        self.held = np.sort(held)
        self.free = np.setdiff1d(np.arange(int(self.quadratic.N)), self.held)
        self.velocity = np.zeros((int(self.quadratic.N), 2))
        entry = self.held[np.isclose(x[self.held], 0)]
        self.velocity[entry, 0] = 4 * inflow * y[entry] * (HEIGHT - y[entry]) / HEIGHT**2

    def advance(self, step: int) -> None:
        """One time step, in place.

        Raises:
            FlowBlewUp: a speed above three times the inflow's peak, or not a number.
        """
        local = self.velocity[self.nodes]  # [F, 6, 2]
        convection = np.einsum("fka,fkaij->fij", local, self.transport, optimize=True)
        block, boundary = self.pattern.build(self.steady + convection, self.velocity)
        right = (self.mass @ self.velocity)[self.free] / self.dt - boundary
        tentative = self.velocity.copy()
        tentative[self.free] = splu(block).solve(right)
        flux = sum(matrix @ tentative[:, axis] for axis, matrix in enumerate(self.divergence))
        pressure = np.zeros(len(flux))
        pressure[self.open] = self.solve_pressure.solve(-flux[self.open] / self.dt)
        push = np.stack([matrix.T @ pressure for matrix in self.divergence], axis=1)[self.free]
        self.velocity = tentative
        self.velocity[self.free] += self.dt * self.solve_mass.solve(push)
        fastest = float(np.abs(self.velocity).max())
        if not fastest <= self.limit:
            raise FlowBlewUp(step, fastest, self.limit)

    def at_vertices(self) -> Floats:
        """The velocity at the mesh's vertices, [N, 2]."""
        velocity: Floats = self.velocity[self.quadratic.nodal_dofs[0]]
        return velocity


class _Pattern:
    """Where element matrices land in the matrix of the free nodes; only its numbers change from step to step."""

    def __init__(self, nodes: Ints, free: Ints, size: int) -> None:
        place = np.full(size, -1)
        place[free] = np.arange(len(free))
        self.rows = np.repeat(nodes, 6, axis=1).ravel()
        self.columns = np.tile(nodes, (1, 6)).ravel()
        row, column = place[self.rows], place[self.columns]
        self.inner = np.flatnonzero((row >= 0) & (column >= 0))
        self.border = np.flatnonzero((row >= 0) & (column < 0))
        self.border_row = row[self.border]
        keys = column[self.inner] * len(free) + row[self.inner]
        unique, self.slot = np.unique(keys, return_inverse=True)
        self.index = (unique % len(free)).astype(np.int32)
        starts = np.searchsorted(unique, np.arange(len(free) + 1) * len(free))
        self.starts, self.count = starts.astype(np.int32), len(free)

    def build(self, table_Fij: Floats, velocity: Floats) -> tuple[Any, Floats]:
        """The free block, and what the held nodes' velocity adds to the left side."""
        sums = np.bincount(self.slot, table_Fij.ravel()[self.inner], len(self.index))
        block = sparse.csc_matrix((sums, self.index, self.starts), (self.count, self.count))
        entries = table_Fij.ravel()[self.border]
        known = velocity[self.columns[self.border]]
        boundary = [np.bincount(self.border_row, entries * known[:, axis], self.count) for axis in range(2)]
        return block, np.stack(boundary, axis=1)


def _assemble(table_Fij: Floats, rows: Ints, columns: Ints, height: int, width: int) -> Any:
    row = np.repeat(rows, columns.shape[1], axis=1).ravel()
    column = np.tile(columns, (1, rows.shape[1])).ravel()
    return sparse.coo_matrix((table_Fij.ravel(), (row, column)), (height, width)).tocsr()


def _scikit_fem() -> Any:
    try:
        return importlib.import_module("skfem")
    except ImportError as error:
        raise MissingExtra("scikit-fem", "graphs") from error
