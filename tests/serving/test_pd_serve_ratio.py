"""Ratios are those that the times ask for, change when the times do, and never lose the last of a role."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliograph.errors import BadInput
from heliograph.serving.core.cost_model import CostModel
from heliograph.serving.core.scheduler import SchedulerConfig
from heliograph.serving.core.sim_cluster import InstanceSpec, SimRequest
from heliograph.serving.pd_serve import (
    FleetController,
    FleetRouter,
    GroupSimulation,
    GroupState,
    KVShape,
    LinkRefused,
    PDGroup,
    RatioController,
    ScenarioProfile,
    balance_ratio,
)
from heliograph.serving.pd_serve.fleet import RoleController, share_out
from heliograph.serving.pd_serve.group import GroupMembers, WrongState
from heliograph.serving.pd_serve.ratio import Finished

COST = CostModel(0.01, 0.001, 0.0, 0.002, 0.0, kv_bytes_per_token=100)
SHAPE = KVShape(2, 2, 4, "float32", 4, "model")


@given(st.floats(0.01, 10), st.floats(0.001, 1), st.floats(1, 500), st.integers(2, 24))
def test_no_other_ratio_serves_more(prefill_s: float, tpot_s: float, output: float, devices: int) -> None:
    profile = ScenarioProfile("a", output, ((1, prefill_s),), ((8, tpot_s),))
    best = balance_ratio(profile, devices)
    assert best.prefill + best.decode == devices
    for prefill in range(1, devices):
        decode_s = (output - 1) * tpot_s / 8
        rate = min(prefill / prefill_s, (devices - prefill) / decode_s if decode_s else float("inf"))
        assert rate <= best.phi * devices * (1 + 1e-9)


def test_longer_prompts_ask_for_more_prefill() -> None:
    short = balance_ratio(ScenarioProfile.from_cost(COST, 100, 50), 8)
    long = balance_ratio(ScenarioProfile.from_cost(COST, 2000, 50), 8)
    assert long.prefill > short.prefill


def test_a_limit_on_the_time_a_token_takes_chooses_a_smaller_batch() -> None:
    profile = ScenarioProfile.from_cost(COST, 100, 50)
    assert balance_ratio(profile, 4, tpot_s=0.03).decode_batch == 8
    assert balance_ratio(profile, 4).decode_batch == 64


def test_a_single_device_is_no_group() -> None:
    with pytest.raises(BadInput, match="each role"):
        balance_ratio(ScenarioProfile.from_cost(COST, 100, 50), 1)


@given(
    st.dictionaries(st.tuples(st.sampled_from("abc"), st.sampled_from(["p", "d"])), st.floats(0, 9), min_size=1),
    st.integers(6, 40),
)
def test_shares_use_every_instance_and_leave_nobody_out(demand: dict[tuple[str, str], float], instances: int) -> None:
    given_ = share_out(demand, instances)
    assert sum(given_.values()) == instances
    assert min(given_.values()) >= 1


def watched(end_to_end_s: float, share: float, windows: int = 3) -> RatioController:
    controller = RatioController(10.0, 0.2, window_s=5, window_requests=4, cooldown=1)
    for number in range(4 * windows * 3):
        controller.observe(Finished(number * 2.0, end_to_end_s, share * end_to_end_s))
    return controller


@pytest.mark.parametrize(("share", "bottleneck"), [(0.6, "prefill"), (0.05, "decode")])
def test_the_share_before_the_first_token_names_the_bottleneck(share: float, bottleneck: str) -> None:
    proposal = watched(20.0, share).propose(3, 3)
    assert proposal is not None
    assert proposal.bottleneck == bottleneck


@pytest.mark.parametrize(("end_to_end_s", "share"), [(11.0, 0.6), (20.0, 0.25)])
def test_within_the_band_or_without_a_culprit_nothing_is_proposed(end_to_end_s: float, share: float) -> None:
    assert watched(end_to_end_s, share).propose(3, 3) is None


def test_the_last_of_a_role_is_never_taken() -> None:
    assert watched(20.0, 0.6).propose(5, 1) is None
    assert watched(20.0, 0.05).propose(1, 5) is None


def test_after_a_change_there_is_rest() -> None:
    controller = watched(20.0, 0.6)
    proposal = controller.propose(3, 3)
    assert proposal is not None
    assert not controller.apply(proposal, lambda _: False)
    assert controller.propose(3, 3) == proposal
    assert controller.apply(proposal, lambda _: True)
    assert controller.propose(4, 2) is None


def requests(count: int, every_s: float, prompt: int, output: int, label: int = 0) -> list[SimRequest]:
    start = 1 + label * 1000000
    return [SimRequest(f"s{label}-{n}", n * every_s, range(start, start + prompt), output) for n in range(count)]


def simulation(roles: dict[tuple[str, str], int], controller: object = None) -> GroupSimulation:
    specs, membership = [], {}
    for (group, role), count in roles.items():
        for number in range(count):
            name = f"{group}-{role}-{number}"
            specs.append(InstanceSpec(name, role, 2048, 16, SchedulerConfig(512, 16, context=30000)))  # type: ignore[arg-type]
            membership[name] = group
    router = FleetRouter(membership, lambda prompt: f"s{prompt[0] // 1000000}", next(iter(membership.values())))
    made = controller(router) if callable(controller) else controller
    run = GroupSimulation(specs, router, COST, controller=made)  # type: ignore[arg-type]
    run.on_finished = getattr(made, "finished", None)
    return run


def test_a_request_stays_in_its_group() -> None:
    run = simulation({("s0", "prefill"): 1, ("s0", "decode"): 1, ("s1", "prefill"): 1, ("s1", "decode"): 1})
    report = run.run([*requests(10, 0.2, 50, 5), *requests(10, 0.2, 60, 5, label=1)])
    for record in report.records:
        group = record.request.id[:2]
        assert {record.placements[0][1].prefill, record.placements[0][1].decode} == {
            f"{group}-prefill-0",
            f"{group}-decode-0",
        }
        assert record.completed
    run.check()


def test_an_unknown_scenario_goes_to_the_default_group() -> None:
    run = simulation({("s0", "prefill"): 1, ("s0", "decode"): 1})
    (record,) = run.run(requests(1, 1.0, 50, 5, label=7)).records
    assert record.completed


def test_instances_follow_the_demand_and_every_request_ends() -> None:
    profiles = {"s0": ScenarioProfile.from_cost(COST, 400, 5), "s1": ScenarioProfile.from_cost(COST, 400, 5)}
    roles = {(g, r): 2 for g in ("s0", "s1") for r in ("prefill", "decode")}
    run = simulation(roles, lambda router: FleetController(router, profiles, window_s=2.0))
    report = run.run([*requests(150, 0.1, 400, 5), *requests(2, 3.0, 400, 5, label=1)])
    assert all(record.completed for record in report.records)
    router = run.router
    assert isinstance(router, FleetRouter)
    members = Counter(router.membership.values())
    assert members["s0"] > members["s1"] >= 2
    run.check()


def test_a_watched_group_turns_a_decoder_into_a_prefill_instance_when_prompts_grow() -> None:
    ratio = RatioController(0.3, 0.2, window_s=1.0, window_requests=5)
    run = simulation({("s0", "prefill"): 1, ("s0", "decode"): 3}, RoleController(ratio))
    report = run.run(requests(120, 0.15, 300, 8))
    assert all(record.completed for record in report.records)
    assert "prefill" in [role for _, _, role in report.roles]
    assert ratio.changes


def test_a_group_comes_into_service_step_by_step() -> None:
    members = GroupMembers(PDGroup("chat"))
    with pytest.raises(WrongState, match="cannot become serving"):
        members.advance(GroupState.SERVING)
    for state in list(GroupState)[1:]:
        members.advance(state)
    assert members.state is GroupState.SERVING


def linked() -> GroupMembers:
    members = GroupMembers(PDGroup("chat", 1, 2))
    members.link({"p": "prefill", "d": "decode", "e": "decode"}, dict.fromkeys("pde", SHAPE))
    return members


def test_every_prefill_is_linked_with_every_decode() -> None:
    assert linked().links == {("p", "d"), ("p", "e")}


def test_a_member_that_does_not_fit_is_refused_and_changes_nothing() -> None:
    members = linked()
    with pytest.raises(LinkRefused, match="kv_heads"):
        members.link({"f": "decode"}, {"f": KVShape(2, 1, 4, "float32", 4, "model")})
    assert set(members.roles) == {"p", "d", "e"}


def test_a_role_changes_with_its_links_but_not_the_last_one() -> None:
    members = linked()
    assert members.change_role("d", "prefill")
    assert members.links == {("p", "e"), ("d", "e")}
    assert not members.change_role("e", "prefill")


def test_a_lost_member_leaves_the_others_linked() -> None:
    members = linked()
    members.remove("d")
    assert members.links == {("p", "e")}
    assert members.members("decode", {"p", "e"}) == ["e"]
