"""What the A2A specification, version 1.0, requires of a server with the JSON-RPC binding, by raw HTTP.

The numbers in comments are its sections. ``tests/interop/test_a2a_sdk.py`` asks with the official client.
"""

import asyncio
import json

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.agents.core.identity import Identity
from heliograph.agents.mod_x import (
    A2aAgent,
    CallFailed,
    Capability,
    HashedNgrams,
    MemoryMesh,
    MemoryNetwork,
    ModXPeer,
    a2a_edge,
    serve_a2a,
)
from heliograph.agents.mod_x.a2a_tasks import CANCELED, COMPLETED, SUBMITTED, WORKING, TaskStore
from heliograph.errors import BadInput

from .serving import run, serving

HEADERS = {"A2A-Version": "1.0", "Content-Type": "application/json"}
DOUBLE = Capability(
    name="double", agent="", description="Doubles a number.", inputs={"n": "number"}, outputs=("doubled",)
)


class World:
    """A peer with capabilities that succeed, wait for :attr:`gate`, break, refuse, and give what is no JSON."""

    def __init__(self):
        self.gate = asyncio.Event()
        self.peer = ModXPeer(
            "shop", Identity.from_seed(b"s" * 32), MemoryMesh(MemoryNetwork(), "shop"), embedder=HashedNgrams()
        )
        for name, handler in (
            ("slow", self.slow),
            ("broken", self.broken),
            ("refusing", self.refusing),
            ("nan", self.nan),
        ):
            self.peer.offer(Capability(name=name, agent="", description=f"Is {name}."), handler)
        self.peer.offer(DOUBLE, self.double)

    async def double(self, arguments):
        return 2 * arguments["n"]

    async def slow(self, arguments):
        await self.gate.wait()
        return "done"

    async def broken(self, arguments):
        raise ZeroDivisionError("an agent's mistake")

    async def refusing(self, arguments):
        raise CallFailed("not today", "refused")

    async def nan(self, arguments):
        return float("nan")


class Asker:
    def __init__(self, url, http, world):
        self.url, self.http, self.world = url, http, world

    async def raw(self, content, **headers):
        answer = await self.http.post(self.url, content=content, headers={**HEADERS, **headers})
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
        body = answer.json()
        assert body["jsonrpc"] == "2.0"
        assert ("result" in body) != ("error" in body)
        return body

    async def rpc(self, method, params, **headers):
        body = await self.raw(
            json.dumps({"jsonrpc": "2.0", "id": "q-7", "method": method, "params": params}), **headers
        )
        assert body["id"] == "q-7"
        return body

    async def result(self, method, params):
        return (await self.rpc(method, params))["result"]

    async def code(self, method, params, **headers):
        error = (await self.rpc(method, params, **headers))["error"]
        assert error["message"]
        if -32099 <= error["code"] <= -32001:  # 9.5: errors of the protocol carry their reason
            (info,) = error["data"]
            assert info["@type"] == "type.googleapis.com/google.rpc.ErrorInfo"
            assert info["domain"] == "a2a-protocol.org"
            assert info["reason"]
        return error["code"]

    async def call(self, skill, arguments=None, *, now=False, **more):
        parts = [{"data": {"capability": f"shop.{skill}", "arguments": arguments or {}}}]
        return await self.result(
            "SendMessage", {"message": message(parts, **more), "configuration": {"returnImmediately": now}}
        )

    async def events(self, method, params, count=None):
        """The events of a stream, to its end or until there are so many."""
        body = {"jsonrpc": "2.0", "id": 3, "method": method, "params": params}
        found = []
        async with self.http.stream("POST", self.url, json=body, headers=HEADERS) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            async for line in answer.aiter_lines():
                if line:
                    event = json.loads(line.removeprefix("data: "))
                    assert (event["jsonrpc"], event["id"]) == ("2.0", 3)
                    (one,) = event["result"].items()
                    found.append(one)
                    if len(found) == count:
                        break
        return found


def message(parts, **more):
    return {"messageId": "m-1", "role": "ROLE_USER", "parts": parts, **more}


def state_of(task):
    return task["status"]["state"]


def told(events):
    """A stream in short: kinds, and states where there are some."""
    short = []
    for kind, event in events:
        short.append((kind, state_of(event)) if "status" in event else (kind, event["artifact"]["name"]))
    return short


