"""What a line may say, what it may not, and that a file of any length is read a chunk at a time. On
a fake engine."""

from __future__ import annotations

import io
import json
import tracemalloc

import pytest
from fake_engine import FakeEngine
from test_jobs import OPTIONS, lines_of, prompt_file, records, run

from specmoe.cli import jobs
from specmoe.cli.job_lines import MAX_LINE_BYTES, read_items, read_lines
from specmoe.errors import OptionError

CHAT = [{"role": "user", "content": "hello"}]


def items_of(content: bytes) -> list:
    return list(read_items(io.BytesIO(content), "in"))


# Bytes


def test_a_byte_order_mark_and_windows_line_ends_lose_nothing():
    plain = items_of(b'{"prompt": [5, 6]}\n{"prompt": [7]}\n')
    for content in (
        b'\xef\xbb\xbf{"prompt": [5, 6]}\n{"prompt": [7]}\n',
        b'{"prompt": [5, 6]}\r\n{"prompt": [7]}\r\n',
        b'\xef\xbb\xbf{"prompt": [5, 6]}\r\n{"prompt": [7]}',
    ):
        found = items_of(content)
        assert [(i.line, i.prompt, i.error, i.digest) for i in found] == [
            (i.line, i.prompt, None, i.digest) for i in plain
        ]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32"])
def test_other_encodings_are_refused_or_named_line_by_line(encoding):
    content = '{"prompt": "a"}\n'.encode(encoding)
    if encoding == "utf-16-be":
        assert all("not JSON" in item.error for item in items_of(content))
    else:
        with pytest.raises(OptionError, match="in is UTF-16: save it as UTF-8"):
            items_of(content)


