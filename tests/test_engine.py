"""What a user holds: stats that add up, a budget that is kept, runs that know nothing of each
other, a clean end."""

from __future__ import annotations

import dataclasses
import gc
import os
import re
import threading

import pytest
import torch
from conftest import PROMPTS, tokens_of

import specmoe
from specmoe import StoreError
from specmoe.model import kernels
from specmoe.offload.policies import RecentUse
from specmoe.offload.pool import ResidentPool
from specmoe.offload.transfers import ExpertKey
from specmoe.speculate.confidence import ConfidencePlanner
from specmoe.trace import COLUMNS, PHASES

METHODS = ("on_demand", "overlapped", "cached", "specmoe", "auto", "resident")
TIMES = {"seconds", "tokens_per_second", "wait_s", "draft_s", "verify_s", "prefill_s"}


def run(engine, prompts=PROMPTS, **options):
    options = {
        "method": "specmoe",
        "max_new_tokens": 12,
        "batch_size": 2,
        "eos_token_id": [],
        **options,
    }
    if options["method"] == "specmoe":
        options.setdefault("gamma", 3)
    return engine.generate(prompts, **options)


def counted(stats) -> dict:
    """Everything in the stats that must repeat exactly."""
    return {name: value for name, value in dataclasses.asdict(stats).items() if name not in TIMES}


# ---- trace and stats ----


@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_bytes_of_the_trace_are_the_bytes_of_the_stats(method, prefetch, open_engine):
    engine = open_engine("mixtral")
    output = run(engine, method=method, prefetch=prefetch)
    frame, stats = output.trace.to_frame(), output.stats
    moved = frame[frame.kind.isin(["fetch", "prefetch"])]
    assert moved["size"].sum() == stats.fetched_bytes + stats.prefill_bytes
    assert stats.fetched_bytes == stats.num_fetches * engine.packed.layout.record_bytes
    in_prefill = moved[moved.phase == "prefill"]["size"].sum()
    if method in ("on_demand", "cached", "resident"):  # nothing is read ahead across the border
        assert in_prefill == stats.prefill_bytes
    assert (method == "resident") == (len(moved) == 0)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_from_either_store(method, open_engine):
    disk, memory = (
        run(open_engine("mixtral", store=store), method=method) for store in ("disk", "memory")
    )
    assert tokens_of(disk) == tokens_of(memory)


@pytest.mark.parametrize("method", METHODS)
def test_hits_and_misses_are_the_distinct_experts_that_were_asked_for(method, open_engine):
    output = run(open_engine("mixtral"), method=method)
    frame, stats = output.trace.to_frame(), output.stats
    verified = frame[frame.phase == "verify"]
    asked = verified[verified.kind == "route"]
    assert not asked.duplicated(["round", "layer", "expert"]).any(), (
        "every distinct expert once per step"
    )
    assert stats.num_hits + stats.num_misses == len(asked)
    assert stats.num_hits == (verified.kind == "hit").sum()
    if method == "on_demand":
        assert stats.num_hits == 0 and stats.num_fetches == len(asked)


@pytest.mark.parametrize("eos", [[], list(range(3, 97, 7))], ids=["no_eos", "many_eos"])
@pytest.mark.parametrize("method", ["on_demand", "specmoe", "auto"])
def test_accept_and_round_events_add_up_to_the_tokens(method, eos, open_engine):
    output = run(open_engine("mixtral"), method=method, eos_token_id=eos)
    frame, stats = output.trace.to_frame(), output.stats
    new = sum(map(len, output.sequences)) - sum(map(len, PROMPTS))
    accepts, rounds = frame[frame.kind == "accept"], frame[frame.kind == "round"]
    assert stats.num_new_tokens == new == rounds["count"].sum()
    assert len(rounds) == stats.num_rounds and rounds["size"].sum() == len(accepts)
    assert stats.tokens_per_round == pytest.approx(new / len(accepts))
    if accepts["size"].sum():
        assert stats.acceptance_rate == pytest.approx(
            accepts["count"].sum() / accepts["size"].sum()
        )
    # rows that ended at an accepted EOS
    bonus_unused = accepts["count"].sum() + len(accepts) - new
    assert 0 <= bonus_unused <= (len(PROMPTS) if eos else 0)


