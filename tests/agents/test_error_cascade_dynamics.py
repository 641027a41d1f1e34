import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.agents import CascadeRisk, fit_cascade, plot_coverage, simulate_cascade
from heliograph.agents.error_cascade import exact_coverage, indicators, predict_cascade, topology
from heliograph.errors import BadInput


def brute_force(a, beta, delta, seed, rounds):
    """Coverage by walking through every history, in plain Python."""
    n = len(a)
    states = {tuple(i == seed for i in range(n)): 1.0}
    out = [[sum(p for s, p in states.items() if s[i]) for i in range(n)]]
    for _ in range(rounds - 1):
        after = {}
        for state, p in states.items():
            branches = {(): p}
            for i in range(n):
                miss = math.prod(1 - beta * a[i][j] for j in range(n) if state[j])
                on = 1 - delta if state[i] else 1 - miss
                branches = {(*b, v): q * (on if v else 1 - on) for b, q in branches.items() for v in (True, False)}
            for branch, q in branches.items():
                after[branch] = after.get(branch, 0.0) + q
        states = after
        out.append([sum(p for s, p in states.items() if s[i]) for i in range(n)])
    return np.array(out)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 1), st.integers(2, 4))
def test_exact_coverage_equals_a_walk_through_all_histories(seed, beta, delta, n):
    a = (np.random.default_rng(seed).random((n, n)) < 0.5).astype(float)
    assert np.allclose(exact_coverage(a, beta, delta, 0, 4), brute_force(a.tolist(), beta, delta, 0, 4), atol=1e-12)


def test_chain_without_recovery_follows_the_negative_binomial_law():
    beta, rounds = 0.6, 7
    got = exact_coverage(topology("chain", 4), beta, 0.0, 0, rounds)
    for t in range(rounds):
        for hops in range(4):
            wanted = sum(math.comb(t, k) * beta**k * (1 - beta) ** (t - k) for k in range(hops, t + 1))
            assert got[t, hops] == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("name", ["star", "chain", "layered", "mesh", "cumulative"])
def test_simulation_agrees_with_the_exact_chain(name):
    a, runs = topology(name, 5, seed=3), 20_000
    x = simulate_cascade(a, 0.3, 0.1, 0, 6, runs, 1)
    exact = exact_coverage(a, 0.3, 0.1, 0, 6)
    assert np.abs(x.mean(axis=0) - exact).max() < 4.5 * 0.5 / math.sqrt(runs)


def test_product_equation_is_exact_on_a_tree_fed_from_one_side():
    a = topology("chain", 5)
    start = np.eye(5)[0]
    first_two = predict_cascade(a, 0.4, 0.0, start, 8)[:, :2]
    assert np.allclose(first_two, exact_coverage(a, 0.4, 0.0, 0, 8)[:, :2])


def test_one_step_of_each_form_is_its_equation():
    a, s = topology("mesh", 3), np.array([0.5, 0.2, 0.0])
    product = predict_cascade(a, 0.4, 0.1, s, 2)[1]
    assert product[2] == pytest.approx(1 - (1 - 0.4 * 0.5) * (1 - 0.4 * 0.2))
    assert product[0] == pytest.approx(0.9 * 0.5 + 0.5 * (1 - (1 - 0.4 * 0.2)))
    poisson = predict_cascade(a, 0.4, 0.1, s, 2, "poisson")[1]
    assert poisson[2] == pytest.approx(1 - math.exp(-0.4 * 0.7))
    logistic = predict_cascade(a, 0.1, 0.0, s, 2, "logistic")[1]
    assert logistic[2] == pytest.approx(0.1 * 2 * 0.7 / 3)


def test_many_settings_at_once_equal_one_at_a_time():
    a, b, d = topology("layered", 5, seed=1), np.array([0.1, 0.9]), np.array([0.0, 0.3])
    both = predict_cascade(a, b, d, np.eye(5)[0], 5)
    for g in range(2):
        assert np.array_equal(both[g], predict_cascade(a, b[g], d[g], np.eye(5)[0], 5))


def test_a_graph_that_changes_is_used_step_by_step():
    off, on = np.zeros((2, 2)), topology("chain", 2)
    x = simulate_cascade(np.stack([off, on]), 1.0, 0.0, 0, 3, 4)
    assert x[:, :, 1].tolist() == [[False, False, True]] * 4


def test_chain_has_no_spectral_margin_and_yet_reaches_everybody():
    found = indicators(topology("chain", 5), 0.9, 0.01, horizon=20)
    assert found.margin == pytest.approx(-0.01)
    assert found.gain > 1
    assert found.expected[0] > 0.85


def test_the_seed_of_a_directed_hub_is_the_one_who_is_heard_not_the_one_who_hears():
    speaks = np.zeros((5, 5))
    speaks[1:, 0] = 1  # all hear agent 0
    found = indicators(speaks, 0.5, 0.1)
    assert found.best_seed == 0
    assert indicators(speaks.T, 0.5, 0.1).best_seed != 0


