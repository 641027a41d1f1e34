"""The throughput model gives the printed rates, finds the best threshold, and says what it cannot do."""

import json
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.errors import BadInput
from heliograph.serving.prfaas import (
    EmpiricalLengths,
    LogNormalLengths,
    OutsideProfile,
    PrefillProfile,
    PrefillServiceModel,
    case_study,
    kv_bytes,
    kv_throughput,
    read_service,
)
from heliograph.serving.prfaas.profile_file import uncached_lengths
from heliograph.serving.prfaas.service_model import CASE_LENGTHS
from heliograph.serving.prfaas.simulate import SimPrompt
from tests.workload.test_shape import SMOLLM2

LENGTHS = LogNormalLengths(*CASE_LENGTHS)
POINTS = {1000: (100.0, 0.5), 2000: (150.0, 1.0), 4000: (250.0, 3.0)}


def test_the_printed_rates_come_out_within_three_percent() -> None:
    model = case_study()
    paper, alone, naive = model.at(LENGTHS, 19_400, 3), model.homogeneous(LENGTHS, n_local=12), model.naive(LENGTHS)
    ours = [paper.p, paper.remote_rate, paper.local_rate, paper.decode_rate, paper.rate, alone.rate, naive.rate]
    assert ours == pytest.approx([0.496, 1.61, 1.64, 3.91, 3.24, 2.11, 2.45], rel=0.03)
    assert (alone.n_p, alone.n_d) == (9, 3)
    assert (alone.bottleneck, naive.bottleneck) == ("local prefill", "remote prefill")


def test_the_best_plan_is_the_printed_one_within_three_percent() -> None:
    best = case_study().optimise(LENGTHS)
    assert best.t == pytest.approx(19_400, rel=0.03)
    assert (best.n_p, best.n_d) == (3, 5)
    assert best.egress_gbps == pytest.approx(12.0, rel=0.01)


def test_both_prefill_sides_saturate_together_at_the_best_threshold() -> None:
    best = case_study().optimise(LENGTHS, step_tokens=20)
    assert best.remote_rate / best.p == pytest.approx(best.local_rate / (1 - best.p), rel=2e-3)


def test_no_threshold_and_split_of_a_coarse_search_is_better() -> None:
    model = case_study()
    best = model.optimise(LENGTHS)
    tried = [model.at(LENGTHS, t, n_p).rate for t in (0, 5e3, 1e4, 2e4, 4e4, 1e5, math.inf) for n_p in range(9)]
    assert best.rate >= max(tried)


def test_without_a_link_or_remote_instances_nothing_leaves() -> None:
    for model in (replace(case_study(), egress_gbps=0.0), replace(case_study(), n_remote=0)):
        best = model.optimise(LENGTHS)
        assert best.p == 0
        assert best.rate == pytest.approx(model.homogeneous(LENGTHS).rate)


def test_a_threshold_of_zero_sends_all_and_one_above_all_sends_none() -> None:
    model = case_study()
    assert model.at(LENGTHS, 0, 0).p == 1
    above = model.at(LENGTHS, CASE_LENGTHS[3], 3)
    assert (above.p, above.egress_gbps) == (0, 0)
    assert above.rate == model.at(LENGTHS, math.inf, 3).rate


def test_without_local_prefill_only_full_offload_serves_anything() -> None:
    model = case_study()
    assert model.at(LENGTHS, 10_000, 0).rate == 0
    assert model.at(LENGTHS, 0, 0).rate > 0


def test_a_thin_link_is_named_as_the_bottleneck_and_compression_widens_it() -> None:
    thin = replace(case_study(), egress_gbps=3.0)
    assert thin.naive(LENGTHS).bottleneck == "link"
    wider = replace(thin, kv_ratio=4.0)
    assert wider.naive(LENGTHS).rate == pytest.approx(replace(thin, egress_gbps=12.0).naive(LENGTHS).rate)
    assert wider.optimise(LENGTHS).t < thin.optimise(LENGTHS).t