def test_routed_tokens_are_live_tokens_times_top_k(open_engine):
    frame = run(open_engine("mixtral"), gamma=5).trace.to_frame()
    for phase in ("verify", "prefill"):
        part = frame[frame.phase == phase]
        tokens = part[part.kind == phase]["count"].sum()
        for layer in (0, 1):
            assert part[(part.kind == "route") & (part.layer == layer)]["count"].sum() == 2 * tokens


def test_the_products_of_many_rows_are_computed_in_parts(open_engine, monkeypatch):
    """A long prompt's rows all at once would take much memory."""
    whole, rows, forward = tokens_of(run(open_engine("mixtral"))), [], kernels.expert_forward
    monkeypatch.setattr(kernels, "MOST_ROWS", 2)
    monkeypatch.setattr(
        kernels, "expert_forward", lambda *given: rows.append(len(given[2])) or forward(*given)
    )
    assert tokens_of(run(open_engine("mixtral"))) == whole and max(rows) == 2


def test_tracing_changes_neither_tokens_nor_stats(open_engine):
    on, off = open_engine("mixtral"), open_engine("mixtral", trace=False)
    for options in ({"prefetch": False}, {"method": "cached"}, {"method": "on_demand"}):
        a, b = run(on, **options), run(off, **options)
        assert tokens_of(a) == tokens_of(b) and counted(a.stats) == counted(b.stats)
        assert len(a.trace) > 0 and len(b.trace) == 0


def test_the_frame_has_the_promised_columns(open_engine):
    frame = run(open_engine("mixtral")).trace.to_frame()
    assert tuple(frame.columns) == COLUMNS
    assert set(frame.phase) <= set(PHASES)
    # stamped when the read ended, listed when the pool took notice
    reads = frame.kind.isin(["fetch", "prefetch"])
    assert frame[~reads].time_s.is_monotonic_increasing and (frame.seconds >= 0).all()
    assert frame.time_s.min() >= 0
    assert set(frame[frame.kind == "accept"].row) == {0, 1, 2, 3}
    always = set("fetch hit evict route draft verify prefill accept round".split())
    assert always <= set(frame.kind) <= always | {"prefetch", "wait"}


def test_stats_are_frozen_and_hold_the_promised_fields(open_engine):
    stats = run(open_engine("mixtral")).stats
    promised = """num_new_tokens seconds tokens_per_second num_rounds tokens_per_round acceptance_rate fetched_bytes
        num_fetches num_hits num_misses prefetch_recall prefetch_precision wait_s draft_s verify_s prefill_s prefill_bytes
        peak_fast_expert_bytes method gamma batch_size kept_full""".split()
    assert set(promised) <= {field.name for field in dataclasses.fields(stats)}
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.num_rounds = 0
    assert stats.method == "specmoe" and stats.batch_size == 2 and stats.kept_full
    assert 0 <= stats.prefetch_recall <= 1 and 0 <= stats.prefetch_precision <= 1
    assert 0 < stats.acceptance_rate < 1 and 1 < stats.tokens_per_round <= 4
    assert stats.draft_s + stats.verify_s <= stats.seconds * 1.01
    assert not run(open_engine("mixtral"), batch_size=4).stats.kept_full


def test_while_a_layer_is_verified_what_the_draft_named_for_later_ones_is_read(
    open_engine, monkeypatch
):
    request, asked = ResidentPool.request, []

    def listen(pool, layer, experts, keep, later):
        later = list(later)
        votes = [(key.layer, -pool.policy.priority(key)[0]) for key in later]
        assert votes == sorted(votes) and all(vote < 0 for _, vote in votes), (
            "the next layer first, the surest first"
        )
        assert not any(
            pool.policy.priority(ExpertKey(layer, e))[0]
            for e in range(pool.tier.store.packed.num_experts)
        ), "its votes have been used"
        asked.append((pool.tier.trace.phase, layer, {key.layer for key in later}))
        return request(pool, layer, experts, keep, later)

    monkeypatch.setattr(ResidentPool, "request", listen)
    run(open_engine("mixtral"), method="specmoe", prefetch=True)
    verified = [(layer, later) for phase, layer, later in asked if phase == "verify"]
    assert (0, {1}) in verified and all(
        min(later, default=layer + 1) > layer for layer, later in verified
    )
    asked.clear()
    run(open_engine("mixtral"), method="specmoe", prefetch=False)
    assert not any(later for *_, later in asked)