def asking(scenario):
    """Runs a scenario against the endpoint on a socket."""

    async def main():
        world = World()
        async with (
            serving(serve_a2a(world.peer, timeout_s=20), path="/") as url,
            httpx2.AsyncClient(timeout=20) as http,
        ):
            try:
                return await scenario(Asker(url, http, world))
            finally:
                world.gate.set()

    return run(main)


def asking_in_process(scenario):
    """The same without a socket, for what does not stream."""

    async def main():
        world = World()
        transport = httpx2.ASGITransport(app=serve_a2a(world.peer, timeout_s=20))
        async with httpx2.AsyncClient(transport=transport) as http:
            return await scenario(Asker("http://shop/", http, world))

    return run(main)


def test_the_card_has_what_a_client_needs():  # 4.4.1, 8.2, 8.3, 8.6
    async def scenario(asker):
        where = asker.url + ".well-known/agent-card.json"
        answer = await asker.http.get(where)
        card = answer.json()
        for name in ("name", "description", "version", "defaultInputModes", "defaultOutputModes", "skills"):
            assert card[name], name
        assert card["supportedInterfaces"] == [
            {"url": asker.url, "protocolBinding": "JSONRPC", "protocolVersion": "1.0"}
        ]
        assert card["capabilities"] == {"streaming": True, "pushNotifications": False, "extendedAgentCard": False}
        for skill in card["skills"]:
            assert all(skill[name] for name in ("id", "name", "description", "tags"))
        assert "max-age" in answer.headers["cache-control"]
        again = await asker.http.get(where, headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        asker.world.peer.withdraw("slow")
        changed = await asker.http.get(where, headers={"If-None-Match": answer.headers["etag"]})
        assert changed.status_code == 200

    asking(scenario)


def test_a_call_becomes_a_task_with_a_result():  # 3.1.1, 3.4.1, 3.4.2
    async def scenario(asker):
        first, second = [(await asker.call("double", {"n": 4}))["task"] for _ in range(2)]
        assert state_of(first) == COMPLETED
        (artifact,) = first["artifacts"]
        assert artifact["artifactId"]
        assert artifact["parts"] == [{"data": {"result": 8}}]
        assert first["id"] != second["id"]
        assert first["contextId"] != second["contextId"]
        assert first["status"]["timestamp"].endswith("Z")
        assert first["history"][0]["taskId"] == first["id"]
        kept = (await asker.call("double", {"n": 1}, contextId="mine"))["task"]
        assert kept["contextId"] == "mine"
        assert (await asker.result("GetTask", {"id": first["id"]})) == first

    asking(scenario)


def test_plain_text_is_answered_by_a_message_with_skills():  # 3.1.1, 3.1.2 (1), 3.4.1
    async def scenario(asker):
        params = {"message": message([{"text": "double a number"}], contextId="c")}
        (kind, said), *rest = (await asker.result("SendMessage", params)).items()
        assert (kind, rest, said["role"], said["contextId"]) == ("message", [], "ROLE_AGENT", "c")
        assert said["parts"][0]["data"]["skills"][0]["tool"] == "shop.double"
        ((kind, said),) = await asker.events("SendStreamingMessage", params)
        assert kind == "message"
        assert said["messageId"]
        found = await asker.result(
            "SendMessage",
            {"message": message([{"data": {"capability": "discover", "arguments": {"query": "slow"}}}])},
        )
        assert found["task"]["artifacts"][0]["parts"][0]["data"]["result"][0]["tool"] == "shop.slow"

    asking(scenario)


def test_a_stream_tells_the_states_in_order_and_closes():  # 3.1.2 (2), 3.5.2, 9.4.2
    async def scenario(asker):
        parts = [{"data": {"capability": "shop.double", "arguments": {"n": 2}}}]
        events = await asker.events("SendStreamingMessage", {"message": message(parts)})
        assert told(events) == [
            ("task", SUBMITTED),
            ("statusUpdate", WORKING),
            ("artifactUpdate", "shop.double"),
            ("statusUpdate", COMPLETED),
        ]
        first = events[0][1]
        assert {(event["taskId"], event["contextId"]) for _, event in events[1:]} == {(first["id"], first["contextId"])}

    asking(scenario)


def test_a_client_need_not_wait():  # 3.2.2
    async def scenario(asker):
        task = (await asker.call("slow", now=True))["task"]
        assert state_of(task) in (SUBMITTED, WORKING)
        assert state_of(await asker.result("GetTask", {"id": task["id"]})) == WORKING
        waiting = asyncio.ensure_future(asker.call("slow"))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        asker.world.gate.set()
        assert state_of((await waiting)["task"]) == COMPLETED

    asking(scenario)


@pytest.mark.parametrize(("length", "messages"), [(0, 0), (1, 1), (9, 3), (None, 3)])
def test_history_is_as_long_as_asked_for(length, messages):  # 3.2.4
    async def scenario(asker):
        task = (await asker.call("double"))["task"]
        parts = [{"data": {"n": 5}}]
        params = {
            "message": message(parts, taskId=task["id"], messageId="m-2"),
            "configuration": {"historyLength": length},
        }
        both = [
            (await asker.result("SendMessage", params))["task"],
            await asker.result("GetTask", {"id": task["id"], "historyLength": length}),
        ]
        for one in both:
            assert len(one.get("history", [])) == messages
            assert ("history" in one) == bool(messages)
        if messages == 3:
            assert [said["messageId"] for said in both[0]["history"]][::2] == ["m-1", "m-2"]

    asking_in_process(scenario)


def test_cancelling_ends_a_task_once():  # 3.1.5
    async def scenario(asker):
        task = (await asker.call("slow", now=True))["task"]
        assert state_of(await asker.result("CancelTask", {"id": task["id"]})) == CANCELED
        assert state_of(await asker.result("GetTask", {"id": task["id"]})) == CANCELED
        assert await asker.code("CancelTask", {"id": task["id"]}) == -32002
        done = (await asker.call("double", {"n": 1}))["task"]
        assert await asker.code("CancelTask", {"id": done["id"]}) == -32002
        assert await asker.code("CancelTask", {"id": "none"}) == -32001
        waiting = (await asker.call("double"))["task"]
        assert state_of(await asker.result("CancelTask", {"id": waiting["id"]})) == CANCELED

    asking(scenario)


def test_streams_of_one_task_see_the_same_to_its_end():  # 3.1.6, 3.5.2
    async def scenario(asker):
        task = (await asker.call("slow", now=True))["task"]
        params = {"id": task["id"]}
        one, other, short = (
            asyncio.ensure_future(asker.events("SubscribeToTask", params, count)) for count in (None, None, 1)
        )
        await short  # closes its stream
        await asyncio.sleep(0.05)
        asker.world.gate.set()
        ends = [("artifactUpdate", "shop.slow"), ("statusUpdate", COMPLETED)]
        assert told(await one)[0] in (("task", SUBMITTED), ("task", WORKING))
        assert told(await one)[-2:] == ends
        assert (await one)[-2:] == (await other)[-2:]
        assert await asker.code("SubscribeToTask", params) == -32004
        assert await asker.code("SubscribeToTask", {"id": "none"}) == -32001

    asking(scenario)


def test_missing_arguments_are_asked_for():  # 3.4.2, 3.4.3
    async def scenario(asker):
        task = (await asker.call("double", contextId="c"))["task"]
        assert state_of(task) == "TASK_STATE_INPUT_REQUIRED"
        assert task["status"]["message"]["parts"][-1]["data"] == {"missing": ["n"]}
        more = {"message": message([{"data": {"arguments": {"n": 21}}}], taskId=task["id"])}
        other = {"message": {**more["message"], "contextId": "another"}}
        assert await asker.code("SendMessage", other) == -32602
        done = (await asker.result("SendMessage", more))["task"]
        assert (done["id"], done["contextId"], state_of(done)) == (task["id"], "c", COMPLETED)
        assert done["artifacts"][0]["parts"] == [{"data": {"result": 42}}]
        assert await asker.code("SendMessage", more) == -32004
        assert await asker.code("SendStreamingMessage", more) == -32004
        waiting = (await asker.call("double"))["task"]
        for parts in ([{"data": {"arguments": 7}}], [{"data": []}], [{"text": "seven"}]):
            empty = {"message": message(parts, taskId=waiting["id"])}
            assert await asker.code("SendMessage", empty) == -32602
        nobody = {"message": {**more["message"], "taskId": "none"}}
        assert await asker.code("SendMessage", nobody) == -32001
        busy = (await asker.call("slow", now=True))["task"]
        assert await asker.code("SendMessage", {"message": {**more["message"], "taskId": busy["id"]}}) == -32004

    asking(scenario)


def test_tasks_are_listed_the_last_changed_first_and_in_pages():  # 3.1.4
    async def scenario(asker):
        ids = [(await asker.call("double", {"n": n}, contextId="c"))["task"]["id"] for n in range(5)]
        await asker.call("double", {"n": 9}, contextId="d")
        listed = await asker.result("ListTasks", {"contextId": "c"})
        assert [task["id"] for task in listed["tasks"]] == ids[::-1]
        assert (listed["nextPageToken"], listed["totalSize"]) == ("", 5)
        assert not any("artifacts" in task for task in listed["tasks"])
        seen, token = [], ""
        while True:
            page = await asker.result(
                "ListTasks", {"contextId": "c", "pageSize": 2, "pageToken": token, "includeArtifacts": True}
            )
            seen += [task["id"] for task in page["tasks"]]
            assert all("artifacts" in task for task in page["tasks"])
            token = page["nextPageToken"]
            if not token:
                break
        assert seen == ids[::-1]
        assert (await asker.result("ListTasks", {"status": WORKING}))["tasks"] == []
        assert (await asker.result("ListTasks", {"status": COMPLETED}))["totalSize"] == 6
        late = {"statusTimestampAfter": "2999-01-01T00:00:00Z"}
        assert (await asker.result("ListTasks", late))["totalSize"] == 0

    asking(scenario)


CALL = {"message": message([{"data": {"capability": "shop.double", "arguments": {"n": 1}}}])}
PUSH = {"taskId": "t", "id": "p", "url": "https://example.org/hook"}


def part(**fields):
    return {"message": message([fields])}


@pytest.mark.parametrize(
    ("method", "params", "code"),
    [
        ("message/send", CALL, -32601),
        ("NoSuchMethod", {}, -32601),
        ("SendMessage", [], -32602),
        ("SendMessage", {}, -32602),
        ("SendMessage", {"message": "hello"}, -32602),
        ("SendMessage", {"message": {**CALL["message"], "messageId": ""}}, -32602),
        ("SendMessage", {"message": {**CALL["message"], "role": "ROLE_AGENT"}}, -32602),
        ("SendMessage", {"message": {**CALL["message"], "parts": []}}, -32602),
        ("SendMessage", {"message": {**CALL["message"], "contextId": 7}}, -32602),
        ("SendMessage", part(), -32602),
        ("SendMessage", part(text="a", data={}), -32602),
        ("SendMessage", part(text=7), -32602),
        ("SendMessage", part(text=" "), -32602),
        ("SendMessage", part(data={"no": "skill"}), -32602),
        ("SendMessage", part(data={"capability": "shop.treble", "arguments": {}}), -32602),
        ("SendMessage", part(data={"capability": "shop.double", "arguments": [1]}), -32602),
        ("SendMessage", {**CALL, "configuration": {"historyLength": -1}}, -32602),
        ("SendMessage", {**CALL, "configuration": {"returnImmediately": "yes"}}, -32602),
        ("SendMessage", part(raw="dGV4dA==", mediaType="image/png"), -32005),
        ("SendMessage", part(url="https://example.org/a.png"), -32005),
        ("SendMessage", part(text="<p>", mediaType="text/html"), -32005),
        ("SendMessage", {**CALL, "configuration": {"taskPushNotificationConfig": PUSH}}, -32003),
        ("SendStreamingMessage", {}, -32602),
        ("GetTask", {}, -32602),
        ("GetTask", {"id": 7}, -32602),
        ("GetTask", {"id": "none"}, -32001),
        ("GetTask", {"id": "none", "historyLength": -1}, -32602),
        ("CancelTask", {}, -32602),
        ("SubscribeToTask", {}, -32602),
        ("ListTasks", {"pageSize": 0}, -32602),
        ("ListTasks", {"pageSize": 101}, -32602),
        ("ListTasks", {"pageToken": "x"}, -32602),
        ("ListTasks", {"status": "DONE"}, -32602),
        ("ListTasks", {"statusTimestampAfter": "yesterday"}, -32602),
        ("ListTasks", {"statusTimestampAfter": "2026-01-01T00:00:00"}, -32602),
        ("CreateTaskPushNotificationConfig", PUSH, -32003),
        ("GetTaskPushNotificationConfig", PUSH, -32003),
        ("ListTaskPushNotificationConfigs", {"taskId": "t"}, -32003),
        ("DeleteTaskPushNotificationConfig", PUSH, -32003),
        ("GetExtendedAgentCard", {}, -32004),
    ],
)
def test_what_cannot_be_done_has_its_code(method, params, code):  # 3.3.2, 3.3.4, 5.4
    async def scenario(asker):
        await asker.call("double", {"n": 1})  # a time is compared only where there is a task
        return await asker.code(method, params)

    assert asking_in_process(scenario) == code


@pytest.mark.parametrize(
    ("content", "code", "number"),
    [
        ("{", -32700, None),
        ('{"jsonrpc":"2.0","id":1,"method":"GetTask","params":{"id":NaN}}', -32700, None),
        (b"\xff\xfe", -32700, None),
        ("[" * 100_000, -32700, None),
        ("[]", -32600, None),
        ('[{"jsonrpc":"2.0","id":1,"method":"ListTasks"}]', -32600, None),
        ('"GetTask"', -32600, None),
        ('{"id":1,"method":"ListTasks"}', -32600, 1),
        ('{"jsonrpc":"1.0","id":1,"method":"ListTasks"}', -32600, 1),
        ('{"jsonrpc":"2.0","id":1}', -32600, 1),
        ('{"jsonrpc":"2.0","id":1,"method":7}', -32600, 1),
        ('{"jsonrpc":"2.0","method":"ListTasks"}', -32600, None),
        ('{"jsonrpc":"2.0","id":{},"method":"ListTasks"}', -32600, None),
        ('{"jsonrpc":"2.0","id":true,"method":"ListTasks"}', -32600, None),
        ('{"jsonrpc":"2.0","id":1,"method":"ListTasks","params":7}', -32602, 1),
        ('{"jsonrpc":"2.0","id":"a","method":"ListTasks","params":null}', None, "a"),
        ('{"jsonrpc":"2.0","id":1,"method":"ListTasks","padding":"' + 9_000_000 * "x" + '"}', -32600, None),
    ],
)
def test_what_is_no_request_has_its_code(content, code, number):  # 9.5, JSON-RPC 2.0
    body = asking_in_process(lambda asker: asker.raw(content))
    assert (body.get("error", {}).get("code"), body["id"]) == (code, number)


@pytest.mark.parametrize(
    ("version", "code"), [("1.0", None), ("1.0.7", None), ("", -32009), ("0.3", -32009), ("1.1", -32009), ("x", -32009)]
)
def test_only_the_version_of_the_card_is_served(version, code):  # 3.6.2: no version is 0.3
    async def scenario(asker):
        body = await asker.rpc("ListTasks", {}, **{"A2A-Version": version})
        asker.url += f"?A2A-Version={version}"
        asked_in_url = await asker.rpc("ListTasks", {}, **{"A2A-Version": ""})
        return [one.get("error", {}).get("code") for one in (body, asked_in_url)]

    assert asking_in_process(scenario) == [code, code]


@pytest.mark.parametrize("kind", ["text/plain", "", "application/x-www-form-urlencoded"])
def test_a_request_says_that_it_is_json(kind):  # 9.1; pages in a browser can post these anywhere
    async def scenario(asker):
        return await asker.raw(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "ListTasks"}), **{"Content-Type": kind})

    assert asking_in_process(scenario)["error"]["code"] == -32005


