"""Widgets and their static twins: a control moved from code changes the figure; what they show is
what was recorded."""

from __future__ import annotations

import base64
import dataclasses
import json

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import PROMPTS
from matplotlib.text import Text
from nbclient import NotebookClient

import specmoe
from specmoe import registry
from specmoe.engine import run as engine_run
from specmoe.errors import OptionError, UnsupportedModelError
from specmoe.lab import figures, live, replay, simulate, widgets
from specmoe.lab.figures import routing as drawn_map
from specmoe.lab.live import data, traces
from specmoe.lab.report.run import widget_errors
from specmoe.lab.routing import record_routing, requests_by_token
from specmoe.tiny.texts.translate_data import held_out_pairs
from specmoe.trace import Block

METHODS = ("on_demand", "cached", "specmoe")


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def engine(open_engine):
    return open_engine("mixtral")


@pytest.fixture
def output(engine):
    return engine.generate(
        PROMPTS, max_new_tokens=10, method="specmoe", gamma=3, batch_size=2, eos_token_id=[]
    )


@pytest.fixture
def routing(engine):
    return record_routing(engine, PROMPTS[0], max_new_tokens=10, gamma=3, eos_token_id=[])


@pytest.fixture
def rows() -> pd.DataFrame:
    """Speeds that say which row was picked: batch * 100 + gamma, gamma empty where nothing is
    drafted."""
    rows = []
    for batch in (1, 4):
        for method in METHODS:
            for gamma in (2, 5) if method == "specmoe" else (None,):
                speed = batch * 100 + (gamma or 0)
                rows.append((method, batch, gamma, 2**20 / batch, 1 + (gamma or 0) / 2, speed))
    measures = ["fetched_bytes_per_token", "tokens_per_round", "tokens_per_second"]
    return pd.DataFrame(rows, columns=["method", "batch", "gamma", *measures])


@pytest.fixture
def winners() -> pd.DataFrame:
    cells = [
        (x, b, m, "specmoe" if m == "a" else "cached", x / 10 + b)
        for x in (1.0, 10.0)
        for b in (1, 16)
        for m in "ab"
    ]
    return pd.DataFrame(cells, columns=["balance", "batch", "model", "winner", "margin"])


def words(ax) -> list[str]:
    return [text.get_text() for text in ax.findobj(Text)]


# ---- what every widget is ----

SOURCES = {
    "routing_explorer": "routing",
    "round_stepper": "output",
    "pool_replay": "output",
    "timeline": "output",
    "knobs": "rows",
    "winners_map": "winners",
    "accept_or_reject": None,
}


def make(name: str, request):
    source = SOURCES[name]
    return getattr(widgets, name)(*([request.getfixturevalue(source)] if source else []))


@pytest.mark.parametrize("name", SOURCES)
def test_a_live_widget_travels_with_its_module_and_data_and_needs_no_kernel(request, name):
    widget = make(name, request)
    state = widget.get_state()
    assert f"LIVE.{widget.kind} = " in state["_esm"] and "export default" in state["_esm"]
    assert ".sm-live" in state["_css"] and widget.kind in live.KINDS
    sent = json.dumps(state["data"])
    assert json.loads(sent) and "NaN" not in sent and "Infinity" not in sent
    assert len(sent) < 100_000


def test_one_token_is_not_called_tokens(engine):
    output = engine.generate(
        PROMPTS[:1], max_new_tokens=2, method="specmoe", gamma=3, eos_token_id=[]
    )
    block = replay.blocks_of(output.trace, 0)[0]
    assert len(block.drafted) == 1, "the last token is the target's own, so only one can be drafted"
    said = [text.get_text() for text in figures.round_steps(output, 0, 0, "draft").findobj(Text)]
    assert "1 token, resident experts only" in said


@pytest.mark.parametrize("name", SOURCES)
def test_a_page_without_widgets_gets_the_figure_and_its_description(request, name):
    widget = make(name, request)
    bundle = widget._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert {"image/png", "text/plain", "application/vnd.jupyter.widget-view+json"} <= set(data)
    assert base64.b64decode(data["image/png"]) == widget.png
    assert len(widget.png) < 120_000
    assert widget.about in data["text/plain"]


@pytest.mark.parametrize(
    "name", ["routing_map", "round_steps", "pool_replay", "timeline", "knobs", "winners_map"]
)
def test_no_word_is_smaller_than_12_points(request, name):
    source = {"routing_map": "routing", "knobs": "rows", "winners_map": "winners"}.get(
        name, "output"
    )
    axes = getattr(figures, name)(request.getfixturevalue(source))
    figure = np.atleast_1d(axes)[0].figure
    small = [
        (t.get_text(), t.get_fontsize())
        for t in figure.findobj(Text)
        if t.get_text().strip() and t.get_fontsize() < 12
    ]
    assert not small