@pytest.mark.parametrize(("gamma", "rounds"), [(0, 24), (0, 4), (2, 24)])
def test_auto_says_when_it_found_that_drafting_does_not_pay(
    open_engine, monkeypatch, gamma, rounds
):
    monkeypatch.setattr(ConfidencePlanner, "next_gamma", lambda planner: gamma)
    job = {"batch_size": len(PROMPTS), "max_new_tokens": rounds, "eos_token_id": []}
    stats = open_engine("mixtral").generate(PROMPTS, method="auto", **job).stats
    said = f"drafting did not pay here: auto decoded {rounds} of {rounds} rounds plainly"
    assert stats.remark == (said if (gamma, rounds) == (0, 24) else "") and (
        stats.remark in stats._repr_html_()
    )
    assert not open_engine("mixtral").generate(PROMPTS, method="cached", **job).stats.remark, (
        "nobody asked it to draft"
    )


def test_of_prefills_only_the_first_says_what_is_used(open_engine, monkeypatch):
    engine, observe, phases = open_engine("mixtral"), RecentUse.observe, []

    def listen(recent, layer, counts):
        phases.append(engine.experts.run.pool.tier.trace.phase)
        observe(recent, layer, counts)

    monkeypatch.setattr(RecentUse, "observe", listen)
    stats = run(engine, batch_size=2).stats
    # two MoE layers
    assert phases.count("prefill") == 2 and phases.count("verify") == 2 * stats.num_rounds


def test_prefetches_are_used_and_counted(open_engine):
    with_reads = run(open_engine("mixtral"), method="specmoe", prefetch=True)
    frame, stats = with_reads.trace.to_frame(), with_reads.stats
    assert (
        (frame.kind == "prefetch").sum() > 0
        and stats.prefetch_precision > 0
        and stats.prefetch_recall > 0
    )
    without = run(open_engine("mixtral"), method="specmoe", prefetch=False)
    assert (
        without.trace.to_frame().kind != "prefetch"
    ).all() and without.stats.prefetch_precision == 0


def test_overlapped_reads_the_next_layer_while_this_one_is_computed(open_engine):
    output = run(open_engine("mixtral"), method="overlapped")
    frame, stats = output.trace.to_frame(), output.stats
    ahead = frame[(frame.kind == "prefetch") & (frame.phase == "verify")]
    assert len(ahead) and set(ahead.layer) == {1}, "nothing is guessed about the first layer"
    # the next router, asked a layer early, is mostly right
    assert stats.prefetch_precision > 0.4 and stats.prefetch_recall > 0.1
    for method in ("on_demand", "cached"):
        plainly = run(open_engine("mixtral"), method=method)
        assert (plainly.trace.to_frame().kind != "prefetch").all()


def test_who_watches_the_experts_hears_nothing_afterwards(open_engine):
    engine, heard = open_engine("mixtral"), []

    def hear(run, layer, index, weights):
        heard.append((layer, index.shape[-1], weights.shape == index.shape))

    with pytest.raises(ZeroDivisionError), engine.experts.watched_by(hear):
        run(engine, method="cached")
        assert set(heard) == {(0, 2, True), (1, 2, True)}
        raise ZeroDivisionError
    heard.clear()
    run(engine, method="cached")
    assert not heard


@pytest.mark.parametrize(
    ("what", "options"),
    [
        ("method='overlapped'", {"method": "overlapped"}),
        ("substitute='router'", {"method": "specmoe", "substitute": "router"}),
    ],
)
def test_what_needs_the_scores_of_routers_is_refused_by_name_where_they_are_hidden(
    what, options, open_engine, monkeypatch
):
    engine = open_engine("mixtral")
    monkeypatch.setattr(engine.experts.routers, "modules", [None, None])
    with pytest.raises(specmoe.UnsupportedModelError, match=f"^{what} needs the router's scores"):
        run(engine, **options)
    run(engine, method="specmoe")


