import asyncio
import sys

import pytest

from heliograph.agents.core.envelope import Envelope
from heliograph.agents.core.identity import Identity, KeyRing
from heliograph.agents.core.lm import Scripted
from heliograph.agents.mod_x import (
    A2aAgent,
    CallFailed,
    Capability,
    CentralHub,
    DeviceAgent,
    HashedNgrams,
    HumanAgent,
    LegacyAgent,
    McpAgent,
    MemoryMesh,
    MemoryNetwork,
    ModXPeer,
    NeuralAgent,
    Notary,
    NotaryLedger,
    Rule,
    RuleAgent,
    SymbolicAgent,
    TcpMesh,
    serve_a2a,
    serve_mcp,
    verify_proof,
)
from heliograph.clock import run_virtual
from heliograph.errors import BadInput

from .serving import run, serving

IDS = {name: Identity.from_seed(name.encode() * 32) for name in "abcdx"}
KEYS = {name: one.public for name, one in IDS.items() if name != "x"}


def one(name="do", **more):
    return Capability(name=name, agent="", **more)


def memory_peers(names, **options):
    network = MemoryNetwork()
    now = asyncio.get_running_loop().time
    return network, {
        name: ModXPeer(
            name,
            IDS[name],
            MemoryMesh(network, name),
            keys=KEYS,
            seeds={"a": "a"},
            now=now,
            embedder=HashedNgrams(),
            **options,
        )
        for name in names
    }


async def doubler(arguments):
    return 2 * arguments["n"]


DOUBLE = one("double", description="Doubles a number.", inputs={"n": "number"}, outputs=("doubled",))


def in_virtual_time(scenario, names="abc", **options):
    async def main():
        network, peers = memory_peers(names, **options)
        for peer in peers.values():
            await peer.start()
        try:
            return await scenario(network, peers)
        finally:
            for peer in peers.values():
                await peer.stop(farewell=False)

    return run_virtual(main())


def test_peers_learn_of_each_other_and_call_without_a_hub():
    async def scenario(network, peers):
        peers["b"].offer(DOUBLE, doubler)
        await asyncio.sleep(8)
        network.down.add("a")  # the seed that everybody started from
        await asyncio.sleep(10)
        hit = peers["c"].discover("double a number")[0].capability
        assert peers["c"].swim.members() == ["b"]
        return await peers["c"].call(hit, {"n": 4})

    assert in_virtual_time(scenario) == 8


def test_indexes_are_equal_after_a_partition_heals():
    async def scenario(network, peers):
        await asyncio.sleep(6)
        network.split(["a", "b"])
        peers["a"].offer(DOUBLE, doubler)
        peers["d"].offer(one("other"), doubler)
        await asyncio.sleep(15)
        assert peers["c"].discover("double")[0].capability.name == "other"
        assert len(peers["b"].index) == 1
        network.heal()
        await asyncio.sleep(40)
        return [sorted(c.id for c in peer.index) for peer in peers.values()]

    assert in_virtual_time(scenario, "abcd") == [["a/double", "d/other"]] * 4


def test_the_capabilities_of_a_dead_peer_are_no_longer_offered():
    async def scenario(network, peers):
        peers["b"].offer(DOUBLE, doubler)
        await asyncio.sleep(6)
        assert len(peers["c"].index) == 1
        network.down.add("b")
        with pytest.raises(CallFailed) as failed:
            await peers["c"].call("b/double", {"n": 1}, timeout_s=1)
        assert failed.value.kind == "unreachable"
        await asyncio.sleep(10)
        return len(peers["c"].index)

    assert in_virtual_time(scenario) == 0


def test_failures_are_typed():
    async def scenario(network, peers):
        async def broken(arguments):
            raise ValueError("no such city")

        peers["b"].offer(DOUBLE, doubler)
        peers["b"].offer(one("broken"), broken)
        await asyncio.sleep(6)
        kinds = []
        for name, arguments in (("double", {"m": 1}), ("gone", {}), ("broken", {})):
            with pytest.raises(CallFailed) as failed:
                await peers["c"].call(f"b/{name}", arguments)
            kinds.append(failed.value.kind)
        return kinds

    assert in_virtual_time(scenario) == ["refused", "unknown", "failed"]


def test_policy_decides_who_may_call():
    async def scenario(network, peers):
        peers["b"].offer(DOUBLE, doubler)
        await asyncio.sleep(6)
        with pytest.raises(CallFailed, match="may not"):
            await peers["c"].call("b/double", {"n": 1})
        return await peers["a"].call("b/double", {"n": 1})

    assert in_virtual_time(scenario, allow=lambda who, _: who == "a") == 2