def test_measured_and_simulated_figures_say_which_they_are(output, rows, winners):
    assert any("measured" in text for text in words(figures.timeline(output)))
    assert any("simulated" in text for text in words(figures.knobs(rows)[2]))
    assert not any(
        "imulated" in text for ax in figures.knobs(rows, simulated=False) for text in words(ax)
    )
    assert any("simulated" in text for text in words(figures.winners_map(winners)))


# ---- routing ----


@pytest.mark.parametrize("substitute", ["affinity", "router", "drop", "no_experts"])
def test_recorded_routing_adds_up_to_the_trace(engine, substitute):
    """Tokens per expert and layer, counted from single picks, are the trace's; recording changes no
    token."""
    options = dict(max_new_tokens=10, gamma=3, eos_token_id=[], substitute=substitute)
    routing = record_routing(engine, PROMPTS[0], **options)
    plain = engine.generate([PROMPTS[0]], method="specmoe", **options)
    assert routing.tokens == plain.sequences[0].tolist()
    frame = routing.output.trace.to_frame()
    prefill = frame[(frame["kind"] == "route") & (frame["phase"] == "prefill")].set_index(
        ["layer", "expert"]
    )["count"]
    picked = routing.picks[routing.picks["round"] == -1].groupby(["layer", "expert"]).size()
    assert prefill.sort_index().to_dict() == picked.to_dict()
    target = routing.picks[routing.picks["step"] == "target"]
    every = len(routing.tokens) - 1  # the last token was never an input
    assert len(target) == every * routing.num_layers * routing.top_k
    assert set(target["position"]) == set(range(every))


def test_hits_of_the_trace_are_the_picks_called_resident(routing):
    frame = routing.output.trace.to_frame()
    hits = frame[(frame["kind"] == "hit") & (frame["phase"] == "verify")]
    target = routing.picks[(routing.picks["step"] == "target") & (routing.picks["round"] >= 0)]
    resident = set(
        target.loc[target["state"] == "resident", ["round", "layer", "expert"]].itertuples(
            index=False, name=None
        )
    )
    assert resident and resident <= set(
        hits[["round", "layer", "expert"]].itertuples(index=False, name=None)
    )
    others = set(
        target.loc[target["state"] != "resident", ["round", "layer", "expert"]].itertuples(
            index=False, name=None
        )
    )
    assert not others & set(hits[["round", "layer", "expert"]].itertuples(index=False, name=None))


def test_a_stand_in_is_another_expert_and_a_dropped_one_is_none(engine):
    for substitute, state in (("affinity", "substituted"), ("drop", "left out")):
        picks = record_routing(
            engine, PROMPTS[0], 10, gamma=3, eos_token_id=[], substitute=substitute
        ).picks
        draft = picks[picks["step"] == "draft"]
        changed = draft[draft["computed"] != draft["expert"]]
        assert len(changed) and set(changed["state"]) == {state}
        assert set(draft.loc[draft["computed"] == draft["expert"], "state"]) == {"resident"}


def test_recording_leaves_the_engine_as_it_was(engine):
    before = [module._specmoe_forward for module in engine.experts.modules]
    with pytest.raises(OptionError):
        record_routing(engine, PROMPTS[0], gamma=-1)
    record_routing(engine, PROMPTS[0], 2)
    assert [module._specmoe_forward for module in engine.experts.modules] == before


def test_the_map_prints_the_experts_that_were_picked(routing, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        drawn_map,
        "_draw_words",
        lambda ax, places, words, colors: drawn.extend(zip(places.tolist(), words)),
    )
    figures.routing_map(routing, first=0, num_tokens=4)
    picks = routing.picks[(routing.picks["step"] == "target") & (routing.picks["position"] < 4)]
    y = picks["layer"] * routing.top_k + picks["choice"]
    expected = zip(picks["position"], y, picks["expert"])
    assert sorted(drawn) == sorted(
        ([float(x), float(at)], str(expert)) for x, at, expert in expected
    )


def test_the_expert_used_most_is_the_darkest():
    picks = pd.DataFrame(
        {"step": ["target"] * 4 + ["draft"], "layer": [0] * 5, "expert": [7, 3, 7, 5, 3]}
    )
    assert drawn_map.use_ranks(picks) == {(0, 7): 0, (0, 3): 1, (0, 5): 2}


def test_requests_by_token_are_what_each_token_asked_of_its_layer(routing):
    for layer in range(routing.num_layers):
        requests = requests_by_token(routing, layer)
        picks = routing.picks[
            (routing.picks["layer"] == layer) & (routing.picks["step"] == "target")
        ]
        needed = picks.groupby("position")["expert"].agg(set)
        assert [request.needed for request in requests] == needed.tolist()
    with pytest.raises(OptionError, match="layer=99 has no picks"):
        requests_by_token(routing, 99)