def test_output_and_stats_show_themselves_without_the_network(open_engine):
    output = run(open_engine("mixtral"))
    for page in (output._repr_html_(), output.stats._repr_html_()):
        assert page.count("<table>") == page.count("</table>") >= 1
        assert not re.search(r"https?:|//|<script|<link|src=", page)
    assert "acceptance_rate" in output.stats._repr_html_()


def test_sequences_are_plain_tensors_in_the_order_of_the_prompts(open_engine):
    output = run(open_engine("mixtral"), batch_size=3)
    for sequence, prompt, num in zip(output.sequences, PROMPTS, output.num_prompt_tokens):
        assert (
            sequence.dtype == torch.long
            and sequence[: len(prompt)].tolist() == prompt
            and num == len(prompt)
        )
        assert not sequence.is_inference()


# ---- the budget ----


@pytest.mark.parametrize("dtype, spare", [("float64", 0), ("float32", 0), ("float32", 70_000)])
def test_experts_never_hold_more_than_the_fast_memory(dtype, spare, tiny):
    # float32 on bf16: a scratch is needed
    checkpoint = torch.float64 if dtype == "float64" else torch.bfloat16
    record_bytes = specmoe.checkpoint.pack(tiny("mixtral", checkpoint)).layout.record_bytes
    budget = 9 * record_bytes + 19_000 * (dtype == "float32") + spare
    with specmoe.load(tiny("mixtral", checkpoint), dtype=dtype, fast_memory=budget) as engine:
        scratch = engine.experts.kernel.scratch
        scratch_bytes = sum(tensor.nbytes for tensor in scratch.values()) if scratch else 0
        assert (scratch_bytes > 0) == (dtype == "float32")
        assert scratch_bytes == engine.memory.scratch_bytes
        for method in ("on_demand", "overlapped", "cached", "specmoe", "auto"):
            stats = run(engine, method=method).stats
            assert engine.slots.nbytes + scratch_bytes == stats.peak_fast_expert_bytes <= budget
        assert run(engine, method="resident").stats.peak_fast_expert_bytes > budget, (
            "the ceiling stands outside"
        )


def test_every_method_has_the_same_bytes(open_engine):
    engine = open_engine("mixtral")
    peaks = {
        run(engine, method=method).stats.peak_fast_expert_bytes
        for method in METHODS
        if method != "resident"
    }
    assert peaks == {engine.memory.used_bytes}


def test_expert_weights_are_never_in_the_model(open_engine):
    model = open_engine("mixtral").model
    assert {name.rpartition(".")[2] for name, p in model.named_parameters() if p.is_meta} == {
        "gate_up_proj",
        "down_proj",
    }


# ---- runs know nothing of each other ----


@pytest.mark.parametrize(
    "options",
    [
        {"method": "on_demand"},
        {"method": "cached", "eviction": "lfu"},
        {"method": "cached", "eviction": "lru"},
        {"prefetch": False},
        {"prefetch": False, "substitute": "random", "seed": 3},
        {"prefetch": False, "do_sample": True, "seed": 3},
    ],
    ids=str,
)
def test_a_second_run_equals_that_of_a_fresh_engine(options, tiny):
    with specmoe.load(tiny("mixtral"), dtype="float64", draft_experts=3) as fresh:
        want = run(fresh, **options)
    with specmoe.load(tiny("mixtral"), dtype="float64", draft_experts=3) as used:
        run(used, [[50, 51, 52], [60] * 9], method="specmoe", gamma=5)
        run(used, [[50, 51, 52]], method="cached", do_sample=True, seed=9)
        got = run(used, **options)
    assert tokens_of(got) == tokens_of(want)
    assert counted(got.stats) == counted(want.stats)


def test_two_engines_at_once_do_not_mix(open_engine, plain):
    a, b = open_engine("mixtral"), open_engine("gpt_oss")
    for engine, name in ((a, "mixtral"), (b, "gpt_oss"), (a, "mixtral")):
        assert tokens_of(run(engine, max_new_tokens=16)) == plain(name)


