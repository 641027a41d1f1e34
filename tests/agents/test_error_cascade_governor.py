import asyncio
import contextlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.agents import (
    AuditLog,
    Envelope,
    Governor,
    LineageGraph,
    LMClaims,
    MemoryBus,
    RegexClaims,
    Rejected,
    Scripted,
)
from heliograph.agents.core.audit import verify
from heliograph.agents.core.interceptor import transparency_faults
from heliograph.agents.core.stages import build_stage, stage_schema
from heliograph.agents.error_cascade import Claim, ExactJudge, replay_record
from heliograph.clock import VirtualClock
from heliograph.errors import BadInput

TRUE, FALSE = Claim("tariff", "rate", 5), Claim("tariff", "rate", 9)
POLICIES = ("speed", "balanced", "strict")


def said(*claims, sender="a", parents=(), id=None, topic="t"):
    items = []
    for claim in claims:
        item = {"subject": claim.subject, "predicate": claim.predicate, "object": claim.object}
        items.append({**item, "sources": list(claim.sources)} if claim.sources else item)
    extra = {"id": id} if id else {}
    return Envelope(topic=topic, sender=sender, payload={"claims": items}, parents=tuple(parents), **extra)


def through(governor, env):
    """What arrives, or the refusal."""

    async def go():
        arrived = []

        async def deliver(final):
            arrived.append(final)
            return final

        try:
            await governor(env, deliver)
        except Rejected as refusal:
            return refusal
        return arrived[0]

    return asyncio.run(go())


def trusting(*claims, **options):
    governor = Governor(**options)
    for claim in claims:
        governor.trust(claim)
    return governor


def objects(env):
    return [item["object"] if isinstance(item, dict) else item[2] for item in env.payload["claims"]]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_falsehood_against_a_confirmed_truth_reaches_nobody(policy):
    """Agents on a chain, each passing on what it got; the first has the false claim and never gives in."""
    governor = trusting(TRUE, policy=policy, max_retries=0)
    held = FALSE
    for agent in range(4):
        arrived = through(governor, said(held, Claim("item", "count", 3), sender=f"n{agent}"))
        assert objects(arrived) == [3]


@pytest.mark.parametrize(("policy", "knows", "arrives"), [
    ("speed", True, ["unverified"]),
    ("balanced", True, ["unverified"]),
    ("strict", False, ["unverified"]),
    ("strict", True, None),
])  # fmt: skip
def test_without_the_truth_only_a_verifier_that_knows_stops_it(policy, knows, arrives):
    governor = Governor(policy, verifier=lambda claim: claim.object == 5 if knows else None)
    got = through(governor, said(FALSE))
    if arrives is None:
        assert isinstance(got, Rejected)
        assert got.data["atoms"][0]["id"] == FALSE.id
        assert got.data["attempt"] == 1
    else:
        assert got.payload["claims"][0]["tags"] == arrives


def test_balanced_verifies_hubs_only():
    governor = Governor("balanced", hubs={"planner"}, verifier=lambda claim: False)
    assert not isinstance(through(governor, said(FALSE, sender="leaf")), Rejected)
    assert isinstance(through(governor, said(Claim("x", "y", 1), sender="planner")), Rejected)
    assert governor.counts.verified == 1


def test_a_truth_confirmed_late_takes_the_falsehood_back_from_everybody():
    async def run():
        governor = Governor("speed")
        async with MemoryBus([governor]) as bus:
            governor.attach(bus)
            waiting = await bus.subscribe("t")
            notes = await bus.subscribe("governor.correction.*")
            listeners = await bus.subscribe("governor.withdrawn")
            first = said(FALSE, sender="a")
            await bus.publish(first)
            taken = await waiting.next()
            governor.next_round()
            second = said(FALSE, Claim("bill", "total", 90), sender="b", parents=[taken.id])
            await bus.publish(second)
            governor.next_round()
            done = await governor.confirm(TRUE)
            assert waiting.pending == 0  # the second was recalled before anybody had it
            assert [done[0].rejected, done[0].polluted_rounds] == [(FALSE.id,), 2]
            told = {(await notes.next()).topic for _ in range(notes.pending)}
            assert told == {"governor.correction.a", "governor.correction.b"}
            note = (await listeners.next()).payload["correction"]
            assert (set(note["messages"]), note["withdrawn"][0]["id"]) == ({first.id, second.id}, FALSE.id)
            assert not governor.lineage.nodes[Claim("bill", "total", 90).id].live
            assert set(governor.tainted) == {first.id, second.id}
            with pytest.raises(Rejected):
                await bus.publish(said(Claim("bill", "total", 90), sender="c"))

    asyncio.run(run())