BAD = {
    "NaN": ('{"prompt": "a", "temperature": NaN}', "no finite number"),
    "Infinity": ('{"prompt": "a", "id": -Infinity}', "no finite number"),
    "too large a number": ('{"prompt": "a", "temperature": 1e999}', "no finite number"),
    "a number of 5000 digits": ('{"prompt": [' + "9" * 5000 + "]}", "not JSON"),
    "a key twice": ('{"prompt": "a", "prompt": "b"}', "'prompt' stands twice"),
    "a key twice, further in": (
        '{"messages": [{"role": "u", "role": "v"}]}',
        "'role' stands twice",
    ),
    "half a surrogate pair in a key": ('{"prompt": "a", "\\udc00": 1}', "surrogate"),
    "a null byte": ('{"prompt": "a\x00"}', "not JSON"),
    "very deep": ('{"prompt": ' + '{"a":' * 50_000, "not JSON"),
    "an unknown key": ('{"prompt": "a", "temprature": 1}', "did you mean 'temperature'?"),
    "an option of the whole job": ('{"prompt": "a", "batch_size": 2}', "unknown key 'batch_size'"),
    "python only": ('{"prompt": "a", "first_prompt": 2}', "unknown key 'first_prompt'"),
    "a hot temperature": ('{"prompt": "a", "temperature": "hot"}', "temperature='hot'"),
    "a truth for a number": ('{"prompt": "a", "max_new_tokens": true}', "max_new_tokens=True"),
    "a negative one": ('{"prompt": "a", "max_new_tokens": -3}', "max_new_tokens=-3"),
    "a callable's name": ('{"prompt": "a", "logits_processor": "x"}', "unknown key 'logits_proc"),
    "one option by two names": ('{"prompt": "a", "stop": "x", "stop_strings": "y"}', "one option"),
    "a seed below zero": ('{"prompt": "a", "seed": -1}', "seed=-1"),
    "a list for a number": ('{"prompt": "a", "top_k": [3]}', "top_k=[3]"),
    "n of zero": ('{"prompt": "a", "n": 0}', '"n" is 0'),
    "n of a billion": ('{"prompt": "a", "n": 1000000000}', '"n" is 1000000000'),
    "n that is true": ('{"prompt": "a", "n": true}', '"n" is True'),
    "both": ('{"prompt": "a", "messages": [{"role": "u", "content": "x"}]}', "has both"),
    "neither": ('{"id": 3}', "has neither"),
    "no messages": ('{"messages": []}', '"messages" is empty'),
    "a text for messages": ('{"messages": "hello"}', '"messages" is not a list'),
    "messages without roles": ('{"messages": [{"content": "x"}]}', '"messages" is not a list'),
    "messages called prompt": (
        '{"prompt": [{"role": "user", "content": "x"}]}',
        'call it "messages"',
    ),
    "one message called prompt": (
        '{"prompt": {"role": "user", "content": "x"}}',
        'call it "messages"',
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_line_says_what_is_wrong_and_the_others_still_run(kind, tmp_path):
    text, said = BAD[kind]
    run(prompt_file(tmp_path, {"prompt": "a"}, text, {"prompt": "b"}), tmp_path / "out")
    first, bad, last = records(tmp_path / "out")
    assert said in bad["error"] and "\n" not in bad["error"] and len(bad["error"]) < 1000
    assert (first["text"], last["text"]) == tuple(
        FakeEngine().generate(["a", "b"], max_new_tokens=3).new_texts
    )


def test_a_line_longer_than_the_limit_is_an_error_and_takes_no_memory(tmp_path):
    path = tmp_path / "in.jsonl"
    with open(path, "wb") as file:
        file.write(b'{"prompt": "a"}\n')
        file.seek(16 * MAX_LINE_BYTES, 1)
        file.write(b'\n{"prompt": "b"}\n')
    tracemalloc.start()
    try:
        run(path, tmp_path / "out")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    found = records(tmp_path / "out")
    assert [r["line"] for r in found] == [1, 2, 3] and "longer than" in found[1]["error"]
    assert peak < 4 * MAX_LINE_BYTES


def test_a_line_of_just_the_limit_is_read_with_and_without_its_line_break():
    text = b'{"prompt": "' + b"x" * (MAX_LINE_BYTES - 14) + b'"}'
    assert len(text) == MAX_LINE_BYTES
    assert [item.error for item in items_of(text + b"\n" + text)] == [None, None]
    longer = items_of(text + b" \n{}\n" + text + b" ")
    assert ["longer" in (item.error or "") for item in longer] == [True, False, True]


class Growing(io.BytesIO):
    """A file into which ``more`` is written, piece by piece, each time that its end is met."""

    def __init__(self, content: bytes, *more: bytes):
        super().__init__(content)
        self.more = list(more)

    def readline(self, size=-1):
        found = super().readline(size)
        if not found.endswith(b"\n") and self.more:
            at = self.tell()
            self.seek(0, io.SEEK_END)
            self.write(self.more.pop(0))
            self.seek(at)
        return found


def test_a_line_that_is_written_while_it_is_read_is_whole_and_never_two():
    def lines(limit, *pieces):
        return [raw for _, raw in read_lines(Growing(*pieces), "in", limit)]

    assert lines(20, b"a\nb", b"c", b"d\ne\n") == [b"a\n", b"bcd\n", b"e\n"]
    assert lines(3, b"a\nb", b"c", b"de\nf\n") == [b"a\n", None, b"f\n"]
    # Its end was seen: what comes later is no line of its own.
    assert lines(20, b"a\nb", b"", b"c\n") == [b"a\n", b"b"]


def test_no_more_than_a_chunk_is_read_ahead_and_none_is_kept(tmp_path, monkeypatch):
    """While a call runs, the input is at the end of its chunk, and all earlier chunks are in the
    output."""
    num_lines, taken = 1000, [0]

    class Endless(io.RawIOBase):
        def readline(self, size=-1):
            if taken[0] == num_lines:
                return b""
            taken[0] += 1
            return b'{"prompt": [%d]}\n' % taken[0]

    monkeypatch.setattr(jobs, "open_input", lambda path: (Endless(), "in"))
    engine, seen = FakeEngine(), []
    generate = engine.generate

    def look(prompts, **options):
        written = (tmp_path / "out").read_bytes().count(b"\n")
        seen.append(taken[0] - written)
        engine.calls.clear()
        return generate(prompts, **options)

    engine.generate = look
    job = run("in", tmp_path / "out", engine)
    assert job.num_done == num_lines and set(seen) == {8}, "four batches of two"


def test_a_chunk_ends_early_where_its_lines_are_long(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "CHUNK_BYTES", 100)
    engine = FakeEngine()
    run(prompt_file(tmp_path, *[{"prompt": "x" * 60}] * 6), tmp_path / "out", engine)
    assert [len(prompts) for prompts, _ in engine.calls] == [2, 2, 2]


# Options of a line


def calls_of(tmp_path, *values, **options) -> list[tuple[list, dict]]:
    engine, options = FakeEngine(), {"max_new_tokens": 3, "batch_size": 4, **options}
    run(prompt_file(tmp_path, *values), tmp_path / "out", engine, options)
    return [(p, {k: v for k, v in o.items() if k not in options}) for p, o in engine.calls]


def test_lines_of_different_settings_share_a_call(tmp_path):
    values = [{"prompt": "a", "max_new_tokens": 2}, {"prompt": "b"}, {"prompt": "c", "stop": "x"}]
    calls = calls_of(tmp_path, *values[:2])
    assert calls == [(["b", "a"], {"settings": [None, {"max_new_tokens": 2}]})]
    assert [len(r["tokens"]) for r in records(tmp_path / "out")] == [2, 3]
    assert jobs.read_items(
        io.BytesIO(json.dumps(values[2]).encode()), "in"
    ).__next__().settings == {"stop_strings": "x"}


def test_lines_that_need_calls_of_their_own_keep_their_place_in_the_output(tmp_path):
    values = [{"prompt": f"p{i}", "target_lang": "ab"[i % 2]} for i in range(6)]
    calls = calls_of(tmp_path, *values)
    assert calls == [
        (["p0", "p2", "p4"], {"target_lang": "a"}),
        (["p1", "p3", "p5"], {"target_lang": "b"}),
    ]
    assert [r["prompt"] for r in records(tmp_path / "out")] == [f"p{i}" for i in range(6)]


def test_a_temperature_on_a_line_samples_and_zero_is_greedy(tmp_path):
    hot, cold = {"prompt": "a", "temperature": 0.5}, {"prompt": "b", "temperature": 0, "top_k": 4}
    [(prompts, options)] = calls_of(tmp_path, hot, cold, {"prompt": "c"}, seed=7)
    assert options == {
        "first_prompt": 0,
        "settings": [{"temperature": 0.5, "do_sample": True}, {"do_sample": False}, None],
    }
    assert ["seed" in r for r in records(tmp_path / "out")] == [True, False, False]
    (tmp_path / "out").unlink()
    greedy = {"prompt": "c", "do_sample": False}
    calls = calls_of(tmp_path, cold, greedy, {"prompt": "d"}, do_sample=True, seed=7)
    assert calls[0][1]["settings"] == [{"do_sample": False}, {"do_sample": False}, None]
    assert ["seed" in r for r in records(tmp_path / "out")] == [False, False, True]


def test_sampled_lines_keep_their_number_in_whatever_calls_they_fall(tmp_path):
    values = [{"prompt": "same", "max_new_tokens": 3 + i % 2} for i in range(12)]
    for i in (2, 3, 7):
        values[i]["target_lang"] = "fra"
    sampling = {"do_sample": True, "seed": 5}
    run(prompt_file(tmp_path, *values), tmp_path / "out", options={**OPTIONS, **sampling})
    expected = FakeEngine().generate(["same"] * 12, max_new_tokens=4, **sampling).new_texts
    assert [r["text"] for r in records(tmp_path / "out")] == [
        text[: 3 + i % 2] for i, text in enumerate(expected)
    ]


def test_a_line_with_its_own_seed_gives_what_its_prompt_gives_alone(tmp_path):
    values = [
        {"prompt": "x"},
        {"prompt": "same", "seed": 9},
        {"prompt": "y"},
        {"prompt": "same", "seed": 9},
    ]
    sampling = {"do_sample": True, "seed": 5}
    run(prompt_file(tmp_path, *values), tmp_path / "out", options={**OPTIONS, **sampling})
    alone = FakeEngine().generate(["same"], max_new_tokens=3, do_sample=True, seed=9).new_texts[0]
    found = records(tmp_path / "out")
    assert [r["seed"] for r in found] == [5, 9, 5, 9]
    assert (found[1]["text"], found[3]["text"]) == (alone, alone)


def test_n_gives_lists_and_each_text_has_its_own_noise(tmp_path):
    sampling = {"max_new_tokens": 3, "do_sample": True, "seed": 5}
    values = [
        {"prompt": "same"},
        {"prompt": "same", "n": 3},
        {"prompt": "same", "n": 1},
        {"prompt": "same"},
    ]
    run(prompt_file(tmp_path, *values), tmp_path / "out", options=sampling)
    expected = FakeEngine().generate(["same"] * 6, **sampling).new_texts
    first, three, one, last = records(tmp_path / "out")
    assert first["text"] == expected[0] and three["texts"] == expected[1:4]
    assert (one["texts"], last["text"]) == (expected[4:5], expected[5])
    assert [len(tokens) for tokens in three["tokens"]] == [3, 3, 3] and "text" not in three


def test_chats_go_to_the_engine_as_they_stand(tmp_path):
    engine = FakeEngine()
    run(
        prompt_file(tmp_path, {"messages": CHAT, "id": 1}, {"prompt": "b"}, {"messages": CHAT}),
        tmp_path / "out",
        engine,
    )
    assert [prompts for prompts, _ in engine.calls] == [[CHAT, CHAT], ["b"]]
    found = records(tmp_path / "out")
    assert found[0]["messages"] == CHAT and "prompt" not in found[0] and found[1]["prompt"] == "b"


def test_prompts_for_a_bench_carry_no_options(tmp_path):
    with pytest.raises(OptionError, match="line 1: decoding options"):
        jobs.read_prompts(prompt_file(tmp_path, {"prompt": "a", "top_k": 3}))


def test_any_bytes_at_all_give_items_or_one_refusal():
    """A sweep over single changed bytes of a small file; the longer search is the fuzzer's."""
    good = lines_of(
        {"prompt": "a", "id": 1, "temperature": 0.5}, {"messages": CHAT}, {"prompt": [3], "n": 2}
    ).encode()
    for at in range(len(good)):
        for byte in (0, 10, 34, 92, 123, 255):
            try:
                found = items_of(good[:at] + bytes([byte]) + good[at + 1 :])
            except OptionError as refusal:
                assert "UTF-16" in str(refusal)
            else:
                assert all(
                    json.dumps(item.record("job"), ensure_ascii=False).encode() for item in found
                )
