"""What became of every read that a verification needed: fates add up to the engine's own counts, and
each follows from the votes."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pytest
from conftest import PROMPTS

from specmoe.lab import figures, foresight

RUN = {"max_new_tokens": 16, "gamma": 3, "eos_token_id": []}


def fates(open_engine, batch_size: int):
    engine = open_engine("mixtral")
    return engine, *foresight.fates_of_misses(engine, PROMPTS, batch_size=batch_size, **RUN)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_fates_are_those_of_the_engines_misses(open_engine, batch_size):
    engine, found, output = fates(open_engine, batch_size)
    assert len(found) == output.stats.num_misses > 0
    used = (found["fate"] == foresight.AHEAD).sum() / len(found)
    assert used == pytest.approx(output.stats.prefetch_recall)
    assert set(found["fate"]) <= set(foresight.FATES)
    plain = engine.generate(PROMPTS, batch_size=batch_size, method="specmoe", **RUN)
    assert [row.tolist() for row in output.sequences] == [row.tolist() for row in plain.sequences]


def test_each_fate_follows_from_the_votes(open_engine):
    _, found, _ = fates(open_engine, 2)
    votes = {fate: set(part["votes"]) for fate, part in found.groupby("fate")}
    assert votes.get(foresight.UNNAMED, {0}) == {0}
    assert 0 not in votes.get(foresight.FEW, {1})
    assert min(votes.get(foresight.NO_BUFFER, {2})) >= 1
    assert len(votes) > 1, "the test needs reads of several fates"


def test_the_timeline_outlines_the_read_it_is_asked_to_mark(open_engine):
    engine = open_engine("mixtral")
    output = engine.generate(PROMPTS, method="specmoe", prefetch=False, batch_size=2, **RUN)
    frame = output.trace.to_frame()
    read = frame[(frame["kind"] == "fetch") & (frame["phase"] == "verify")].iloc[0]
    marked = figures.timeline(output, read["round"], mark=(read["layer"], read["expert"]))
    assert len(marked.patches) == 1
    assert not figures.timeline(output, read["round"]).patches
    plt.close("all")