def test_a_star_is_a_stand_in_and_a_dash_an_expert_left_out():
    part = pd.DataFrame(
        {
            "state": ["fetched", "substituted", "left out"],
            "computed": [3, 7, -1],
            "expert": [3, 4, 5],
        }
    )
    assert drawn_map.cell_words(part) == ["3", "7*", "-"]


# ---- what the twins draw ----


def test_round_steps_reveals_one_act_after_the_other(output):
    block = output.trace.blocks[0]
    shown = {
        act: words(figures.round_steps(output, block.row, 0, act))
        for act in ("draft", "verify", "accept")
    }
    assert "1 draft" in shown["draft"] and "2 verify" not in shown["draft"]
    assert "2 verify" in shown["verify"] and "3 accept" not in shown["verify"]
    assert "3 accept" in shown["accept"] and str(block.committed[-1]) in shown["accept"]


def test_the_star_of_a_read_is_explained_where_something_was_read_ahead(engine):
    run = {"max_new_tokens": 10, "method": "specmoe", "gamma": 3, "eos_token_id": []}
    output = engine.generate(PROMPTS, prefetch=False, **run)
    said = words(figures.round_steps(output))
    assert any(" reads" in text for text in said) and not any("*" in text for text in said)


def test_the_pool_figure_counts_up_to_its_step_and_colours_hits_and_misses(output):
    frame = output.trace.to_frame()
    requests, begins = replay.decoding(replay.layer_requests(frame, replay.layers_of(frame)[0]))
    table = replay.pool_table(requests, 2).set_index(["policy", "step"])
    above, below = figures.pool_replay(output, step=1, num_kept=2)
    said = [text.get_text() for text in below.get_legend().get_texts()]
    for policy, words in zip(replay.REPLAYED, said, strict=True):
        now = table.loc[policy, 1]
        assert words.endswith(f": {now['total_misses']} misses, {now['total_hits']} hits")
    state = above.images[0].get_array()
    for column, now in enumerate(replay.replay_pool(requests, 2, "temporal")):
        assert set(np.flatnonzero(state[:, column] == 3)) == now.needed - now.before
        assert set(np.flatnonzero(state[:, column] == 2)) == now.needed & now.before
    assert state.shape[1] == len(requests), "a prefill is drawn as a step"
    marks = above.lines[-1]
    assert marks.get_xdata().tolist() == [step - 0.5 for step in begins] and begins[0] == 0


def test_knobs_shows_the_row_of_the_choice(rows):
    axes = figures.knobs(rows, batch=4, gamma=5)
    said = [text.get_text() for text in axes[2].texts]
    assert [text.split(" ")[0] for text in said] == ["400", "400", "405"]


@pytest.mark.parametrize("moved", [{"batch": 4}, {"gamma": 5}])
def test_the_axes_of_knobs_are_the_same_for_every_choice(rows, moved):
    first, other = widgets.knobs(rows).data, widgets.knobs(rows, **moved).data
    assert first["measures"] == other["measures"] and first["settings"] != other["settings"]
    speed = first["measures"][2]
    assert (speed["least"], speed["most"]) == (100, 405)
    assert speed["title"] == "tokens per second (simulated)"


def test_a_name_starts_at_the_first_of_the_rows_not_of_the_alphabet(winners):
    later = winners.sort_values("model", ascending=False, ignore_index=True)
    assert widgets.winners_map(later).data["settings"][0]["start"] == "b"


def test_the_stepper_opens_on_the_draft_of_a_rejected_round_and_its_still_shows_all(output):
    row = next(b.row for b in output.trace.blocks if 0 < b.accepted < len(b.drafted))
    stepper = widgets.round_stepper(output, row=row)
    start = stepper.data["start"]
    shown = stepper.data["prompts"][start["prompt"]]["rounds"][start["round"]]
    assert 0 < shown["accepted"] < len(shown["drafted"]) and start["act"] == 0
    whole = figures.round_steps(output, row)
    assert any("recovered" in text for text in words(whole))
    assert any(f"Prompt {row + 1}, round {start['round'] + 1} of" in text for text in words(whole))
    assert stepper.png == widgets.base.still(whole.figure)


def test_the_stepper_knows_who_was_in_fast_memory(engine, monkeypatch):
    """What the trace adds up to is what the pool holds when the run is over, and what it needed."""
    pools, new_pool = [], engine_run._new_pool
    monkeypatch.setattr(
        engine_run, "_new_pool", lambda *given: pools.append(new_pool(*given)) or pools[0]
    )
    settings = {"method": "specmoe", "gamma": 3, "prefetch": False, "eos_token_id": []}
    made = traces.rounds(engine.generate(PROMPTS, max_new_tokens=10, batch_size=2, **settings))
    last = made["memory"][max(made["memory"])]["after"]
    assert last == {layer: sorted(pools[0].resident_experts(layer)) for layer in made["layers"]}
    assert any(one["reads"] for one in made["memory"].values())
    for one in made["memory"].values():
        before = {(layer, e) for layer, there in one["before"].items() for e in there}
        read = {(layer, e) for layer, e, _ in one["reads"]}
        assert {(layer, e) for layer, e, _ in one["needed"]} <= before | read
        assert {(layer, e) for layer, there in one["after"].items() for e in there} <= before | read