@pytest.mark.parametrize(
    ("skill", "state", "said"),
    [
        ("broken", "TASK_STATE_FAILED", "an agent's mistake"),
        ("refusing", "TASK_STATE_REJECTED", "not today"),
        ("nan", "TASK_STATE_FAILED", "not JSON compliant"),
    ],
)
def test_a_call_that_fails_is_a_task_that_says_why(skill, state, said):  # 4.1.3
    async def scenario(asker):
        task = (await asker.call(skill))["task"]
        assert state_of(task) == state
        assert said in task["status"]["message"]["parts"][0]["text"]
        assert "artifacts" not in task
        with pytest.raises(CallFailed, match=said):
            await A2aAgent(asker.url).call(f"shop.{skill}", {})
        return (await asker.call("double", {"n": 3}))["task"]

    assert state_of(asking(scenario)) == COMPLETED


def test_too_much_work_is_rejected_and_the_end_leaves_no_stream_open(monkeypatch):
    monkeypatch.setattr(a2a_edge, "MAX_AT_WORK", 2)

    async def scenario(asker):
        for _ in range(2):
            await asker.call("slow", now=True)
        assert state_of((await asker.call("double", {"n": 1}))["task"]) == "TASK_STATE_REJECTED"

    asking(scenario)

    async def ending():
        world = World()
        store = TaskStore()
        endpoint = a2a_edge._Endpoint(world.peer, "", 20, store)
        call = {"message": message([{"data": {"capability": "shop.slow", "arguments": {}}}])}
        stream = await endpoint._stream(call)
        first = await anext(stream)
        await asyncio.sleep(0)
        await endpoint.close()
        return [first, *[event async for event in stream]]

    assert told(one for event in run(ending) for one in event.items())[-1] == ("statusUpdate", CANCELED)


