"""Your own in ten lines: each kind of part by name, in generate, bench, sweeps and replays; whatever it answers, the
text is the target's, or the refusal is one sentence."""

from __future__ import annotations

import pytest
from conftest import PROMPTS, tokens_of

import specmoe
from specmoe import registry
from specmoe.cli import parser
from specmoe.lab import exercises, replay, simulate, sweep, widgets
from specmoe.lab.bench.methods import run_bench
from specmoe.speculate.planner import Planner

# What a user's file says, ten lines for all five.
OWN = """
import specmoe
def twice(texts, limits):
    return [text[-1:] * limit for text, limit in zip(texts, limits)]
class Rarest:
    def __init__(self, num_layers, num_experts, num_kept):
        self.num_kept = num_kept
    def keep(self, layer, counts, resident):
        here = resident | {expert for expert, count in enumerate(counts) if count}
        return sorted(here, key=lambda expert: counts[expert])[: self.num_kept]
def nearest(layer, residents, distances):
    return [min(residents, key=lambda r: distances[expert, r]) for expert in range(len(distances))]
def three(rounds):
    return min(3, len(rounds))
specmoe.register("draft", "mine", twice)
specmoe.register("draft_set", "mine", lambda layer, counts, num: [len(counts) - 1 - e for e in range(num)])
specmoe.register("substitute", "mine", nearest)
specmoe.register("eviction", "mine", Rarest)
specmoe.register("planner", "mine", three)
"""
METHOD = dict.fromkeys(registry.KINDS, "specmoe") | {"eviction": "cached"}