def test_strangers_changed_and_repeated_messages_are_refused():
    async def scenario(network, peers):
        peers["b"].offer(DOUBLE, doubler)
        await asyncio.sleep(6)
        bus = network.buses["b"]
        payload = {"to": "b", "body": {"name": "double", "arguments": {"n": 1}}}
        env = Envelope(topic="modx.call", kind="request", sender="a", payload=payload)
        now = asyncio.get_running_loop().time
        good = IDS["a"].sign_envelope(env, now=now)
        for bad in (
            env,
            IDS["x"].sign_envelope(env, now=now),
            IDS["c"].sign_envelope(env, now=now),
            good.replace(sender="c"),
        ):
            await bus.publish(bad)
        await asyncio.sleep(0.1)
        refused = peers["b"].refused
        await bus.publish(good)
        await bus.publish(good)
        await asyncio.sleep(0.1)
        return refused, peers["b"].refused

    assert in_virtual_time(scenario) == (4, 5)


def test_a_repeated_call_with_a_key_is_done_once():
    async def scenario(network, peers):
        done = []

        async def pay(arguments):
            done.append(1)
            return len(done)

        peers["b"].offer(one("pay", effects="write"), pay)
        await asyncio.sleep(6)
        answers = [await peers["c"].call("b/pay", {}, key="k") for _ in range(3)]
        return answers, await peers["a"].call("b/pay", {}, key="k")

    assert in_virtual_time(scenario) == ([1, 1, 1], 2)


def test_calls_are_in_the_ledger_and_provable():
    async def scenario(network, peers):
        ring = KeyRing(KEYS)
        notaries = [Notary(Identity.from_seed(bytes([n]) * 32), ring) for n in range(4)]
        peers["b"].ledger = NotaryLedger("b", IDS["b"], notaries)
        peers["b"].offer(one("pay", effects="write"), doubler)
        await asyncio.sleep(6)
        await peers["c"].call("b/pay", {"n": 1})
        trusted = KeyRing({f"n{n}": notary.identity.public for n, notary in enumerate(notaries)})
        return verify_proof(peers["b"].ledger.prove(1), ring, trusted, 3)["record"]

    record = in_virtual_time(scenario)
    assert (record["caller"], record["capability"]) == ("c", "b/pay")


def test_a_hub_relays_until_it_dies():
    async def scenario(network, peers):
        CentralHub(peers["a"])
        peers["b"].offer(DOUBLE, doubler)
        await asyncio.sleep(6)
        ask = {"name": "double", "arguments": {"n": 3}}
        assert await peers["c"].call("a/hub.search", {"query": "double"}) != []
        assert await peers["c"].call("a/hub.relay", ask) == 6
        network.down.add("a")
        with pytest.raises(CallFailed):
            await peers["c"].call("a/hub.relay", ask, timeout_s=1)
        return await peers["c"].call("b/double", {"n": 3})

    assert in_virtual_time(scenario) == 6


def test_unlike_agents_answer_through_one_interface():
    async def scenario(network, peers):
        rules = [
            Rule("cheap", lambda f: f["price"] < 100, lambda f: {"ok": True}),
            Rule("dear", lambda f: f["price"] >= 100, lambda f: {"ok": False}),
        ]
        facts = [("near", "Inn", "centre"), ("near", "Spa", "lake"), ("cheap", "Inn")]
        good = (("good", "?h"), [("near", "?h", "centre"), ("cheap", "?h")])
        human = HumanAgent(one("approve", inputs={"what": "text"}), timeout_s=5)
        number, query = {"price": "number"}, {"query": "query"}
        for agent in (
            RuleAgent(one("rule", inputs=number), rules, answer="ok"),
            SymbolicAgent(one("logic", inputs=query), facts, [good]),
            DeviceAgent(one("sensor"), lambda: 21.5),
            human,
        ):
            await peers["b"].attach(agent)
        await asyncio.sleep(6)
        call = peers["c"].call
        assert await call("b/rule", {"price": 50}) is True
        assert await call("b/logic", {"query": ["good", "?h"]}) == [{"h": "Inn"}]
        assert await call("b/sensor", {}) == 21.5
        asked = asyncio.ensure_future(call("b/approve", {"what": "pay 5"}))
        await asyncio.sleep(0.1)
        ((number, question),) = human.inbox().items()
        assert question == {"what": "pay 5"}
        human.answer(number, "yes")
        assert await asked == "yes"
        with pytest.raises(CallFailed, match="nobody answered"):
            await call("b/approve", {"what": "again"})

    in_virtual_time(scenario)


