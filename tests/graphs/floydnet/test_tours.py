"""Tours: schedule, loss, sampling without repair, honest best-of-k; exact solvers against brute force."""

import importlib.util
import math
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.errors import BadInput, MissingExtra
from heliograph.graphs import DiffusionTour, FloydNet
from heliograph.graphs.floydnet.tour_solvers import (
    best_known_tour,
    held_karp,
    highs_tour,
    lkh_tour,
    local_search,
    read_tsplib,
)
from heliograph.graphs.floydnet.tours import TourSchedule, best_of, read_tour, tour_length, tour_matrix


def distances(size, seed=0, symmetric=True):
    dist = np.random.default_rng(seed).integers(1, 201, (size, size))
    np.fill_diagonal(dist, 0)
    return np.triu(dist) + np.triu(dist).T if symmetric else dist


def brute_force(dist):
    return min(tour_length(dist, (0, *rest)) for rest in permutations(range(1, len(dist))))


def denoiser(**options):
    torch.manual_seed(0)
    settings = {"edge_vocab": 220, "dim": 8, "heads": 2, "depth": 2, "levels": ("edge",), "out_dim": 1}
    return FloydNet(**(settings | {"diffusion": True} | options))


@pytest.fixture
def perfect(monkeypatch):
    """A denoiser that always predicts one matrix."""

    def make(matrix):
        tours = DiffusionTour(denoiser())
        answer = torch.as_tensor(matrix, dtype=torch.float32)
        monkeypatch.setattr(tours, "_predict", lambda dist, noisy, steps, mask: answer.expand_as(noisy).to(noisy.dtype))
        return tours

    return make


def test_the_signal_falls_from_one_to_zero():
    signal = TourSchedule().signal(torch.arange(0, 10_001, 100))
    assert signal[0] == 1
    assert signal[-1] == 0
    assert (signal.diff() < 0).all()


def test_training_steps_follow_their_density():
    steps = TourSchedule().draw(200_000, torch.Generator().manual_seed(0)).double() / 10_000
    assert steps.min() > 0
    assert steps.max() <= 1
    expected = [(b - a + 8 / 9 * (b**9 - a**9)) / (1 + 8 / 9) for a, b in ((0, 0.5), (0.5, 0.9), (0.9, 1))]
    shares = [((steps > a) & (steps <= b)).double().mean().item() for a, b in ((0, 0.5), (0.5, 0.9), (0.9, 1))]
    assert shares == pytest.approx(expected, abs=0.005)


def test_the_loss_is_city_number_times_the_mean_square_over_pairs(perfect):
    dist, tour = distances(6), tour_matrix(range(6))
    tours = perfect(np.zeros((6, 6)))
    loss = tours.loss(torch.tensor(dist)[None], torch.tensor(tour)[None])
    assert loss.item() == pytest.approx(6 * (tour**2).mean())


def test_the_loss_ignores_padding_and_reaches_the_weights():
    tours = DiffusionTour(denoiser())
    dist = torch.zeros(2, 7, 7, dtype=torch.long)
    target = torch.zeros(2, 7, 7, dtype=torch.long)
    for number, size in enumerate((5, 7)):
        dist[number, :size, :size] = torch.tensor(distances(size))
        target[number, :size, :size] = torch.tensor(tour_matrix(range(size)))
    mask = torch.arange(7).expand(2, 7) < torch.tensor([[5], [7]])
    losses = []
    for rubbish in (0, 300):
        dist[0, 5:], dist[0, :, 5:] = rubbish, rubbish
        losses.append(tours.loss(dist, target, mask, torch.Generator().manual_seed(0)))
    assert torch.equal(losses[0], losses[1])
    losses[0].backward()
    assert tours.model.stack.blocks[0].out.weight.grad.abs().max() > 0


def test_a_perfect_denoiser_gives_the_tour(perfect):
    dist, tour = distances(7), (0, 3, 1, 5, 2, 6, 4)
    answer = perfect(tour_matrix(tour)).solve(dist, samples=3)
    assert answer.tour in (tour, (0, *reversed(tour[1:])))
    assert answer.length == tour_length(dist, tour)
    assert answer.valid_samples == answer.samples == 3


