"""Answers through a gateway and its processes are those of one engine, whoever dies or leaves meanwhile."""

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from heliograph.data.language_models import smollm2_file
from heliograph.errors import BadInput, MissingData
from heliograph.lm.core.generate import generate
from heliograph.lm.core.load import LanguageModel, load_model
from heliograph.lm.core.sampling import SamplingParams
from heliograph.serving.core.openai_api import Generation
from heliograph.serving.pd_serve import ContiguousKV, NoIdlePrefill, PDGateway, PDGroup

PROMPTS = ["The capital of France is", "Once upon a time", "def f(n):", "Water boils at"]
GREEDY = SamplingParams(max_tokens=16, temperature=0, ignore_end=True)


def test_two_groups_of_one_scenario_are_refused() -> None:
    with pytest.raises(BadInput, match="scenarios differ"):
        PDGateway.local_groups([PDGroup("a"), PDGroup("a")])


def test_a_group_without_decode_instances_is_refused() -> None:
    with pytest.raises(BadInput, match="at least one instance of each role"):
        PDGroup("a", 1, 0)


def test_a_group_that_is_not_set_up_serves_nobody() -> None:
    gateway = PDGateway.local_groups([PDGroup("a")])

    async def act() -> None:
        async for _ in gateway.submit(Generation((1, 2), GREEDY)):
            pass

    with pytest.raises(BadInput, match="does not serve yet"):
        asyncio.run(act())


def test_an_unknown_scenario_falls_to_the_first_group() -> None:
    gateway = PDGateway.local_groups([PDGroup("a"), PDGroup("b")], label=lambda _: "b")
    asked = Generation((1, 2), GREEDY)
    assert gateway.scenario_of(asked) == "b"
    assert gateway.scenario_of(asked, "unknown") == "a"


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    try:
        smollm2_file()
    except MissingData as error:
        pytest.skip(str(error))
    return load_model("smollm2-135m", layers=4)


@pytest.mark.integration
class TestProcesses:
    """Each test drives three processes with four layers of the real model."""

    def drive(self, action: Callable[[PDGateway], Any], **settings: Any) -> Any:
        async def whole() -> Any:
            group = PDGroup("chat", 1, 2, ContiguousKV(layers_per_message=1))
            worker = {"layers": 4, "threads": 1, "engine": {"num_blocks": 200}}
            gateway = PDGateway.local_groups([group], worker=worker, **{"ttft_slo_s": 60.0, **settings})
            await gateway.start()
            try:
                async with asyncio.timeout(120):
                    return await action(gateway)
            finally:
                await gateway.close()

        return asyncio.run(whole())

    async def settled(self, gateway: PDGateway, *names: str) -> None:
        for name in names:
            instance = gateway.instances[name]
            while (await instance.call("stats"))["kv_usage"]:
                await asyncio.sleep(0.05)
            await instance.call("check")
            door = await instance.call("door")
            assert (door["busy_slots"], door["reserved_blocks"], door["reserved_bytes"]) == (0, 0, 0)

    @pytest.mark.parametrize("kill", [False, True])
    def test_tokens_are_those_of_one_engine_even_if_a_decode_process_dies(
        self, model: LanguageModel, kill: bool
    ) -> None:
        async def act(gateway: PDGateway) -> Any:
            begun: asyncio.Queue[str] = asyncio.Queue()

            async def ask(prompt: str) -> tuple[int, ...]:
                tokens: list[int] = []
                async for event in gateway.submit(Generation(tuple(model.tokenizer.encode(prompt)), GREEDY)):
                    tokens += [event.sample.token] if event.sample is not None else []
                    if len(tokens) == 3:
                        begun.put_nowait(prompt)
                return tuple(tokens)

            tasks = [asyncio.create_task(ask(prompt)) for prompt in PROMPTS]
            await begun.get()
            if kill:
                os.kill(gateway.instances["chat-decode-0"].pid, signal.SIGKILL)
            found = await asyncio.gather(*tasks)
            await self.settled(gateway, "chat-prefill-0", "chat-decode-1")
            return found, gateway.handovers

        found, handovers = self.drive(act)
        assert found == [c.tokens for c in generate(model, PROMPTS, GREEDY)]
        assert handovers == len(PROMPTS)

    def test_clients_that_leave_and_prompts_that_wait_too_long_hold_nothing(self, model: LanguageModel) -> None:
        prompt = tuple(model.tokenizer.encode(PROMPTS[1]) * 20)

        async def act(gateway: PDGateway) -> None:
            stream = gateway.submit(Generation(prompt, GREEDY))
            await anext(stream)
            await stream.aclose()  # type: ignore[attr-defined] # with its cache on the way
            await self.settled(gateway, *gateway.instances)
            gateway.ttft_slo_s = 0.001
            asked = [Generation((*prompt, n), GREEDY) for n in range(8)]

            async def outcome(generation: Generation) -> str:
                try:
                    return str([event.finish async for event in gateway.submit(generation)][-1])
                except NoIdlePrefill:
                    return "late"

            outcomes = await asyncio.gather(*(outcome(generation) for generation in asked))
            assert set(outcomes) == {"length", "late"}
            assert gateway.stats.timeouts == outcomes.count("late")
            await self.settled(gateway, *gateway.instances)

        self.drive(act)
