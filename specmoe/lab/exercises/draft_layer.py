"""Exercise 8: the MoE layer while drafting.

Comes in: the student's ``draft_layer(hidden, router, experts, stand_in, top_k)``: hidden states
``[T, D]``, the router's weight ``[E, D]``, E functions of which only the resident ones may be
called, the table of exercise 1 -> the layer's output ``[T, D]``. Goes out: a verdict. The experts of
the cases scale and shift, so that each can be checked by hand.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch

from . import parts
from .calling import Task, listed
from .matching import Case, Mistake, Rule
from .verdict import ExerciseError, Passed, require

TASK = Task(
    "draft_layer",
    ("hidden", "router", "experts", "stand_in", "top_k"),
    "a tensor [T, D], one output for each hidden state",
)


class Expert:
    """x -> scale * x + shift; one that is not resident may not be called."""

    def __init__(self, number: int, scale: float, shift: float, resident: bool):
        self.number, self.scale, self.shift, self.resident = number, scale, shift, resident

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        require(
            self.resident,
            f"expert {self.number} is not resident, and a draft fetches nothing: call "
            f"stand_in[{self.number}] in its place",
        )
        return self.scale * x + self.shift

    def __eq__(self, other) -> bool:
        return isinstance(other, Expert) and vars(self) == vars(other)

    __hash__ = None

    def __repr__(self) -> str:
        return f"{self.scale:g}x{self.shift:+g}" if self.resident else "(missing)"


def mixed(weigh: Callable, stand: Callable | None = None) -> Callable:
    """A rule: token t's output is the sum of ``weigh(scores, chosen)`` [T, K] times the stand-ins'
    outputs. ``scores`` [T, E] are the router's; ``stand(chosen, stand_in)`` gives who computes."""

    def rule(hidden, router, experts, stand_in, top_k):
        scores = hidden @ router.T
        chosen = scores.topk(top_k).indices
        table = torch.tensor([*stand_in, len(experts)])
        who = table[chosen] if stand is None else stand(chosen, stand_in)
        weights = weigh(scores, chosen, who, len(experts))
        out = torch.zeros_like(hidden)
        for t in range(len(hidden)):
            for weight, expert in zip(weights[t], who[t].tolist()):
                out[t] += weight * experts[expert](hidden[t]) if expert < len(experts) else 0.0
        return out

    return rule


def routed(scores, chosen, who, nobody):
    """The right weights: a softmax over the chosen experts' scores."""
    return scores.gather(1, chosen).softmax(dim=-1)


def _renormalised(scores, chosen, who, nobody):
    weights = routed(scores, chosen, who, nobody) * (who < nobody)
    return weights / weights.sum(dim=-1, keepdim=True).clamp(min=1e-9)


def _of_stand_ins(scores, chosen, who, nobody):
    own = torch.cat([scores, scores[:, :1]], dim=1).gather(1, who)
    return own.softmax(dim=-1)


def _of_stand_ins_in_all(scores, chosen, who, nobody):
    shares = scores.softmax(dim=-1)
    return torch.cat([shares, shares[:, :1]], dim=1).gather(1, who)


def _once(scores, chosen, who, nobody):
    weights = routed(scores, chosen, who, nobody)
    for k in range(1, who.shape[1]):
        weights[:, k] *= ~(who[:, :k] == who[:, k : k + 1]).any(dim=1)
    return weights


def _first_alone(scores, chosen, who, nobody):
    weights = torch.zeros(chosen.shape)
    weights[:, 0] = 1.0
    return weights


def _only_residents(chosen, stand_in):
    """Who is not resident is left out, whoever could stand in."""
    residents = torch.tensor([i == e for i, e in enumerate(stand_in)])
    return torch.where(residents[chosen], chosen, len(stand_in))


def _among_residents(hidden, router, experts, stand_in, top_k):
    """The router chooses among the residents alone."""
    scores = hidden @ router.T
    residents = torch.tensor([i == e for i, e in enumerate(stand_in)])
    scores = scores.masked_fill(~residents, -torch.inf)
    everybody = list(range(len(experts)))
    out = torch.zeros_like(hidden)
    top, chosen = scores.topk(min(top_k, max(1, int(residents.sum()))))
    weights = top.softmax(dim=-1)
    for t in range(len(hidden)):
        for weight, expert in zip(weights[t], chosen[t].tolist()):
            out[t] += weight * experts[everybody[expert]](hidden[t])
    return out


def _plus(more: Callable) -> Callable:
    return lambda *given: parts.draft_layer(*given) + more(*given)