def test_a_full_store_forgets_finished_tasks_first():
    store = TaskStore(2, now=lambda: 0.0)
    done, waiting = store.new("c", {}), store.new("c", {})
    done.move(WORKING)
    done.move(COMPLETED)
    waiting.move("TASK_STATE_INPUT_REQUIRED")
    third = store.new("c", {})
    assert [store.get(task.id) is not None for task in (done, waiting, third)] == [False, True, True]
    fourth = store.new("c", {})
    assert [store.get(task.id) is not None for task in (waiting, third, fourth)] == [False, True, True]


def test_a_task_takes_no_step_that_the_protocol_does_not_know():
    task = TaskStore().new("c", {})
    with pytest.raises(BadInput, match="does not go"):
        task.move(COMPLETED)
    task.move(WORKING)
    task.move(COMPLETED)
    with pytest.raises(BadInput, match="does not go"):
        task.move(WORKING)


def test_an_agent_that_speaks_another_version_is_refused():
    async def handler(request):
        card = {"skills": [], "url": "http://x/", "protocolVersion": "0.3.0"}
        return httpx2.Response(200, json=card)

    async def scenario():
        async with httpx2.AsyncClient(transport=httpx2.MockTransport(handler)) as client:
            with pytest.raises(BadInput, match=r"does not speak A2A 1\.x"):
                await A2aAgent("http://x", client=client).offers()

    run(scenario)


