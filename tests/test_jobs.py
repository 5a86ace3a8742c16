"""A file of prompts becomes a file of texts: in order, whatever happens on the way. On a fake
engine."""

from __future__ import annotations

import functools
import json

import pytest
from fake_engine import FakeEngine

import specmoe
from specmoe.cli import jobs
from specmoe.errors import OptionError, StoreError

OPTIONS = {"max_new_tokens": 3, "batch_size": 2}
PROMPTS = [f"prompt {i} äß " + "x" * i for i in range(11)]


def lines_of(*values) -> str:
    return "".join((v if isinstance(v, str) else json.dumps(v)) + "\n" for v in values)


def prompt_file(tmp_path, *values):
    path = tmp_path / "in.jsonl"
    path.write_text(
        lines_of(*(values or [{"prompt": prompt} for prompt in PROMPTS])), encoding="utf-8"
    )
    return path


def run(prompts, out, engine=None, options=OPTIONS, told=None, **how) -> jobs.Job:
    errors = told if told is not None else []
    identity = how.pop("identity", "fake")
    name = functools.partial(jobs.fingerprint, identity, {}, options)
    with jobs.open_job(prompts, out, name, seed=options.get("seed"), **how) as job:
        job.run(
            lambda: engine or FakeEngine(),
            options,
            lambda line, error: errors.append((line, error)),
        )
    return job