@pytest.mark.parametrize("method", ["on_demand", "cached"])
def test_finished_rows_neither_fetch_nor_count(method, open_engine):
    """Row 0 ends early at its EOS; from then on everything is as if row 1 had always been alone."""
    engine, prompts = open_engine("mixtral"), [PROMPTS[0], PROMPTS[3]]
    first, second = (
        tokens[len(p) :]
        for tokens, p in zip(tokens_of(run(engine, prompts, method="on_demand")), prompts)
    )
    end, eos = next((i, token) for i, token in enumerate(first) if token not in second and i >= 2)
    together = run(engine, prompts, method=method, eos_token_id=eos).trace.to_frame()
    alone = run(engine, prompts[1:], method=method, eos_token_id=eos).trace.to_frame()
    later = [
        f[(f["round"] > end) & (f.phase == "verify") & (f.kind == "route")]
        for f in (together, alone)
    ]
    columns = ["round", "layer", "expert", "count"]
    assert len(later[0]) > 0
    assert later[0][columns].values.tolist() == later[1][columns].values.tolist()
    if method == "on_demand":
        moved = [
            f[(f["round"] > end) & (f.kind == "fetch")]["size"].sum() for f in (together, alone)
        ]
        assert moved[0] == moved[1] > 0


def test_calibration_is_done_once_and_only_when_needed(tiny):
    with specmoe.load(tiny("mixtral"), dtype="float64", draft_experts=2) as engine:
        run(engine)
        assert engine.hotness is None
        first = run(engine, draft_set="hot_global", prefetch=False)
        hotness = engine.hotness
        assert sum(hotness[0]) == sum(hotness[1]) > 0
        second = run(engine, draft_set="hot_global", prefetch=False)
        assert engine.hotness is hotness and counted(first.stats) == counted(second.stats)


# ---- failures in the middle, and the end ----


@pytest.mark.parametrize("method", ["on_demand", "overlapped", "cached", "specmoe"])
@pytest.mark.parametrize("at", [1, 9, 40])
def test_a_reader_that_fails_in_the_middle_is_named_and_the_engine_goes_on(
    method, at, open_engine, plain, monkeypatch
):
    engine = open_engine("mixtral", draft_experts=1, fast_memory=8 * 36864)
    copy, num_reads, failed = engine.store._copy, [0], []

    def fail_once(read, reader):
        num_reads[0] += 1
        if num_reads[0] >= at and not failed:
            failed.append(read.key)
            raise OSError(5, "Input/output error")
        copy(read, reader)

    monkeypatch.setattr(engine.store, "_copy", fail_once)
    with pytest.raises(StoreError) as failure:
        for _ in range(20):
            run(engine, method=method, max_new_tokens=16)
    (key,) = failed
    assert f"expert {key.expert} of MoE layer {key.layer}" in str(failure.value)
    monkeypatch.undo()
    assert tokens_of(run(engine, method=method, max_new_tokens=16)) == plain("mixtral")