def test_replaying_the_record_rebuilds_the_lineage_byte_for_byte():
    noise = random.Random(4)
    known = {Claim(f"k{n}", "v", 0).id: True for n in range(3)}
    online = Governor("strict", verifier=lambda claim: known.get(claim.id), max_retries=1)

    async def run():
        sent = []
        for step in range(60):
            if step == 30:
                await online.confirm(Claim("k5", "v", 0))
            if step == 45:
                await online.revoke(Claim("k0", "v", 0))
            if step % 10 == 9:
                online.next_round()
            claims = [Claim(f"k{noise.randrange(8)}", "v", noise.randrange(2)) for _ in range(2)]
            env = said(*claims, sender=f"a{noise.randrange(3)}", parents=noise.sample(sent, min(2, len(sent))))
            sent.append(env.id)

            async def deliver(final):
                return final

            with contextlib.suppress(Rejected):
                await online(env, deliver)
        again = Governor("strict", verifier=lambda claim: None, max_retries=1)
        return await replay_record(list(online.record), again)

    again = asyncio.run(run())
    assert again.to_jsonl() == online.lineage.to_jsonl()
    assert LineageGraph.from_jsonl(again.to_jsonl()).to_jsonl() == again.to_jsonl()
    assert again.faults() == []


def test_green_traffic_passes_unchanged():
    governor = trusting(TRUE, Claim("x", "y", "z"))
    text = trusting(TRUE, claims=RegexClaims())
    messages = [said(TRUE), said(Claim("X", "y", "Z")), Envelope(topic="t", payload={"other": [1, None]}), said()]
    assert asyncio.run(transparency_faults(governor, messages)) == []
    plain = [Envelope(topic="t", payload="The rate of tariff is 5. Is it?"), Envelope(topic="t", payload=None)]
    assert asyncio.run(transparency_faults(text, plain)) == []


def test_a_stubborn_sender_costs_its_retries_and_then_the_claim_is_cut_out():
    governor = trusting(TRUE, max_retries=2)
    env = [said(FALSE, Claim("item", "count", 3)) for _ in range(3)]
    assert [through(governor, one).data["attempt"] for one in env[:2]] == [1, 2]
    arrived = through(governor, env[2])
    assert objects(arrived) == [3]
    assert arrived.payload["claims"][0]["tags"] == ["high-risk"]
    assert isinstance(through(governor, said(FALSE)), Rejected)  # the count starts anew


def test_a_hundred_stubborn_senders_do_not_lock_each_other():
    governor = trusting(TRUE, Claim("b", "c", 1), max_retries=2)

    async def send(number, submissions):
        order = [FALSE, Claim("b", "c", 2)]

        async def deliver(final):
            return final

        for _ in range(10):
            submissions[number] += 1
            try:
                await governor(said(*order[:: 1 if number % 2 else -1], sender=f"s{number}"), deliver)
            except Rejected:
                await asyncio.sleep(0)
            else:
                return

    async def run():
        submissions = [0] * 100
        async with asyncio.timeout(20):
            await asyncio.gather(*(send(n, submissions) for n in range(100)))
        return submissions

    assert asyncio.run(run()) == [3] * 100
    assert governor._locks == {}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(POLICIES))
def test_no_message_with_a_rejected_claim_is_delivered_after_its_rejection(seed, policy):
    noise = random.Random(seed)

    async def look_up(claim):
        for _ in range(noise.randrange(4)):
            await asyncio.sleep(0)
        return noise.choice([True, False, None])

    governor = Governor(policy, hubs={"h"}, verifier=look_up, max_retries=1)

    async def run():
        faults = []

        class Watch(MemoryBus):
            async def _publish(self, env):
                if not env.topic.startswith("governor."):
                    for item in env.payload["claims"]:
                        claim = Claim(item["subject"], item["predicate"], item["object"])
                        node = governor.lineage.nodes.get(claim.id)
                        if node is not None and not node.live:
                            faults.append(claim)
                return await super()._publish(env)

        bus = Watch([governor])
        governor.attach(bus)
        box = await bus.subscribe("t")
        ids = []

        async def agent(name):
            for _ in range(6):
                await asyncio.sleep(0)
                claims = [Claim(f"k{noise.randrange(3)}", "v", noise.randrange(3)) for _ in range(2)]
                env = said(*claims, sender=name, parents=ids[-2:])
                try:
                    await bus.publish(env)
                    ids.append(env.id)
                except Rejected:
                    pass

        async def operator():
            for _ in range(5):
                await asyncio.sleep(0)
                claim = Claim(f"k{noise.randrange(3)}", "v", noise.randrange(3))
                await (governor.revoke(claim) if noise.random() < 0.5 else governor.confirm(claim))

        async with asyncio.timeout(10):
            await asyncio.gather(*(agent(name) for name in "abh"), operator())
        assert faults == []
        assert governor.lineage.faults() == []
        while box.pending:  # nothing that still waits holds a rejected claim
            for id_ in governor.lineage.claims_of((await box.next()).id):
                assert governor.lineage.nodes[id_].live
        await bus.close()

    asyncio.run(run())


