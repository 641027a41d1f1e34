"""Worker processes behind a router: roles, deaths and silences, and the same tokens in the end."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from heliograph.data.language_models import smollm2_file
from heliograph.errors import BadInput, MissingData
from heliograph.lm.core.generate import generate
from heliograph.lm.core.load import LanguageModel, load_model
from heliograph.lm.core.sampling import SamplingParams
from heliograph.serving.core.async_engine import Overloaded
from heliograph.serving.core.cluster import (
    Cluster,
    ClusterBackend,
    ClusterConfig,
    InstanceView,
    LeastOutstanding,
    Placement,
    RoundRobin,
    RoutingRequest,
)
from heliograph.serving.core.openai_api import Generation

ASKED = RoutingRequest((1, 2, 3), 5)
PROMPTS = ["The capital of France is", "Once upon a time", "def f(n):", "Water boils at"]
GREEDY = SamplingParams(max_tokens=24, temperature=0, ignore_end=True)


def view(name: str, role: str, **facts: Any) -> InstanceView:
    return InstanceView(name, role, **facts)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    try:
        smollm2_file()
    except MissingData as error:
        pytest.skip(str(error))
    return load_model("smollm2-135m", layers=4)


def test_an_answer_stays_where_its_prompt_was_computed_if_that_instance_decodes() -> None:
    views = [view("a", "mix", decode_requests=4), view("b", "mix")]
    assert LeastOutstanding().route(ASKED, views) == Placement("b", "b")
    assert {RoundRobin().route(ASKED, views).prefill} == {"a"}


def test_roles_divide_prompts_and_answers() -> None:
    views = [view("p", "prefill"), view("d", "decode", decode_requests=2), view("e", "decode")]
    assert LeastOutstanding().route(ASKED, views) == Placement("p", "e")


def test_a_role_that_nobody_has_falls_to_the_others() -> None:
    assert RoundRobin().route(ASKED, [view("d", "decode")]) == Placement("d", "d")


def test_no_instance_at_all_is_an_overload() -> None:
    with pytest.raises(Overloaded):
        RoundRobin().route(ASKED, [])


def test_two_instances_of_one_name_are_refused() -> None:
    cluster = Cluster.local(roles={"mix": 1})
    with pytest.raises(BadInput, match="names differ"):
        Cluster([*cluster.instances.values(), *cluster.instances.values()])


@pytest.fixture(scope="module", autouse=True)
def ray_ended() -> Iterator[None]:
    yield
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        ray.shutdown()


@pytest.mark.integration
class TestProcesses:
    """Each test drives three processes with four layers of the real model."""

    def drive(
        self,
        model: LanguageModel,
        action: Callable[[Cluster, ClusterBackend], Any],
        on: Literal["local", "ray"] = "local",
    ) -> Any:
        async def whole() -> Any:
            settings = ClusterConfig(heartbeat_s=0.5, suspect_s=4.0, remove_s=10.0)
            roles: Any = {"prefill": 1, "decode": 2}
            cluster = Cluster.local(
                roles=roles, layers=4, threads=1, config=settings, engine={"num_blocks": 200}, on=on
            )
            await cluster.start()
            backend = ClusterBackend(cluster, model)
            try:
                async with asyncio.timeout(120):
                    return await action(cluster, backend)
            finally:
                for instance in cluster.instances.values():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(instance.pid, signal.SIGCONT)
                await backend.close()

        return asyncio.run(whole())

    @pytest.mark.parametrize("blow", [None, signal.SIGKILL, signal.SIGSTOP])
    @pytest.mark.parametrize("on", ["local", "ray"])
    def test_every_answer_is_whole_whatever_happens_to_a_decode_worker(
        self, model: LanguageModel, on: Literal["local", "ray"], blow: Any
    ) -> None:
        if on == "ray":
            pytest.importorskip("ray")

        async def act(cluster: Cluster, backend: ClusterBackend) -> Any:
            started: asyncio.Queue[str] = asyncio.Queue()

            async def ask(prompt: str) -> tuple[tuple[int, ...], str | None]:
                tokens: list[int] = []
                finish = None
                async for event in backend.stream(Generation(tuple(model.tokenizer.encode(prompt)), GREEDY)):
                    if event.sample is not None:
                        tokens.append(event.sample.token)
                    if len(tokens) == 3:
                        started.put_nowait(prompt)
                    finish = event.finish
                return tuple(tokens), finish

            tasks = [asyncio.create_task(ask(prompt)) for prompt in PROMPTS]
            await started.get()
            if blow is not None:
                os.kill(cluster.instances["decode-0"].pid, blow)
            found = await asyncio.gather(*tasks)
            left = [i for n, i in cluster.instances.items() if blow is None or n != "decode-0"]
            for instance in left:
                while (await instance.call("stats"))["kv_usage"]:
                    await asyncio.sleep(0.05)
                await instance.call("check")
            return found, cluster.handovers

        found, handovers = self.drive(model, act, on)
        plain = [(c.tokens, "length") for c in generate(model, PROMPTS, GREEDY)]
        assert found == plain
        assert handovers > 0

    @pytest.mark.parametrize("on", ["local", "ray"])
    def test_a_model_that_cannot_be_read_starts_nothing(self, tmp_path: Path, on: Literal["local", "ray"]) -> None:
        if on == "ray":
            pytest.importorskip("ray")

        async def act() -> None:
            cluster = Cluster.local(str(tmp_path / "none.gguf"), {"mix": 2}, on=on)
            with pytest.raises(BadInput, match=r"did not start.*none\.gguf"):
                await cluster.start()
            for instance in cluster.instances.values():
                assert instance._process is None or instance._process.returncode is not None

        asyncio.run(act())
