"""The check runs, its claims are on the card, and its controls notice what they should."""

from typing import Any

import pytest

from heliograph.catalog.registry import get_card
from heliograph.checks.serving.pd_serve import BITS, BUSY, CHECK, RATIOS, SMALL_FLEET, TINY_LINK, TINY_SERVED
from heliograph.checks.serving.pd_serve_parts import answers, doors, fleets, links
from heliograph.serving.pd_serve import transfer
from heliograph.trials.session import CheckOptions, check_systems


class Here:
    """A context without an engine around it."""

    preset, device, block, seed = "smoke", "cpu", 0, 3

    def __init__(self, workload: Any, contender: str = "") -> None:
        self.workload, self.contender, self.kept = workload, contender, {}

    def progress(self, fraction: float, latest: str = "") -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def keep(self, name: str, value: Any) -> None:
        self.kept[name] = value


def test_smoke_runs_and_judges() -> None:
    outcome, _, _ = check_systems(["pd_serve"], CheckOptions(preset="smoke"), lambda *_: None, lambda *_: None)
    judged = outcome.judgements["pd_serve"]
    verdicts = {finding.claim: finding.verdict for finding in judged.findings}
    assert verdicts["transfer_identical"] == verdicts["tokens_identical"] == "holds"
    assert all(record.status == "ok" for record in outcome.records)
    assert {c.name for c in judged.controls if c.passed} == {"blocks in another order", "shifted keys"}


def test_every_claim_is_on_the_card_and_ours_are_marked() -> None:
    card = {claim.id: claim for claim in get_card("pd_serve").claims}
    assert {claim.claim for claim in CHECK.claims} <= set(card)
    ours = {claim.claim for claim in CHECK.claims} - {"transfer_time", "ttft_attainment", "throughput_gain"}
    assert {card[name].source for name in ours} == {"ours"}


def test_every_timed_claim_has_five_blocks() -> None:
    for experiment in CHECK.experiments:
        if experiment.name not in ("identity", "answers"):
            assert experiment.sizes["laptop"].blocks >= 5


def test_a_scatter_into_wrong_slots_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def reversed_table(buffer: Any, cache: Any, table: Any, *, start: int = 0) -> None:
        transfer.recv_scatter(buffer, cache, list(reversed(table)), start=start)

    monkeypatch.setattr(links, "recv_scatter", reversed_table)
    assert not all(links.measure_identity(Here(BITS.with_params(lengths=[33], block_sizes=[16])))["identical"])


def test_damaged_keys_change_the_answer_and_whole_ones_do_not() -> None:
    found = answers.measure(Here(TINY_SERVED.with_params(prompts=2)))
    assert all(found["tokens"])
    assert all(found["notices"])


def test_the_ways_of_sending_differ_in_messages_not_in_bytes() -> None:
    context = Here(TINY_LINK)
    sending = links.measure_times(context)
    for send in sending.values():
        send()
    sent = context.kept["messages and bytes"]
    assert {nbytes for _, nbytes in sent.values()} == {2 * 4 * 64 * 3 * 64 * 2}
    assert [sent[arm][0] for arm in ("whole", "by layer", "block by block")] == [1, 4, 2 * 4 * 4]


def test_every_contender_meets_the_same_requests() -> None:
    load = BUSY.with_params(requests=30)
    found = [doors.measure(Here(load, c.name))["attainment"] for c in CHECK.experiment("forwarding").contenders]
    assert all(0 < share <= 1 for share in found)
    fleet = SMALL_FLEET.with_params(seconds=4.0, instances=6)
    for contender in CHECK.experiment("organisation").contenders:
        assert fleets.measure_organisation(Here(fleet, contender.name))["goodput"] > 0


def test_the_best_ratio_is_at_least_the_predicted_one() -> None:
    load = RATIOS.with_params(requests=30, instances=4)
    rates = {c: fleets.measure_balance(Here(load, c))["throughput"] for c in ("predicted", "best", "others")}
    assert rates["best"] >= rates["predicted"] > 0