def test_an_invalid_tour_is_a_failure_and_is_not_repaired(perfect):
    two_triangles = np.kron(np.eye(2), 1 - np.eye(3))
    answer = perfect(two_triangles).solve(distances(6), samples=4)
    assert answer.tour is None
    assert math.isinf(answer.length)
    assert answer.valid_samples == 0
    assert answer.lengths == (math.inf,) * 4


def test_a_sample_depends_on_its_seed_and_number_only():
    tours, dist = DiffusionTour(denoiser(), TourSchedule(sampling_steps=5)), distances(5)
    many = tours.sample(dist, samples=5, batch=2)
    assert torch.equal(many[:3], tours.sample(dist, samples=3, batch=3))
    assert not torch.equal(many, tours.sample(dist, samples=5, seed=1))


def test_sampling_leaves_the_mode_as_it_was():
    tours = DiffusionTour(denoiser(dropout=0.5), TourSchedule(sampling_steps=2)).train()
    tours.solve(distances(5), samples=1)
    assert tours.model.training


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.zeros((3, 4)), "square"),
        (np.zeros((2, 2)), "at least 3"),
        (distances(5, symmetric=False), "symmetric"),
        (distances(5) * 100, "0 to 219"),
        (distances(5) + 0.5 * (1 - np.eye(5)), "expected an integer"),
    ],
)
def test_distances_that_do_not_fit_are_refused(matrix, message):
    with pytest.raises(BadInput, match=message):
        DiffusionTour(denoiser(), TourSchedule(sampling_steps=1)).solve(matrix, samples=1)


@pytest.mark.parametrize(
    "options", [{"diffusion": False}, {"levels": ("graph",)}, {"out_dim": 2}, {"edge_vocab": None}]
)
def test_a_model_that_cannot_denoise_is_refused(options):
    with pytest.raises(BadInput, match="needs"):
        DiffusionTour(denoiser(**options))


@pytest.mark.parametrize(
    "matrix",
    [
        np.kron(np.eye(2), 1 - np.eye(3)),  # two cycles
        1 - np.eye(4),  # degree 3
        np.eye(5),  # self-loops
        np.roll(np.eye(5), 1, axis=0),  # one direction only
        np.zeros((4, 4)),
        1 - np.eye(2),
    ],
)
def test_what_is_no_tour_is_not_read_as_one(matrix):
    assert read_tour(matrix) is None


@settings(max_examples=50, deadline=None)
@given(st.integers(3, 12).flatmap(lambda n: st.permutations(range(1, n))))
def test_a_tour_survives_its_matrix(rest):
    tour = (0, *rest)
    assert read_tour(tour_matrix(tour)) in (tour, (0, *reversed(rest)))


def test_best_of_k_counts_the_first_k_in_the_order_drawn():
    lengths = [[math.inf, 12.0, 10.0], [11.0, 10.0, math.inf], [math.inf] * 3]
    scores = best_of(lengths, [10.0, 10.0, 10.0], ks=(1, 2, 3))
    assert [score.optimal for score in scores] == pytest.approx([0, 1 / 3, 2 / 3])
    assert [score.valid for score in scores] == pytest.approx([1 / 3, 2 / 3, 2 / 3])


def test_another_tour_of_optimal_length_counts_as_optimal():
    dist = 1 - np.eye(4, dtype=int)
    other = tour_length(dist, (0, 2, 1, 3))
    assert best_of([[other]], [held_karp(dist).length], ks=(1,))[0].optimal == 1


def test_best_of_more_than_was_drawn_is_refused():
    with pytest.raises(BadInput, match="k from 1"):
        best_of([[1.0, 2.0]], [1.0], ks=(5,))


@pytest.mark.parametrize("seed", range(4))
def test_exact_solvers_agree_with_brute_force(seed):
    dist = distances(7, seed)
    shortest = brute_force(dist)
    for solve in (held_karp, highs_tour):
        answer = solve(dist)
        assert answer.proven
        assert answer.length == shortest
        assert sorted(answer.tour) == list(range(7))