def test_a_round_to_begin_with_is_one_with_an_acceptance_and_a_rejection():
    def block(drafted, accepted):
        return Block(0, 0, 0, list(range(drafted)), accepted, [])

    every, none, some, plain = block(3, 3), block(3, 0), block(3, 2), block(0, 0)
    assert replay.telling_round([plain, every, none, some]) == 3
    assert replay.telling_round([plain, every, none]) == 2
    assert replay.telling_round([plain, every]) == 0


def test_a_bar_of_a_hairs_width_has_no_white_edge(output):
    ax = figures.timeline(output, end_ms=1e6)  # every bar is thin
    edges = {tuple(color) for bars in ax.collections for color in bars.get_edgecolor()}
    assert edges and (1.0, 1.0, 1.0, 1.0) not in edges


@pytest.fixture
def recordings(open_engine) -> dict[str, list]:
    engine = open_engine("mixtral")
    runs = [
        {"method": "on_demand"},
        {"method": "cached"},
        {"method": "specmoe", "gamma": 2},
        {"method": "specmoe", "gamma": 4},
    ]
    outputs = [engine.generate(PROMPTS, max_new_tokens=8, eos_token_id=[], **run) for run in runs]
    return {"hot_temporal": [simulate.Recording.of(output, engine.info) for output in outputs]}


def test_knobs_of_recordings_are_their_simulation(recordings):
    """Each row is ``simulate`` at its link; a faster link is never slower, and what was read does
    not change."""
    hardware = simulate.preset("laptop")
    rows = simulate.knob_rows(recordings, hardware, links=[1e7, 1e8])
    assert len(rows) == 8 and sorted(rows["gamma"].dropna().unique()) == [2, 4]
    for run in recordings["hot_temporal"]:
        played = simulate.simulate(run, dataclasses.replace(hardware, link_bytes_per_s=1e8))
        assert (
            played.tokens_per_second
            in rows.loc[rows["link_bytes_per_s"] == 1e8, "tokens_per_second"].tolist()
        )
    slow, fast = rows[rows["link_bytes_per_s"] == 1e7], rows[rows["link_bytes_per_s"] == 1e8]
    assert (slow["tokens_per_second"].to_numpy() <= fast["tokens_per_second"].to_numpy()).all()
    assert (
        slow["fetched_bytes_per_token"].to_numpy() == fast["fetched_bytes_per_token"].to_numpy()
    ).all()


def test_knobs_take_recordings_and_hardware(recordings):
    made = widgets.knobs(recordings, simulate.preset("laptop")).data
    assert [one["name"] for one in made["settings"]] == ["gamma", "link_bytes_per_s"]
    assert made["settings"][1]["said"][0].startswith("link ")
    assert len(made["rows"]) == 4 * 5  # recordings times links


def test_fast_memory_is_a_knob_of_its_own_where_one_n_has_several_sizes_of_it(recordings):
    runs = recordings["hot_temporal"]
    total = runs[0].info["layers"] * runs[0].info["experts"]
    larger = [dataclasses.replace(run, info={**run.info, "slots": total}) for run in runs[1:]]
    rows = simulate.knob_rows([*runs, *larger], simulate.preset("laptop"), links=[1e7])
    drafted = rows["method"] == "specmoe"
    assert sorted(set(rows.loc[drafted, "fast_memory"])) == [runs[0].info["slots"] / total, 1.0]
    # a pool follows the memory now, and no longer N; plain decoding follows neither
    cached = rows[rows["method"] == "cached"]
    assert cached["draft_experts"].isna().all() and cached["fast_memory"].nunique() == 2
    assert rows.loc[rows["method"] == "on_demand", "fast_memory"].isna().all()
    made = widgets.knobs(rows, fast_memory=1.0).data
    (knob,) = [one for one in made["settings"] if one["name"] == "fast_memory"]
    assert knob["start"] == 1 and knob["said"][-1] == "memory 100 %"
    title = figures.knobs(rows, fast_memory=1.0)[0].figure.get_suptitle()
    assert "memory 100 %" in title


def test_where_fast_memory_follows_n_it_is_no_knob(recordings):
    rows = simulate.knob_rows(recordings, simulate.preset("laptop"), links=[1e7])
    assert "fast_memory" not in rows and rows.loc[rows["method"] == "cached", "draft_experts"].all()