@pytest.fixture
def plugin(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    registry.plug_in([path])
    yield path
    for kind in registry.KINDS:
        registry.forget(kind, "mine")


def generate(engine, kind, value, **options):
    options = {"method": METHOD[kind], "max_new_tokens": 8, "eos_token_id": [], **options}
    gamma = {} if kind == "planner" or "gamma" in options else {"gamma": 3}
    return engine.generate(PROMPTS, **{kind: value}, **gamma, **options)


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("kind", registry.KINDS)
def test_each_kind_is_a_name_in_generate_and_the_text_stays_exact(
    kind, sampled, plugin, open_engine, monkeypatch
):
    engine, asked, ask = open_engine(), [], registry.Part.ask
    how = {"do_sample": True, "seed": 3} if sampled else {}
    plain = {"method": "on_demand", "max_new_tokens": 8, "eos_token_id": []}
    want = tokens_of(engine.generate(PROMPTS, **plain, **how))
    seen = lambda part, *given: asked.append(part.label) or ask(part, *given)  # noqa: E731
    monkeypatch.setattr(registry.Part, "ask", seen)
    assert tokens_of(generate(engine, kind, "mine", **how)) == want
    assert asked.count(f"{kind} mine") > 2, "the user's part was asked"


def test_a_planner_of_three_lines_drafts_what_it_says(plugin, open_engine):
    options = {"method": "specmoe", "max_new_tokens": 12, "eos_token_id": []}
    with open_engine().start(PROMPTS[:1], planner="mine", **options) as run:
        gammas = [done.gamma for done in run]
    assert gammas[:3] == [0, 1, 2] and max(gammas) <= 3


WRONG = {
    "draft": [(lambda *_: 7, "return a list of token ids"), (lambda *_: [[1]], "drafts for 1 of")],
    "draft_set": [
        (lambda *_: "ab", "return a list of expert numbers"),
        (lambda *_: [0, 0], "at most . distinct experts"),
        (lambda *_: [99], r"experts are 0\.\."),
        (lambda *_: [], "at least one expert must draft"),
    ],
    "substitute": [
        (lambda *_: None, "return a list of a resident or None for each expert"),
        (lambda *_: [0.5] * 8, "return a list of a resident or None for each expert"),
        (lambda layer, residents, _: residents, "return one for each of"),
        (lambda layer, residents, distances: [99] * len(distances), "expert 99 .* that draft are"),
    ],
    "eviction": [
        (lambda *_: 3, "return a list of expert numbers"),
        (lambda *_: [1, 1], "at most"),
        (lambda *_: [-1], r"experts are 0\.\."),
        (
            lambda layer, counts, resident, _: [e for e, n in enumerate(counts) if not n][-1:],
            "neither asked for nor resident",
        ),
    ],
    "planner": [
        (lambda rounds: "many", "return a whole number"),
        (lambda rounds: None, "return a whole number"),
        (lambda rounds: 33, "33 tokens to draft: 0 to 32 may be"),
        (lambda rounds: -1, "0 to 32 may be"),
    ],
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_answer_is_one_sentence_and_the_engine_goes_on(kind, open_engine):
    engine = open_engine()

    def broken(*_):
        raise KeyError("nothing\nhere")

    class NoObject:
        def __init__(self, *sizes):
            raise ValueError("not today")

    raising = [(broken, "raised KeyError: "), (NoObject, "raised ValueError: not today")]
    try:
        for given, says in WRONG[kind] + raising:
            registry.register(kind, "wrong", given)
            with pytest.raises(specmoe.OptionError, match=says) as refusal:
                generate(engine, kind, "wrong")
            assert str(refusal.value).startswith(f"{kind} wrong ")
            assert "\n" not in str(refusal.value)
    finally:
        registry.forget(kind, "wrong")
    assert len(engine.generate(PROMPTS, max_new_tokens=2).sequences) == len(PROMPTS)


class Masks(Planner):
    """A planner whose row masks are ``answer``."""

    answer = None

    def next_gamma(self):
        return 3

    def keep_drafting(self, block, confidence):
        return self.answer(block, confidence)


MASKS = {
    "return a mask": lambda block, confidence: None,
    r"for rows: return bool \[": lambda block, confidence: ([True], lambda: block.active),
    "return bool": lambda block, confidence: (block.active, lambda: block.active.long()),
    "raised ZeroDivisionError": lambda block, confidence: (block.active, lambda: 1 / 0),
}


@pytest.mark.parametrize("says", MASKS)
def test_wrong_rows_of_a_planner_are_refused(says, open_engine):
    mine = type("Mine", (Masks,), {"answer": staticmethod(MASKS[says])})
    with pytest.raises(specmoe.OptionError, match=f"planner Mine .*{says}"):
        generate(open_engine(), "planner", mine)


def test_a_planner_may_stop_rows_and_the_text_is_the_same(open_engine):
    engine = open_engine()
    one = staticmethod(lambda block, confidence: (block.active, lambda: block.prefix_prob < 0))
    mine = type("Mine", (Masks,), {"answer": one})
    plain = {"method": "on_demand", "max_new_tokens": 8, "eos_token_id": []}
    output = generate(engine, "planner", mine)
    assert tokens_of(output) == tokens_of(engine.generate(PROMPTS, **plain))
    assert max(len(block.drafted) for block in output.trace.blocks) == 1, "no row drafted on"


@pytest.mark.parametrize("kind", registry.KINDS)
def test_an_unknown_name_lists_those_that_are_known(kind, plugin, open_engine):
    known = ", ".join(sorted(registry.names(kind)))
    with pytest.raises(specmoe.OptionError, match=f"{kind}='nime' is unknown: .*") as refusal:
        generate(open_engine(), kind, "nime")
    assert f"(one of: {known})" in str(refusal.value) and "mine" in known


@pytest.mark.parametrize(
    "arguments, says",
    [
        (("drafts", "a", len), "kind='drafts' is unknown: did you mean 'draft'"),
        (("draft", "a:b", len), "name 'a:b' of a draft must be a word"),
        (("eviction", "a", 9), "eviction a must be a function or have a method keep, not 9"),
        (("eviction", "lru", len), "eviction 'lru' is built in: give yours another name"),
    ],
)
def test_what_cannot_be_registered_is_refused(arguments, says):
    with pytest.raises(specmoe.OptionError, match=says):
        specmoe.register(*arguments)
    assert all(registry.names(kind) == [*registry.BUILT_IN[kind]] for kind in registry.KINDS)


# ---- everywhere ----


def test_bench_and_sweep_measure_yours_beside_the_others(plugin, tiny, tmp_path):
    common = {"max_new_tokens": 4, "prompts": PROMPTS}
    found = run_bench(
        str(tiny("mixtral")),
        ["cached", "specmoe"],
        [2],
        load={"store": "memory"},
        generate={"eviction": ["lru", "mine"], "planner": "mine", "draft": "mine", **common},
        repeats=1,
        probe=False,
    )
    rows = {(row["method"], row["eviction"]): row for row in found.rows}
    assert set(rows) == {("cached", "lru"), ("cached", "mine"), ("specmoe", None)}
    assert all(row["same_tokens_as_plain"] for row in found.rows)
    for kind in registry.KINDS:  # a worker starts without any name
        registry.forget(kind, "mine")
    grid = {"model": str(tiny("mixtral")), "plugin": str(plugin), "eviction": ["lru", "mine"]}
    grid |= {"method": "cached", "num_prompts": 2, "max_new_tokens": 4, "store": "memory"}
    frame = sweep.sweep(grid, out=tmp_path / "out")
    assert frame["error"].isna().all() and list(frame["eviction"]) == ["lru", "mine"]
    with pytest.raises(specmoe.OptionError, match="plugin nowhere.py cannot be run"):
        sweep.sweep(grid | {"plugin": "nowhere.py"}, out=tmp_path / "other")


def test_a_replay_plays_yours_beside_belady(plugin):
    asked = [tuple(int(e in (s % 4, 5)) for e in range(6)) for s in range(12)]
    requests = [replay.Request(0, "verify", counts) for counts in asked]
    table = replay.pool_table(requests, 2, ["mine", *replay.REPLAYED])
    misses = table.groupby("policy")["misses"].sum()
    assert misses["mine"] > misses["lru"] >= misses["belady"]


@pytest.mark.parametrize("kind", [kind for kind in registry.KINDS if kind != "draft"])
def test_the_knobs_offer_yours_beside_what_is_built_in(kind, plugin, open_engine):
    engine, built_in = open_engine(), registry.BUILT_IN[kind][0]
    runs = {
        name: [simulate.Recording.of(generate(engine, kind, name), engine.info)]
        for name in (built_in, "mine")
    }
    made = widgets.knobs(runs, simulate.preset("laptop"), kind=kind, **{kind: "mine"}).data
    (knob,) = [one for one in made["settings"] if one["name"] == kind]
    assert sorted(knob["values"]) == sorted(runs) and knob["start"] == "mine"
    assert all(one["name"] != "gamma" for one in made["settings"]), "no choice between two runs"
    rows = [dict(zip(made["columns"], row)) for row in made["rows"]]
    assert {row[kind] for row in rows} == {*runs}
    for row in rows:
        (run,) = runs[row[kind]]
        per_round = run.num_new_tokens / int(run.rows.sum())
        assert row["tokens_per_round"] == pytest.approx(per_round, rel=1e-3)


def test_the_command_line_runs_a_plugin_first(plugin, tiny, capsys):
    for kind in registry.KINDS:
        registry.forget(kind, "mine")
    words = ["generate", str(tiny("mixtral")), "-p", "a", "--eviction", "mine"]
    assert parser.main(words) == 2
    assert "eviction='mine' is unknown" in capsys.readouterr().err
    parser.main([*words, "--method", "cached", "--max-new-tokens", "2", "--plugin", str(plugin)])
    assert "eviction='mine' is unknown" not in capsys.readouterr().err
    plugin.write_text("import specmoe\n1/0\n")
    assert parser.main([*words, "--plugin", str(plugin)]) == 2
    said = capsys.readouterr().err
    assert "cannot be run (ZeroDivisionError: division by zero): correct the file" in said


@pytest.mark.parametrize("kind", registry.KINDS)
def test_exercises_score_yours_beside_the_part_that_it_replaces(kind, plugin):
    scores = exercises.score_parts(kind, num_prompts=2)
    assert scores["part"].iloc[-1] == "mine" and len(scores) == (3 if kind == "planner" else 2)
    assert scores["same_text"].all() and (scores.iloc[:, 3:] > 0).all(axis=None)
    if kind not in ("substitute", "planner"):  # those may do as well
        assert scores["kB_per_token"].iloc[-1] > scores["kB_per_token"].iloc[0]


def test_a_part_that_does_wrong_has_its_sentence_and_the_others_their_scores():
    registry.register("planner", "eager", lambda rounds: 1000)
    try:
        scores = exercises.score_parts("planner", num_prompts=1).set_index("part")
    finally:
        registry.forget("planner", "eager")
    assert "eager gave 1000 tokens to draft" in scores.loc["eager", "refused"]
    assert scores["kB_per_token"].notna().tolist() == [True, True, False]


@pytest.mark.slow
def test_a_planner_and_a_draft_set_of_yours_stand_in_the_scores_of_their_exercises(plugin):
    passed = exercises.check_planner(exercises.parts.plan)
    assert (passed.scores["mine_ms"] > passed.scores["best_ms"]).all()

    def older(layer, counts, num_draft, memory):
        heat = memory.setdefault(layer, [0.0] * len(counts))
        heat[:] = [0.6 * old + count for old, count in zip(heat, counts)]
        return sorted(range(len(counts)), key=lambda e: -heat[e])[:num_draft]

    scores = exercises.check_draft_set(older).scores.set_index("draft_set")["kB_per_token"]
    assert [*scores.index] == ["yours", "hot_temporal", "random", "mine"]
    assert scores["mine"] > scores["yours"]
