from dataclasses import replace

import pytest

from heliograph.catalog.registry import get_card
from heliograph.checks.serving.xllm import CHECK, SCARCE, SMALL_SWING, STATED, TIDES, _adopt
from heliograph.checks.serving.xllm_parts import costs, engine, loads, service
from heliograph.errors import BadInput
from heliograph.serving.core.cost_model import CostModel
from heliograph.serving.core.scheduler import AdmitAll
from heliograph.serving.core.torch_executor import TorchExecutor
from heliograph.trials.session import CheckOptions, check_systems
from heliograph.workload.requests import RequestTrace, TraceRequest, write_trace


class Here:
    """A context without an engine around it."""

    preset, device, block, seed = "smoke", "cpu", 0, 3

    def __init__(self, workload, contender=""):
        self.workload, self.contender, self.kept = workload, contender, {}

    def progress(self, fraction, latest=""):
        pass

    def keep(self, name, value):
        self.kept[name] = value


def smoke(name):
    return CHECK.experiment(name).sizes["smoke"].workloads[0]


def test_smoke_runs_and_judges():
    outcome, _, _ = check_systems(["xllm"], CheckOptions(preset="smoke"), lambda *_: None, lambda *_: None)
    assert [(record.trial, record.error) for record in outcome.records if record.status != "ok"] == []
    judged = outcome.judgements["xllm"]
    verdicts = {finding.claim: finding.verdict for finding in judged.findings}
    assert (verdicts["engine_tokens"], verdicts["never_evicts"]) == ("holds", "holds")
    assert {c.name for c in judged.controls if c.passed} == {"misplaced blocks", "evictions do happen"}


def test_every_claim_is_on_the_card_and_ours_are_marked():
    card = {claim.id: claim for claim in get_card("xllm").claims}
    assert {claim.claim for claim in CHECK.claims} <= set(card)
    ours = {claim.claim for claim in CHECK.claims} - {"zero_evict", "asynchronous_scheduling"}
    assert {card[name].source for name in ours} == {"ours"}


def test_an_engine_that_reads_wrong_blocks_fails_the_claim(monkeypatch):
    launch = TorchExecutor.launch

    def broken(self, plan):
        rows = tuple(replace(row, blocks=(row.blocks[-1], *row.blocks[1:])) for row in plan.rows)
        return launch(self, replace(plan, rows=rows))

    monkeypatch.setattr(TorchExecutor, "launch", broken)
    assert not all(engine.measure_tokens(Here(smoke("engine"), "engine"))["same"])


def test_admission_that_evicts_fails_the_claim(monkeypatch):
    load = SCARCE.with_params(**STATED, requests=60)
    assert all(service.measure_admission(Here(load, "zero-evict"))["no_eviction"])
    monkeypatch.setattr(service, "ZeroEvictAdmission", lambda _: AdmitAll())
    assert not all(service.measure_admission(Here(load, "zero-evict"))["no_eviction"])


@pytest.mark.parametrize("arm", ["roles that follow", "best static ratio", "least outstanding", "round robin"])
def test_each_way_to_share_instances_serves_every_request(arm):
    found = service.measure_roles(Here(SMALL_SWING, arm))
    assert 0 <= found["attainment"] <= 1
    assert found["goodput"] > 0


@pytest.mark.parametrize("arm", ["colocation", "online alone", "separate pools", "priority only"])
def test_each_way_to_mix_draws_offline_tokens_unless_there_are_none(arm):
    found = service.measure_colocation(Here(TIDES.with_params(**STATED, most=6, offline=6), arm))
    assert (found["offline_tokens_per_s"] > 0) == (arm != "online alone")


def test_arms_of_a_block_see_the_same_requests():
    cost = CostModel(**costs.STATED)
    assert loads.online_requests(SMALL_SWING, cost, 5) == loads.online_requests(SMALL_SWING, cost, 5)
    assert loads.online_requests(SMALL_SWING, cost, 5) != loads.online_requests(SMALL_SWING, cost, 6)


def test_a_faster_machine_sees_the_same_queue_in_its_own_seconds():
    slow = CostModel(**costs.STATED)
    fast = CostModel(*(c / 10 for c in slow.coefficients))
    ours, end, _ = loads.online_requests(SMALL_SWING, slow, 5)
    theirs, sooner, _ = loads.online_requests(SMALL_SWING, fast, 5)
    assert sooner == pytest.approx(end / 10)
    assert [r.prompt for r in ours] == [r.prompt for r in theirs]


def test_the_users_trace_takes_the_place_of_drawn_requests(tmp_path):
    path = tmp_path / "trace.jsonl"
    rows = [TraceRequest(output_tokens=4, arrival_s=n / 2, prompt_tokens=30) for n in range(12)]
    write_trace(RequestTrace(tuple(rows)), path)
    adopted = _adopt(path, "smoke")
    assert set(adopted) == {"roles", "co-location"}
    found = service.measure_roles(Here(adopted["roles"], "roles that follow"))
    assert found["attainment"] > 0


def test_a_trace_whose_turns_wait_for_answers_is_refused(tmp_path):
    path = tmp_path / "trace.jsonl"
    rows = (
        TraceRequest(output_tokens=4, arrival_s=0.0, prompt_tokens=3, session="a"),
        TraceRequest(output_tokens=4, after_s=1.0, prompt_tokens=3, session="a"),
    )
    write_trace(RequestTrace(rows, "cumulative"), path)
    with pytest.raises(BadInput, match="request 2"):
        _adopt(path, "smoke")
