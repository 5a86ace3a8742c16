"""A draft that is cut by the experts it would newly ask for: by hand, exact, and as the page says."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import PROMPTS

from specmoe.lab import by_bytes_counts, second_branch
from specmoe.lab.by_bytes import RULES, ByBytes, Costs, Told
from specmoe.lab.markdown import markdown_table
from specmoe.speculate.block import Drafting
from specmoe.speculate.planner import FixedGamma
from specmoe.trace import Round

PAGE = Path(__file__).resolve().parents[1] / "docs" / "bytes.md"


def planner_of(resident: set[int], rule: str) -> ByBytes:
    """One layer of eight experts, a read takes a second, so does a token until now."""
    pool = SimpleNamespace(
        resident_experts=lambda layer: resident, counts=SimpleNamespace(num_fetches=0)
    )
    experts = SimpleNamespace(
        installed=SimpleNamespace(num_experts=8),
        pool=pool,
        stand_ins=SimpleNamespace(of=lambda layer, index: index),
    )
    planner = ByBytes(experts, 4, Costs(1.0), rule)
    planner.token_s = 1.0
    return planner


def draft(planner: ByBytes, asked: list[list[int]], sure: list[list[float]]) -> list[int]:
    """``asked``: each step's expert for the token that every row feeds; ``sure``: of the token it
    picks. -> tokens that each row verifies."""
    rows = len(asked[0])
    block = Drafting(torch.full((rows,), len(asked)), torch.tensor([], dtype=torch.long))
    for experts, confidence in zip(asked, sure, strict=True):
        planner.heard.of(0, torch.tensor(experts)[:, None])
        block.append(torch.zeros(rows, dtype=torch.long), None)
        chances = torch.tensor(confidence, dtype=torch.float64)
        block.restrict(*planner.keep_drafting(block, lambda chances=chances: chances))
    return block.num.tolist()


@pytest.mark.parametrize("rule", RULES)
def test_a_token_of_new_experts_is_left_out_and_one_of_named_experts_is_not(rule):
    # the first tokens ask for 0 (resident) and 1; then row 0 feeds a token that asks for 1, which
    # the block has named, and row 1 one that asks for 2, which nobody has
    asked, sure = [[0, 1], [1, 2], [1, 3]], [[0.4, 0.3], [0.9, 0.9], [0.9, 0.9]]
    assert draft(planner_of({0}, rule), asked, sure) == [3, 0]
    # nothing has to be read
    assert draft(planner_of({0, 1, 2, 3}, rule), asked, sure) == [3, 3]


def test_a_dear_token_is_paid_by_those_behind_it():
    # one new expert, which all that follow use, too: the first token alone would not be worth it
    asked = [[0], [5], [5], [5]]
    sure = [[0.9], [1.0], [1.0], [1.0]]
    assert draft(planner_of({0}, "price"), asked, sure) == [4]
    assert draft(planner_of({0}, "price"), asked[:2], [[0.9], [0.01]]) == [0]


def test_only_a_wrong_token_wastes_what_it_reads():
    # surely right, and dearer than a token is now: the price leaves it out, waste does not
    asked, sure = [[0], [5]], [[1.0], [0.0]]
    for rule, verified in (("price", 0), ("waste", 1)):
        planner = planner_of({0}, rule)
        planner.token_s, planner.usual = 0.5, 0.1
        assert draft(planner, asked, sure) == [verified]


def test_a_planner_is_told_the_seconds_of_the_described_machine():
    planner = FixedGamma(3)
    seen = []
    planner.observe = seen.append
    counts = SimpleNamespace(num_fetches=7)  # a prefill's
    told = Told(planner, SimpleNamespace(pool=SimpleNamespace(counts=counts)), Costs(2, 3, 5, 0.5))
    assert told.next_gamma() == 3
    counts.num_fetches += 4
    told.observe(Round(2, 9.0, 9.0, [2, 1], [1, 1], steps=[(2, 4.0), (1, 4.0)], new_tokens=4))
    (done,) = seen
    assert (done.draft_s, done.steps) == (6, [(2, 3), (1, 3)])
    assert done.verify_s == 5 + 5 * 0.5 + 4 * 2


@pytest.mark.parametrize("name", ["auto", "by_bytes, waste", "gamma 4"])
def test_every_planner_is_counted(name, open_engine):
    engine = open_engine("mixtral", draft_experts=2)
    link = None if name.startswith("gamma") else 2e9
    rows = by_bytes_counts.count(engine, PROMPTS[:2], 2, name, link)
    assert [row["link"] for row in rows] == ([2.0] if link else [0.25, 12.0, 2.0])
    assert all(row["reads_per_token"] > 0 and row["tokens_per_round"] >= 1 for row in rows)
    if link is None:
        seconds = {row["link"]: row["seconds_per_token"] for row in rows}
        assert seconds[0.25] > seconds[2.0] > seconds[12.0]


def num_drafted(output) -> int:
    return sum(len(block.drafted) for block in output.trace.blocks)


def run(engine, planner=None, **options):
    how = {"method": "specmoe", "gamma": 4, "batch_size": 2, "max_new_tokens": 12, **options}
    with engine.start(PROMPTS[:3], **how) as started:
        if planner:
            started.batch.planner = planner(started.batch.experts)
        return started.output()


@pytest.mark.parametrize("rule", RULES)
def test_the_text_stays_and_drafts_only_get_shorter(rule, open_engine):
    engine = open_engine("mixtral", draft_experts=2)
    whole = run(engine)
    # every token is dear: a read takes as long as a thousand tokens
    cut = run(engine, lambda experts: ByBytes(experts, 4, Costs(1.0, verify_s=1e-3), rule))
    assert [t.tolist() for t in cut.sequences] == [t.tolist() for t in whole.sequences]
    assert num_drafted(cut) < num_drafted(whole)


def test_a_sampled_draft_is_left_as_it_is(open_engine):
    engine = open_engine("mixtral", draft_experts=2)
    sampled = {"do_sample": True, "seed": 3}
    cut = run(engine, lambda experts: ByBytes(experts, 4, Costs(1.0)), **sampled)
    whole = run(engine, **sampled)
    assert [t.tolist() for t in cut.sequences] == [t.tolist() for t in whole.sequences]
    assert [b.drafted for b in cut.trace.blocks] == [b.drafted for b in whole.trace.blocks]


def test_a_second_branch_is_counted(open_engine):
    row = second_branch.count(open_engine("mixtral", draft_experts=2), PROMPTS, 2)
    assert 0 <= row["gain"] <= row["rejected"] * row["second_right"] <= 1
    assert row["second_right"] > 0
    assert row["price"] > 0


def test_the_page_shows_what_was_counted():
    rows, page = by_bytes_counts.shipped(), PAGE.read_text(encoding="utf-8")
    cells = rows.groupby(["model", "batch", "link"])["planner"].nunique()
    assert len(cells) == 36 and cells.min() == 4
    assert markdown_table(by_bytes_counts.summary(rows)) in page
    assert markdown_table(by_bytes_counts.table(rows)) in page


def test_what_the_page_says_in_words():
    rows = by_bytes_counts.shipped()
    rows = rows[rows["planner"] != "by_bytes, price"]

    def by_bytes(rival):
        found = by_bytes_counts.compared(rows, rival)
        return found[found["planner"] == "by_bytes, waste"]

    fixed, auto = by_bytes("gamma 10"), by_bytes("auto")
    assert (fixed["bytes"][fixed["link"] == 0.25] <= 1).all()
    assert (auto["bytes"][auto["link"] == 0.25] < 1).sum() == 10
    assert fixed[fixed["seconds"] > 1].groupby("link").size().to_dict() == {0.25: 3, 2: 7, 12: 9}
    assert (auto["seconds"][(auto["batch"] == 1) & (auto["link"] > 1)] > 1).all()
    longest = by_bytes("gamma 16")
    assert (longest["bytes"][longest["link"] == 0.25] > 1).sum() == 5
    best = fixed.loc[fixed["bytes"].idxmin()]
    assert (best["model"], best["batch"], round(best["bytes"], 2)) == ("tiny-balanced", 1, 0.67)
    many = by_bytes_counts.shipped().query("batch == 64 and link == 0.25").set_index("planner")
    alike = [many.loc[f"by_bytes, {rule}", "reads_per_token"].tolist() for rule in RULES]
    assert alike[0] == alike[1]


def test_no_second_branch_pays_by_more_than_the_page_says():
    rows = second_branch.shipped().set_index(["model", "batch"]).round(2)
    assert rows["worth"].drop("tiny-balanced", level="model").max() < 0.5
    assert rows.loc["tiny-balanced"][["worth", "gain"]].values.tolist() == [
        [1.03, 0.18],
        [1.52, 0.06],
    ]
