"""Exercise 14: an engine with four bugs.

Comes in: the student's ``decode(model, prompt, num_new, gamma)``, an engine of one row. ``Toy`` is
its model: a draft, a full model with a KV cache, and a record of every call. Goes out: a verdict;
the first round that goes wrong is named with what it drafted and what the target said, then what
costs passes and not the text.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pandas as pd

from .calling import Task, wholes
from .verdict import Passed, require

TASK = Task(
    "decode",
    ("model", "prompt", "num_new", "gamma"),
    "a list of num_new new tokens",
    writable=("model",),
    seconds=20,
)
VOCABULARY, AGREE = 500, 0.7


@dataclass
class Pass:
    """One pass of the full model: the cache ``before`` it, its ``block``, what it said; and the
    draft's calls before it."""

    before: list[int]
    block: list[int]
    target: list[int]
    contexts: list[list[int]] = field(default_factory=list)
    drawn: list[int] = field(default_factory=list)

    def accepted(self) -> int:
        """How many drafted tokens of the block stand."""
        number = 0
        while number < len(self.block) - 1 and self.block[number + 1] == self.target[number]:
            number += 1
        return number


class Toy:
    """A model whose every token depends on all keys in the cache. State: the cache, the calls."""

    def __init__(self, seed: int, longest: int):
        self.seed = seed
        self.longest = longest
        self.cache: list[int] = []
        self.passes: list[Pass] = []
        self.contexts: list[list[int]] = []
        self.drawn: list[int] = []

    def __repr__(self) -> str:
        return "model"

    def after(self, context: list[int]) -> int:
        """The full model's token after ``context``."""
        return random.Random(f"{self.seed} {context}").randrange(VOCABULARY)

    # ---- what the student calls ----

    def draft(self, text) -> int:
        """The draft's token after ``text``, mostly the full model's."""
        text = wholes(text)
        chance = random.Random(f"draft {self.seed} {text}")
        right, other = self.after(text), chance.randrange(VOCABULARY)
        self.contexts.append(text)
        self.drawn.append(right if chance.random() < AGREE else other)
        require(len(self.drawn) <= self.longest, "drafting does not end: gamma tokens and no more")
        return self.drawn[-1]

    def forward(self, tokens) -> list[int]:
        """Put ``tokens`` into the cache; the full model's token after each of them."""
        before, block = list(self.cache), wholes(tokens)
        said = []
        for token in block:
            self.cache.append(token)
            said.append(self.after(self.cache))
        self.passes.append(Pass(before, block, said, self.contexts, self.drawn))
        self.contexts, self.drawn = [], []
        require(
            len(self.passes) <= self.longest,
            f"the full model passes {len(self.passes)} times and the text is not done: every round "
            "gains one token at least",
        )
        return list(said)

    def forget(self, num: int) -> None:
        """Take the last ``num`` keys out of the cache."""
        require(
            0 <= num <= len(self.cache),
            f"forget({num}) with {len(self.cache)} keys in the cache",
        )
        self.cache = self.cache[: len(self.cache) - num]


# ---- what went wrong ----


def _prefill_problems(first: Pass, prompt: list[int]) -> Iterator[tuple[bool, str]]:
    yield (
        first.block == prompt,
        "the whole prompt is prefilled, and its last token opens the first block as well: it would "
        "stand in the cache twice",
    )
    yield (
        first.before + first.block != prompt[:-1],
        f"the first pass is over {first.block}: it should be the prompt without its last token",
    )


def _where(index: int, last: Pass) -> str:
    return (
        f"round {index} drafts {last.block[1:]}, the target says {last.target}: "
        f"{last.accepted()} of {len(last.block) - 1} stand"
    )


def _token_problems(last: Pass, now: Pass) -> Iterator[tuple[bool, str]]:
    """The token that opens the next block is not the target's after what stands: whose is it?"""
    drafted, target, number = last.block[1:], last.target, last.accepted()
    agreeing, opening = sum(a == b for a, b in zip(drafted, target)), now.block[0]
    text = now.contexts[0] if now.contexts else []
    yield (
        agreeing != number and opening == target[agreeing],
        "but a token behind the first rejection was counted because it agrees too",
    )
    yield (
        number < len(drafted) and opening == drafted[number],
        "but the text goes on with the rejected token",
    )
    yield text[-len(target) : -1] == drafted, "but the rejected tokens stay in the text"
    yield (
        opening == target[-1],
        "but the text goes on with the target's token at the end of the block",
    )
    yield (
        number > 0 and opening == target[number - 1],
        "but the text ends with the last of them: the target's own token after it is missing",
    )
    yield (
        opening == target[0],
        "but the text goes on as if none did",
    )
    yield True, f"and the next block begins with {opening}, not with {target[number]}"