WORDS = st.sampled_from(["messageId", "role", "ROLE_USER", "parts", "data", "text", "mediaType", "contextId", "taskId"])
WORDS |= st.sampled_from(["id", "message", "configuration", "historyLength", "pageSize"])
WORDS |= st.sampled_from(["capability", "arguments", "shop.double", "n", "discover", "query"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)
METHODS = list(a2a_edge._Endpoint(None, "", 1, TaskStore())._methods)


def nearly(params):
    """Params that are right but for one place, or anything."""
    said = {"messageId": "m", "role": "ROLE_USER", "parts": [{"data": {"capability": "shop.double"}}]}
    return st.one_of(
        params,
        st.dictionaries(WORDS, params, max_size=3).map(lambda more: {"message": {**said, **more}}),
        params.map(lambda part: {"message": {**said, "parts": [part]}}),
        params.map(lambda data: {"message": {**said, "parts": [{"data": data}]}}),
        params.map(lambda it: {"message": said, "configuration": it}),
    )


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(METHODS), nearly(JSON), JSON)
def test_no_request_is_an_internal_error(method, params, number):
    async def scenario():
        endpoint = a2a_edge._Endpoint(World().peer, "", 1, TaskStore())
        body = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
        answer = await endpoint.answer(json.dumps(body).encode(), "application/json", "1.0")
        if not isinstance(answer, dict):
            return [event async for event in answer]
        assert answer.get("error", {}).get("code") != -32603
        return json.dumps(answer, allow_nan=False)

    assert run(scenario)