def test_measured_lengths_give_the_plan_of_their_distribution() -> None:
    model = case_study()
    sampled = EmpiricalLengths(LENGTHS.sample(50_000, 1))
    ours, exact = model.optimise(sampled), model.optimise(LENGTHS)
    assert ours.rate == pytest.approx(exact.rate, rel=0.02)
    assert ours.n_p == exact.n_p


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=40), st.floats(0, 6000))
@settings(max_examples=100, deadline=None)
def test_shares_and_means_of_measured_lengths_are_those_of_the_list(values: list[int], t: float) -> None:
    lengths = EmpiricalLengths(values)
    above, below = [v for v in values if v > t], [v for v in values if v <= t]
    assert lengths.share_above(t) == pytest.approx(len(above) / len(values))
    if above:
        assert lengths.mean_between(t, math.inf) == pytest.approx(sum(above) / len(above))
    if below:
        assert lengths.mean_between(-1, t) == pytest.approx(sum(below) / len(below))


@given(st.floats(0, 200_000), st.integers(0, 8))
@settings(max_examples=60, deadline=None)
def test_a_plan_never_exceeds_any_stage(t: float, n_p: int) -> None:
    plan = case_study().at(LENGTHS, t, n_p)
    assert plan.rate <= plan.decode_rate
    assert plan.rate * plan.p <= plan.remote_rate * (1 + 1e-9)
    assert plan.rate * (1 - plan.p) <= plan.local_rate * (1 + 1e-9)


@pytest.mark.parametrize("lengths", [[], [-1.0], [math.nan]])
def test_empty_or_impossible_lengths_are_refused(lengths: list[float]) -> None:
    with pytest.raises(BadInput, match="lengths"):
        EmpiricalLengths(lengths)