def test_two_contradicting_claims_in_flight_are_looked_up_one_after_the_other():
    busy = []

    async def look_up(claim):
        busy.append(claim.object)
        assert len(busy) == 1
        await asyncio.sleep(0)
        busy.pop()
        return claim.object == 5

    governor = Governor("strict", verifier=look_up, max_retries=0)

    async def run():
        async def deliver(final):
            return final

        return await asyncio.gather(*(governor(said(c, sender=str(c.object)), deliver) for c in (FALSE, TRUE, FALSE)))

    assert [objects(env) for env in asyncio.run(run())] == [[], [5], []]


def test_a_poisoned_truth_can_be_revoked():
    """A judge that errs confirms a falsehood, which would block the truth for ever."""
    wrong = Claim("tariff", "rate", 9, "eur")

    def judge(known, new):
        return "entails" if new.id == FALSE.id and known.object == "given" else ExactJudge()(known, new)

    governor = trusting(Claim("tariff", "rate", "given"), judge=judge, max_retries=0)
    through(governor, said(FALSE))
    assert governor.lineage.nodes[FALSE.id].status == "confirmed"
    del wrong
    asyncio.run(governor.revoke(Claim("tariff", "rate", "given")))
    assert not governor.lineage.nodes[FALSE.id].live
    assert objects(through(governor, said(TRUE))) == [5]


def test_inferred_confirmations_need_a_quorum_and_expire():
    def judge(known, new):
        return "entails" if known.object == "base" else ExactJudge()(known, new)

    base = Claim("tariff", "rate", "base")

    def contradicted(senders, rounds, **options):
        governor = trusting(base, judge=judge, max_retries=0, **options)
        for sender in senders:
            through(governor, said(FALSE, sender=sender))
        for _ in range(rounds):
            governor.next_round()
        node = governor.lineage.add(Claim("tariff", "rate", 7))
        return any(other.claim.id == FALSE.id for other in governor._candidates(node))

    assert contradicted("a", 0)
    assert not contradicted("a", 0, quorum=2)
    assert contradicted("ab", 0, quorum=2)
    assert not contradicted("a", 3, expire_rounds=2)
    assert contradicted("a", 2, expire_rounds=2)


def test_a_denial_or_a_quotation_of_a_falsehood_is_no_adoption():
    governor = trusting(TRUE, claims=RegexClaims(), max_retries=0)
    for text in ("It is false that the rate of tariff is 9.", "The claim that the rate of tariff is 9 was reported."):
        env = Envelope(topic="t", sender="a", payload=text)
        assert through(governor, env).payload == text
    assert FALSE.id not in governor.lineage or not governor.lineage.nodes[FALSE.id].carriers


def test_units_and_rounding_are_no_contradiction():
    governor = trusting(Claim("fuse", "delay", 90, "s"), claims=RegexClaims())
    for text in ("The delay of fuse is 1.5 min.", "The delay of fuse is 90.00000001 s."):
        assert through(governor, Envelope(topic="t", sender="a", payload=text)).payload == text


@pytest.mark.parametrize(("policy", "passes"), [("speed", True), ("strict", False)])
def test_a_broken_judge_fails_as_the_policy_says_and_stands_in_the_audit(tmp_path, policy, passes):
    def judge(known, new):
        raise TimeoutError("down")

    governor = Governor(policy, judge=judge)
    governor.trust(TRUE)
    with AuditLog(tmp_path / "a.jsonl") as log:
        governor.take_audit(log)
        assert isinstance(through(governor, said(FALSE)), Rejected) is not passes
    assert governor.counts.failures == 1
    assert '"did":"failed"' in (tmp_path / "a.jsonl").read_text()
    assert verify(tmp_path / "a.jsonl").ok


