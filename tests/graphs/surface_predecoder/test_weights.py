"""Weights from syndromes alone: exact on independent edges, close to the truth, careful where data say nothing."""

import numpy as np
import pymatching
import pytest
import stim

from heliograph.errors import BadInput
from heliograph.graphs.surface_predecoder import MatchingGraph, SurfaceMemory, estimate_edges, learn_edge_weights

CHAIN = stim.DetectorErrorModel("""
    error(0.05) D0 L0
    error(0.10) D0 D1
    error(0.02) D1 D2
    error(0.20) D2
""")


def test_rates_of_independent_edges_are_recovered():
    graph = MatchingGraph.from_dem(CHAIN)
    seen, _, _ = CHAIN.compile_sampler(seed=0).sample(200_000)
    estimate = estimate_edges(graph, seen)
    np.testing.assert_allclose(estimate.graph.probability, graph.probability, atol=0.004)
    assert estimate.clipped == 0
    assert (abs(estimate.graph.probability - graph.probability) < 5 * estimate.relative_error * graph.probability).all()


def test_the_graph_with_true_rates_decodes_like_pymatching():
    experiment = SurfaceMemory(5, 5, "x", 0.006)
    detectors, _ = experiment.sample(5_000, 1)
    theirs = pymatching.Matching.from_detector_error_model(experiment.dem).decode_batch(detectors)
    ours = experiment.graph.matching().decode_batch(detectors)
    assert (ours != theirs).mean() < 2e-3  # ties between equal weights may fall either way


def test_learned_weights_beat_uniform_ones_and_come_close_to_the_truth():
    experiment = SurfaceMemory(5, 5, "x", 0.01)
    seen, _ = experiment.sample(20_000, 1)
    detectors, observables = experiment.sample(20_000, 2)

    def wrong(matching):
        return int((matching.decode_batch(detectors) != observables).sum())

    truth, uniform = wrong(experiment.graph.matching()), wrong(experiment.graph.with_probability(0.01).matching())
    learned = wrong(learn_edge_weights(experiment.graph, seen))
    assert learned < 1.1 * truth
    assert learned < 0.9 * uniform


def test_pooling_in_time_lowers_the_error_of_each_edge():
    experiment = SurfaceMemory(3, 8, "x", 0.006)
    seen, _ = experiment.sample(800, 3)
    many, _ = experiment.sample(100_000, 4)
    limit = estimate_edges(experiment.graph, many).graph.probability
    alone, pooled = (estimate_edges(experiment.graph, seen, pool=p) for p in ("none", "time"))
    large = (limit > 0.005) & (experiment.graph.edges[:, 1] >= 0)
    error = [np.abs(e.graph.probability[large] / limit[large] - 1).mean() for e in (alone, pooled)]
    assert error[1] < 0.85 * error[0]
    assert (pooled.relative_error[large].mean()) < alone.relative_error[large].mean()


@pytest.mark.parametrize("column", ["silent", "always", "random"])
def test_detectors_that_say_nothing_leave_finite_weights(column):
    random = np.random.default_rng(0)
    seen = random.random((500, 3)) < 0.1
    seen[:, 1] = {"silent": False, "always": True, "random": random.random(500) < 0.5}[column]
    estimate = estimate_edges(CHAIN, seen)
    assert np.isfinite(estimate.graph.probability).all()
    assert ((estimate.graph.probability >= 1e-7) & (estimate.graph.probability <= 0.499)).all()
    learn_edge_weights(CHAIN, seen).decode_batch(np.zeros((1, 3), dtype=np.uint8))


def test_parallel_edges_keep_the_likelier_observable():
    dem = stim.DetectorErrorModel("error(0.01) D0 D1 L0\nerror(0.1) D0 D1\nerror(0.1) D0\nerror(0.1) D1")
    graph = MatchingGraph.from_dem(dem)
    row = graph.edges.tolist().index([0, 1])
    assert not graph.observables[row].any()
    assert graph.probability[row] == pytest.approx(0.1)


def test_bad_samples_and_models_are_refused_with_the_numbers():
    with pytest.raises(BadInput, match=r"\[shots, 3\]; got \[4, 2\]"):
        estimate_edges(CHAIN, np.zeros((4, 2)))
    with pytest.raises(BadInput, match="at least two shots; got 1"):
        estimate_edges(CHAIN, np.zeros((1, 3)))
    with pytest.raises(BadInput, match="values up to 3"):
        estimate_edges(CHAIN, np.full((4, 3), 3))
    with pytest.raises(BadInput, match="3 detectors"):
        MatchingGraph.from_dem(stim.DetectorErrorModel("error(0.1) D0 D1 D2"))
    with pytest.raises(BadInput, match="pool is"):
        estimate_edges(CHAIN, np.zeros((4, 3)), pool="space")
    with pytest.raises(BadInput, match="only with detector coordinates"):
        estimate_edges(CHAIN, np.zeros((4, 3)), pool="time")