def test_the_map_takes_the_frame_of_simulate_winners(recordings):
    frame = simulate.winners(
        recordings["hot_temporal"], simulate.preset("laptop"), balances=(10, 1000)
    )
    ax = figures.winners_map(frame)
    shown = sorted(text.get_text()[:-1] for text in ax.texts)
    assert shown == sorted(f"{margin:.2f}" for margin in frame["margin"])


# ---- bad input ----


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda o, r: widgets.routing_explorer(o),
            "no routing per token: make one with specmoe.lab.routing.record_routing",
        ),
        (lambda o, r: widgets.pool_replay("trace"), "str holds no trace"),
        (lambda o, r: widgets.pool_replay(o, layer=9), "layer=9 .*did you mean"),
        (lambda o, r: widgets.timeline(o, round=999), "round=999 .*did you mean"),
        (lambda o, r: widgets.timeline(o, round="0"), "round='0' must be a whole number"),
        (lambda o, r: widgets.timeline(o, mark="L2"), "mark='L2' names no read: give"),
        (lambda o, r: widgets.timeline(o, mark=(1, 2, 3)), "names no read: give .layer, expert."),
        (lambda o, r: widgets.round_stepper(o, row=99), "row=99 .*did you mean 3"),
        (lambda o, r: widgets.round_stepper(o, step=99), "step=99 .*did you mean"),
        (lambda o, r: figures.round_steps(o, act="vrify"), "did you mean 'verify'"),
        (lambda o, r: figures.timeline(o, begin_ms=5.0, end_ms=1.0), "begin_ms=5.0"),
        (lambda o, r: figures.timeline(o, end_ms="all"), "end_ms='all' must be a number"),
        (lambda o, r: widgets.knobs(r, batch=3), "batch=3 .*did you mean 4"),
        (lambda o, r: widgets.knobs(r, gama=2), "unknown setting 'gama'.*did you mean 'gamma'"),
        (lambda o, r: widgets.knobs(r.drop(columns="method")), "no 'method'"),
        (lambda o, r: widgets.knobs(r.assign(method="cashed")), "did you mean 'cached'"),
        (
            lambda o, r: widgets.knobs([o], simulate.preset("laptop")),
            "Output is not a recording: make one with Recording.of",
        ),
        (lambda o, r: widgets.knobs([o]), "list holds no rows: give simulate.knob_rows"),
        (
            lambda o, r: widgets.knobs({}, simulate.preset("laptop"), kind="draft"),
            "draft source costs is not simulated here",
        ),
        (lambda o, r: widgets.winners_map([]), "list holds no rows"),
        (lambda o, r: widgets.round_stepper("trace"), "str holds no trace"),
        (lambda o, r: widgets.pool_replay(o.trace.to_frame().head(0)), "no trace: load the engine"),
        (lambda o, r: widgets.round_stepper(r), "DataFrame holds no trace"),
        (lambda o, r: widgets.knobs(r.head(0)), "DataFrame holds no rows"),
        (lambda o, r: widgets.routing_explorer(o, token=999), "no routing per token"),
        (lambda o, r: widgets.accept_or_reject(p=(1, 0), q=(1, 1), words="ab"), "0 is no weight"),
        (lambda o, r: widgets.accept_or_reject(words="ab"), "2 words, 4 weights p and 4 weights q"),
    ],
)
def test_bad_input_is_named_with_the_way_out(output, rows, call, said):
    with pytest.raises(OptionError, match=said):
        call(output, rows)


def test_an_output_without_a_trace_says_how_to_get_one(open_engine):
    untraced = open_engine("mixtral", trace=False)
    output = untraced.generate(PROMPTS[:1], max_new_tokens=3, method="specmoe", gamma=2)
    for call in (widgets.pool_replay, widgets.timeline, widgets.round_stepper):
        with pytest.raises(OptionError, match="no trace: load the engine with trace=True"):
            call(output)
    with pytest.raises(OptionError, match="trace=True"):
        record_routing(untraced, PROMPTS[0])


def test_routing_is_of_one_prompt(engine, monkeypatch):
    with pytest.raises(OptionError, match="not one prompt"):
        record_routing(engine, PROMPTS)
    monkeypatch.setattr(engine.experts, "compiled", True)
    with pytest.raises(UnsupportedModelError, match="compiled"):
        record_routing(engine, PROMPTS[0])


@pytest.fixture(scope="module")
def translated():
    with specmoe.load("tiny-translate", store="memory", draft_experts=4) as engine:
        sentence = held_out_pairs(1, 0)[0].english
        routing = record_routing(engine, sentence, max_new_tokens=16, gamma=4, eos_token_id=[])
        return routing, engine.generate(
            [sentence], method="specmoe", max_new_tokens=16, gamma=4, eos_token_id=[]
        )