def records(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# Order and content


def test_texts_come_in_the_order_of_the_prompts_with_their_ids(tmp_path):
    given = [{"id": f"n{i}", "prompt": prompt} for i, prompt in enumerate(PROMPTS)]
    engine = FakeEngine()
    run(prompt_file(tmp_path, *given), tmp_path / "out", engine)
    found = records(tmp_path / "out")
    assert [(r["id"], r["prompt"], r["line"]) for r in found] == [
        (g["id"], g["prompt"], line) for line, g in enumerate(given, start=1)
    ]
    alone = FakeEngine().generate(PROMPTS, **OPTIONS)
    assert [r["text"] for r in found] == alone.new_texts
    assert [r["tokens"] for r in found] == [s.tolist()[-3:] for s in alone.sequences]


def test_a_chunk_is_four_batches_and_the_rest(tmp_path):
    engine = FakeEngine()
    run(prompt_file(tmp_path), tmp_path / "out", engine)
    assert [len(prompts) for prompts, _ in engine.calls] == [8, 3]
    assert all(options["batch_size"] == 2 for _, options in engine.calls)


def test_the_longest_go_first_in_their_chunk_and_come_out_in_their_place(tmp_path):
    given = [
        {"prompt": "a"},
        {"prompt": "bbbb"},
        {"prompt": "cc", "max_new_tokens": 9},
        {"prompt": "ddd"},
    ]
    engine = FakeEngine()
    job = run(prompt_file(tmp_path, *given), tmp_path / "out", engine)
    assert engine.calls[0][0] == ["cc", "bbbb", "ddd", "a"]
    assert [record["prompt"] for record in records(tmp_path / "out")] == ["a", "bbbb", "cc", "ddd"]
    assert job.totals["num_turns"] == job.totals["num_new_tokens"] > 0
    sampling = {**OPTIONS, "do_sample": True, "seed": 1}
    run(tmp_path / "in.jsonl", tmp_path / "out2", engine, sampling)
    sampled = [prompt for prompts, _ in engine.calls[1:] for prompt in prompts]
    assert sampled == ["a", "bbbb", "cc", "ddd"], "noise goes by a text's number"


def test_the_longest_first_take_fewer_rounds_for_the_same_texts(tmp_path):
    lengths = [2, 2, 2, 2, 2, 12]
    given = [{"prompt": f"The {n}", "max_new_tokens": n} for n in lengths]
    options = {"method": "on_demand", "batch_size": 2, "eos_token_id": []}
    with specmoe.load("tiny-skewed", draft_experts=4) as engine:
        job = run(prompt_file(tmp_path, *given), tmp_path / "out", engine, options)
        settings = [{"max_new_tokens": n} for n in lengths]
        as_given = engine.generate([each["prompt"] for each in given], settings=settings, **options)
    assert [record["text"] for record in records(tmp_path / "out")] == as_given.new_texts
    assert (job.totals["num_rounds"], as_given.stats.num_rounds) == (12, 16)


def test_lists_of_token_ids_and_texts_may_be_mixed(tmp_path):
    engine = FakeEngine()
    run(
        prompt_file(
            tmp_path, {"prompt": "a"}, {"prompt": [5, 6]}, {"prompt": [7]}, {"prompt": "b"}
        ),
        tmp_path / "out",
        engine,
    )
    assert [prompts for prompts, _ in engine.calls] == [["a", "b"], [[5, 6], [7]]]
    assert [r["prompt"] for r in records(tmp_path / "out")] == ["a", [5, 6], [7], "b"]


def test_without_a_tokenizer_there_are_tokens_but_no_text(tmp_path):
    run(prompt_file(tmp_path, {"prompt": [5, 6]}), tmp_path / "out", FakeEngine(text=False))
    [record] = records(tmp_path / "out")
    assert "text" not in record and len(record["tokens"]) == 3


def test_blank_lines_are_passed_over_but_counted(tmp_path):
    run(prompt_file(tmp_path, {"prompt": "a"}, "", "  ", {"prompt": "b"}), tmp_path / "out")
    assert [r["line"] for r in records(tmp_path / "out")] == [1, 4]


# Bad lines

UNREADABLE = {
    "no json": "{broken",
    "no object": "3",
    "no prompt": '{"text": "a"}',
    "a number": '{"prompt": 3}',
    "an empty text": '{"prompt": ""}',
    "no ids": '{"prompt": []}',
    "a list of texts": '{"prompt": ["a"]}',
    "a list of truths": '{"prompt": [true]}',
    "half a surrogate pair": '{"prompt": "\\ud800"}',
    "too deep": "[" * 100_000,
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_an_unreadable_line_is_named_and_the_others_still_run(kind, tmp_path):
    told = []
    prompts = prompt_file(tmp_path, {"prompt": "a"}, UNREADABLE[kind], {"prompt": "b"})
    job = run(prompts, tmp_path / "out", told=told)
    first, bad, last = records(tmp_path / "out")
    assert ("text" in first, "text" in last) == (True, True)
    assert bad["line"] == 2 and bad["error"] and "text" not in bad
    assert told == [(2, bad["error"])]
    assert (job.num_done, job.num_errors) == (3, 1)


def test_a_line_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n{"prompt": "\xff\xfe"}\n{"prompt": "b"}\n')
    run(path, tmp_path / "out")
    assert ["error" in r for r in records(tmp_path / "out")] == [False, True, False]


def test_only_the_prompt_that_the_engine_refuses_is_lost(tmp_path):
    told = []
    engine = FakeEngine(refused=(PROMPTS[2], PROMPTS[7]))
    run(prompt_file(tmp_path), tmp_path / "out", engine, told=told)
    found = records(tmp_path / "out")
    assert [r["line"] for r in found if "error" in r] == [3, 8] == [line for line, _ in told]
    assert all("refused" in r["error"] and r["prompt"] for r in found if "error" in r)
    expected = FakeEngine().generate(PROMPTS, **OPTIONS).new_texts
    assert [r.get("text") for r in found] == [
        None if i in (2, 7) else t for i, t in enumerate(expected)
    ]


def test_a_failing_store_ends_the_job_and_keeps_what_is_done(tmp_path):
    engine = FakeEngine()
    generate = engine.generate

    def fail_later(prompts, **options):
        if len(engine.calls) == 1:
            raise StoreError("the disk left")
        return generate(prompts, **options)

    engine.generate = fail_later
    with pytest.raises(StoreError):
        run(prompt_file(tmp_path), tmp_path / "out", engine)
    assert len(records(tmp_path / "out")) == 8


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_a_file_without_prompts_is_refused(content, tmp_path):
    (tmp_path / "in.jsonl").write_text(content)
    with pytest.raises(OptionError, match="no prompts"):
        jobs.read_prompts(tmp_path / "in.jsonl")


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(OptionError, match="nowhere.jsonl"):
        jobs.read_prompts(tmp_path / "nowhere.jsonl")


def test_prompts_for_a_bench_must_all_be_readable(tmp_path):
    assert jobs.read_prompts(prompt_file(tmp_path)) == PROMPTS
    with pytest.raises(OptionError, match="line 2"):
        jobs.read_prompts(prompt_file(tmp_path, {"prompt": "a"}, "{"))


# The output file


def test_an_output_that_exists_is_left_alone_unless_told(tmp_path):
    prompts, out = prompt_file(tmp_path), tmp_path / "out"
    out.write_text("precious\n")
    with pytest.raises(OptionError, match="--resume.*--overwrite"):
        run(prompts, out)
    with pytest.raises(OptionError, match="not written by specmoe"):
        run(prompts, out, resume=True)
    with pytest.raises(OptionError, match="exclude"):
        run(prompts, out, resume=True, overwrite=True)
    assert out.read_text() == "precious\n"
    run(prompts, out, overwrite=True)
    assert len(records(out)) == len(PROMPTS)


def test_the_prompts_are_never_overwritten(tmp_path):
    prompts = prompt_file(tmp_path)
    before = prompts.read_bytes()
    with pytest.raises(OptionError, match="itself"):
        run(prompts, prompts, overwrite=True)
    assert prompts.read_bytes() == before


def test_a_missing_folder_is_named_before_anything_runs(tmp_path):
    with pytest.raises(OptionError, match="no folder"):
        run(prompt_file(tmp_path), tmp_path / "none" / "out")


# Resuming


@pytest.fixture
def whole(tmp_path):
    """The output of a job that nobody interrupted: prompts, a bad line, a refused prompt."""
    values = [
        {"id": 1, "prompt": "öne"},
        "{bad",
        {"prompt": "refused"},
        {"prompt": "three"},
        {"prompt": "four"},
    ]
    prompts = prompt_file(tmp_path, *values)
    run(prompts, tmp_path / "whole", FakeEngine(refused=("refused",)))
    return prompts, (tmp_path / "whole").read_bytes()


def test_a_job_cut_at_any_byte_resumes_to_the_same_file(whole, tmp_path):
    prompts, content = whole
    out = tmp_path / "out"
    for cut in range(len(content)):
        out.write_bytes(content[:cut])
        engine = FakeEngine(refused=("refused",))
        job = run(prompts, out, engine, resume=True)
        assert out.read_bytes() == content, f"cut after {cut} bytes"
        assert job.num_errors == 2
        redone = [p for chunk, _ in engine.calls for p in chunk]
        if content[:cut].count(b"\n") >= 4:
            assert set(redone) <= {"four"}, "what was written must not be decoded again"


def test_an_interrupted_job_loses_no_finished_chunk_and_goes_on(tmp_path):
    prompts, out = prompt_file(tmp_path), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(prompts, out, FakeEngine(interrupt_at=2))
    assert len(records(out)) == 8
    engine = FakeEngine()
    run(prompts, out, engine, resume=True)
    assert [prompts for prompts, _ in engine.calls] == [PROMPTS[8:][::-1]]
    run(prompts, tmp_path / "at once")
    assert out.read_bytes() == (tmp_path / "at once").read_bytes()


def test_a_finished_chunk_is_in_the_file_while_the_next_one_runs(tmp_path):
    engine, seen = FakeEngine(), []
    generate = engine.generate

    def look_first(prompts, **options):
        seen.append(len(records(tmp_path / "out")))
        return generate(prompts, **options)

    engine.generate = look_first
    run(prompt_file(tmp_path), tmp_path / "out", engine)
    assert seen == [0, 8]


def test_resuming_a_finished_job_needs_no_engine(tmp_path):
    prompts, out = prompt_file(tmp_path), tmp_path / "out"
    run(prompts, out)
    engine = FakeEngine()
    job = run(prompts, out, engine, resume=True)
    assert engine.calls == [] and job.num_done == len(PROMPTS)


def test_resuming_with_a_file_that_is_not_there_begins(tmp_path):
    run(prompt_file(tmp_path), tmp_path / "out", resume=True)
    assert len(records(tmp_path / "out")) == len(PROMPTS)


@pytest.mark.parametrize(
    "values, said",
    [
        ([{"prompt": "other"}, {"prompt": "b"}], "line 1 does not belong"),
        ([{"prompt": "a"}, {"prompt": "b", "id": 7}], "line 2 does not belong"),
        (["", {"prompt": "a"}, {"prompt": "b"}], "line 1 does not belong"),
        ([{"prompt": "a"}], "more lines than the prompts"),
        (["{bad", {"prompt": "b"}], "line 1 does not belong"),
    ],
)
def test_resuming_with_other_prompts_is_refused_and_changes_nothing(values, said, tmp_path):
    out = tmp_path / "out"
    run(prompt_file(tmp_path, {"prompt": "a"}, {"prompt": "b"}), out)
    out.write_bytes(out.read_bytes() + b'{"line": 3, "pro')
    before = out.read_bytes()
    with pytest.raises(OptionError, match=said):
        run(prompt_file(tmp_path, *values), out, resume=True)
    assert out.read_bytes() == before


def test_resuming_with_options_that_change_the_texts_is_refused_and_with_others_is_not(tmp_path):
    prompts, out = prompt_file(tmp_path, {"prompt": "a"}), tmp_path / "out"
    run(prompts, out)
    with pytest.raises(OptionError, match="other options"):
        run(prompts, out, resume=True, options={**OPTIONS, "max_new_tokens": 4})
    run(
        prompts,
        out,
        resume=True,
        options={**OPTIONS, "method": "cached", "gamma": 2, "batch_size": 7},
    )


@pytest.mark.parametrize(
    "name, value", [("do_sample", True), ("max_new_tokens", 5), ("target_lang", "fra")]
)
def test_the_fingerprint_follows_what_decides_the_texts(name, value):
    plain = jobs.fingerprint("m", {}, {})
    assert jobs.fingerprint("m", {}, {name: value}) != plain != jobs.fingerprint("n", {}, {})
    assert jobs.fingerprint("m", {"dtype": "float32"}, {}) != plain
    assert (
        jobs.fingerprint(
            "m", {"store": "memory"}, {"gamma": 4, "method": "auto", "max_new_tokens": 64}
        )
        == plain
    )


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_sampled_texts_do_not_depend_on_batch_size_chunks_or_refused_neighbours(
    batch_size, tmp_path
):
    sampling = {"max_new_tokens": 3, "do_sample": True, "seed": 5}
    values = [{"prompt": "same"}] * 6 + ["{bad", {"prompt": "refused"}] + [{"prompt": "same"}] * 5
    engine = FakeEngine(refused=("refused",))
    run(
        prompt_file(tmp_path, *values),
        tmp_path / "out",
        engine,
        {**sampling, "batch_size": batch_size},
    )
    texts = [r.get("text") for r in records(tmp_path / "out")]
    prompts = ["same"] * 6 + ["refused"] + ["same"] * 5
    expected = FakeEngine().generate(prompts, **sampling).new_texts
    assert texts == [*expected[:6], None, None, *expected[7:]]
    assert len(set(expected)) > 1, "each prompt has its own noise"