@pytest.mark.parametrize(
    "change",
    [{"n_local": 0}, {"n_remote": -1}, {"egress_gbps": -1.0}, {"decode_tok_s": 0.0}, {"kv_ratio": 0.0}],
)
def test_impossible_clusters_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(BadInput, match="need"):
        replace(case_study(), **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(("t", "n_p"), [(-1.0, 3), (math.nan, 3), (100.0, 9), (100.0, -1)])
def test_an_impossible_plan_is_refused(t: float, n_p: int) -> None:
    with pytest.raises(BadInput, match="threshold"):
        case_study().at(LENGTHS, t, n_p)


def test_a_profile_interpolates_between_its_points() -> None:
    profile = PrefillProfile.from_points(POINTS)
    assert profile.seconds(1500) == pytest.approx(0.75)
    assert profile.kv_bytes(3000) == pytest.approx(200 * 2**20)
    assert profile.kv_rate(2000) == pytest.approx(150 * 2**20)
    assert profile.seconds(np.array([1000, 1500, 4000])).tolist() == pytest.approx([0.5, 0.75, 3.0])


def test_beyond_the_profile_seconds_bend_bytes_do_not_and_a_warning_is_given_once() -> None:
    profile = PrefillProfile.from_points(POINTS)
    with pytest.warns(OutsideProfile, match="1000 to 4000"):
        far = profile.seconds(8000)
    assert far > 3.0 + 4000 * 0.001  # above the last line
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert profile.kv_bytes(8000) == pytest.approx(450 * 2**20)
        assert 0 < profile.seconds(0) < 0.5


def test_an_exact_parabola_is_continued() -> None:
    profile = PrefillProfile.from_points({n: (1.0, 0.1 + 1e-3 * n + 1e-6 * n * n) for n in (100, 500, 1000)})
    with pytest.warns(OutsideProfile):
        assert profile.seconds(3000) == pytest.approx(0.1 + 3 + 9)


def test_a_falling_profile_is_refused_with_the_length_and_repaired_on_request() -> None:
    noisy = {1000: (100.0, 0.5), 2000: (150.0, 0.4), 4000: (250.0, 3.0)}
    with pytest.raises(BadInput, match="2000 tokens"):
        PrefillProfile.from_points(noisy)
    assert PrefillProfile.from_points(noisy, repair=True).seconds(2000) == 0.5


@pytest.mark.parametrize("points", [{}, {1000: (1.0, 0.5)}, {1000: (1.0, 0.0), 2000: (1.0, 1.0)}, [(1, 2)]])
def test_profiles_that_cannot_be_are_refused(points: object) -> None:
    with pytest.raises(BadInput):
        PrefillProfile.from_points(points)  # type: ignore[arg-type]


@pytest.mark.parametrize("length", [-1, math.nan, math.inf])
def test_impossible_lengths_are_refused(length: float) -> None:
    with pytest.raises(BadInput, match="prompt length"):
        PrefillProfile.linear(0.1, 0.1).seconds(length)


def test_bytes_follow_from_a_configuration() -> None:
    assert kv_bytes(SMOLLM2, 1000) == 23_040_000
    assert kv_throughput(100.0, 2.0) == 50.0
    with pytest.raises(BadInput):
        kv_throughput(100.0, 0.0)


def service(**changes: object) -> dict[str, object]:
    return {
        "heliograph_service": 1,
        "remote": {"points": [[1024, 190.8, 0.44], [8192, 308.9, 0.72], [32768, 701.3, 1.84], [131072, 2316.3, 7.4]]},
        "local": {"base_s": 0.39, "s_per_token": 0.000141},
        "n_remote": 4,
        "n_local": 8,
        "homogeneous_instances": 12,
        "egress_gbps": 100,
        "decode_tok_s": 800,
        "out_len": 1024,
        "lengths": {"mu": 9.9, "sigma": 1.0, "low": 128, "high": 131072},
        **changes,
    }


def test_a_file_gives_the_built_in_case_study(tmp_path) -> None:
    path = tmp_path / "service.json"
    path.write_text(json.dumps(service()))
    read, built_in = read_service(path), read_service("case-study")
    assert read.model == built_in.model
    assert (read.lengths, read.homogeneous_instances) == (built_in.lengths, 12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_remot": 3}, "n_remot"),
        ({"heliograph_service": 2}, "version 2"),
        ({"local": {"base_s": 0.4}}, "local needs either"),
        ({"remote": {"points": [[2, 1, 1], [4, 1, 0.5]]}}, "remote: seconds fall"),
        ({"lengths": []}, "empty"),
        ({"n_local": "eight"}, "n_local"),
        ({"homogeneous_instances": 0}, "homogeneous_instances"),
    ],
)
def test_a_file_with_a_mistake_is_refused_by_name(tmp_path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "service.json"
    path.write_text(json.dumps(service(**change)))
    with pytest.raises(BadInput, match=message):
        read_service(path)


def test_a_file_that_is_not_there_or_no_json_is_refused(tmp_path) -> None:
    with pytest.raises(BadInput, match="cannot read"):
        read_service(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(BadInput, match=r"bad\.json"):
        read_service(tmp_path / "bad.json")


def test_uncached_lengths_leave_out_what_an_earlier_prompt_left() -> None:
    prompts = [SimPrompt(0, 1500, 1, ("a", "b")), SimPrompt(1, 1500, 1, ("a", "b")), SimPrompt(2, 1024, 1, ("a", "b"))]
    lengths, reused = uncached_lengths(prompts)
    assert lengths.values.tolist() == [476, 512, 1500]  # of a whole hit, a block is left to compute
    assert reused == pytest.approx(1 - (476 + 512 + 1500) / 4024)


def test_a_model_is_made_from_keywords() -> None:
    model = PrefillServiceModel(
        remote=PrefillProfile.from_points(POINTS), local=PrefillProfile.linear(0.5, 0.001), n_remote=1, n_local=4,
        egress_gbps=10, decode_tok_s=500, out_len=100,
    )  # fmt: skip
    assert model.optimise(LogNormalLengths(7.5, 0.3, 1000, 4000)).rate > 0
