"""From a wanted type to a plan over capabilities, and its execution: journalled, resumed, planned anew, undone.

A plan is the cheapest set of calls that makes the goal from what is at hand, found by uniform-cost search over the sets
of types at hand. Each step is written down before and after its call; an engine that continues a journal repeats no
finished step, and repeats an unfinished one under the same key, by which :class:`OnceStore` at the provider recognises
it. What no engine can know: whether a provider that died without a journal of its own had done its part.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import json
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from heliograph.agents.core.canonical import canonical_bytes
from heliograph.agents.mod_x.discovery import Capability, subsumes
from heliograph.errors import BadInput, HeliographError

__all__ = ["NoPlan", "OnceStore", "Outcome", "Plan", "WorkflowEngine", "make_plan"]

Call = Callable[[Capability, dict[str, Any], str], Awaitable[Any]]
"""Calls a capability with arguments and a key that stays the same when the call is repeated."""

MAX_STATES = 50_000


class NoPlan(HeliographError):
    """The goal cannot be made.

    Attributes:
        missing: types that nobody provides and the goal needs.
    """

    exit_code = 1

    def __init__(self, reason: str, missing: tuple[str, ...] = ()) -> None:
        super().__init__(reason)
        self.reason, self.missing = reason, missing

    def __reduce__(self) -> Any:
        return type(self), (self.reason, self.missing)


@dataclass(frozen=True)
class Plan:
    """Calls in an order in which each has its inputs.

    Attributes:
        steps: of it.
        cost: sum over the steps.
    """

    steps: tuple[Capability, ...]
    cost: float


def _usual_cost(capability: Capability) -> float:
    return capability.cost_ms / 1000 + capability.price


def _has(wanted: str, have: Iterable[str]) -> bool:
    return any(subsumes(wanted, one) for one in have)


def make_plan(
    capabilities: Iterable[Capability],
    have: Iterable[str],
    goal: str,
    *,
    cost: Callable[[Capability], float] = _usual_cost,
    max_steps: int = 12,
) -> Plan:
    """The cheapest plan; of equal ones the one with fewer steps, then the first by ids.

    Args:
        capabilities: to choose from.
        have: types at hand.
        goal: type wanted.
        cost: of a call, 0 or more.
        max_steps: of a plan.

    Raises:
        NoPlan: the goal cannot be made; the missing types are named.
        BadInput: a negative cost.
    """
    start = frozenset(have)
    useful = _useful(sorted(capabilities, key=lambda one: one.id), goal, start)
    prices = {one.id: cost(one) for one in useful}
    if any(not price >= 0 for price in prices.values()):
        raise BadInput("a step's cost is 0 or more")
    cheapest: dict[Any, Capability] = {}
    for one in useful:
        kind = (tuple(sorted(set(one.inputs.values()))), tuple(sorted(one.outputs)))
        known = cheapest.get(kind)
        if known is None or prices[one.id] < prices[known.id]:
            cheapest[kind] = one
    choices = sorted(cheapest.values(), key=lambda one: one.id)
    queue: list[tuple[float, int, tuple[str, ...], frozenset[str]]] = [(0.0, 0, (), start)]
    by_id = {one.id: one for one in choices}
    # Shorter ways may be dearer, and the length is limited: both decide whether a set of types was reached better.
    done: dict[frozenset[str], int] = {}
    while queue:
        total, length, path, at_hand = heapq.heappop(queue)
        if _has(goal, at_hand):
            return Plan(tuple(by_id[one] for one in path), total)
        if done.get(at_hand, max_steps + 1) <= length:
            continue
        done[at_hand] = length
        if len(done) > MAX_STATES:
            raise NoPlan(f"more than {MAX_STATES} ways to {goal}; offer fewer capabilities or a nearer goal")
        if length == max_steps:
            continue
        for one in choices:
            if set(one.outputs) <= at_hand or not all(_has(need, at_hand) for need in one.inputs.values()):
                continue
            grown = at_hand | set(one.outputs)
            heapq.heappush(queue, (total + prices[one.id], length + 1, (*path, one.id), grown))
    raise _unreachable(useful, start, goal, max_steps)


def _useful(capabilities: Sequence[Capability], goal: str, have: frozenset[str]) -> list[Capability]:
    """Those that may stand in a plan: their outputs are wanted, going back from the goal."""
    wanted = {goal}
    found: list[Capability] = []
    left = list(capabilities)
    while True:
        more = [one for one in left if any(_has(need, one.outputs) for need in wanted)]
        if not more:
            return sorted(found, key=lambda one: one.id)
        found += more
        left = [one for one in left if one not in more]
        wanted |= {need for one in more for need in one.inputs.values() if not _has(need, have)}


def _unreachable(useful: Sequence[Capability], have: frozenset[str], goal: str, max_steps: int) -> NoPlan:
    at_hand = set(have)
    while more := {
        given
        for one in useful
        if all(_has(need, at_hand) for need in one.inputs.values())
        for given in one.outputs
        if given not in at_hand
    }:
        at_hand |= more
    if _has(goal, at_hand):
        return NoPlan(f"{goal} needs more than {max_steps} steps")
    needs = {goal, *(need for one in useful for need in one.inputs.values())}
    offered = {given for one in useful for given in one.outputs}
    missing = tuple(sorted(need for need in needs if not _has(need, at_hand) and not _has(need, offered)))
    if missing:
        return NoPlan(f"no plan for {goal}: nobody provides {', '.join(missing)}", missing)
    circle = tuple(sorted(need for need in needs if not _has(need, at_hand)))
    return NoPlan(f"no plan for {goal}: {', '.join(circle)} need each other", circle)


class OnceStore:
    """Does the work of a key once, and gives its result to whoever asks again.

    Args:
        path: a journal that survives this process; None to forget with it.
        limit: results kept in memory; the oldest are forgotten.
    """

    def __init__(self, path: str | Path | None = None, *, limit: int = 100_000) -> None:
        self._path = None if path is None else Path(path)
        self._limit = limit
        self._results: dict[str, Any] = {}
        self._running: dict[str, asyncio.Task[Any]] = {}
        for line in _whole_lines(self._path):
            self._results[line["key"]] = line["result"]

    async def run(self, key: str, work: Callable[[], Awaitable[Any]]) -> Any:
        """The result of the work; a failure is not kept, so that it can be tried again. No key: no memory."""
        if not key:
            return await work()
        if key in self._results:
            return self._results[key]
        task = self._running.get(key)
        if task is None:
            task = asyncio.ensure_future(self._work(key, work))
            self._running[key] = task
            task.add_done_callback(lambda _: self._running.pop(key, None))
        # The work goes on if one of those who wait is cancelled.
        return await asyncio.shield(task)

    async def _work(self, key: str, work: Callable[[], Awaitable[Any]]) -> Any:
        result = await work()
        if self._path is not None:
            _write_line(self._path, {"key": key, "result": result})
        self._results[key] = result
        if len(self._results) > self._limit:
            del self._results[next(iter(self._results))]
        return result


@dataclass
class Outcome:
    """How a run ended.

    Attributes:
        run: its name.
        ok: the goal was made.
        value: of the goal.
        values: all that is at hand, by type.
        steps: ids of the finished calls, in order.
        replans: how often a plan was made anew.
        failures: reasons by call.
        undone: ids of calls that were taken back.
        uncertain: writing calls that failed without an answer and could not be taken back.
    """

    run: str
    ok: bool = False
    value: Any = None
    values: dict[str, Any] = field(default_factory=dict)
    steps: list[str] = field(default_factory=list)
    replans: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    undone: list[str] = field(default_factory=list)
    uncertain: list[str] = field(default_factory=list)


class WorkflowEngine:
    """Makes plans and carries them out.

    Args:
        capabilities: what can be called now; asked anew for every plan.
        call: calls one.
        journal: file of all runs; None for none, and then nothing can be resumed.
        replan: make a new plan when a call fails; without it the first failure ends the run.
        max_replans: in a run.
        step_timeout_s: for one call.
        cost: of a call.
    """

    def __init__(
        self,
        capabilities: Callable[[], Iterable[Capability]],
        call: Call,
        *,
        journal: str | Path | None = None,
        replan: bool = True,
        max_replans: int = 8,
        step_timeout_s: float = 30.0,
        cost: Callable[[Capability], float] = _usual_cost,
    ) -> None:
        if max_replans < 0 or not step_timeout_s > 0:
            raise BadInput(f"max_replans is 0 or more, step_timeout_s above 0; got {max_replans}, {step_timeout_s}")
        self._capabilities, self._call, self._cost = capabilities, call, cost
        self._journal = None if journal is None else Path(journal)
        self._replan, self._max_replans, self._step_timeout_s = replan, max_replans, step_timeout_s

    def unfinished(self) -> list[str]:
        """Runs in the journal that began and did not end."""
        runs: dict[str, bool] = {}
        for line in _whole_lines(self._journal):
            runs[line["run"]] = line["event"] == "end"
        return [run for run, ended in runs.items() if not ended]

    async def achieve(
        self,
        goal: str,
        values: Mapping[str, Any],
        *,
        run: str,
        grants: Iterable[str] = ("read",),
        accept: Callable[[Capability, Mapping[str, Any]], bool] | None = None,
    ) -> Outcome:
        """Makes a value of the goal's type. A run of the same name in the journal is continued.

        Args:
            goal: type.
            values: at hand, by type.
            run: unique name.
            grants: effects that the plan may have: "read", "write", "external".
            accept: refuses an unwanted result of a call; it then counts as failed, and is undone.

        Raises:
            NoPlan: there is none from the beginning.
            BadInput: a value has no canonical JSON form, or the journal's run had another goal.
        """
        outcome = Outcome(run, values=dict(values))
        canonical_bytes(outcome.values)
        excluded, begun, ended = self._replay(outcome, goal)
        if ended:
            return outcome
        allowed = set(grants)
        while True:
            choices = [
                one
                for one in self._capabilities()
                if one.effects in allowed and one.id not in excluded and not one.name.startswith("undo.")
            ]
            try:
                plan = make_plan(choices, outcome.values, goal, cost=self._cost)
            except NoPlan:
                if not outcome.failures and not outcome.steps:
                    raise
                await self._give_up(outcome)
                return outcome
            failed = await self._carry_out(plan, outcome, begun, accept)
            if failed is None:
                outcome.value = next(value for kind, value in outcome.values.items() if subsumes(goal, kind))
                outcome.ok = True
                self._note(outcome.run, "end", ok=True)
                return outcome
            excluded.add(failed.id)
            if not self._replan or outcome.replans >= self._max_replans:
                await self._give_up(outcome)
                return outcome
            outcome.replans += 1

    def _replay(self, outcome: Outcome, goal: str) -> tuple[set[str], set[str], bool]:
        """Brings the outcome to where the journal stands: calls to leave out, calls that began, whether it ended."""
        excluded: set[str] = set()
        begun: set[str] = set()
        ended = started = False
        for line in _whole_lines(self._journal):
            if line["run"] != outcome.run:
                continue
            event = line["event"]
            if event == "start":
                started = True
                if line["goal"] != goal:
                    raise BadInput(f"the run {outcome.run} is about {line['goal']}; name a run for {goal} otherwise")
                outcome.values = dict(line["values"])
            elif event == "begin":
                begun.add(line["step"])
            elif event == "done":
                begun.discard(line["step"])
                outcome.values.update(line["values"])
                outcome.steps.append(line["step"])
            elif event == "failed":
                begun.discard(line["step"])
                excluded.add(line["step"])
                outcome.failures[line["step"]] = line["reason"]
            elif event == "undone":
                outcome.undone.append(line["step"])
            elif event == "end":
                ended, outcome.ok = True, line["ok"]
        if not started:
            self._note(outcome.run, "start", goal=goal, values=outcome.values)
        if ended and outcome.ok:
            outcome.value = next(value for kind, value in outcome.values.items() if subsumes(goal, kind))
        return excluded, begun, ended

    async def _carry_out(
        self,
        plan: Plan,
        outcome: Outcome,
        begun: set[str],
        accept: Callable[[Capability, Mapping[str, Any]], bool] | None,
    ) -> Capability | None:
        """Runs the steps; the one that failed, or None."""
        # A step that had begun when the engine died goes first: its effect may exist, and its result may be known.
        steps = sorted(
            plan.steps,
            key=lambda one: one.id not in begun or any(not _has(need, outcome.values) for need in one.inputs.values()),
        )
        for step in steps:
            arguments = {
                name: next(value for kind, value in outcome.values.items() if subsumes(need, kind))
                for name, need in step.inputs.items()
            }
            if step.id not in begun:
                self._note(outcome.run, "begin", step=step.id)
            begun.discard(step.id)
            try:
                async with asyncio.timeout(self._step_timeout_s):
                    result = await self._call(step, arguments, f"{outcome.run}/{step.id}")
                given = _outputs(step, result)
                canonical_bytes(given)
                refused = accept is not None and not accept(step, given)
                reason = "its result was not accepted" if refused else ""
            except (HeliographError, TimeoutError, OSError) as error:
                given, reason = {}, str(error) or type(error).__name__
            if reason:
                outcome.failures[step.id] = reason
                self._note(outcome.run, "failed", step=step.id, reason=reason)
                if step.effects != "read" and not await self._undo(step, outcome):
                    outcome.uncertain.append(step.id)
                return step
            outcome.values.update(given)
            outcome.steps.append(step.id)
            self._note(outcome.run, "done", step=step.id, values=given)
        return None

    async def _undo(self, step: Capability, outcome: Outcome) -> bool:
        if not step.undo:
            return False
        undo = next((one for one in self._capabilities() if one.agent == step.agent and one.name == step.undo), None)
        if undo is None:
            return False
        key = f"{outcome.run}/{step.id}"
        try:
            async with asyncio.timeout(self._step_timeout_s):
                await self._call(undo, {"key": key}, f"{key}/undo")
        except (HeliographError, TimeoutError, OSError) as error:
            outcome.failures[f"undo {step.id}"] = str(error) or type(error).__name__
            return False
        outcome.undone.append(step.id)
        self._note(outcome.run, "undone", step=step.id)
        return True

    async def _give_up(self, outcome: Outcome) -> None:
        """Takes back what was written, the last first."""
        effects = {one.id: one for one in self._capabilities()}
        for step_id in reversed(outcome.steps):
            step = effects.get(step_id)
            if step_id in outcome.undone or (step is not None and step.effects == "read"):
                continue
            if step is None or not await self._undo(step, outcome):
                outcome.uncertain.append(step_id)
        self._note(outcome.run, "end", ok=False)

    def _note(self, run: str, event: str, **fields: Any) -> None:
        if self._journal is not None:
            _write_line(self._journal, {"run": run, "event": event, **fields})


def _outputs(step: Capability, result: Any) -> dict[str, Any]:
    if len(step.outputs) == 1:
        return {step.outputs[0]: result}
    if not isinstance(result, Mapping) or not set(step.outputs) <= set(result):
        raise BadInput(f"{step.id} gives an object with {', '.join(step.outputs)}; it gave {type(result).__name__}")
    return {kind: result[kind] for kind in step.outputs}


def _write_line(path: Path, record: Mapping[str, Any]) -> None:
    line = canonical_bytes(dict(record)) + b"\n"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError as error:
        raise BadInput(f"cannot write the journal {path}: {error.strerror}") from None
    try:
        size = os.fstat(descriptor).st_size
        # A killed writer may have left half a line; what is written behind it must not become a part of it.
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line
        os.write(descriptor, line)
    finally:
        os.close(descriptor)


def _whole_lines(path: Path | None) -> list[dict[str, Any]]:
    if path is None or not path.exists():
        return []
    found = []
    for line in itertools.chain(path.read_bytes().split(b"\n")):
        try:
            record = json.loads(line) if line else None
        except ValueError:
            continue
        if isinstance(record, dict):
            found.append(record)
    return found
