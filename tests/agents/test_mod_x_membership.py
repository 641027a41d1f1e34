import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.agents.mod_x.membership import SimulatedSwarm, Swim, SwimConfig
from heliograph.errors import BadInput


def test_the_same_seed_gives_the_same_run():
    def run(seed):
        swarm = SimulatedSwarm(8, seed=seed, loss=0.1)
        swarm.run(6)
        swarm.kill("p03")
        swarm.run(6)
        return swarm.log

    assert run(4) == run(4)
    assert run(4) != run(5)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 1000), st.integers(3, 12), st.data())
def test_whoever_dies_is_declared_dead_by_all_and_nobody_else_is(seed, count, data):
    swarm = SimulatedSwarm(count, seed=seed)
    swarm.run(8)
    assert swarm.agree_on() == set(swarm.names)
    victim = data.draw(st.sampled_from(swarm.names))
    swarm.kill(victim)
    swarm.run(20 + count)
    assert swarm.agree_on() == set(swarm.names) - {victim}


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 5))
def test_the_halves_of_a_partition_live_on_and_meet_again(seed, cut):
    swarm = SimulatedSwarm(8, seed=seed)
    swarm.run(8)
    swarm.split(swarm.names[:cut])
    swarm.run(25)
    assert swarm.members["p07"].members() == swarm.names[cut:7]
    swarm.heal()
    swarm.run(60)
    assert swarm.agree_on() == set(swarm.names)


def test_a_live_member_refutes_its_suspicion():
    swim = Swim("a", ["b"])
    swim.receive({"kind": "ping", "from": "b", "number": 1, "gossip": [["a", "suspect", 0]]}, 0.0)
    assert swim.incarnation == 1


def test_an_indirect_probe_saves_a_member_behind_one_broken_link():
    swim = Swim("a", ["b", "c"], config=SwimConfig(indirect=1))
    ((first, ping),) = [pair for pair in swim.tick(0.0) if pair[1]["kind"] == "ping"]
    ((helper, request),) = swim.tick(0.5)
    assert request["target"] == first
    swim.receive({"kind": "ack", "from": helper, "number": ping["number"], "subject": first, "gossip": []}, 0.6)
    swim.tick(1.1)
    assert swim.status(first) == "alive"


@pytest.mark.parametrize(
    "junk",
    [
        {},
        {"kind": "ping"},
        {"kind": "x", "from": "b", "number": 1, "gossip": []},
        {"kind": "ping", "from": "b", "number": 1, "gossip": [["a", "gone", 1]]},
    ],
)
def test_junk_is_refused(junk):
    with pytest.raises(BadInput):
        Swim("a").receive(junk, 0.0)


def test_impossible_settings_are_refused():
    with pytest.raises(BadInput):
        SwimConfig(answer_s=2.0)
    with pytest.raises(BadInput):
        SimulatedSwarm(0)
