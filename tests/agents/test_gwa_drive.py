import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.agents import EntropyDrive, GWAConfig
from heliograph.agents.gwa import entropy_floor, reachable
from heliograph.errors import BadInput


def plain_run(thoughts, centres, tau, t_base, alpha, beta, ema):
    """Equations 1 to 3 and the temperature's law with lists and loops; centres as the drive drew them."""
    out = []
    for number, thought in enumerate(thoughts):
        length = math.sqrt(sum(x * x for x in thought))
        h = [x / length for x in thought]
        if number:
            d = [1 - sum(a * b for a, b in zip(h, c, strict=True)) for c in centres]
            k = d.index(min(d))
            moved = [ema * c + (1 - ema) * x for c, x in zip(centres[k], h, strict=True)]
            norm = math.sqrt(sum(x * x for x in moved))
            centres[k] = [x / norm for x in moved]
        d = [1 - sum(a * b for a, b in zip(h, c, strict=True)) for c in centres]
        z = sum(math.exp(-x / tau) for x in d)
        p = [math.exp(-x / tau) / z for x in d]
        entropy = -sum(x * math.log(x) for x in p if x > 0)
        out.append((entropy, min(t_base + alpha * math.exp(-beta * entropy), 2.0)))
    return out


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 8), st.sampled_from([0.05, 0.1, 0.5, 1.0]), st.integers(3, 24), st.integers(0, 2**40),
    st.floats(0, 0.9),
)  # fmt: skip
def test_published_estimator_equals_the_equations_in_plain_loops(clusters, tau, dimensions, seed, ema):
    rng = np.random.default_rng(seed)
    thoughts = rng.normal(size=(12, dimensions))
    thoughts[5] = thoughts[4]
    drive = EntropyDrive(clusters, tau, ema=ema, seed=seed)
    drive.update(thoughts[0])
    centres = [list(row) for row in drive.state_dict()["centres"]]
    assert np.allclose(centres[0], thoughts[0] / np.linalg.norm(thoughts[0]))
    expected = plain_run(thoughts, centres, tau, 0.7, 1.3, 2.0, ema)
    got = [(drive.entropy(), drive.temperature())]
    for thought in thoughts[1:]:
        drive.update(thought)
        got.append((drive.entropy(), drive.temperature()))
    assert np.allclose(got, expected, atol=1e-9)


def test_before_any_thought_entropy_is_highest_and_temperature_is_the_base():
    drive = EntropyDrive(5, base_temperature=0.55)
    assert drive.entropy() == pytest.approx(math.log(5))
    assert drive.temperature() == 0.55


@pytest.mark.parametrize("clusters", [2, 3, 5, 8])
@pytest.mark.parametrize("tau", [0.05, 0.1, 0.5, 1.0])
def test_a_thought_on_its_centre_among_orthogonal_ones_meets_the_closed_form(clusters, tau):
    drive = EntropyDrive(clusters, tau)
    axes = np.eye(clusters)
    state = {**drive.state_dict(), "centres": axes.tolist(), "recent": [axes[0].tolist()]}
    drive.load_state_dict(state)
    drive.update(axes[0])
    assert drive.entropy() == pytest.approx(entropy_floor(clusters, tau), abs=1e-9)


def test_published_settings_leave_the_drive_nearly_inert_and_sharper_ones_do_not():
    assert entropy_floor(5, 0.5) == pytest.approx(1.135, abs=1e-3)
    reach = reachable(GWAConfig())
    assert (reach.low, reach.high) == (pytest.approx(0.752, abs=1e-3), pytest.approx(0.834, abs=1e-3))
    assert reach.inert
    assert not reachable(GWAConfig(tau=0.1)).inert
    assert not reachable(GWAConfig(entropy="window")).inert


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["assignment", "window", "novelty"]), st.integers(1, 7), st.integers(0, 2**32))
def test_entropy_and_temperature_stay_in_their_ranges(estimator, clusters, seed):
    drive = EntropyDrive(clusters, 0.1, estimator=estimator, seed=seed)
    rng = np.random.default_rng(seed)
    for thought in rng.normal(size=(15, 6)).repeat(2, axis=0):
        drive.update(thought)
        assert -1e-12 <= drive.entropy() <= math.log(clusters) + 1e-12
        assert 0.7 <= drive.temperature() <= 2.0


