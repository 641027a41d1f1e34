from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliograph.catalog.card import parse_card
from heliograph.statistics import clopper_pearson
from heliograph.trials.check import Bound, Check, Contender, Control, Experiment, NotWorse, Size, Superior
from heliograph.trials.judge import exit_code, judge, verdict_of
from heliograph.trials.record import TrialRecord
from tests.conftest import CARD
from tests.trials.synthetic import CHECK, PLAIN, SCORE_CLAIM, TWINS, USELESS

ARMS = ("system", "baseline", "twin")


def records(scores: dict[str, list], metric: str = "score", experiment: str = "score") -> list[TrialRecord]:
    return [
        TrialRecord(f"{arm}{b}", "synthetic", experiment, "plain", b, b, arm, "ok", metrics={arm: {metric: value}})
        for arm, values in scores.items()
        for b, value in enumerate(values)
    ]


def check_with(kind, effect: str = "difference", better: str = "higher", claims: int = 1) -> Check:
    baseline = "" if isinstance(kind, Bound) else "baseline"
    rules = tuple(
        replace(
            SCORE_CLAIM, claim=f"claim{i}", kind=kind, effect=effect, better=better, baseline=baseline, metric=f"m{i}"
        )
        for i in range(claims)
    )
    experiment = Experiment(
        "score", "a score", tuple(Contender(a, "system") for a in ARMS), dict, {"laptop": Size((PLAIN,), 6)}
    )
    control = replace(TWINS, metric="m0", margin=1e9, effect=effect)
    return Check("synthetic", (experiment,), rules, (control,))


def findings(kind, system, baseline, effect: str = "difference", better: str = "higher"):
    check = check_with(kind, effect, better)
    return judge(
        check, None, "laptop", records({"system": system, "baseline": baseline, "twin": baseline}, "m0")
    ).findings


@pytest.mark.parametrize(
    ("low", "high", "tau", "expected"),
    [
        (1.0, 2.0, 1.0, "holds"),
        (0.2, 2.0, 1.0, "weaker"),
        (-2.0, -1.0, 1.0, "fails"),
        (-0.5, 0.5, 1.0, "fails"),
        (-0.5, 1.5, 1.0, "undecided"),
        (0.0, 0.9, 1.0, "fails"),
        (0.0, 1.0, 1.0, "undecided"),
    ],
)
def test_verdict_follows_the_rule(low: float, high: float, tau: float, expected: str) -> None:
    assert verdict_of(low, high, tau, superiority=True) == expected


@given(
    low=st.floats(-3, 3),
    width=st.floats(0, 3),
    tau=st.floats(0.01, 2),
    shift=st.floats(0, 3),
    superiority=st.booleans(),
)
def test_moving_the_interval_up_never_makes_the_verdict_worse(low, width, tau, shift, superiority) -> None:
    order = {"fails": 0, "undecided": 1, "weaker": 1, "holds": 2}
    before = verdict_of(low, low + width, tau, superiority=superiority)
    after = verdict_of(low + shift, low + width + shift, tau, superiority=superiority)
    assert order[after] >= order[before]


def test_large_gain_holds_and_is_shown_in_the_unit_of_the_claim() -> None:
    (found,) = findings(Superior(2.0), [8.0, 8.1, 7.9, 8.0, 8.2], [2.0, 2.1, 2.0, 1.9, 2.0], effect="ratio")
    assert found.verdict == "holds"
    assert found.unit == "x"
    assert found.ours == pytest.approx(4.02, abs=0.05)
    assert found.low < found.ours < found.high


def test_lower_is_better_turns_the_ratio_around() -> None:
    (found,) = findings(Superior(2.0), [1.0] * 5, [3.0, 3.1, 3.0, 2.9, 3.0], effect="ratio", better="lower")
    assert found.verdict == "holds"
    assert found.ours == pytest.approx(3.0, abs=0.05)


def test_small_gain_is_weaker() -> None:
    (found,) = findings(Superior(1.0), [0.5, 0.51, 0.49, 0.5, 0.52], [0.0] * 5)
    assert found.verdict == "weaker"