def test_routing_of_a_translation_is_the_decoders_and_adds_up_to_its_trace(translated):
    routing, plain = translated
    assert routing.tokens == plain.sequences[0].tolist(), "recording changed a token"
    layers = range(routing.first_layer, routing.num_layers)
    target = routing.picks[routing.picks["step"] == "target"]
    assert 0 < routing.first_layer and set(target["layer"]) == set(layers)
    assert len(target) == (len(routing.tokens) - 1) * len(layers) * routing.top_k
    frame = plain.trace.to_frame()
    routes = frame[
        (frame["kind"] == "route")
        & (frame["phase"] == "prefill")
        & (frame["layer"] >= routing.first_layer)
    ]
    before = target[target["round"] == -1].groupby(["layer", "expert"]).size()
    assert before.to_dict() == routes.set_index(["layer", "expert"])["count"].to_dict()


def test_a_translation_is_explored_by_clicking_on_its_words(translated):
    made = widgets.routing_explorer(translated[0]).data
    assert "fra_Latn" in made["words"][1] and made["layers"][0] == translated[0].first_layer
    with pytest.raises(OptionError, match="first_layer=0 .*did you mean 2"):
        figures.routing_map(translated[0], first_layer=0)


def test_no_two_tokens_have_one_label(routing):
    assert data.numbered(["a", "b", "a", "a (1)", "a"]) == [
        "a (1)'",
        "b",
        "a (2)",
        "a (1)",
        "a (3)",
    ]
    made = widgets.routing_explorer(routing).data
    assert len(set(made["labels"])) == made["positions"] and made["start"]["token"] == 8


def test_the_explorer_holds_every_pick_once(routing):
    made, found = data.routing(routing), []
    for step, name in enumerate(("target", "draft")):
        for position, layers in made["picks"][step].items():
            for layer, picks in layers.items():
                found += [
                    (name, position, layer, expert, ran, made["states"][state])
                    for expert, ran, state, _ in picks
                ]
    columns = ["step", "position", "layer", "expert", "computed", "state"]
    picks = routing.picks.drop_duplicates(["step", "position", "layer", "choice"], keep="last")
    assert sorted(found) == sorted(picks[columns].itertuples(index=False, name=None))


def test_a_run_without_a_draft_offers_no_view_of_one(engine):
    settings = {"method": "on_demand", "eos_token_id": []}
    routing = record_routing(engine, PROMPTS[0], max_new_tokens=4, **settings)
    made = widgets.routing_explorer(routing).data
    assert made["drafted"] is False and len(made["picks"]) == 1


def test_the_pool_is_played_on_what_the_layer_asked_for(output):
    frame = output.trace.to_frame()
    made = traces.pool(output, layer=1)
    requests = replay.layer_requests(frame, 1)
    for t, (flat, request) in enumerate(zip(made["steps"][1], requests, strict=True)):
        assert dict(zip(flat[::2], flat[1::2])) == {e: n for e, n in enumerate(request.counts) if n}
        assert (t in made["prefills"][1]) == (request.phase == "prefill")
    assert made["start"]["layer"] == 1 and made["layers"] == replay.layers_of(frame)


def test_of_a_run_too_long_for_a_page_the_layer_asked_for_is_kept(output, monkeypatch):
    monkeypatch.setattr(traces, "MOST_PAIRS", 40)
    made = traces.pool(output, layer=1)
    assert made["layers"] == [1]
    assert 0 < sum(len(flat) for flat in made["steps"][1]) <= 80


@pytest.fixture
def newest():
    """An eviction of one's own: what this step asked for, then the highest numbers."""

    def keep(layer, counts, resident, num_kept):
        here = resident | {expert for expert, count in enumerate(counts) if count}
        return sorted(here, key=lambda expert: (-counts[expert], -expert))[:num_kept]

    registry.register("eviction", "newest", keep)
    yield "newest"
    registry.forget("eviction", "newest")


def test_a_policy_of_one_s_own_is_played_in_python_and_shown_beside_the_others(output, newest):
    """Whoever leaves when the page says so, the pool holds what the package's replay holds."""
    frame, made = output.trace.to_frame(), traces.pool(output)
    assert made["own"]["names"] == [newest] and made["start"]["policy"] == newest
    assert len(made["own"]["left"]) > 1 and made["start"]["kept"] in made["own"]["left"]
    for kept, played in made["own"]["left"].items():
        for layer, left in played[newest].items():
            steps, _ = replay.decoding(replay.layer_requests(frame, layer))
            resident = set()
            for now, gone in zip(replay.replay_pool(steps, kept, newest), left, strict=True):
                resident = (resident | now.needed) - set(gone)
                assert resident == now.after and len(resident) <= kept
    widget = widgets.pool_replay(output)
    figure = figures.pool_replay(output, policy=newest)
    assert widget.png == widgets.base.still(figure[0].figure) and newest in widget.about


