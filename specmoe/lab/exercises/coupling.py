"""Exercise 10: the coupled sampler, the package's default.

Comes in: the student's ``coupled(p, q, noise)``: the target's distributions ``[G + 1][V]``, the
draft's ``[G][V]``, exponential noise ``[G + 1][V]`` for the same positions -> (drafted tokens [G],
how many stand, the target's token after them). Goes out: a verdict. The text has to be what the
target alone draws with that noise, and its tokens have to follow p.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pandas as pd

from . import parts
from .calling import Task, whole, wholes
from .matching import Case, Mistake, Rule
from .verdict import Passed, require

TASK = Task(
    "coupled",
    ("p", "q", "noise"),
    "a triple: the drafted tokens, how many stand, the target's token after them",
)
NUM_DRAWS, FAR = 4000, 0.03


def race(score: Callable) -> Callable:
    """The token with the highest ``score(chance, noise)``."""
    return lambda chances, waits: max(
        range(len(chances)), key=lambda x: score(chances[x], waits[x])
    )


_right = race(lambda chance, wait: chance / wait)


def drawn_by(draft: Callable, target: Callable) -> Callable:
    """A rule from how the draft and the target draw at a position i of (p, q, noise)."""

    def rule(p, q, noise):
        drafted = [draft(p, q, noise, i) for i in range(len(q))]
        own = [target(p, q, noise, i) for i in range(len(p))]
        [(accepted, token)] = parts.accept([own], [drafted], [len(drafted)])
        return drafted, accepted, token

    return rule


def by(draw: Callable) -> Callable:
    """Both draw by ``draw(chances, noise)``."""
    return drawn_by(
        lambda p, q, noise, i: draw(q[i], noise[i]), lambda p, q, noise, i: draw(p[i], noise[i])
    )


def ends_as(end: Callable) -> Callable:
    """Right draws; ``end(drafted, own)`` gives what stands and the token."""

    def rule(p, q, noise):
        drafted = [_right(row, waits) for row, waits in zip(q, noise)]
        own = [_right(row, waits) for row, waits in zip(p, noise)]
        return drafted, *end(drafted, own)

    return rule


def _prefix(drafted, own) -> int:
    return parts.accept([own], [drafted], [len(drafted)])[0][0]


def _residual(drafted, own):
    accepted = _prefix(drafted, own)
    return accepted, (drafted + own[-1:])[accepted]


def _d(p, q, noise, i):
    return _right(q[i], noise[i])


def _t(p, q, noise, i):
    return _right(p[i], noise[i])


def _beyond(p, q, noise, i):
    if i == len(q):
        return _t(p, q, noise, i)
    beyond = [max(0.0, a - b) for a, b in zip(p[i], q[i])]
    same = _right(p[i], noise[i]) == _right(q[i], noise[i])
    return _right(p[i] if same or not sum(beyond) else beyond, noise[i])


SAME_NOISE = "draft and target must share the noise of a position, or they rarely agree"
MISTAKES = (
    Mistake(
        "you take the likeliest token: that is greedy, divide by the noise first",
        by(lambda chances, waits: chances.index(max(chances))),
    ),
    Mistake(
        "you multiply by the noise: the race is won by the largest p / noise",
        by(race(lambda chance, wait: chance * wait)),
    ),
    Mistake(
        "you take the smallest p / noise: the largest wins",
        by(race(lambda chance, wait: -chance / wait)),
    ),
    Mistake("you subtract the noise: divide by it", by(race(lambda chance, wait: chance - wait))),
    Mistake("you add the noise: divide by it", by(race(lambda chance, wait: chance + wait))),
    Mistake(
        "the noise alone decides: divide p by it",
        by(race(lambda chance, wait: -wait)),
    ),
    Mistake(SAME_NOISE, drawn_by(_d, lambda p, q, n, i: _right(p[i], n[min(i + 1, len(q))]))),
    Mistake(SAME_NOISE, drawn_by(_d, lambda p, q, n, i: _right(p[i], n[len(q) - i]))),
    Mistake(
        "every position has its own noise, and you use that of the first",
        drawn_by(lambda p, q, n, i: _right(q[i], n[0]), lambda p, q, n, i: _right(p[i], n[0])),
    ),
    Mistake("the draft draws from q: it has not seen p", drawn_by(_t, _t)),
    Mistake(
        "the draft is greedy and the target is not: both take the largest chance / noise",
        drawn_by(lambda p, q, n, i: q[i].index(max(q[i])), _t),
    ),
    Mistake(
        "the target is greedy and the draft is not: both take the largest chance / noise",
        drawn_by(_d, lambda p, q, n, i: p[i].index(max(p[i]))),
    ),
    Mistake(
        "a rejected token is replaced from max(0, p - q): that is the other rule, here the target "
        "has already drawn its token",
        drawn_by(_d, _beyond),
    ),
    Mistake(
        "agreement after a rejection does not count: take the prefix",
        ends_as(
            lambda drafted, own: (
                sum(a == b for a, b in zip(drafted, own)),
                own[_prefix(drafted, own)],
            )
        ),
    ),
    Mistake("the token that follows is the target's, not the drafted one", ends_as(_residual)),
    Mistake(
        "the token that follows is the target's at the first rejection, not at the end of the block",
        ends_as(lambda drafted, own: (_prefix(drafted, own), own[-1])),
    ),
    Mistake(
        "accepted counts drafted tokens only: the target's own token comes on top",
        ends_as(lambda d, own: (_prefix(d, own) + 1, own[_prefix(d, own)])),
    ),
    Mistake(
        "you accept whatever was drafted: compare each token with the target's",
        ends_as(lambda d, own: (len(d), own[-1])),
    ),
)


def read_round(answer) -> tuple[list[int], int, int]:
    drafted, accepted, token = answer
    return wholes(drafted), whole(accepted), whole(token)


RULE = Rule(
    TASK,
    parts.coupled,
    read_round,
    MISTAKES,
    "at each position draft and target take the token with the largest chance / noise; the drafted "
    "prefix that equals the target's stands",
)


def _chances(draw: random.Random, size: int) -> list[float]:
    """A random distribution in steps of 0.05."""
    cuts = sorted(draw.randint(0, 20) for _ in range(size - 1))
    return [(b - a) / 20 for a, b in zip([0, *cuts], [*cuts, 20])]


def _noise(draw: random.Random, rows: int, size: int) -> list[list[float]]:
    return [[round(draw.expovariate(1.0), 3) + 0.001 for _ in range(size)] for _ in range(rows)]


def _cases() -> list[Case]:
    """q near p, so that some drafted tokens stand; gamma from 0."""
    draw, cases = random.Random(13), []
    for number in range(80):
        size, gamma = 2 + number % 4, number % 5
        p = [_chances(draw, size) for _ in range(gamma + 1)]
        q = [row if draw.random() < 0.4 else _chances(draw, size) for row in p[:-1]]
        cases.append(Case((p, q, _noise(draw, gamma + 1, size))))
    return cases


def frequencies(coupled: Callable, p: list[float], q: list[float]) -> tuple[list[float], float]:
    """(how often each token comes first in the text, share of drafted tokens that stood), over
    ``NUM_DRAWS`` noises."""
    draw, counts, stood = random.Random(14), [0] * len(p), 0
    for _ in range(NUM_DRAWS):
        drafted, accepted, token = coupled([p, p], [q], _noise(draw, 2, len(p)))
        counts[drafted[0] if accepted else token] += 1
        stood += accepted
    return [count / NUM_DRAWS for count in counts], stood / NUM_DRAWS


def check_coupling(coupled: Callable) -> Passed:
    """Verdict on ``coupled(p, q, noise)``; raises ``ExerciseError`` naming the mistake."""
    cases, rows = _cases(), []
    RULE.check(coupled, cases)
    for p, q in (([0.1, 0.6, 0.3], [0.5, 0.3, 0.2]), ([0.5, 0.3, 0.2], [0.4, 0.4, 0.2])):
        came, stood = frequencies(coupled, p, q)
        far = sum(abs(a - b) for a, b in zip(came, p)) / 2
        require(far < FAR, f"tokens come with {came}, and the target's distribution is {p}")
        rows.append((p, q, round(far, 3), round(stood, 2), round(sum(map(min, p, q)), 2)))
    columns = ["p", "q", "distance_from_p", "accepted", "accepted_by_rejection"]
    return Passed(
        f"the target's own draws on {len(cases)} random rounds; over {NUM_DRAWS} noises its "
        "tokens follow p",
        pd.DataFrame(rows, columns=columns),
    )
