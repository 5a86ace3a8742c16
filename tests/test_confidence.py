"""The planner that weighs each drafted token, and the block that grows by its word: hand-made
costs, no clock."""

from dataclasses import replace

import pytest
import torch

from specmoe.speculate.block import Drafting
from specmoe.speculate.confidence import MAX_GAMMA, ConfidencePlanner
from specmoe.speculate.evidence import (
    SHORT,
    Line,
    Verdicts,
    first_draft,
    least_plain_s,
    one_more_s,
)
from specmoe.speculate.planner import LOSS, FixedGamma
from specmoe.speculate.ways import KEEP, LOOK_AGAIN, STALL, TRIAL, Ways
from specmoe.trace import Round

NO_EOS = torch.tensor([], dtype=torch.long)


def observe(
    planner,
    rows=4,
    gamma=4,
    verify_s=0.1,
    per_token_s=0.01,
    step_s=0.01,
    per_row_s=0.001,
    accepted=4,
    expected=0.5,
):
    """One round on an imagined machine."""
    drafted = [gamma] * rows
    steps = tuple((rows, step_s + per_row_s * rows) for _ in range(gamma))
    cost_s = verify_s + per_token_s * rows * (gamma + 1)
    accepted = [min(accepted, gamma)] * rows
    draft_s = sum(seconds for _, seconds in steps)
    planner.observe(
        Round(gamma, draft_s, cost_s, drafted, accepted, steps, expected, sum(accepted) + rows)
    )


def step(block: Drafting, picked: torch.Tensor, planner) -> None:
    block.append(picked, None)
    block.restrict(*planner.keep_drafting(block, lambda: None))


def settled(may_not_draft=True, **costs) -> ConfidencePlanner:
    """After its trials, on a machine of such costs."""
    planner = ConfidencePlanner(may_not_draft)
    while not planner.settled:
        observe(planner, gamma=planner.next_gamma(), **costs)
    return planner


def test_a_line_through_points_that_lie_on_one_is_found():
    line = Line(0.9)
    for x in (1, 5, 9, 3):
        line.add(x, 2 + 0.5 * x)
    # a point's own share of the cost says something, too: more than half of it while there are few
    for _ in range(30):
        for x in (1, 5, 9, 3):
            line.add(x, 2 + 0.5 * x)
    assert line.slope == pytest.approx(0.5, rel=0.02) and line.base == pytest.approx(2, rel=0.02)


def test_points_close_together_hardly_move_the_slope():
    """A tenth more tokens, and a clock that said a third more or less."""
    for last in (8.0, 16.0):
        line = Line(0.9)
        line.add(100, 12.0)
        line.add(110, last)
        assert line.slope_near(0.001) == pytest.approx(0.001, abs=0.02)


def test_before_x_has_varied_half_of_the_cost_counts_as_slope():
    line = Line(0.9)
    line.add(4, 8)
    assert line.slope == pytest.approx(1) and line.base == pytest.approx(4)


def test_it_drafts_where_drafting_pays_and_not_where_it_does_not():
    assert settled(verify_s=1.0).next_gamma() == MAX_GAMMA
    assert settled(verify_s=0.0, step_s=1.0).next_gamma() == 0
    assert settled(may_not_draft=False, verify_s=0.0, step_s=1.0).next_gamma() == MAX_GAMMA


def after(draft_s: float, plain_s: float, rounds: int = 40, tokens: int = 4) -> Ways:
    """Ways that have seen so many rounds of each kind, at so many seconds for a token."""
    ways = Ways()
    for _ in range(rounds):
        ways.add(Round(2, draft_s * tokens, 0.0, [2], [1], ((1, 0.1),), new_tokens=tokens))
        ways.add(Round(0, 0.0, plain_s * tokens, [0], [0], new_tokens=tokens))
    ways.verify_row_s = None
    return ways


def test_plain_decoding_is_tried_again_sooner_when_it_was_nearly_as_fast():
    assert after(1.0, 1.1).patience() < after(1.0, 3.0).patience()


def never(token_s: float) -> bool:
    return False


def test_a_trial_of_the_other_way_lasts_some_rounds_and_comes_back():
    chosen = [
        w.next_drafts(never) for w in [after(1.0, 1.5)] for _ in range(LOOK_AGAIN + TRIAL + 2)
    ]
    tried = chosen.index(False)
    assert tried == LOOK_AGAIN - 1
    assert chosen == [True] * tried + [False] * TRIAL + [True] * (len(chosen) - tried - TRIAL)


@pytest.mark.parametrize("draft_s, plain_s", [(1.0, 40.0), (40.0, 1.0), (2.0, 1.0)])
def test_trials_never_cost_more_than_their_share(draft_s, plain_s):
    """A machine on which one way is far slower: whatever is tried, the loss stays small."""
    ways, costs, spent_s, lost_s = Ways(), {True: draft_s, False: plain_s}, 0.0, 0.0
    for number in range(600):
        # the first rounds say what both cost
        drafts = ways.next_drafts(never) if number > 2 else number != 1
        seconds = costs[drafts] * 4
        steps = ((4, seconds),) if drafts else ()
        ways.add(Round(len(steps), seconds, 0.0, [1] * 4, [0] * 4, steps, new_tokens=4))
        ways.verify_row_s = None
        if number > 2:
            spent_s, lost_s = spent_s + seconds, lost_s + 4 * (costs[drafts] - min(costs.values()))
    assert lost_s <= 1.1 * LOSS * (spent_s + 8 * (draft_s + plain_s))


