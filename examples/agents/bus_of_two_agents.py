"""Two agents on a bus: one asks, one answers, and everything that was said can be replayed.

python examples/agents/bus_of_two_agents.py
"""

from __future__ import annotations

import asyncio

from heliograph.agents import Envelope, MemoryBus


async def main() -> None:
    async with MemoryBus() as bus:
        questions = await bus.subscribe("sum.*")

        async def adder() -> None:
            async for question in questions:
                await bus.reply(question, sum(question.payload), sender="adder")

        task = asyncio.create_task(adder())
        answer = await bus.request(Envelope(topic="sum.small", sender="asker", payload=[1, 2, 3]), timeout_s=1)
        print("answer:", answer.payload)
        for number, env in await bus.replay(">"):
            print(number, env.topic, env.sender, env.payload)
        task.cancel()


if __name__ == "__main__":
    asyncio.run(main())