@pytest.mark.parametrize(("policy", "passes"), [("speed", True), ("strict", False)])
def test_a_message_that_cannot_be_taken_apart_fails_as_the_policy_says(policy, passes):
    governor = Governor(policy, claims=LMClaims(Scripted([])))
    got = through(governor, Envelope(topic="t", sender="a", payload="The rate of tariff is 9."))
    if passes:
        assert got.meta.labels == {"governor-unscreened": "all"}
    else:
        assert "could not be screened" in got.reason


def test_a_verifier_that_hangs_is_given_up():
    async def never(claim):
        await asyncio.Event().wait()

    governor = Governor("strict", verifier=never, verifier_timeout_s=0.001, on_failure="open")
    assert through(governor, said(FALSE)).payload["claims"][0]["tags"] == ["unverified"]
    assert governor.counts.failures == 1


def test_look_ups_have_a_budget():
    clock = VirtualClock()
    governor = Governor("strict", verifier=lambda c: None, verify_per_message=2, verify_per_minute=5, clock=clock)
    for _ in range(4):
        through(governor, said(*(Claim(f"k{n}", "v", 1) for n in range(4))))
    assert governor.counts.verified == 5
    clock.sleep(61)
    through(governor, said(Claim("k", "v", 1)))
    assert governor.counts.verified == 6


def test_a_huge_message_is_refused_and_images_pass_marked():
    governor = Governor()
    env = Envelope(topic="t", payload={"claims": [["a", "b", n] for n in range(100_000)]})
    assert isinstance(through(governor, env), Rejected)
    assert len(governor.lineage) == 0
    pixels = Envelope(topic="t", payload={"content": [{"type": "image", "data": "x"}]})
    arrived = through(Governor(claims=RegexClaims()), pixels)
    assert arrived.meta.labels == {"governor-unscreened": "1"}
    assert arrived.payload == pixels.payload


def test_answers_of_tools_lose_their_red_claims_and_calls_are_refused():
    governor = build_stage("governor", {"trusted": [["tariff", "rate", 5]], "max_retries": 1})[0]

    async def call(arguments, text):
        payload = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "q", "arguments": arguments}}

        async def tool(env):
            return env.answer({"jsonrpc": "2.0", "id": 1, "result": {"content": [{"type": "text", "text": text}]}})

        return await governor(Envelope(topic="mcp.tools.call", kind="request", sender="ann", payload=payload), tool)

    answer = asyncio.run(call({}, "The rate of tariff is 9. Bye."))
    assert "9" not in answer.payload["result"]["content"][0]["text"]
    assert governor.lineage.root(FALSE.id).agent == "tool:q"
    with pytest.raises(Rejected, match="known to be false"):
        asyncio.run(call({"claims": [["tariff", "rate", 9]]}, "ok"))


def test_the_stage_refuses_options_that_do_not_exist_and_has_a_schema():
    for options, words in (({"polcy": "x"}, "polcy"), ({"policy": "x"}, "policy"), ({"trusted": [3]}, "trusted")):
        with pytest.raises(BadInput, match=words):
            build_stage("governor", options)
    assert "GovernorOptions" in str(stage_schema("governor"))


@pytest.mark.parametrize("options", [{"policy": "fast"}, {"max_retries": -1}, {"quorum": 0}, {"hubs": "planner"},
                                     {"on_failure": "maybe"}, {"verifier_timeout_s": 0}])  # fmt: skip
def test_bad_options_are_refused(options):
    with pytest.raises(BadInput):
        Governor(**options)


def test_without_blocking_red_claims_arrive_marked():
    governor = trusting(TRUE, block=False)
    assert through(governor, said(FALSE)).payload["claims"][0]["tags"] == ["rejected"]


def test_what_says_the_same_in_other_words_is_found_by_meaning():
    class Words:
        def embed(self, texts):
            import numpy as np

            rows = np.array([[float("moved" in t), float("stayed" in t), 0.1] for t in texts])
            return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def judge(known, new):
        return "contradicts" if "stayed" in known.said() and "moved" in new.said() else "neutral"

    governor = Governor(claims=RegexClaims(), judge=judge, embedder=Words(), max_retries=0)
    governor.trust(Claim("the source stayed", "states", True))
    assert through(governor, Envelope(topic="t", sender="a", payload="Prices moved away")).payload == ""