def test_one_round_that_was_stopped_by_something_else_changes_little():
    ways = after(1.0, 1.5)
    before = ways.seconds_per_token[True]
    ways.add(Round(2, 400.0, 0.0, [2], [1], ((1, 0.1),), new_tokens=4))
    assert ways.seconds_per_token[True] < before + (STALL - 1) * (1 - KEEP) * 1.5
    ways.verify_row_s = None
    assert ways.next_drafts(never)


def test_a_plain_pass_costs_at_most_a_verification_of_the_same_rows():
    ways = Ways()
    ways.add(Round(0, 0.0, 40.0, [0] * 4, [0] * 4, new_tokens=4))  # ten times what it should take
    ways.add(Round(2, 1.0, 8.0, [2] * 4, [1] * 4, ((4, 0.5),) * 2, new_tokens=6))
    assert ways.seconds_per_token[False] == 10.0 and ways.plain_s == 2.0


def test_auto_begins_with_short_drafts_and_goes_on_where_one_more_token_would_pay():
    planner = ConfidencePlanner(True)
    assert planner.next_gamma() == SHORT and planner.settled
    # a token takes 0.1 s plain, a draft step 0.01 s, a drafted token of the block nothing
    assert settled(verify_s=0.4, per_token_s=0.0).next_gamma() == MAX_GAMMA
    # here one more token costs ten times what it saves
    dear = settled(verify_s=0.0, per_token_s=0.0, step_s=4.0)
    assert [dear.next_gamma() for _ in range(20)] == [0] * 20


def test_a_draft_none_of_which_counts_is_no_surprise():
    """Rows that were to draft and had no token worth verifying."""
    planner = ConfidencePlanner(True)
    for gamma in (2, 0, 2, 2):
        planner.next_gamma()
        steps = ((4, 0.01),) * gamma
        planner.observe(Round(gamma, 0.02, 1.0, [0] * 4, [0] * 4, steps, new_tokens=4))
    assert planner.next_gamma() in (0, MAX_GAMMA)
    planner.keep_drafting(Drafting(torch.tensor([3]), NO_EOS), lambda: torch.tensor([0.9]).double())


def test_a_token_costs_what_recent_rounds_took_together_not_the_mean_of_each():
    planner = ConfidencePlanner(False)
    for tokens in (1, 1, 10, 1, 10):  # one second each; the first only warms up
        planner.observe(Round(1, 0.5, 0.5, [10], [tokens - 1], ((1, 0.05),) * 10, 0.0, tokens))
    weights = [KEEP**age for age in range(4)]
    together = sum(weights) / sum(w * t for w, t in zip(weights, (10, 1, 10, 1)))
    assert planner.ways.seconds_per_token[True] == pytest.approx(together)
    assert together < sum(w * s for w, s in zip(weights, (0.1, 1, 0.1, 1))) / sum(weights)


def test_a_token_is_verified_only_if_its_chance_pays_for_it():
    planner = settled(verify_s=0.0, per_token_s=0.02)
    planner.next_gamma()
    worth = planner._worth_verifying(torch.tensor([0.99, 0.01], dtype=torch.float64))
    assert worth.tolist() == [True, False]


def test_the_costlier_the_verified_token_the_higher_the_bar():
    chances = torch.linspace(0, 1, 101, dtype=torch.float64)
    kept = []
    for per_token_s in (0.001, 0.02):
        planner = settled(verify_s=0.2, per_token_s=per_token_s)
        planner.next_gamma()
        kept.append(int(planner._worth_verifying(chances).sum()))
    assert kept[0] > kept[1] > 0


def test_drafting_ends_for_all_when_together_they_do_not_pay_for_a_step():
    planner = settled(verify_s=0.2, per_token_s=0.001, step_s=0.01)
    planner.next_gamma()
    planner.step.y *= 1000  # a draft step is dear now
    active = torch.tensor([True, True])
    assert not planner._worth_drafting(torch.tensor([0.9, 0.9], dtype=torch.float64), active).any()


def judged(sure: float, accepted: list[int], gamma: int = 2) -> Verdicts:
    """After one round: what became of ``gamma`` drafted tokens of each row."""
    verdicts, block = Verdicts(), Drafting(torch.full((len(accepted),), gamma), NO_EOS)
    for _ in range(gamma):
        verdicts.hear(block, torch.full((len(accepted),), sure))
    verdicts.add(Round(gamma, 0.1, 1.0, [gamma] * len(accepted), accepted))
    return verdicts


