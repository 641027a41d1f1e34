"""Equivariant linear maps: as many as there are, and nothing but those."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from heliograph.errors import BadInput
from heliograph.graphs.core.equivariant import BASIS_SIZES, EquivariantLinear, equivariant_basis

KINDS = sorted(BASIS_SIZES)
N = 4  # with fewer vertices some of the maps coincide


def state_of(place: str, batch: int, size: int, channels: int, dtype: torch.dtype = torch.float64) -> Tensor:
    axes = {"pair": (size, size), "vertex": (size,)}[place]
    return torch.randn(batch, *axes, channels, dtype=dtype)


def layer_of(source: str, target: str, **options: object) -> EquivariantLinear:
    layer = EquivariantLinear(3, 5, source, target, **options).double()  # type: ignore[arg-type]
    torch.nn.init.normal_(layer.weight)
    for constant in (layer.bias, layer.diagonal_bias):
        if constant is not None:
            torch.nn.init.normal_(constant)
    return layer


def renumbered(values: Tensor, order: Tensor, place: str) -> Tensor:
    if place == "graph":
        return values
    return values[:, order] if place == "vertex" else values[:, order][:, :, order]


def matrices(source: str, target: str) -> Tensor:
    """The basis maps on N vertices as matrices, [K, outputs, inputs]."""
    size = N**2 if source == "pair" else N
    shape = (size, N, N, 1) if source == "pair" else (size, N, 1)
    units = torch.eye(size, dtype=torch.float64).reshape(shape)
    return torch.stack([part.reshape(size, -1).T for part in equivariant_basis(units, target)])  # type: ignore[arg-type]


@pytest.mark.parametrize(("source", "target"), KINDS)
def test_the_maps_are_independent_and_as_many_as_partitions(source: str, target: str) -> None:
    found = matrices(source, target).flatten(1)
    assert len(found) == BASIS_SIZES[source, target]  # type: ignore[index]
    assert int(torch.linalg.matrix_rank(found)) == len(found)


def test_the_numbers_of_maps_are_those_of_the_theorem() -> None:
    assert BASIS_SIZES["pair", "pair"] == 15  # Bell numbers of 4, 3, 2 and 1
    assert BASIS_SIZES["pair", "vertex"] == BASIS_SIZES["vertex", "pair"] == 5
    assert BASIS_SIZES["pair", "graph"] == BASIS_SIZES["vertex", "vertex"] == 2
    assert BASIS_SIZES["vertex", "graph"] == 1


@pytest.mark.parametrize(("source", "target"), KINDS)
def test_any_map_averaged_over_all_renumberings_is_a_combination_of_the_basis(source: str, target: str) -> None:
    torch.manual_seed(0)
    basis = matrices(source, target)
    drawn, total = torch.randn_like(basis[0]), torch.zeros_like(basis[0])
    for order in itertools.permutations(range(N)):
        one = torch.eye(N, dtype=torch.float64)[list(order)]
        power = {"graph": torch.ones(1, 1, dtype=torch.float64), "vertex": one, "pair": torch.kron(one, one)}
        total += power[target].T @ drawn @ power[source]
    columns = basis.flatten(1).T
    solved = torch.linalg.lstsq(columns, total.reshape(-1, 1)).solution
    torch.testing.assert_close(columns @ solved, total.reshape(-1, 1), atol=1e-9, rtol=1e-9)
    assert total.norm() > 0.1


@pytest.mark.parametrize(("source", "target"), KINDS)
def test_renumbered_vertices_give_renumbered_states(source: str, target: str) -> None:
    torch.manual_seed(1)
    layer, x, order = layer_of(source, target), state_of(source, 2, 6, 3), torch.randperm(6)
    assert not torch.equal(order, torch.arange(6))
    torch.testing.assert_close(layer(renumbered(x, order, source)), renumbered(layer(x), order, target))


@pytest.mark.parametrize(("source", "target"), KINDS)
def test_padding_and_neighbours_in_the_batch_change_nothing(source: str, target: str) -> None:
    torch.manual_seed(2)
    layer = layer_of(source, target)
    small, large = state_of(source, 1, 3, 3), state_of(source, 1, 5, 3)
    block = torch.full_like(torch.cat([large, large]), torch.nan)  # what is padded does not matter
    block[1] = large[0]
    inner = (0, slice(3), slice(3)) if source == "pair" else (0, slice(3))
    block[inner] = small[0]
    mask = torch.arange(5) < torch.tensor([[3], [5]])
    out = layer(block, mask)
    real = {"pair": (slice(3), slice(3)), "vertex": (slice(3),), "graph": ()}[target]
    torch.testing.assert_close(out[(0, *real)], layer(small)[0])
    torch.testing.assert_close(out[1], layer(large)[0])
    if target != "graph":
        assert not out[0, 3:].any()


@pytest.mark.parametrize(("source", "target"), KINDS)
def test_gradients_are_those_of_finite_differences(source: str, target: str) -> None:
    torch.manual_seed(3)
    layer = EquivariantLinear(2, 2, source, target).double()  # type: ignore[arg-type]
    x = state_of(source, 2, 3, 2).requires_grad_()
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert torch.autograd.gradcheck(lambda x, weight: _with(layer, weight, x, mask), (x, layer.weight))


def _with(layer: EquivariantLinear, weight: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    out: Tensor = torch.func.functional_call(layer, {"weight": weight}, (x, mask))
    return out


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize(("source", "target"), KINDS)
def test_narrow_types_stay_narrow_and_near(source: str, target: str, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(4)
    layer, x = layer_of(source, target), state_of(source, 2, 6, 3)
    expected = layer(x)
    found = layer.to(dtype)(x.to(dtype))
    assert found.dtype == dtype
    assert (found.double() - expected).abs().max() <= tolerance * expected.abs().max()


def test_constants_tell_the_diagonal_from_other_pairs() -> None:
    layer = layer_of("pair", "pair")
    out = layer(torch.zeros(1, 3, 3, 3, dtype=torch.float64))
    torch.testing.assert_close(out[0, 0, 1], layer.bias)
    torch.testing.assert_close(out[0, 1, 1], layer.bias + layer.diagonal_bias)
    assert layer_of("pair", "pair", bias=False)(torch.zeros(1, 3, 3, 3, dtype=torch.float64)).abs().max() == 0


def test_wrong_shapes_and_places_are_refused() -> None:
    layer = EquivariantLinear(3, 5)
    with pytest.raises(BadInput, match=r"the state must be \[B, M, M, c\]"):
        layer(torch.zeros(2, 4, 3))
    with pytest.raises(BadInput, match=r"the mask must be \[2, 4\]"):
        layer(torch.zeros(2, 4, 4, 3), torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(BadInput, match="source is pair or vertex"):
        EquivariantLinear(3, 5, "graph", "pair")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="channels"):
        EquivariantLinear(0, 5)