def test_an_altered_record_stops_the_run_and_names_the_expert(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("SPECMOE_CACHE", str(tmp_path))
    packed = specmoe.checkpoint.pack(tiny("mixtral"))
    with open(packed.data_file, "r+b") as file:
        for expert in range(8):
            file.seek(packed.offset(1, expert) + 8)
            file.write(b"\x01\x02\x03")
    with specmoe.load(tiny("mixtral"), dtype="float64") as engine:
        with pytest.raises(StoreError, match=r"expert \d of MoE layer 1 .*altered"):
            run(engine)


def leftovers(engine_file: str) -> tuple[list[str], list[str]]:
    threads = [thread.name for thread in threading.enumerate() if thread.name.startswith("specmoe")]
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    return threads, [
        t for link in links if os.path.islink(link) for t in [os.readlink(link)] if engine_file in t
    ]


@pytest.mark.parametrize("store", ["disk", "memory"])
def test_closing_leaves_no_thread_file_or_buffer(store, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("SPECMOE_CACHE", str(tmp_path))
    threads, _ = leftovers(str(tmp_path))
    with specmoe.load(tiny("mixtral"), dtype="float64", draft_experts=2, store=store) as engine:
        run(engine, [[5, 6]])
        assert len(leftovers(str(tmp_path))[0]) == len(threads) + 4
    assert leftovers(str(tmp_path)) == (threads, [])
    assert engine.store is None and engine.slots is None
    engine.close()
    gc.collect()
    assert leftovers(str(tmp_path)) == (threads, [])


def test_a_load_that_fails_leaves_nothing_open(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("SPECMOE_CACHE", str(tmp_path))
    before = leftovers(str(tmp_path))
    with pytest.raises(specmoe.FastMemoryError):
        specmoe.load(tiny("mixtral"), fast_memory=10)
    monkeypatch.setattr(
        "specmoe.engine.engine.allocate_slots",
        lambda *_: (_ for _ in ()).throw(specmoe.FastMemoryError("none")),
    )
    with pytest.raises(specmoe.FastMemoryError):
        specmoe.load(tiny("mixtral"))
    assert leftovers(str(tmp_path)) == before


@pytest.mark.parametrize("method", ["on_demand", "specmoe"])
def test_nan_in_a_weight_is_reported_and_the_engine_goes_on(method, tiny, plain):
    with specmoe.load(tiny("mixtral"), dtype="float64", draft_experts=3) as engine:
        weight = engine.model.model.norm.weight
        good = weight[0].item()
        weight.data[0] = float("nan")
        with pytest.raises(specmoe.SpecMoEError, match="logits are NaN"):
            run(engine, method=method)
        weight.data[0] = good
        assert tokens_of(run(engine, method=method, max_new_tokens=16)) == plain("mixtral")


# ---- watching ----


class Streamer:
    def __init__(self):
        self.put_tokens = []
        self.num_ends = 0

    def put(self, tokens):
        self.put_tokens.append(tokens.tolist())

    def end(self):
        self.num_ends += 1


def test_a_streamer_gets_the_prompt_and_then_every_token_once(open_engine):
    streamer = Streamer()
    output = run(open_engine("mixtral"), PROMPTS[:1], streamer=streamer)
    assert streamer.put_tokens[0] == PROMPTS[0] and streamer.num_ends == 1
    assert sum(streamer.put_tokens, []) == output.sequences[0].tolist()
    assert len(streamer.put_tokens) == output.stats.num_rounds + 1


def test_a_progress_function_hears_of_every_prompt(open_engine):
    heard = []
    run(open_engine("mixtral"), progress=lambda done, total: heard.append((done, total)))
    assert [total for _, total in heard] == [4] * len(heard)
    done = [done for done, _ in heard]
    assert done == sorted(done) and done[-1] == 4


def test_check_exact_says_exact_in_one_line(open_engine):
    report = open_engine("mixtral").check_exact(PROMPTS[:2], max_new_tokens=6)
    assert report and str(report).startswith("exact: 5 methods, 2 prompts")


def test_facts_about_the_engine(open_engine):
    info = open_engine("mixtral").info
    assert (info["layers"], info["experts"], info["top_k"], info["draft_experts"]) == (2, 8, 2, 3)
    assert info["record_bytes"] == 36864 and info["architecture"] == "mixtral"
    assert ExpertKey(1, 2) == (1, 2)


def test_auto_reads_hardly_more_than_a_cached_pool_while_it_does_not_draft(monkeypatch):
    """Few are chosen to be kept, but what lingers beside them is what was used most: the bytes are
    not left idle."""
    monkeypatch.setattr(ConfidencePlanner, "next_gamma", lambda planner: 0)
    with specmoe.load("tiny-skewed", store="memory", fast_memory="4MiB") as engine:
        assert engine.memory.draft_experts < engine.memory.cached_experts
        job = {
            "prompts": ["sums: 17 + 36", "sums: 12 + 30", "csv: a,b,c"],
            "max_new_tokens": 24,
            "eos_token_id": [],
        }
        fetched = {
            m: engine.generate(method=m, **job).stats.num_fetches
            for m in ("auto", "cached", "on_demand")
        }
    assert fetched["auto"] <= 1.15 * fetched["cached"] < 0.8 * fetched["on_demand"]