def test_a_draft_that_is_too_sure_is_believed_less():
    planner = ConfidencePlanner(False)
    sure = torch.tensor([0.9], dtype=torch.float64)
    before = float(planner.accept_prob(sure))
    planner.verdicts = judged(0.9, [0, 1, 0, 2])
    assert float(planner.accept_prob(sure)) < before - 0.05


def test_one_round_of_many_rows_tells_that_a_draft_is_right_whatever_it_says():
    """Random weights spread a draft's confidence over the whole vocabulary, and it is right."""
    planner, never_sure = ConfidencePlanner(True), torch.tensor([0.001], dtype=torch.float64)
    assert float(planner.accept_prob(never_sure)) < 0.02
    planner.verdicts = judged(0.001, [2] * 12 + [1, 1, 0, 0])
    assert float(planner.accept_prob(never_sure)) > 0.7 and planner.verdicts.agreement > 0.8


def test_tokens_behind_a_rejection_and_rows_that_did_not_draft_are_no_verdicts():
    verdicts, block = Verdicts(), Drafting(torch.tensor([2, 0, 2]), NO_EOS)
    for _ in range(2):
        verdicts.hear(block, torch.full((3,), 0.5))
    verdicts.add(Round(2, 0.1, 1.0, [2, 2, 2], [0, 0, 2]))
    assert (verdicts.judged, verdicts.rejected, verdicts.expected) == (3, 1, 1.5)


# 16 rows that drafted two tokens: 48 named 63.9 of 64 experts, 16 name 56
SATURATED = Round(2, 0.5, 11.0, [2] * 16, [1] * 16, new_tokens=32, named=63.9 / 64, wait_s=10.0)


def test_where_every_expert_is_named_one_more_token_costs_no_reads():
    assert one_more_s(SATURATED) == pytest.approx(0.5 / 48, rel=0.25)
    # nobody says what was named: half of all
    assert one_more_s(replace(SATURATED, named=0.0)) == pytest.approx(5.5 / 48)


def test_counts_say_that_plain_decoding_reads_nearly_as_much():
    assert least_plain_s(SATURATED) == pytest.approx(1 / 3 + 10 * 0.884, rel=0.01)
    assert least_plain_s(replace(SATURATED, named=0.0)) == pytest.approx(11 / 3)


def test_what_was_read_ahead_plain_decoding_would_wait_for():
    """A draft hides the reads of its verification: that is then no bound for a plain pass."""
    ways = Ways()
    ways.add(replace(SATURATED, steps=((16, 0.25),) * 2, draft_s=9.0, wait_s=1.0, num_ahead=900))
    assert ways.plain_s == pytest.approx((9 + 11) / 16)


def test_the_first_draft_is_long_where_a_batch_names_every_expert_anyway():
    assert first_draft(1, 8, 64) == first_draft(1, 2, 8) == SHORT
    assert first_draft(16, 8, 64) >= 6 and first_draft(64, 2, 8) >= 6
    assert first_draft(16, None, 64) == SHORT


def test_plain_rounds_say_nothing_about_what_one_more_token_costs():
    """A row's first token asks for the most experts: with it in the line, every further one would
    look dearer than it is."""
    with_plain, without = (settled(may_not_draft=False) for _ in range(2))
    for gamma in (4, 8, 4, 8):
        observe(with_plain, gamma=0, verify_s=0.0, per_token_s=0.001)
        for planner in (with_plain, without):
            observe(planner, gamma=gamma, verify_s=0.1, per_token_s=0.002)
    assert with_plain.verify.slope == without.verify.slope > 0


def test_a_capacity_bounds_the_block():
    planner = ConfidencePlanner(True, max_block=4)
    assert planner.max_gamma == 3 and all(planner.next_gamma() <= 3 for _ in range(10))


def test_rows_end_at_eos_and_limit_and_unused_columns_go():
    block, fixed = Drafting(torch.tensor([3, 2, 1]), torch.tensor([9])), FixedGamma(3)
    step(block, torch.tensor([9, 1, 1]), fixed)
    assert block.active.tolist() == [False, True, False]
    step(block, torch.tensor([5, 5, 5]), fixed)
    assert not block.active.any()
    drafted = block.block()
    assert drafted.num == [1, 2, 1] and drafted.tokens.shape == (3, 2)


def test_rows_that_have_stopped_are_left_out_once_they_are_many():
    block = Drafting(torch.tensor([1] * 6 + [5] * 4), NO_EOS)
    step(block, torch.arange(10), FixedGamma(5))
    kept = block.leave_out()
    assert kept.tolist() == [6, 7, 8, 9] and block.computed_rows.tolist() == kept.tolist()
    step(block, torch.tensor([1, 2, 3, 4]), FixedGamma(5))
    assert block.block().tokens[6:].tolist() == [[6, 1], [7, 2], [8, 3], [9, 4]]


def test_one_row_is_never_left_alone():
    """A compiled pass knows one row as a case of its own."""
    block = Drafting(torch.tensor([1] * 9 + [5]), NO_EOS)
    step(block, torch.arange(10), FixedGamma(5))
    assert len(block.leave_out()) == 2