MISTAKES = (
    Mistake(
        "a missing expert is left out: let stand_in[expert] compute in its place",
        mixed(routed, _only_residents),
    ),
    Mistake(
        "a missing expert is left out and its weight shared out: let stand_in[expert] compute in "
        "its place",
        mixed(_renormalised, _only_residents),
    ),
    Mistake(
        "you route among the residents: the router chooses among all experts, then stand-ins "
        "replace the missing",
        _among_residents,
    ),
    Mistake(
        "where nobody stands in (E) the expert's part is zero: do not share its weight out",
        mixed(_renormalised),
    ),
    Mistake(
        "you take the stand-in's own weight: it computes with the weight of the expert that the "
        "router chose",
        mixed(_of_stand_ins),
    ),
    Mistake(
        "you take the stand-in's own weight: it computes with the weight of the expert that the "
        "router chose",
        mixed(_of_stand_ins_in_all),
    ),
    Mistake(
        "the weights are a softmax over all experts: take it over the chosen top_k alone, so that "
        "they sum to 1",
        mixed(lambda s, c, w, n: s.softmax(dim=-1).gather(1, c)),
    ),
    Mistake(
        "the outputs are added up unweighted: multiply each by its routing weight",
        mixed(lambda s, c, w, n: torch.ones(c.shape)),
    ),
    Mistake(
        "the outputs are averaged: multiply each by its routing weight",
        mixed(lambda s, c, w, n: torch.full(c.shape, 1 / c.shape[1])),
    ),
    Mistake(
        "the weights are the router's raw scores: take their softmax",
        mixed(lambda s, c, w, n: s.gather(1, c)),
    ),
    Mistake(
        "two choices with one stand-in are computed once and weighted once: their weights add up",
        mixed(_once),
    ),
    Mistake("only the first choice computes: a token has top_k", mixed(_first_alone)),
    Mistake(
        "hidden is added to the output: the residual is added outside of this layer",
        _plus(lambda hidden, *_: hidden),
    ),
    Mistake(
        "the experts with the lowest scores are taken: topk gives the highest",
        lambda h, r, e, s, k: mixed(lambda sc, c, w, n: (-sc).gather(1, c).softmax(-1))(
            h, -r, e, s, k
        ),
    ),
)


def read_output(answer) -> list[list[float]]:
    if isinstance(answer, torch.Tensor) and answer.dim() != 2:
        raise ExerciseError(
            f"your answer has the shape {list(answer.shape)}: [T, D] is needed, like hidden"
        )
    return [[float(x) for x in listed(row)] for row in listed(answer)]


def agrees(answer, right, arguments) -> bool:
    a, b = torch.tensor(answer), torch.tensor(right)
    return a.shape == b.shape and bool(torch.allclose(a, b, atol=1e-4, rtol=1e-4))


RULE = Rule(
    TASK,
    lambda *given: parts.draft_layer(*given).tolist(),
    read_output,
    MISTAKES,
    "the output is not the sum of routing weight times stand-in's output",
    agrees,
)


def _layer(draw: random.Random, num_experts: int, num_resident: int, tokens: int, top_k: int):
    """Random arguments; with nobody resident every stand-in is E."""
    size = 2 + draw.randrange(2)
    numbers = [[draw.randint(-9, 9) / 5 for _ in range(size)] for _ in range(tokens + num_experts)]
    hidden, router = torch.tensor(numbers[:tokens]), torch.tensor(numbers[tokens:])
    residents = draw.sample(range(num_experts), num_resident)
    places = [draw.random() for _ in range(num_experts)]
    distances = [[abs(a - b) for b in places] for a in places]
    stand_in = parts.table(distances, residents)
    if draw.random() < 0.3:  # without stand-ins for some: what nobody computes is zero
        stand_in = [
            e if e == i or draw.random() < 0.5 else num_experts for i, e in enumerate(stand_in)
        ]
    experts = [
        Expert(e, draw.randint(1, 5), draw.randint(-3, 3), e in residents)
        for e in range(num_experts)
    ]
    return hidden, router, experts, stand_in, top_k


def _cases() -> list[Case]:
    """All resident first, then fewer and fewer, then any."""
    draw = random.Random(10)
    cases = [
        Case(_layer(draw, 3, 3, 1, 1), "with top_k = 1 and all resident one expert computes"),
        Case(_layer(draw, 3, 3, 1, 2)),
        Case(_layer(draw, 4, 2, 2, 2)),
        Case(_layer(draw, 4, 1, 2, 2)),
        Case(_layer(draw, 3, 0, 2, 1), "with nobody resident the layer gives zeros"),
    ]
    for number in range(40):
        num_experts = 3 + number % 4
        resident = draw.randint(1, num_experts)
        cases.append(Case(_layer(draw, num_experts, resident, 3, 1 + number % 3)))
    return [case for case in cases if _apart(*case.arguments)]


def _apart(hidden, router, experts, stand_in, top_k) -> bool:
    """No two scores of a token are equal: which of them is chosen would be chance."""
    ordered = (hidden @ router.T).sort().values
    return bool((ordered.diff() > 1e-4).all())


def check_draft_layer(draft_layer: Callable) -> Passed:
    """Verdict on ``draft_layer(hidden, router, experts, stand_in, top_k)``; raises
    ``ExerciseError`` naming the mistake."""
    cases = _cases()
    RULE.check(draft_layer, cases)
    return Passed(f"the layer's output on {len(cases)} random layers, and no missing expert called")
