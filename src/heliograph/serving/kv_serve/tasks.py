"""Prompts with exact answers, made by rule or read from a file; what compression costs is measured on them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from heliograph.errors import BadInput
from heliograph.lm.core.load import LanguageModel

__all__ = ["TASKS", "TaskSample", "make_samples", "read_samples"]

FILLER = (
    "The ferry left the harbour before the fog had lifted. ",
    "Two carpenters argued about the height of the door. ",
    "In the valley the river had frozen during the night. ",
    "Nobody remembered who had planted the row of pears. ",
    "The clock in the station ran four minutes slow. ",
    "She folded the map and put it under the lamp. ",
    "Wind from the north kept the boats near the shore. ",
    "A letter arrived from the mill at the end of the road. ",
    "The baker opened late and sold everything by noon. ",
    "Children had drawn a fish on the wall of the school. ",
    "They carried the piano up three flights of stairs. ",
    "Rain filled the barrels behind the old stable. ",
)
NAMES = ("amber", "birch", "cedar", "delta", "ember", "flint", "grove", "heron", "inlet", "jade", "kelp", "linen")


@dataclass(frozen=True)
class TaskSample:
    """A prompt and its answer, as token numbers."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


def _passkey(draw: random.Random) -> tuple[str, str, str]:
    key = str(draw.randint(10000, 99999))
    return f"The pass key is {key}. Remember it: {key} is the pass key. ", "\nThe pass key is", f" {key}"


def _lookup(draw: random.Random) -> tuple[str, str, str]:
    names = draw.sample(NAMES, 6)
    table = {name: str(draw.randint(100, 999)) for name in names}
    asked = draw.choice(names)
    listed = "".join(f"The number of {name} is {value}. " for name, value in table.items())
    return listed, f"\nThe number of {asked} is", f" {table[asked]}"


def _copy(draw: random.Random) -> tuple[str, str, str]:
    words = draw.sample(NAMES, 5)
    return f"List: {', '.join(words)}. ", f"\nList: {words[0]}, {words[1]},", f" {', '.join(words[2:])}"


def _quote(draw: random.Random) -> tuple[str, str, str]:
    number = draw.randint(2, 99)
    said = draw.choice(FILLER).strip()
    return f"Note {number}: {said} ", f"\nNote {number}:", f" {said}"


TASKS: dict[str, Callable[[random.Random], tuple[str, str, str]]] = {
    "passkey": _passkey,
    "kv-lookup": _lookup,
    "copy": _copy,
    "quote": _quote,
}


def make_samples(model: LanguageModel, task: str, count: int, tokens: int, seed: int = 0) -> list[TaskSample]:
    """Samples of a task, all of one length: what is to be found lies somewhere in filler text.

    Args:
        model: whose tokenizer.
        task: passkey, kv-lookup, copy or quote.
        count: of samples.
        tokens: of each prompt.
        seed: of the draws.

    Raises:
        BadInput: no such task, or prompts too short to hold one.
    """
    if task not in TASKS:
        raise BadInput(f"tasks are {', '.join(TASKS)}; got {task!r}")
    if count < 1:
        raise BadInput(f"at least one sample is needed; got {count}")
    draw, samples = random.Random(f"{task}/{seed}"), []
    for _ in range(count):
        fact, question, answer = TASKS[task](draw)
        fact_tokens, question_tokens = model.tokenizer.encode(fact), model.tokenizer.encode(question, special=False)
        room = tokens - len(fact_tokens) - len(question_tokens)
        if room < 1:
            raise BadInput(f"a prompt of {task} takes more than {tokens} tokens; ask for {tokens - room + 1} or more")
        filler: list[int] = []
        while len(filler) < room:
            filler += model.tokenizer.encode(draw.choice(FILLER), special=False)
        filler, place = filler[:room], draw.randrange(0, room)
        prompt = [*filler[:place], *fact_tokens, *filler[place:], *question_tokens]
        samples.append(TaskSample(tuple(prompt), tuple(model.tokenizer.encode(answer, special=False))))
    return samples


def read_samples(model: LanguageModel, path: Path | str, limit: int | None = None) -> list[TaskSample]:
    """Samples from a file of JSON lines, ``{"prompt": ..., "answer": ...}``.

    Raises:
        BadInput: no such file, a line of another form, an empty text, or a prompt beyond the model's context.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read {path}: {error}") from None
    samples = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            prompt, answer = str(value["prompt"]), str(value["answer"])
        except (ValueError, KeyError, TypeError):
            raise BadInput(f'{path}, line {number}: an object {{"prompt": ..., "answer": ...}} is expected') from None
        sample = TaskSample(tuple(model.tokenizer.encode(prompt)), tuple(model.tokenizer.encode(answer, special=False)))
        if len(sample.prompt) < 2 or not sample.answer:
            raise BadInput(f"{path}, line {number}: prompt and answer both need text")
        if len(sample.prompt) + len(sample.answer) > model.config.context:
            raise BadInput(
                f"{path}, line {number}: {len(sample.prompt)} and {len(sample.answer)} tokens; "
                f"the model's context is {model.config.context}"
            )
        samples.append(sample)
        if limit is not None and len(samples) == limit:
            break
    if not samples:
        raise BadInput(f"{path} holds no sample")
    return samples