def test_built_in_policies_are_added_by_name_and_too_many_are_refused(output, newest, monkeypatch):
    assert traces.pool(output, policies=[])["own"] == {"names": [], "left": {}}
    made = traces.pool(output, policies=["decayed", "lru", "decayed"])
    assert made["own"]["names"] == ["decayed"]
    with pytest.raises(OptionError, match="policy='newset'.*newest"):
        widgets.pool_replay(output, policies=["newset"])
    monkeypatch.setattr(traces, "MOST_OWN", 1)
    with pytest.raises(OptionError, match="choose at most 1"):
        traces.pool(output, policies=["decayed", newest])


def test_of_a_policy_of_one_s_own_the_size_asked_for_is_kept_whatever_room(
    output, newest, monkeypatch
):
    monkeypatch.setattr(traces, "MOST_LEFT", 1)
    made = traces.pool(output)
    assert [*made["own"]["left"]] == [made["start"]["kept"]]


@pytest.fixture
def register():
    """A reader's own part, by name until the test is over."""
    given = []

    def named(kind, name, part):
        given.append((kind, name))
        registry.register(kind, name, part)

    yield named
    for one in given:
        registry.forget(*one)


def last(layer, counts, num_draft):
    """A draft set that hardly ever is what was asked for."""
    return range(len(counts) - num_draft, len(counts))


def test_a_draft_set_of_one_s_own_is_played_and_what_it_names_unasked_is_read(output, register):
    register("draft_set", "last", last)
    frame, made, unasked = output.trace.to_frame(), traces.pool(output), 0
    assert made["own"]["names"] == ["last"] == [made["start"]["policy"]]
    for kept, played in made["own"]["left"].items():
        for layer, moves in played["last"].items():
            steps, _ = replay.decoding(replay.layer_requests(frame, layer))
            resident = set()
            for now, moved in zip(replay.replay_pool(steps, kept, "last"), moves, strict=True):
                come = {-1 - expert for expert in moved if expert < 0}
                assert not come & (resident | now.needed), "it was here"
                assert now.misses == len(now.needed - resident) + len(come)
                resident = (resident | now.needed) - set(moved) | come
                assert resident == now.after == {*last(layer, steps[0].counts, kept)}
                unasked += len(come)
    assert unasked
    figure = figures.pool_replay(output, policy="last")
    assert widgets.pool_replay(output).png == widgets.base.still(figure[0].figure)


def test_of_an_eviction_and_a_draft_set_of_one_name_the_eviction_is_played(
    output, newest, register
):
    alone = traces.pool(output)["own"]
    register("draft_set", newest, last)
    assert traces.pool(output)["own"] == alone


def test_a_still_picture_has_room_for_all_its_words():
    figure, ax = plt.subplots(figsize=(2, 2), dpi=50)
    ax.text(3, 0.5, "beyond the figure", transform=ax.transAxes)
    png = widgets.base.still(figure)
    assert int.from_bytes(png[16:20], "big") > 200, "the width of the PNG"


# ---- parts of one's own ----


def nearest(layer, residents, distances):
    """As ``affinity`` chooses."""
    return [min(residents, key=lambda resident: float(row[resident])) for row in distances]


def highest(layer, residents, distances):
    return [max(residents)] * len(distances)


def test_a_substitute_of_one_s_own_is_replayed_on_what_the_draft_chose(engine, routing, register):
    """Affinity, written again, stands in as affinity did in the run; another substitute for the same
    experts, by another resident. The run is the same."""
    register("substitute", "nearest", nearest)
    register("substitute", "highest", highest)
    run = {"max_new_tokens": 10, "gamma": 3, "eos_token_id": [], "prefetch": False}
    asked = record_routing(engine, PROMPTS[0], substitutes=["nearest", "highest"], **run)
    assert asked.tokens == routing.tokens
    of = {step: part.reset_index(drop=True) for step, part in asked.picks.groupby("step")}
    drafted, own = of["draft"], of["draft:highest"]
    assert of["draft:nearest"].drop(columns="step").equals(drafted.drop(columns="step"))
    chosen = ["round", "position", "layer", "choice", "weight", "expert"]
    assert own[chosen].equals(drafted[chosen]) and set(own["state"]) == {"resident", "substituted"}
    assert ((own["state"] == "resident") == (drafted["state"] == "resident")).all()
    assert (own["computed"] >= drafted["computed"]).all()
    assert (own["computed"] > drafted["computed"]).any()

    widget = widgets.routing_explorer(asked)
    made = widget.data
    assert made["own"] == ["highest", "nearest"] and "highest" in widget.about
    assert made["start"]["step"] == 2 and made["picks"][3] == made["picks"][1] != made["picks"][2]
    drawn = figures.routing_map(asked, made["start"]["token"], "draft:highest")
    assert widget.png == widgets.base.still(drawn.figure)
    assert "highest" in drawn.get_title("left")


