"""``auto`` on described machines: what its planner costs beside the best single method. Simulated, no
clock: the same everywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from specmoe.lab.markdown import markdown_table
from specmoe.lab.simulate import auto, even_jobs
from specmoe.speculate.planner import Planner

PAGE = Path(__file__).resolve().parents[1] / "docs" / "auto.md"
LIMIT = 1.3


def worst(model: str, batch: int, **given) -> float:
    return float(auto.survey([model], [None], [batch], **given)["ratio"].max())


def test_thirty_machines_of_all_kinds():
    machines = auto.machines()
    assert len(machines) == 30 == len({each.name for each in machines})
    balances = [each.balance for each in machines]
    assert min(balances) < 10 and max(balances) > 1e5


@pytest.mark.parametrize("model, batch", [("tiny-skewed", 1), ("tiny-balanced", 16)])
def test_auto_costs_little_more_than_the_best_method_on_every_machine(model, batch):
    found = auto.survey([model], [None], [batch])
    assert found["ratio"].max() <= LIMIT
    kept = auto.shipped().query("like == @model and batch == @batch and size == 'as recorded'")
    assert found["ratio"].tolist() == pytest.approx(kept["ratio"].tolist(), abs=1e-3)


class Gambler(Planner):
    """Tries long drafts and none in turn, whatever they cost."""

    def __init__(self, first):
        super().__init__(16)
        self.turn = 0

    def next_gamma(self):
        self.turn += 1
        return 16 * (self.turn % 2)


def test_a_planner_that_gambles_is_found_out(monkeypatch):
    monkeypatch.setattr(auto, "PLANNERS", {"gambler": Gambler})
    assert worst("tiny-balanced", 16) > 2 * LIMIT


@pytest.mark.parametrize("drafts", ["trained", "random"])
def test_at_real_size_a_text_of_few_rounds_is_no_gamble(drafts):
    """Sixteen texts of 32 tokens on this machine: eight rounds of ten seconds."""
    found = even_jobs.real_size([even_jobs.HERE], even_jobs.SHARES, (16,), (drafts,))
    assert set(found["best"]) == {"specmoe, gamma 10"} and found["ratio"].max() < 1.15
    kept = even_jobs.shipped().query("drafts == @drafts and batch == 16")
    assert even_jobs.summary(found)["ratio"].tolist() == pytest.approx(
        kept["ratio"].tolist(), abs=1e-3
    )


def test_stalls_of_the_clock_do_not_turn_the_choice():
    """One round in twenty seems to take four times as long, the others a fifth more or less."""
    assert worst("tiny-balanced", 16, noise=lambda: auto.shaky(0)) <= LIMIT


def test_accepted_tokens_are_spread_over_rows():
    drafts = [4, 4, 2, 4]
    for total in range(15):
        found = auto.spread(drafts, total, 0.8)
        assert sum(found) == total and all(0 <= a <= d for a, d in zip(found, drafts))


def test_the_survey_that_is_shipped_keeps_the_limit_and_the_page_shows_it():
    rows = auto.shipped()
    cells = {(row.like, row.batch) for row in rows.itertuples()}
    assert cells == {(model, batch) for model in auto.SHIPPED for batch in auto.BATCHES}
    assert rows.groupby(["like", "size", "batch", "planner"])["machine"].nunique().eq(30).all()
    assert rows["ratio"].max() <= LIMIT
    assert markdown_table(auto.table(rows)) in PAGE.read_text(encoding="utf-8")


def test_texts_of_few_rounds_keep_the_limit_and_the_page_shows_them():
    kept = even_jobs.shipped()
    assert len(kept) == 2 * len(even_jobs.DRAFTS) * len(even_jobs.BATCHES)
    assert kept["ratio"].max() <= LIMIT
    assert markdown_table(even_jobs.table(kept)) in PAGE.read_text(encoding="utf-8")