@pytest.mark.parametrize("estimator", ["window", "novelty"])
def test_windowed_estimators_tell_repeated_thoughts_from_varied_ones(estimator):
    stuck, varied = EntropyDrive(estimator=estimator), EntropyDrive(estimator=estimator)
    for number in range(12):
        stuck.update(np.eye(16)[0])
        varied.update(np.eye(16)[number])
    assert stuck.entropy() == pytest.approx(0, abs=1e-9)
    assert stuck.temperature() == pytest.approx(2.0)
    assert varied.entropy() > 1.2  # more topics than clusters share the nearest one


def test_window_entropy_counts_topics_of_the_last_thoughts():
    drive = EntropyDrive(estimator="window", window=10)
    for topic in (0, 1, 0, 1, 0, 1, 0, 1, 0, 1):
        drive.update(np.eye(8)[topic])
    assert drive.entropy() == pytest.approx(math.log(2))


@pytest.mark.parametrize("bad", [[0.0] * 4, [math.nan, 1, 0, 0], [math.inf, 0, 0, 0], [1e308] * 4])
def test_a_vector_without_direction_changes_nothing(bad):
    drive = EntropyDrive(tau=0.1)
    drive.update([1.0, 0, 0, 0])
    before = drive.temperature()
    assert drive.update(bad) is False
    assert drive.temperature() == before
    assert drive.skipped == 1


def test_one_cluster_has_no_entropy_and_a_constant_temperature():
    drive = EntropyDrive(clusters=1)
    for row in np.eye(4):
        drive.update(row)
        assert (drive.entropy(), drive.temperature()) == (0.0, pytest.approx(2.0))


def test_equal_centres_and_opposite_thoughts_are_survived():
    drive = EntropyDrive(3, 0.1)
    drive.update([1.0, 0.0])
    drive.load_state_dict({**drive.state_dict(), "centres": [[1.0, 0.0]] * 3})
    drive.update([-1.0, 0.0])
    assert math.isfinite(drive.temperature())


def test_a_message_resets_the_centres_to_others():
    drive = EntropyDrive(seed=4)
    drive.update([1.0, 0, 0])
    first = drive.state_dict()["centres"]
    drive.reset_centers()
    assert drive.temperature() == 0.7
    drive.update([1.0, 0, 0])
    assert drive.state_dict()["centres"] != first


@pytest.mark.parametrize("estimator", ["assignment", "window", "novelty"])
def test_a_saved_drive_goes_on_exactly(estimator):
    import json

    rows = np.random.default_rng(1).normal(size=(20, 5))
    whole, half = EntropyDrive(estimator=estimator), EntropyDrive(estimator=estimator)
    for row in rows[:9]:
        whole.update(row)
    half.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    for row in rows[9:]:
        whole.update(row)
        half.update(row)
        assert half.temperature() == whole.temperature()


def test_another_dimension_and_a_broken_state_are_refused():
    drive = EntropyDrive()
    drive.update([1.0, 0])
    with pytest.raises(BadInput, match="dimensions"):
        drive.update([1.0, 0, 0])
    with pytest.raises(BadInput, match="centres"):
        drive.load_state_dict({**drive.state_dict(), "centres": [[1.0]]})
    with pytest.raises(BadInput, match="not the state"):
        drive.load_state_dict({})


@pytest.mark.parametrize(
    "wrong",
    [{"tau": 0}, {"clusters": 0}, {"alpha": -1}, {"entropy": "other"}, {"theta": 2}, {"max_tokens": {"cook": 1}},
     {"beta": math.nan}, {"ema": 1.0}, {"base_temperature": 3.0}, {"nonsense": 1}, {"seed": -1}],
)  # fmt: skip
def test_settings_outside_their_range_are_refused(wrong):
    with pytest.raises(BadInput):
        GWAConfig.from_mapping(wrong)