def _round_problems(index: int, last: Pass, now: Pass) -> Iterator[tuple[bool, str]]:
    """What round ``index`` left behind, seen by the pass ``now`` after it."""
    told, number = _where(index, last), last.accepted()
    opening, kept = now.block[0] if now.block else None, len(now.before) - len(last.before) - 1
    yield opening is None, f"{told}; the next pass has no token: a block opens with the text's last"
    yield (
        now.drawn[:1] == [opening] and opening != last.target[number],
        f"{told}; the next block opens with a drafted token: the text's last has no key yet, so it "
        "comes first",
    )
    if opening != last.target[number]:
        for wrong, sentence in _token_problems(last, now):
            yield wrong, f"{told}, {sentence}"
    yield (
        kept > number,
        f"{told}; the text is right, but the cache keeps {kept} of their keys: later tokens see "
        "what was rejected",
    )
    yield (
        kept < number,
        f"{told}; the text is right, but the cache lost keys that stand: {kept} of {number} are "
        "left",
    )


def _answer_problems(answer: list[int], right: list[int], prompt: list[int]):
    yield answer == prompt + right, "the prompt is given back too: only the new tokens"
    yield (
        answer[: len(right)] == right,
        f"{len(answer)} new tokens come out, and {len(right)} were asked for: a round near the end "
        "drafts more than there is room for",
    )
    yield len(answer) != len(right), f"{len(answer)} new tokens come out of {len(right)}"
    yield answer != right, "every round is right, and what comes out is not what they gained"


def _cost_problems(passes: list[Pass], num_new: int, gamma: int) -> Iterator[tuple[bool, str]]:
    """The text is right; what was paid too much for it."""
    left = num_new
    for index, one in enumerate(passes):
        room, contexts = min(gamma, left - 1), one.contexts
        told = f"the text is right, but round {index} "
        grown = all(a + [token] == b for a, token, b in zip(contexts, one.drawn, contexts[1:]))
        yield (
            not grown,
            f"{told}makes every drafted token from the same text: most are rejected, and passes are "
            "wasted"
            if contexts[1:] and contexts[0] == contexts[1]
            else f"{told}drafts from another text than its own and what it has drafted",
        )
        yield (
            len(one.drawn) > room,
            f"{told}drafts {len(one.drawn)} tokens where {room} can be used: gamma={gamma}, and "
            f"{left} tokens were missing, of which the target gives one itself",
        )
        yield len(one.drawn) < room, f"{told}drafts {len(one.drawn)} tokens and may draft {room}"
        yield (
            one.block[1:] != one.drawn,
            f"{told}does not verify all that it drafted",
        )
        left -= one.accepted() + 1


def _plain(toy: Toy, prompt: list[int], num_new: int) -> list[int]:
    text = list(prompt)
    for _ in range(num_new):
        text.append(toy.after(text))
    return text[len(prompt) :]


def _check(decode: Callable, seed: int, prompt: list[int], num_new: int, gamma: int) -> int:
    """Raise for the first mistake; the passes after the prefill otherwise."""
    model = Toy(seed, longest=num_new + len(prompt) + 4)
    right = _plain(model, prompt, num_new)
    arguments = (model, prompt, num_new, gamma)
    answer = TASK.ask(decode, arguments, wholes, right)
    told = TASK.told(arguments, answer=answer, right=right)
    require(len(model.passes) > 1, "the full model has verified nothing", told)
    prefill, *rounds = model.passes
    problems = [*_prefill_problems(prefill, prompt)]
    for index, (last, now) in enumerate(zip(rounds, rounds[1:])):
        problems += _round_problems(index, last, now)
    problems += _answer_problems(answer, right, prompt) if answer != right else []
    for wrong, sentence in [*problems, *_cost_problems(rounds, num_new, gamma)]:
        require(not wrong, sentence, told)
    return len(rounds)


def check_repair(decode: Callable) -> Passed:
    """Verdict on ``decode(model, prompt, num_new, gamma)``; raises ``ExerciseError`` naming the
    first thing that goes wrong."""
    TASK.check_function(decode)
    draw = random.Random(41)
    cases = [([7, 3, 9], 8, 2), ([7, 3, 9], 6, 0), ([7, 3, 9], 1, 3)]
    for _ in range(40):
        prompt = [draw.randrange(VOCABULARY) for _ in range(draw.randint(2, 5))]
        cases.append((prompt, draw.randint(1, 12), draw.randint(0, 5)))
    for seed, case in enumerate(cases):
        _check(decode, seed, *case)
    rows = []
    for gamma in (0, 1, 2, 4, 8):
        passes = sum(_check(decode, seed, [7, 3, 9], 40, gamma) for seed in range(5))
        rows.append((gamma, passes / 5, round(200 / passes, 2)))
    scores = pd.DataFrame(rows, columns=["gamma", "passes_for_40_tokens", "tokens_per_pass"])
    return Passed(f"{len(cases)} random texts, each token the target's own", scores)