def test_star_and_mesh_have_the_known_spectral_radius():
    assert indicators(topology("star", 5), 0.3, 0.1).margin == pytest.approx(0.3 * 2 - 0.1)
    found = indicators(topology("mesh", 5), 0.3, 0.1)
    assert found.margin == pytest.approx(0.3 * 4 - 0.1)
    assert found.reproduction == found.ratio == pytest.approx(12.0)
    assert indicators(topology("mesh", 5), 0.3, 0.0).reproduction is None


@pytest.mark.parametrize("form", ["product", "poisson"])
def test_intervals_cover_the_true_rates_as_often_as_they_say(form):
    a, beta, delta, covered = topology("layered", 5, seed=2), 0.35, 0.08, [0, 0]
    for seed in range(60):
        fit = fit_cascade(simulate_cascade(a, beta, delta, 0, 6, 30, seed), a, form=form)
        truth = beta if form == "product" else -math.log1p(-beta)
        covered[0] += fit.beta_interval[0] <= truth <= fit.beta_interval[1]
        covered[1] += fit.delta_interval[0] <= delta <= fit.delta_interval[1]
    assert all(51 <= hits <= 60 for hits in covered), covered  # 57 expected; 51 is 3.5 standard deviations below


def test_homogeneous_start_is_biased_where_the_likelihood_is_not():
    a = topology("star", 5)
    x = simulate_cascade(a, 0.7, 0.02, 0, 5, 4000, 5)
    likelihood = fit_cascade(x, a)
    paper = fit_cascade(x, a, init="homogeneous", draws=0)
    assert likelihood.beta == pytest.approx(0.7, abs=0.02)
    assert likelihood.delta == pytest.approx(0.02, abs=0.005)
    assert abs(paper.beta - 0.7) > 0.1


def test_grid_finds_rates_of_noiseless_curves():
    a = topology("mesh", 4)
    curve = predict_cascade(a, 0.37, 0.12, np.eye(4)[0], 8).mean(axis=1)
    x = np.zeros((1, 8, 4))
    x[0] = predict_cascade(a, 0.37, 0.12, np.eye(4)[0], 8)
    fit = fit_cascade(x, a, init="seeded", draws=0)
    assert (fit.beta, fit.delta) == (pytest.approx(0.37), pytest.approx(0.12))
    assert np.allclose(fit.curve, curve)


def test_paper_protocol_starts_from_round_one():
    a = topology("mesh", 4)
    start = np.full(4, 0.4)
    later = predict_cascade(a, 0.3, 0.1, start, 5).mean(axis=1)
    coverage = np.concatenate([[0.25], later])[None]
    fit = fit_cascade(coverage, a, draws=0)
    assert fit.init == "homogeneous"
    assert (fit.beta, fit.delta, fit.mse) == (pytest.approx(0.3), pytest.approx(0.1), pytest.approx(0, abs=1e-12))


def test_nothing_caught_and_everything_caught_give_one_sided_intervals():
    a = topology("chain", 2)
    never = np.zeros((9, 3, 2))
    never[:, :, 0] = 1
    fit = fit_cascade(never, a)
    assert fit.beta == 0
    # the likelihood of 18 misses falls by chi2/2 at this rate
    assert fit.beta_interval == (0.0, pytest.approx(-math.expm1(-1.9207 / 18), rel=1e-3))
    always = never.copy()
    always[:, 1:, 1] = 1
    assert fit_cascade(always, a).beta == pytest.approx(1.0)


def test_bad_input_is_named():
    a = topology("star", 3)
    for call, words in (
        (lambda: topology("ring", 3), "ring"),
        (lambda: simulate_cascade(a, 1.2, 0, 0, 3, 1), "beta"),
        (lambda: simulate_cascade(a, 0.2, 0, 7, 3, 1), "0 to 2"),
        (lambda: simulate_cascade(np.ones((2, 3)), 0.2, 0, 0, 3, 1), "shape"),
        (lambda: fit_cascade(np.zeros((2, 1)), a), "2 rounds"),
        (lambda: fit_cascade(np.zeros((2, 4)), a, init="transitions"), "R, T, N"),
        (lambda: fit_cascade(np.full((2, 4, 3), np.nan), a), "between 0 and 1"),
        (lambda: exact_coverage(np.zeros((13, 13)), 0.1, 0, 0, 2), "simulate_cascade"),
        (lambda: indicators(a, 0.1, 0.1, horizon=0), "horizon"),
    ):
        with pytest.raises(BadInput, match=words):
            call()


def test_risk_of_a_known_graph_ranks_seeds_and_is_json():
    risk = CascadeRisk.from_graph(topology("star", 4), 0.4, 0.05, agents=("hub", "a", "b", "c"))
    assert risk.seeds()[0][0] == "hub"
    assert json.loads(json.dumps(risk.to_plain()))["seeds"][0]["agent"] == "hub"


def test_fit_is_drawn_beside_its_data(tmp_path):
    a = topology("star", 4)
    fit = fit_cascade(simulate_cascade(a, 0.4, 0.0, 0, 5, 40), a)
    chart = plot_coverage(fit, tmp_path / "fit.json")
    assert json.loads((tmp_path / "fit.json").read_text())["mark"]
    assert len(chart.data.values) == 10
    with pytest.raises(BadInput, match="svg"):
        plot_coverage(fit, tmp_path / "fit.txt")
