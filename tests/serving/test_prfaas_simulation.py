"""Clusters in virtual time: times that can be worked out by hand, and nothing lost when links and roles change."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from heliograph.errors import BadInput
from heliograph.serving.prfaas import (
    CongestionMonitor,
    GlobalPrefixIndex,
    HybridRouter,
    LeastLoadedSides,
    LogNormalLengths,
    Plan,
    PrefillProfile,
    PrefillServiceModel,
    RoleController,
    ServiceReport,
    ServiceSimulation,
    SimPrompt,
    case_study,
    prompts_from_trace,
)
from heliograph.serving.prfaas.deployments import DEPLOYMENTS, Options, build, plan_of
from heliograph.serving.prfaas.service_model import CASE_LENGTHS, GIGABIT
from heliograph.serving.prfaas.stations import DecodePlaces, VaryingLink
from heliograph.serving.prfaas_commands import app
from heliograph.sim import Sim
from heliograph.workload import RequestTrace, TraceRequest, generate_requests, write_trace
from heliograph.workload.arrivals import arrival_times

pytestmark = pytest.mark.filterwarnings("ignore::heliograph.serving.prfaas.profile.OutsideProfile")
LENGTHS = LogNormalLengths(*CASE_LENGTHS)
# remote: 1 ms a token and 1 MB a token; local: 2 ms a token; link: 1 GB/s; an answer of 10 tokens decodes in 1 s
MODEL = PrefillServiceModel(
    remote=PrefillProfile.linear(0.0 + 1e-9, 1e-3, 0.0, 1e6),
    local=PrefillProfile.linear(1e-9, 2e-3),
    n_remote=1,
    n_local=2,
    egress_gbps=8.0,
    decode_tok_s=20.0,
    out_len=10,
    decode_batch=2,
)


def run(t: float, prompts: list[SimPrompt], **more: object) -> ServiceReport:
    plan = MODEL.at(LENGTHS, t, 1)
    return ServiceSimulation(MODEL, plan, HybridRouter(t), delay_s=0.01, **more).run(prompts)  # type: ignore[arg-type]


def load(count: int, rate: float, seed: int = 0) -> list[SimPrompt]:
    times, tokens = arrival_times(count, rate, seed=seed), LENGTHS.sample(count, seed)
    return [SimPrompt(float(at), int(n), 1024) for at, n in zip(times, tokens, strict=True)]


def test_a_local_prompt_takes_its_prefill_and_its_answer() -> None:
    found = run(math.inf, [SimPrompt(0.0, 500, 10)])
    assert found.first_token_s[0] == pytest.approx(1.0)
    assert found.finished_s[0] == pytest.approx(2.0)
    assert not found.remote[0]


def test_prompts_wait_for_the_one_instance_in_the_order_of_arrival() -> None:
    found = run(math.inf, [SimPrompt(0.0, 500, 10), SimPrompt(0.1, 100, 10)])
    assert found.first_token_s.tolist() == pytest.approx([1.0, 1.2])


def test_a_cache_that_leaves_by_layer_is_late_by_its_last_piece_only() -> None:
    # 1,000 tokens: 1 s of computing, 1 GB on a link of 1 GB/s, in 10 pieces of 0.1 s each, 10 ms of delay
    found = run(0, [SimPrompt(0.0, 1000, 10)], pieces=10)
    assert found.first_token_s[0] == pytest.approx(1.11)
    whole = run(0, [SimPrompt(0.0, 1000, 10)], pieces=1)
    assert whole.first_token_s[0] == pytest.approx(2.01)
    assert found.sent_bytes == pytest.approx(1e9)


def test_a_cache_leaves_only_once_the_decode_side_has_room() -> None:
    # both places of the one decode instance are taken until 1.2 s
    prompts = [SimPrompt(0.0, 100, 10), SimPrompt(0.0, 100, 10), SimPrompt(0.3, 100, 10)]
    plan = replace(MODEL.at(LENGTHS, 0, 1), n_remote=3, n_d=1)
    found = ServiceSimulation(MODEL, plan, HybridRouter(0.0), delay_s=0.0, pieces=1).run(prompts)
    first_end = float(np.sort(found.finished_s)[0])
    assert found.first_token_s[2] == pytest.approx(first_end + 0.1)


def test_a_slower_link_is_felt_from_the_moment_it_changes() -> None:
    # 1,000 tokens in one piece leave at 1 s; at 1.5 s half is gone and the rest takes four times as long
    found = run(0, [SimPrompt(0.0, 1000, 10)], pieces=1, bandwidth=((1.5, 2.0),))
    assert found.first_token_s[0] == pytest.approx(1.0 + 0.5 + 2.0 + 0.01)


def test_a_dead_link_leaves_requests_without_an_end_and_a_fallback_ends_them() -> None:
    prompts = [SimPrompt(0.0, 1000, 10)]
    dead = run(0, prompts, bandwidth=((0.0, 0.0),))
    assert dead.unfinished == 1
    assert dead.summary()["ttft_mean_s"] is None
    saved = run(0, prompts, bandwidth=((0.0, 0.0),), fallback_s=3.0)
    assert (saved.unfinished, saved.fallbacks) == (0, 1)
    assert saved.first_token_s[0] == pytest.approx(1.0 + 3.0 + 2.0)
    assert not saved.remote[0]


def test_a_fallback_leaves_out_what_has_not_been_sent() -> None:
    found = run(0, [SimPrompt(0.0, 1000, 10)], pieces=10, bandwidth=((0.5, 0.0), (20.0, 8.0)), fallback_s=3.0)
    assert found.unfinished == 0
    assert found.sent_bytes < 1e9


def test_a_threshold_above_every_length_is_the_homogeneous_cluster_request_by_request() -> None:
    model = case_study()
    alone = model.homogeneous(LENGTHS, n_local=12)
    prompts = load(400, 0.95 * alone.rate)
    plain = build("homogeneous", model, alone).run(prompts)
    beside = replace(alone, t=1e6, n_remote=4)
    above = ServiceSimulation(model, beside, HybridRouter(beside)).run(prompts)
    assert np.array_equal(plain.first_token_s, above.first_token_s)
    assert np.array_equal(plain.finished_s, above.finished_s)


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_every_deployment_serves_every_request_once_and_near_its_rate(name: str) -> None:
    model = case_study()
    plan = plan_of(name, model, LENGTHS, 12)  # type: ignore[arg-type]
    found = build(name, model, plan, Options(pieces=2)).run(load(1500, 1.3 * plan.rate))  # type: ignore[arg-type]
    assert found.unfinished == 0
    assert found.throughput() == pytest.approx(plan.rate, rel=0.12)
    assert (found.first_token_s >= found.arrival_s).all()
    assert (found.finished_s > found.first_token_s).all()


def test_two_runs_of_one_load_are_equal() -> None:
    model = case_study()
    plan = model.optimise(LENGTHS)
    first, second = (build("prfaas", model, plan).run(load(200, 3.0)) for _ in range(2))
    assert np.array_equal(first.finished_s, second.finished_s)


def test_sent_bytes_are_those_of_the_profile() -> None:
    model = case_study()
    plan = model.naive(LENGTHS)
    prompts = [replace(prompt, tokens=max(1024, prompt.tokens)) for prompt in load(100, 2.0)]
    found = build("naive", model, plan).run(prompts)
    assert found.sent_bytes == pytest.approx(sum(model.remote.kv_bytes(p.tokens) for p in prompts))


def test_a_prefix_held_here_keeps_a_long_prompt_here() -> None:
    names = tuple(range(8))
    prompts = [SimPrompt(0.0, 350, 10, names[:3]), SimPrompt(5.0, 850, 10, names)]
    index = GlobalPrefixIndex(("remote", "local"), 100)
    plan = MODEL.at(LENGTHS, 600, 1)
    found = ServiceSimulation(MODEL, plan, HybridRouter(600.0, index)).run(prompts)
    assert found.remote.tolist() == [False, False]  # 850 tokens, of which 550 are to be computed
    assert found.reused_tokens == 300
    alone = ServiceSimulation(MODEL, plan, HybridRouter(600.0)).run(prompts)
    assert alone.remote.tolist() == [False, True]


def test_a_prefix_held_remotely_is_moved_before_the_prompt_is_computed_here() -> None:
    names = tuple(range(8))
    prompts = [SimPrompt(0.0, 800, 10, names), SimPrompt(10.0, 850, 10, names)]
    index = GlobalPrefixIndex(("remote", "local"), 100)
    # a queue that nothing exceeds: the switch stays at "computing is scarce"
    router = HybridRouter(600.0, index, CongestionMonitor(high=2.0, low=1.0, queue_high=1e12))
    found = ServiceSimulation(MODEL, MODEL.at(LENGTHS, 600, 1), router, delay_s=0.0).run(prompts)
    assert found.remote.tolist() == [True, False]
    assert found.moved_bytes == pytest.approx(800 * 1e6)
    assert found.first_token_s[1] == pytest.approx(10.0 + 0.8 + 50 * 2e-3)


def test_checkpoints_limit_what_a_prefix_is_good_for() -> None:
    names = tuple(range(8))
    prompts = [SimPrompt(0.0, 800, 10, names), SimPrompt(9.0, 750, 10, names[:7])]
    plan = MODEL.at(LENGTHS, math.inf, 1)

    def reused(checkpoint: int | None) -> int:
        index = GlobalPrefixIndex(("remote", "local"), 100)
        simulation = ServiceSimulation(MODEL, plan, HybridRouter(math.inf, index), checkpoint_tokens=checkpoint)
        return simulation.run(prompts).reused_tokens

    assert (reused(None), reused(400)) == (700, 400)


def test_roles_follow_short_answers_and_no_request_is_lost() -> None:
    model = replace(case_study(), out_len=100)
    plan = model.at(LENGTHS, math.inf, 2)
    alone = replace(plan, n_remote=0)
    prompts = [replace(prompt, output_tokens=100) for prompt in load(600, 1.0)]
    roles = RoleController(replace(model, n_remote=0))
    found = ServiceSimulation(model, alone, HybridRouter(math.inf), roles=roles).run(prompts)
    fixed = ServiceSimulation(model, alone, HybridRouter(math.inf)).run(prompts)
    assert found.unfinished == 0
    assert found.roles
    assert found.roles[-1][1] > 2
    assert all(n_p + n_d == 8 for _, n_p, n_d in found.roles)
    assert found.ttft_s.mean() < fixed.ttft_s.mean()


def test_places_drain_before_an_instance_changes() -> None:
    places, told = DecodePlaces(2, 2), []
    for number in range(4):
        places.reserve(lambda n=number: told.append(n))  # type: ignore[misc]
    places.resize(1, lambda: told.append("drained"))
    places.reserve(lambda: told.append("late"))
    places.release()
    assert told == [0, 1, 2, 3]
    places.release()
    assert told == [0, 1, 2, 3, "drained"]
    places.release()
    assert told[-1] == "late"


def test_a_link_counts_what_waits() -> None:
    sim, told = Sim(), []
    link = VaryingLink(sim, 8e-9 * GIGABIT / GIGABIT * 100, 0.5)  # 100 bytes a second
    link.send(100, lambda: told.append(sim.now))
    link.send(50, lambda: told.append(sim.now))
    assert link.queued_bytes == 150
    sim.run()
    assert told == pytest.approx([1.5, 2.0])
    assert (link.queued_bytes, link.most_queued, link.sent_bytes) == (0, 150, 150)


def test_impossible_simulations_are_refused() -> None:
    plan: Plan = MODEL.at(LENGTHS, 0, 1)
    for wrong in (
        lambda: ServiceSimulation(MODEL, plan, HybridRouter(0.0), pieces=0),
        lambda: ServiceSimulation(MODEL, plan, HybridRouter(0.0)).run([]),
        lambda: run(0, [SimPrompt(-1.0, 5, 5)]),
        lambda: VaryingLink(Sim(), -1.0),
        lambda: LeastLoadedSides("luck"),  # type: ignore[arg-type]
        lambda: plan_of("other", MODEL, LENGTHS, 1),  # type: ignore[arg-type]
        lambda: prompts_from_trace(RequestTrace((TraceRequest(output_tokens=1, arrival_s=0.0, prompt="x"),))),
    ):
        with pytest.raises(BadInput):
            wrong()


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_the_plan_of_the_case_study_is_printed() -> None:
    text = invoke("plan", "case-study")
    assert "threshold 19,600 tokens" in text
    assert "1.51 times 12 local instances alone" in text


def test_a_plan_from_a_profile_and_a_trace(tmp_path) -> None:
    profile = {
        "heliograph_service": 1, "remote": {"points": [[256, 10, 0.2], [1024, 30, 0.5], [4096, 90, 1.5]]},
        "local": {"base_s": 0.2, "s_per_token": 0.001}, "n_remote": 1, "n_local": 4, "egress_gbps": 10,
        "decode_tok_s": 200, "out_len": 64,
    }  # fmt: skip
    (tmp_path / "p.json").write_text(json.dumps(profile))
    trace = generate_requests(
        300, 2.0, prompt=LogNormalLengths(7.0, 0.5, 256, 4096), output=64, prefixes=4, prefix_tokens=512, seed=1
    )
    write_trace(trace, tmp_path / "t.jsonl")
    arguments = (str(tmp_path / "p.json"), "--trace", str(tmp_path / "t.jsonl"), "--json")
    found = json.loads(invoke("plan", *arguments))
    assert found["plans"]["prfaas"]["rate"] >= found["plans"]["homogeneous"]["rate"]
    assert 0 < found["reused"] < 1
    ran = json.loads(invoke("simulate", *arguments, "--rate", "0.5", "--adaptive", "--roles", "--fallback", "30"))
    assert set(ran) == set(DEPLOYMENTS)
    assert all(report["unfinished"] == 0 for report in ran.values())
    assert ran["prfaas"]["reused_share"] > 0
    with pytest.raises(BadInput, match="has no lengths"):
        invoke("plan", str(tmp_path / "p.json"))


def test_a_simulation_of_the_case_study_prints_a_table() -> None:
    text = invoke(
        "simulate", "case-study", "--deployment", "prfaas", "--requests", "200", "--bandwidth", "10:30,20:100"
    )
    assert text.splitlines()[1].startswith("prfaas")


@pytest.mark.parametrize(
    "wrong",
    [("--deployment", "other"), ("--requests", "0"), ("--load", "0"), ("--bandwidth", "5"), ("--bandwidth", "5:1,2:1")],
)
def test_a_mistake_on_the_command_line_is_named(wrong: tuple[str, str]) -> None:
    with pytest.raises(BadInput):
        invoke("simulate", "case-study", *wrong)
