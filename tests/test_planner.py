"""The planner finds the gamma with the fewest seconds per token, on machines of given costs."""

from __future__ import annotations

import random

import pytest

from specmoe.speculate.planner import CANDIDATES, CostPlanner, FixedGamma
from specmoe.trace import Round


def simulate(
    planner, draft_step_s: float, verify_s, acceptance: float, num_rounds: int = 300, rows: int = 8
) -> list[int]:
    """Gammas chosen on a machine where a draft step takes ``draft_step_s`` and a verification
    ``verify_s(gamma)``."""
    chance, chosen = random.Random(0), []
    for _ in range(num_rounds):
        gamma = planner.next_gamma()
        accepted = []
        for _ in range(rows):
            num = 0
            while num < gamma and chance.random() < acceptance:
                num += 1
            accepted.append(num)
        planner.observe(
            Round(gamma, gamma * draft_step_s, verify_s(gamma), [gamma] * rows, accepted)
        )
        chosen.append(gamma)
    return chosen


def usual(chosen: list[int]) -> int:
    """What it settled on: the most frequent choice of the last hundred rounds."""
    return max(set(chosen[-100:]), key=chosen[-100:].count)


def test_a_fixed_gamma_stays():
    planner = FixedGamma(3)
    planner.observe(Round(3, 9.0, 9.0, [3], [0]))
    assert planner.next_gamma() == 3


def test_cheap_drafts_that_are_accepted_make_gamma_long():
    assert usual(simulate(CostPlanner(), 0.001, lambda gamma: 1.0, 0.95)) >= 8


def test_dear_drafts_that_are_refused_turn_drafting_off():
    assert usual(simulate(CostPlanner(), 1.0, lambda gamma: 1.0, 0.1)) == 0


def test_verifications_that_grow_with_gamma_keep_it_short():
    dear = usual(simulate(CostPlanner(), 0.02, lambda gamma: 1.0 + 0.6 * gamma, 0.7))
    cheap = usual(simulate(CostPlanner(), 0.02, lambda gamma: 1.0, 0.7))
    assert dear < cheap


@pytest.mark.parametrize(
    "draft_step_s, slope, acceptance", [(0.05, 0.05, 0.8), (0.2, 0.0, 0.6), (0.01, 0.2, 0.9)]
)
def test_the_choice_is_within_a_tenth_of_the_best(draft_step_s, slope, acceptance):
    def seconds_per_token(gamma):
        tokens = sum(acceptance**i for i in range(gamma + 1))
        return (1.0 + slope * gamma + gamma * draft_step_s) / tokens

    chosen = usual(
        simulate(CostPlanner(), draft_step_s, lambda gamma: 1.0 + slope * gamma, acceptance)
    )
    assert seconds_per_token(chosen) <= 1.1 * min(map(seconds_per_token, CANDIDATES))


def test_it_finds_back_when_the_machine_changes():
    planner = CostPlanner()
    assert usual(simulate(planner, 1.0, lambda gamma: 1.0, 0.2)) == 0
    assert usual(simulate(planner, 0.001, lambda gamma: 1.0, 0.95, num_rounds=600)) > 0


def test_specmoe_never_plans_zero_and_auto_with_a_gamma_plans_that_or_zero():
    assert 0 not in simulate(CostPlanner(CANDIDATES[1:]), 1.0, lambda gamma: 1.0, 0.0)
    assert set(simulate(CostPlanner((0, 7)), 0.01, lambda gamma: 1.0, 0.9)) == {0, 7}