def test_models_and_functions_are_agents():
    model = NeuralAgent(one(), Scripted(lambda prompt: prompt.upper()), prompt="say {word}")
    assert asyncio.run(model.call("do", {"word": "hi"})) == "SAY HI"
    assert asyncio.run(NeuralAgent(one(), lambda x: x + 1).call("do", {"x": 1})) == 2
    with pytest.raises(BadInput, match="prompt"):
        NeuralAgent(one(), Scripted())


def test_rules_without_rest_and_unbound_heads_are_refused():
    endless = RuleAgent(one(), [Rule("grow", lambda f: True, lambda f: {"n": f["n"] + 1})])
    with pytest.raises(CallFailed, match="at rest"):
        asyncio.run(endless.call("do", {"n": 0}))
    with pytest.raises(BadInput, match="bind"):
        SymbolicAgent(one(), [], [(("p", "?x"), [("q", "?y")])])


@pytest.mark.parametrize(
    ("codec", "program", "answer"),
    [
        ("json", "import json,sys; print(json.dumps(json.load(sys.stdin)['n'] * 2))", 4),
        (
            "csv",
            "import sys; rows = sys.stdin.read().split(); print('a,b'); print(rows[1] + ',x')",
            [{"a": "2", "b": "x"}],
        ),
        ("line", "import sys; print(sys.stdin.read().strip().upper())", "N=2"),
    ],
)
def test_an_old_program_is_an_agent(codec, program, answer):
    agent = LegacyAgent(one(), [sys.executable, "-c", program], codec=codec)
    assert asyncio.run(agent.call("do", {"n": 2})) == answer


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import sys; sys.exit('bad city')", "bad city"),
        ("print('{')", "did not write json"),
        ("while True: pass", "killed"),
        ("import os\nwhile True: os.write(1, bytes(65536))", "over 8388608 bytes"),
    ],
)
def test_an_old_program_that_fails_says_how(program, reason):
    agent = LegacyAgent(one(), [sys.executable, "-c", program], timeout_s=0.5 if "pass" in program else 20)
    with pytest.raises(CallFailed, match=reason):
        asyncio.run(agent.call("do", {}))


@pytest.mark.integration
def test_real_peers_over_tcp_with_official_mcp_client_and_a2a_in_front():
    from mcp import Client

    async def scenario():
        first = ModXPeer("a", IDS["a"], TcpMesh(), keys=KEYS, embedder=HashedNgrams(), gossip_s=0.1, tick_s=0.05)
        await first.start()
        seeds = {"a": first.mesh.address}
        more = [
            ModXPeer(n, IDS[n], TcpMesh(), keys=KEYS, seeds=seeds, embedder=HashedNgrams(), gossip_s=0.1, tick_s=0.05)
            for n in "bc"
        ]
        peers = {"a": first, **{peer.name: await peer.start() for peer in more}}
        peers["b"].offer(DOUBLE, doubler)
        while peers["c"].index.get("b/double") is None:
            await asyncio.sleep(0.02)
        await peers["a"].stop(farewell=False)  # the seed is gone
        assert await peers["c"].call("b/double", {"n": 21}) == 42
        server = serve_mcp(peers["c"])
        async with Client(server) as client:
            tools = {tool.name for tool in (await client.list_tools()).tools}
            assert tools == {"discover", "b.double"}
            assert (await client.call_tool("b.double", {"n": 4})).structured_content == {"result": 8}
            bad = await client.call_tool("b.double", {"m": 4})
            assert bad.is_error
            assert "refused" in bad.content[0].text
            found = await client.call_tool("discover", {"query": "double a number"})
            assert found.structured_content["result"][0]["tool"] == "b.double"
        outside = McpAgent(server)
        assert await outside.call("b.double", {"n": 5}) == 10
        async with serving(serve_a2a(peers["c"]), path="") as url:
            agent = A2aAgent(url)
            assert {skill.name for skill in await agent.offers()} == {"discover", "b.double"}
            assert await agent.call("b.double", {"n": 6}) == 12
            with pytest.raises(CallFailed, match="needs n"):
                await agent.call("b.double", {})
            with pytest.raises(CallFailed, match="there is no skill"):
                await agent.call("b.treble", {})
        for name in "bc":
            await peers[name].stop()

    run(scenario)