def test_loss_within_the_margin_is_not_worse_and_beyond_it_fails() -> None:
    baseline = [1.0, 1.01, 0.99, 1.0, 1.02]
    assert findings(NotWorse(0.2), [b - 0.1 for b in baseline], baseline)[0].verdict == "holds"
    assert findings(NotWorse(0.2), [b - 0.5 for b in baseline], baseline)[0].verdict == "fails"


def test_bound_compares_the_value_itself() -> None:
    values = [0.01, 0.012, 0.011, 0.009, 0.01]
    (found,) = findings(Bound(0.05), values, [1.0] * 5, better="lower")
    assert (found.verdict, round(found.ours, 4), found.threshold) == ("holds", 0.0104, 0.05)
    assert findings(Bound(0.005), values, [1.0] * 5, better="lower")[0].verdict == "fails"


@pytest.mark.parametrize("count", [1, 2, 4])
def test_fewer_than_five_blocks_are_void(count: int) -> None:
    (found,) = findings(Superior(1.0), [5.0] * count, [0.0] * count)
    assert (found.verdict, "too few blocks" in found.note) == ("void", True)


def test_useless_system_fails_and_never_holds() -> None:
    rows = records({arm: [1.0] * 6 for arm in ARMS})
    (found,) = judge(USELESS, None, "laptop", rows).findings
    assert found.verdict == "fails"


def test_broken_control_makes_the_claim_void() -> None:
    rows = records({"system": [9.0] * 6, "baseline": [1.0] * 6, "twin": [4.0] * 6})
    judged = judge(USELESS, None, "laptop", rows)
    assert judged.controls[0].passed is False
    assert judged.findings[0].verdict == "void"
    assert "two equal arms tie" not in judged.findings[0].note
    assert "twins" in judged.findings[0].note


def test_missing_trial_makes_the_claim_void_and_is_named() -> None:
    rows = records({"system": [9.0] * 6, "baseline": [1.0] * 6, "twin": [1.0] * 6})
    planned = [
        {"id": r.trial, "experiment": "score", "workload": "plain", "block": r.block, "contender": r.contender}
        for r in rows
    ]
    lost = [r for r in rows if r.trial != "baseline3"]
    (found,) = judge(USELESS, None, "laptop", lost, planned).findings
    assert found.verdict == "void"
    assert "baseline3 (not run)" in found.note


def test_crashed_trial_makes_the_claim_void_and_says_how() -> None:
    rows = records({"system": [9.0] * 6, "baseline": [1.0] * 6, "twin": [1.0] * 6})
    rows[2] = replace(rows[2], status="timed_out", metrics={})
    (found,) = judge(USELESS, None, "laptop", rows).findings
    assert (found.verdict, "timed_out" in found.note) == ("void", True)


def test_smoke_judges_exact_claims_only() -> None:
    rows = records({"system": [True]}, "agrees", "exact")
    rows += records({"system": [9.0] * 6, "baseline": [1.0] * 6, "twin": [1.0] * 6})
    rows[0] = replace(rows[0], workload="one", metrics={"system": {"agrees": True, "control_agrees": True}})
    judged = judge(CHECK, None, "smoke", rows)
    assert [f.verdict for f in judged.findings] == ["holds", "void"]
    assert judged.findings[1].declared
    assert exit_code(judged.findings) == 0


def test_one_disagreement_fails_an_exact_claim() -> None:
    row = TrialRecord(
        "t", "synthetic", "exact", "one", 0, 0, "system", "ok",
        metrics={"system": {"agrees": [True, True, False], "control_agrees": True}},
    )  # fmt: skip
    assert judge(CHECK, None, "smoke", [row]).findings[0].verdict == "fails"


def test_failed_exact_control_voids_what_it_guards() -> None:
    row = TrialRecord(
        "t", "synthetic", "exact", "one", 0, 0, "system", "ok",
        metrics={"system": {"agrees": True, "control_agrees": False}},
    )  # fmt: skip
    assert judge(CHECK, None, "smoke", [row]).findings[0].verdict == "void"


