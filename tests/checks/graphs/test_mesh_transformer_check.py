import numpy as np
import pytest

from heliograph.catalog.registry import get_card
from heliograph.checks.graphs.mesh_transformer import CHECK, FLOWS, SMALL, STEP, TINY
from heliograph.checks.graphs.mesh_transformer_parts import exact, learning, steps
from heliograph.errors import BadInput
from heliograph.trials.check import Workload
from heliograph.trials.session import CheckOptions, check_systems

pytest.importorskip("skfem")


class Here:
    """A context without an engine around it."""

    preset, device, block, seed = "smoke", "cpu", 0, 0

    def __init__(self, workload, contender=""):
        self.workload, self.contender, self.kept, self.said = workload, contender, {}, []

    def say(self, text):
        self.said.append(text)

    def progress(self, fraction, latest=""):
        pass

    def keep(self, name, value):
        self.kept[name] = value

    def reset_memory(self):
        pass


EXACT = ("attention_equality", "support_equality", "rollout_exactness")


def test_smoke_runs_and_judges():
    outcome, _, _ = check_systems(["mesh_transformer"], CheckOptions(preset="smoke"), lambda *_: None, lambda *_: None)
    judged = outcome.judgements["mesh_transformer"]
    by_claim = {finding.claim: finding for finding in judged.findings}
    assert all(by_claim[claim].verdict == "holds" for claim in EXACT)
    assert all(f.verdict == "void" and f.declared for c, f in by_claim.items() if c not in EXACT)
    assert {c.name: c.passed for c in judged.controls}["reach"] is True
    assert all(record.status == "ok" for record in outcome.records)


def test_every_claim_is_on_the_card_and_ours_are_marked():
    card = {claim.id: claim for claim in get_card("mesh_transformer").claims}
    assert {claim.claim for claim in CHECK.claims} <= set(card)
    for name in (*EXACT, "step_speed_cpu", "one_step_parity"):
        assert card[name].source == "ours"


def test_a_spoiled_attention_is_noticed(monkeypatch):
    """The exact part must fail where softmax forgets to scale."""
    true = exact.attend
    monkeypatch.setattr(exact, "attend", lambda s, q, k, v, **o: true(s, 2 * q, k, v, **o))
    found = exact.measure(Here(Workload("x", {"graphs": 8, "flows": 0})))
    assert not all(found["attention"])


def test_all_arms_learn_and_are_scored():
    for name in ("mt", "mt large", "mgn", "persistence"):
        context = Here(TINY, name)
        found = learning.measure_trained(context)
        assert np.isfinite(found["rollout_rmse"])
        assert found["one_step_mse"] > 0
        if name != "persistence":
            assert found["steps"] > 0
            assert len(context.kept["curves"]["roll-out error by step"]) == TINY["frames"] - 1


def test_persistence_is_what_the_simulator_calls_by_that_name():
    flows = learning.flows_of(Here(TINY))[:1]
    simulator = learning.build_simulator("mt", flows[0].schema, TINY, 0)
    simulator.fit(flows, steps=1)
    score = simulator.score(flows)
    still, stays = learning._persistence(flows[0])
    assert score.one_step_persistence == pytest.approx(still**0.5, rel=1e-5)
    assert score.persistence_rmse == pytest.approx(stays**0.5, rel=1e-5)


def test_permuted_changes_come_from_another_flow():
    flows = learning.flows_of(Here(TINY))[:2]
    pairs = learning.other_changes(flows, 12, np.random.default_rng(0))
    for pair in pairs:
        own = next(flow for flow in flows if flow.pos is pair.pos)
        other = next(flow for flow in flows if flow is not own)
        change = pair.fields[1] - pair.fields[0]
        nearest = np.abs(other.pos[None] - own.pos[:, None]).sum(-1).argmin(1)
        steps_of_other = np.diff(other.fields, axis=0)[:, nearest]
        matches = [np.isclose(change, one, atol=1e-5).all(1).mean() for one in steps_of_other]
        assert max(matches) > 0.9
    assert learning.measure_permuted(Here(TINY.with_params(steps=2, pairs=4, noise=0.0), "mgn"))["steps"] == 2


def test_the_flow_trials_leave_what_later_trials_read(monkeypatch):
    load = TINY.with_params(part=[0, 2])
    assert learning.measure_flow(Here(load))["flows"] == 2
    monkeypatch.setattr("heliograph.data.flow_solver.simulate_channel", None)
    assert len(learning.flows_of(Here(load), (0, 2))) == 2


@pytest.mark.parametrize("load", [SMALL, FLOWS], ids=lambda load: load.name)
def test_flow_trials_cover_the_flows_of_the_workload(load):
    preset = "laptop" if load is SMALL else "gpu"
    parts = [w["part"] for w in CHECK.experiment("flows").sizes[preset].workloads]
    numbers = [n for part in parts for n in range(*part)]
    assert numbers == list(range(load["train"] + load["test"]))
    for workload in CHECK.experiment("flows").sizes[preset].workloads:
        assert all(workload[key] == load[key] for key in ("vertices", "frames", "warmup"))


def test_every_timed_arm_takes_a_step():
    arms = ["mt", "mgn", "mt large", "mt, again"]
    load = Workload("x", {**STEP, "arms": arms, "vertices": 100, "steps": 1, "sizes": TINY["sizes"]})
    runs = steps.measure_steps(Here(load))
    assert list(runs) == arms
    for run in runs.values():
        run()


def test_the_large_mesh_runs_at_a_small_size():
    found = steps.measure_large_mesh(Here(Workload("x", {"vertices": 500, "hops": 2}), "mt"))
    assert found["finite"] == [True]
    assert found["hears"] == [True, True]
    assert found["edges"] > 5 * 500


def test_a_file_of_ones_own_takes_the_place_of_solved_flows(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "own.h5"
    flows = learning.flows_of(Here(TINY))
    with h5py.File(path, "w") as file:
        for number, flow in enumerate(flows):
            for name, values in (("cells", flow.cells), ("mesh_pos", flow.pos), ("velocity", flow.fields)):
                file[f"{number}/{name}"] = values
            file[f"{number}/node_type"] = flow.node_type[:, None]
    loads = CHECK.adopt(path, "laptop")
    assert set(loads) == {"equal seconds", "other flows' changes"}
    own = CHECK.adopt(path, "smoke")["equal seconds"]
    assert (own["train"], own["test"], own.path) == (2, 2, str(path))
    assert np.isfinite(learning.measure_trained(Here(own, "mt"))["rollout_rmse"])
    control = own.with_params(noise=0.0, steps=2, pairs=4)
    assert learning.measure_permuted(Here(control, "mt"))["steps"] == 2
    with h5py.File(path, "a") as file:
        del file["0"]
    with pytest.raises(BadInput, match="needs 4"):
        CHECK.adopt(path, "laptop")
