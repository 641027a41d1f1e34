"""Asks an A2A agent as its users do, with the official ``a2a-sdk`` alone; prints what it saw as JSON.

Every body on the wire is also read strictly: no field that the protocol's definition lacks, and none missing that it
requires. Run with the agent's URL, in an environment of its own.
"""

import asyncio
import contextlib
import json
import sys
import uuid

import httpx
from a2a.client import A2ACardResolver, ClientConfig, ClientFactory
from a2a.types import a2a_pb2 as a2a
from a2a.utils.errors import A2AError
from a2a.utils.proto_utils import validate_proto_required_fields
from google.protobuf.json_format import MessageToDict, ParseDict

RESULTS = {
    "SendMessage": a2a.SendMessageResponse,
    "SendStreamingMessage": a2a.StreamResponse,
    "SubscribeToTask": a2a.StreamResponse,
    "GetTask": a2a.Task,
    "CancelTask": a2a.Task,
    "ListTasks": a2a.ListTasksResponse,
}
checked = {"bodies": 0}


def check(method, body):
    if "error" not in body:
        validate_proto_required_fields(ParseDict(body["result"], RESULTS[method](), ignore_unknown_fields=False))
        checked["bodies"] += 1


class Strict(httpx.AsyncHTTPTransport):
    """Passes everything on, and reads it strictly on the way."""

    async def handle_async_request(self, request):
        answer = await super().handle_async_request(request)
        if request.method == "GET":
            await answer.aread()
            validate_proto_required_fields(ParseDict(answer.json(), a2a.AgentCard(), ignore_unknown_fields=False))
            return answer
        method = json.loads(request.content)["method"]
        if answer.headers["content-type"].startswith("application/json"):
            await answer.aread()
            check(method, answer.json())
            return answer
        assert answer.headers["content-type"].startswith("text/event-stream")
        return httpx.Response(answer.status_code, headers=answer.headers, stream=StrictStream(method, answer.stream))


class StrictStream(httpx.AsyncByteStream):
    def __init__(self, method, stream):
        self.method, self.stream = method, stream

    async def __aiter__(self):
        rest = b""
        async for chunk in self.stream:
            *events, rest = (rest + chunk).split(b"\n\n")
            for event in events:
                check(self.method, json.loads(event.removeprefix(b"data: ")))
            yield chunk

    async def aclose(self):
        await self.stream.aclose()


def request(skill="", arguments=None, text="", **more):
    part = {"text": text} if text else {"data": {"capability": skill, "arguments": arguments or {}}}
    configuration = more.pop("configuration", {})
    message = {"messageId": str(uuid.uuid4()), "role": "ROLE_USER", "parts": [part], **more}
    return ParseDict({"message": message, "configuration": configuration}, a2a.SendMessageRequest())


def short(event):
    kind = event.WhichOneof("payload")
    inside = getattr(event, kind)
    return [kind, a2a.TaskState.Name(inside.status.state)] if kind in ("task", "status_update") else [kind]


async def events(stream):
    return [event async for event in stream]


async def error(work):
    try:
        await (events(work) if hasattr(work, "__aiter__") else work)
    except A2AError as raised:
        return type(raised).__name__
    return "none"


async def main(url):
    seen = {}
    async with httpx.AsyncClient(transport=Strict(), timeout=20) as http:
        card = await A2ACardResolver(http, url).get_agent_card()
        seen["skills"] = sorted(skill.id for skill in card.skills)
        streaming = ClientFactory(ClientConfig(httpx_client=http)).create(card)
        plain = ClientFactory(ClientConfig(httpx_client=http, streaming=False)).create(card)

        (answer,) = await events(plain.send_message(request("shop.double", {"n": 21})))
        done = answer.task
        seen["result"] = MessageToDict(done.artifacts[0].parts[0].data)
        seen["stream"] = [short(one) for one in await events(streaming.send_message(request("shop.double", {"n": 2})))]
        seen["text"] = [short(one) for one in await events(streaming.send_message(request(text="double it")))]
        got = await plain.get_task(a2a.GetTaskRequest(id=done.id))
        seen["same"] = got == done
        listed = await plain.list_tasks(a2a.ListTasksRequest(page_size=1))
        seen["listed"] = [len(listed.tasks), listed.total_size, bool(listed.next_page_token)]

        (waiting,) = await events(plain.send_message(request("shop.double")))
        more = request("shop.double", {"n": 5}, taskId=waiting.task.id)
        (ended,) = await events(plain.send_message(more))
        seen["continued"] = [short(waiting)[1], short(ended)[1], waiting.task.context_id == ended.task.context_id]

        now = {"configuration": {"returnImmediately": True}}
        (slow,) = await events(plain.send_message(request("shop.slow", **now)))
        following = asyncio.ensure_future(events(streaming.subscribe(a2a.SubscribeToTaskRequest(id=slow.task.id))))
        await asyncio.sleep(0.2)
        canceled = await plain.cancel_task(a2a.CancelTaskRequest(id=slow.task.id))
        seen["canceled"] = a2a.TaskState.Name(canceled.status.state)
        seen["followed"] = [short(one) for one in await following][-1]

        push = a2a.TaskPushNotificationConfig(task_id=done.id, url="https://example.org/hook")
        seen["errors"] = {
            "get": await error(plain.get_task(a2a.GetTaskRequest(id="none"))),
            "cancel": await error(plain.cancel_task(a2a.CancelTaskRequest(id=done.id))),
            "subscribe": await error(streaming.subscribe(a2a.SubscribeToTaskRequest(id=done.id))),
            "push": await error(plain.create_task_push_notification_config(push)),
            "continue": await error(plain.send_message(request("shop.double", {"n": 1}, taskId=done.id))),
            "skill": await error(streaming.send_message(request("shop.treble"))),
            "failed": short((await events(plain.send_message(request("shop.broken"))))[0])[1],
        }
        http.headers["A2A-Version"] = "0.3"
        seen["errors"]["version"] = await error(plain.get_task(a2a.GetTaskRequest(id=done.id)))
    print(json.dumps({**seen, "bodies": checked["bodies"]}))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(sys.argv[1]))