def test_held_karp_takes_asymmetric_distances():
    dist = distances(7, symmetric=False)
    assert held_karp(dist).length == brute_force(dist)


@pytest.mark.parametrize("size", [3, 4])
def test_the_smallest_instances_are_solved(size):
    dist = distances(size)
    answers = {solve(dist).length for solve in (held_karp, highs_tour)} | {local_search(dist, restarts=2).length}
    assert answers == {brute_force(dist)}


def test_highs_cuts_subtours_until_one_cycle_is_left():
    cluster = np.kron(1 - np.eye(4, dtype=int), np.full((4, 4), 90)) + np.kron(np.eye(4, dtype=int), np.full((4, 4), 3))
    np.fill_diagonal(cluster, 0)
    answer = highs_tour(cluster)  # four clusters of four cities: the relaxed optimum is four subtours
    assert answer.length == 4 * 90 + 12 * 3
    assert len(set(answer.tour)) == 16


def test_lkh_is_marked_unproven():
    pytest.importorskip("elkai")
    dist = distances(12)
    answer = lkh_tour(dist)
    assert not answer.proven
    assert answer.length >= held_karp(dist).length
    assert sorted(answer.tour) == list(range(12))


def test_the_best_known_tour_says_where_it_comes_from():
    assert best_known_tour(distances(8)).source == "Held-Karp"
    assert best_known_tour(distances(15)).source == "HiGHS"


def test_local_search_improves_on_its_start_and_is_seeded():
    dist = distances(20)
    answer = local_search(dist, restarts=5, seed=3)
    assert answer == local_search(dist, restarts=5, seed=3)
    assert answer.restarts == 5
    assert answer.length >= highs_tour(dist).length
    assert sorted(answer.tour) == list(range(20))
    assert answer.tour[0] == 0
    assert local_search(dist, restarts=30, seed=3).length <= answer.length


def test_local_search_ends_where_no_reversal_shortens():
    dist = distances(9)
    answer = local_search(dist, restarts=1)
    for i in range(9):
        for j in range(i + 2, 10):
            tour = list(answer.tour)
            tour[i:j] = reversed(tour[i:j])
            assert tour_length(dist, tour) >= answer.length


def test_local_search_stops_by_the_clock_it_is_given():
    ticks = iter(range(100))
    answer = local_search(distances(8), seconds=5, clock=lambda: float(next(ticks)))
    assert answer.restarts == 5


@pytest.mark.parametrize(
    "call",
    [
        lambda: held_karp(distances(14)),
        lambda: highs_tour(distances(31)),
        lambda: highs_tour(distances(5, symmetric=False)),
        lambda: local_search(distances(5)),
        lambda: local_search(distances(5, symmetric=False), restarts=1),
        lambda: held_karp(np.full((4, 4), np.inf)),
        lambda: lkh_tour(distances(5) + 0.5),
        lambda: TourSchedule(sampling_steps=7),
    ],
)
def test_bad_requests_are_refused(call):
    with pytest.raises(BadInput):
        call()


def test_tsplib_files_are_read_or_the_missing_package_is_named(tmp_path):
    path = tmp_path / "three.tsp"
    path.write_text(
        "NAME: three\nTYPE: TSP\nDIMENSION: 3\nEDGE_WEIGHT_TYPE: EUC_2D\nNODE_COORD_SECTION\n1 0 0\n2 3 0\n3 0 4\nEOF\n"
    )
    if importlib.util.find_spec("tsplib95") or importlib.util.find_spec("vrplib"):
        assert sorted(read_tsplib(path)[np.triu_indices(3, 1)].tolist()) == [3, 4, 5]
    else:
        with pytest.raises(MissingExtra, match="pip install"):
            read_tsplib(path)
    with pytest.raises(BadInput, match="does not exist"):
        read_tsplib(tmp_path / "absent.tsp")