def test_paper_figure_comes_from_the_card_and_says_whether_it_was_reached() -> None:
    card = parse_card(CARD, "card")
    check = replace(USELESS, claims=(replace(SCORE_CLAIM, comparable="effect"),))
    rows = records({"system": [4.0, 4.1, 4.0, 3.9, 4.0], "baseline": [1.0] * 5, "twin": [1.0] * 5})
    (found,) = judge(check, card, "laptop", rows).findings
    assert (found.paper, found.paper_reached) == ("2.5 points", True)


def test_several_workloads_are_averaged_within_a_block() -> None:
    rows = records({"system": [4.0] * 5, "baseline": [1.0] * 5, "twin": [1.0] * 5})
    other = [replace(r, trial=r.trial + "b", workload="other", metrics={r.contender: {"score": 2.0}}) for r in rows]
    (found,) = judge(USELESS, None, "laptop", rows + other).findings
    assert found.ours == pytest.approx(1.5)


def test_paired_outcomes_use_mcnemar() -> None:
    rng = np.random.default_rng(0)
    wins = (rng.random(300) < 0.9).tolist()
    losses = (rng.random(300) < 0.5).tolist()
    check = replace(USELESS, claims=(replace(SCORE_CLAIM, effect="outcomes", kind=Superior(0.1)),),
                    controls=(replace(TWINS, effect="outcomes", margin=0.5),))  # fmt: skip
    rows = records({"system": [wins], "baseline": [losses], "twin": [losses]})
    (found,) = judge(check, None, "laptop", rows).findings
    assert found.verdict == "holds"
    assert found.ours == pytest.approx((sum(wins) - sum(losses)) / 300)


def test_check_without_control_is_refused() -> None:
    with pytest.raises(ValueError, match="no negative control"):
        replace(USELESS, controls=())


def test_superiority_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="smallest effect worth having"):
        replace(USELESS, claims=(replace(SCORE_CLAIM, kind=Superior(0.0)),))


def test_control_with_unknown_arm_is_refused() -> None:
    with pytest.raises(ValueError, match="no contender 'nobody'"):
        replace(USELESS, controls=(Control("c", "text", "score", "score", "nobody", margin=1.0),))


def _draw(noise: str, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape) if noise == "normal" else rng.standard_t(2.5, shape)


@pytest.mark.parametrize("noise", ["normal", "heavy-tailed"])
@pytest.mark.parametrize("blocks", [5, 8])
@pytest.mark.parametrize("claims", [1, 5])
@pytest.mark.parametrize("kind", ["superior", "not_worse", "bound"])
def test_claims_without_effect_rarely_hold(kind: str, claims: int, blocks: int, noise: str) -> None:
    """2,000 checks at the border of the null hypothesis: any claim of the family may hold in 2.5 % of them at most."""
    rule = {"superior": Superior(1e-9), "not_worse": NotWorse(0.5), "bound": Bound(0.5)}[kind]
    check = check_with(rule, claims=claims)
    rng = np.random.default_rng([blocks, claims, len(noise), len(kind)])
    offset = {"superior": 0.0, "not_worse": -0.5, "bound": 0.5}[kind]
    held = 0
    for _ in range(2000):
        system = offset + _draw(noise, rng, (claims, blocks))
        baseline = np.zeros((claims, blocks))
        rows = [
            TrialRecord(
                f"{arm}{b}", "synthetic", "score", "plain", b, b, arm, "ok",
                metrics={arm: {f"m{i}": float(values[i, b]) for i in range(claims)}},
            )
            for arm, values in (("system", system), ("baseline", baseline), ("twin", baseline))
            for b in range(blocks)
        ]  # fmt: skip
        held += any(f.verdict == "holds" for f in judge(check, None, "laptop", rows).findings)
    assert clopper_pearson(held, 2000, 0.999).low <= 0.025
    assert held <= 73


def test_paired_outcomes_without_effect_rarely_hold() -> None:
    check = replace(USELESS, claims=(replace(SCORE_CLAIM, effect="outcomes", kind=Superior(1e-9)),),
                    controls=(replace(TWINS, effect="outcomes", margin=0.9),))  # fmt: skip
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(2000):
        a, b = (rng.random((2, 80)) < 0.4).tolist()
        held += (
            judge(check, None, "laptop", records({"system": [a], "baseline": [b], "twin": [b]})).findings[0].verdict
            == "holds"
        )
    assert held <= 73