def test_a_substitute_is_refused_where_nobody_stands_in_or_nobody_knows_it(engine, register):
    with pytest.raises(OptionError, match="substitute 'highest' is none of yours"):
        record_routing(engine, PROMPTS[0], 2, substitutes=["highest"])
    register("substitute", "highest", highest)
    for run in ({"method": "on_demand"}, {"draft": "low_bit:4"}):
        with pytest.raises(OptionError, match="nothing stands in for an expert in this run"):
            record_routing(engine, PROMPTS[0], 4, substitutes=["highest"], **run)


def test_the_stepper_names_a_draft_source_of_one_s_own(engine, output, register):
    register("draft", "again", lambda texts, limits: [t[-1:] * n for t, n in zip(texts, limits)])
    run = {"max_new_tokens": 6, "method": "specmoe", "gamma": 3, "eos_token_id": []}
    drafted = engine.generate(PROMPTS[:1], draft="again", **run)
    assert traces.rounds(output)["draft"] == "resident experts only"
    assert traces.rounds(drafted)["draft"] == "by again"
    assert "3 tokens, by again" in words(figures.round_steps(drafted, step=0))


# ---- the clock ----


def test_the_clock_holds_every_interval_of_every_round_on_one_axis(output):
    frame, made = output.trace.to_frame(), traces.timeline(output, 1, mark=(0, 3))
    assert [one["round"] for one in made["rounds"]] == replay.rounds_of(frame)
    assert made["start"] == {"round": 1, "mark": [0, 3]}
    ends = []
    for one in made["rounds"]:
        table = replay.timeline(frame, one["round"])
        shown = [
            (lane, made["kinds"][kind], layer, expert, begin, end)
            for lane, kind, layer, expert, begin, end in one["bars"]
        ]
        lanes = [0 if lane == "compute" else int(lane.split()[1]) for lane in table["lane"]]
        times = (1e3 * table[["begin_s", "end_s"]]).round(3).to_numpy().tolist()
        named = table[["kind", "layer", "expert"]].to_numpy().tolist()
        assert sorted(shown) == sorted(
            (lane, *name, *time) for lane, name, time in zip(lanes, named, times)
        )
        ends.append(max(bar[-1] for bar in shown))
    assert made["longest"] == max(ends)
    assert made["lanes"] == 1 + max(bar[0] for one in made["rounds"] for bar in one["bars"])


def test_a_wait_is_drawn_over_the_layer_that_it_interrupts(output):
    for one in traces.timeline(output)["rounds"]:
        kinds = [traces.BUSY[bar[1]] for bar in one["bars"] if bar[0] == 0]
        assert kinds == sorted(kinds, key=lambda kind: kind == "wait")


def test_of_a_run_too_long_for_a_page_the_round_asked_for_and_its_neighbours_are_kept(
    output, monkeypatch
):
    rounds = replay.rounds_of(output.trace.to_frame())
    monkeypatch.setattr(traces, "MOST_BARS", 1)
    made = traces.timeline(output, rounds[-1])
    assert [one["round"] for one in made["rounds"]] == [rounds[-1]]
    assert made["start"]["round"] == 0
    bars = {one: len(replay.timeline(output.trace.to_frame(), one)) for one in rounds}
    monkeypatch.setattr(traces, "MOST_BARS", bars[rounds[-1]] + bars[rounds[-2]])
    made = traces.timeline(output, rounds[-1])
    assert [one["round"] for one in made["rounds"]] == rounds[-2:] and made["start"]["round"] == 1


# ---- in a kernel without a front end ----

CELLS = [
    "from specmoe.lab import widgets\nwidgets.accept_or_reject()",
    """import ipywidgets
shown = ipywidgets.Output()
shown.outputs = ({"output_type": "error", "ename": "KeyError", "evalue": "7", "traceback": []},)
shown""",
]


def run_cells(*cells: str):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, kernel_name="python3", timeout=300).execute()
    return notebook


def test_run_without_a_front_end_the_twin_appears_and_an_error_in_a_widget_is_found():
    healthy = run_cells(CELLS[0])
    shown = healthy.cells[0].outputs[-1]["data"]
    assert {"image/png", "application/vnd.jupyter.widget-view+json"} <= set(shown)
    assert widget_errors(healthy) == []
    assert widget_errors(run_cells(*CELLS)) == ["KeyError: 7"]


def test_a_picture_does_not_need_the_canvas_that_pyplot_gave_the_figure():
    """Seen in JupyterLab: the figure had only a base canvas, and the widget showed a traceback."""
    from matplotlib.backend_bases import FigureCanvasBase

    from specmoe.lab.widgets.base import still

    figure, axes = plt.subplots()
    axes.plot([1, 2])
    figure.set_canvas(FigureCanvasBase(figure))
    assert still(figure).startswith(b"\x89PNG")
