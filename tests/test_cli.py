"""The command line keeps its promises: one line per failure, an exit code, JSON that is only JSON,
nothing heavy early.

Most tests run on a fake engine inside this process; the last ones run the real program on a shipped
model.
"""

from __future__ import annotations

import dataclasses
import importlib
import io
import json
import os
import re
import subprocess
import sys
import types

import pytest
from fake_engine import FakeEngine

import specmoe
from specmoe import checkpoint
from specmoe.cli import parser as cli
from specmoe.errors import CheckpointError, OptionError
from specmoe.lab.bench import methods as bench
from specmoe.options import SPIN, GenerateOptions, LoadOptions

COMMANDS = [
    "models",
    "generate",
    "bench",
    "plan",
    "sweep",
    "pack",
    "verify",
    "cache",
    "report",
    "train",
    "doctor",
    "completion",
]


@pytest.fixture
def loaded(monkeypatch):
    """``specmoe.engine.engine.load`` gives a fake engine; what it was asked for is in
    ``loaded.loads``."""
    engine = FakeEngine()
    engine.loads = []

    def load(model, **options):
        engine.loads.append((model, options))
        return engine

    monkeypatch.setattr("specmoe.engine.engine.load", load)
    monkeypatch.setattr("specmoe.cli.identity.identity_of", lambda model, **_: model)
    monkeypatch.setattr(bench.doctor, "examine", lambda **options: {"cpu": "a fake", "cores": 2})
    return engine


@pytest.fixture
def specmoe_says(capsys):
    """Run a command in this process: (exit code, stdout, stderr)."""

    def run(*words: str) -> tuple[int, str, str]:
        code = cli.main([str(word) for word in words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def program(*words: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "specmoe", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


def fake_module(monkeypatch, name: str, **functions) -> None:
    """``name``: where it lies in the package, such as ``lab.report``."""
    parent, _, leaf = f"specmoe.{name}".rpartition(".")
    module = types.ModuleType(f"specmoe.{name}")
    vars(module).update(functions)
    monkeypatch.setitem(sys.modules, f"specmoe.{name}", module)
    monkeypatch.setattr(importlib.import_module(parent), leaf, module, raising=False)


# Failures


@pytest.mark.parametrize(
    "words, said",
    [
        (["bench", "m", "--gama", "5"], "did you mean --gamma?"),
        (["bench", "m", "--gama=5"], "did you mean --gamma?"),
        (["bench", "--bathc", "1", "m"], "did you mean --batch?"),
        (["models", "--xyzzy"], "see specmoe models --help"),
        (["models", "superfluous"], "superfluous"),
        (["generate", "m", "-p", "x", "--max", "3"], "--max"),
        (["bnech", "m"], "no command 'bnech': did you mean 'bench'?"),
        (["xyzzy", "m"], "no command 'xyzzy': use one of bench, "),
        ([], "name a COMMAND: one of models, generate, "),
        (["-q", "--quiet"], "name a COMMAND"),
        (["-q", "bench", "m", "--gama", "5"], "did you mean --gamma?"),
        (["bench"], "MODEL"),
        (["bench", "m", "--gamma", "five"], "five"),
        (["bench", "m", "--batch", "1,two"], "1,two"),
        (["bench", "m", "--methods", "specmo"], "did you mean 'specmoe'?"),
        (["bench", "m", "--eviction", "lur"], "did you mean 'lru'?"),
        (["generate", "m", "-p", "x", "--method", "cahced"], "did you mean 'cached'?"),
        (["generate", "m", "-p", "x", "--gamma", "-1"], "gamma=-1"),
        (["generate", "m", "-p", "x", "--temperature", "-1"], "temperature=-1"),
        (["generate", "m", "-p", "x", "--top-p", "0"], "top_p=0"),
        (["generate", "m", "-p", "x", "--fast-memory", "big"], "fast_memory='big'"),
        (["generate", "m", "-p", "x", "--link-bytes-per-s", "0"], "link_bytes_per_s=0"),
        (["generate", "m", "-p", "x", "--out", "o"], "--out belongs to --prompts"),
        (["generate", "m", "-p", "x", "--resume"], "--resume belongs to --prompts"),
        (["generate", "m", "-p", "x", "--prompts", "i"], "not allowed with"),
        (["generate", "m", "--prompts", "i"], "--out"),
        (["generate", "m"], "--prompt"),
        (["generate", "m", "--prompts", "no-such.jsonl", "--out", "o"], "no-such.jsonl"),
        (["bench", "m", "--prompts", "no-such.jsonl"], "no-such.jsonl"),
        (["pack", "m", "d", "--expert-bytes", "0"], "expert_bytes='0'"),
        (["report", "params"], "needs the NAME"),
        (["report", "run"], "needs the NAME"),
        (["report", "list", "-p", "a=1"], "belong to"),
        (["report", "params", "r", "--against", "d"], "belong to"),
        (["report", "run", "r", "--out", "d", "-p", "gamma"], "not K=V"),
        (["train", "tiny-skewd", "--out", "d"], "did you mean 'tiny-skewed'?"),
        (["train", "tiny-skewed", "--out", "d", "--steps", "0"], "--steps"),
        (["doctor", "--record-bytes", "-3"], "record_bytes"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words, said, specmoe_says, monkeypatch):
    monkeypatch.setattr(
        "specmoe.engine.engine.load", lambda *a, **k: pytest.fail("loaded all the same")
    )
    fake_module(monkeypatch, "lab.report", run_report=lambda *a: pytest.fail("ran all the same"))
    code, out, err = specmoe_says(*words)
    assert (code, out) == (2, "")
    assert err.startswith("specmoe: error: ") and err.count("\n") == 1 and err.endswith("\n")
    assert said in err


def test_with_json_a_failure_is_also_an_object_on_stdout(specmoe_says):
    for words in (
        ["bench", "m", "--gama", "5", "--json"],
        ["bench", "m", "--methods", "x", "--json"],
    ):
        code, out, err = specmoe_says(*words)
        found = json.loads(out)
        assert code == 2 and found["error"]["type"] == "OptionError"
        assert err == f"specmoe: error: {found['error']['message']}\n"


@pytest.mark.parametrize(
    "failure, code, kind",
    [
        (CheckpointError("no such\ncheckpoint"), 2, "CheckpointError"),
        (RuntimeError("a bug"), 1, "RuntimeError"),
        (OSError(28, "No space left on device"), 1, "OSError"),
        (ValueError(), 1, "ValueError"),
    ],
)
def test_any_failure_is_one_line_and_a_code(failure, code, kind, specmoe_says, monkeypatch):
    def load(*arguments, **options):
        raise failure

    monkeypatch.setattr("specmoe.engine.engine.load", load)
    found = specmoe_says("generate", "m", "-p", "x", "--json")
    assert found[0] == code
    assert json.loads(found[1])["error"]["type"] == kind
    assert found[2].count("\n") == 1 and "Traceback" not in found[2]
    assert (kind in found[2]) == (code == 1), "an unexpected failure says its type"
    debugged = specmoe_says("generate", "m", "-p", "x", "--debug")
    assert debugged[0] == code and "Traceback" in debugged[2] and debugged[1] == ""


def test_an_interruption_is_130(specmoe_says, loaded):
    loaded.interrupt_at = 1
    code, out, err = specmoe_says("generate", "m", "-p", "x")
    assert (code, out, err) == (130, "", "specmoe: interrupted\n")
    assert loaded.num_closed == 1


# Help


def test_help_names_every_command_and_comes_without_torch():
    check = (
        "import sys\n"
        "from specmoe.cli.parser import main\n"
        "for words in (['--help'], ['bench', '--help'], ['models', '--json'], ['bench', 'm', "
        "'--gama']):\n"
        "    try: main(words)\n"
        "    except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'transformers', 'seaborn', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert all(re.search(rf"^    {command}\s", done.stdout, re.M) for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_json(command):
    _, by_name = cli.build_parser()
    assert {"--json", "--debug", "--help"} <= set(by_name[command]._option_string_actions)
    assert list(by_name) == COMMANDS


def test_every_option_of_python_has_a_flag():
    """Those that are no words of a shell excepted; do_sample follows from --temperature. The hub's
    token and folder are HF_TOKEN and HF_HOME there: a command line is no place for a secret."""
    _, by_name = cli.build_parser()
    python_only = {
        "trace",
        "streamer",
        "progress",
        "do_sample",
        "own",
        "settings",
        "logits_processor",
        "stopping_criteria",
        "token",
        "cache_dir",
    }
    fields = {
        f.name for cls in (LoadOptions, GenerateOptions) for f in dataclasses.fields(cls)
    } - python_only
    fields -= {"first_prompt"}  # set by jobs
    assert fields <= {action.dest for action in by_name["generate"]._actions}
    load_fields = {f.name for f in dataclasses.fields(LoadOptions)} - python_only
    assert load_fields <= {action.dest for action in by_name["bench"]._actions}


def test_it_also_runs_as_a_module():
    done = program("--version")
    assert (done.returncode, done.stdout) == (0, f"specmoe {specmoe.__version__}\n")
    assert program("nonsense").returncode == 2


# models


def test_models_are_listed_with_their_size_and_skew(specmoe_says):
    code, out, _ = specmoe_says("models", "--json")
    rows = {row["name"]: row for row in json.loads(out)["models"]}
    assert code == 0 and {"tiny-skewed", "tiny-balanced"} <= set(rows)
    assert rows["tiny-skewed"]["experts"] == 32 and 0 < rows["tiny-skewed"]["mean_gini"] < 1
    table = specmoe_says("models")[1]
    assert all(name in table for name in rows) and "mean_gini" in table


# generate


def test_generate_prints_prompt_and_text_and_keeps_stdout_clean(loaded, specmoe_says):
    code, out, err = specmoe_says(
        "generate", "m", "-p", "one ", "-p", "two ", "--max-new-tokens", "3"
    )
    texts = FakeEngine().generate(["one ", "two "], max_new_tokens=3).new_texts
    assert code == 0 and out == f"one {texts[0]}\n\ntwo {texts[1]}\n"
    assert "num_new_tokens 6" in err
    assert loaded.num_closed == 1


def test_generate_json_is_one_object(loaded, specmoe_says):
    code, out, err = specmoe_says("generate", "m", "-p", "one ", "--max-new-tokens", "3", "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert list(found) == ["model", "outputs", "stats"]
    assert found["outputs"][0]["prompt"] == "one " and len(found["outputs"][0]["tokens"]) == 3
    assert found["stats"]["num_new_tokens"] == 3 and found["stats"]["prefetch_precision"] is None


def test_flags_become_the_options_of_load_and_generate(loaded, specmoe_says):
    words = """--method specmoe --gamma 3 --batch-size 2 --max-new-tokens 9 --no-prefetch --eviction lru
        --draft-set random --substitute router --temperature 0.5 --top-k 7 --top-p 0.9 --seed 4 --accept-rule rejection
        --eos-token-id 2 --source-lang eng --target-lang fra --draft-experts 2 --fast-memory 1MiB --store memory
        --link-bytes-per-s 1e6 --expert-bytes 3MiB --device cpu --dtype float32 --compile --num-readers 2""".split()
    specmoe_says("generate", "m", "-p", "x", *words)
    assert loaded.loads == [
        (
            "m",
            {
                "draft_experts": 2,
                "fast_memory": "1MiB",
                "store": "memory",
                "link_bytes_per_s": 1e6,
                "expert_bytes": "3MiB",
                "device": "cpu",
                "dtype": "float32",
                "compile": True,
                "num_readers": 2,
            },
        )
    ]
    [(prompts, options)] = loaded.calls
    assert prompts == ["x"] and options == {
        "method": "specmoe",
        "gamma": 3,
        "batch_size": 2,
        "max_new_tokens": 9,
        "prefetch": False,
        "eviction": "lru",
        "draft_set": "random",
        "substitute": "router",
        "temperature": 0.5,
        "top_k": 7,
        "top_p": 0.9,
        "seed": 4,
        "accept_rule": "rejection",
        "eos_token_id": 2,
        "source_lang": "eng",
        "target_lang": "fra",
        "do_sample": True,
        "progress": False,
    }


def test_what_is_not_typed_is_left_to_the_defaults(loaded, specmoe_says):
    specmoe_says("generate", "m", "-p", "x")
    assert loaded.loads == [("m", {})]
    assert loaded.calls == [(["x"], {"progress": False})]


@pytest.mark.parametrize(
    "words, sampled",
    [
        ("", False),
        ("--temperature 0", False),
        ("--temperature 0 --top-k 5", False),
        ("--temperature 0.5", True),
        ("--top-k 5", True),
        ("--top-p 0.5", True),
        ("--seed 3", False),
    ],
)
def test_temperature_zero_is_greedy(words, sampled, loaded, specmoe_says):
    code, _, err = specmoe_says("generate", "m", "-p", "x", *words.split())
    assert code == 0, err
    assert loaded.calls[0][1].get("do_sample", False) is sampled


# generate, from file to file


def test_a_file_of_prompts_becomes_a_file_of_texts(loaded, specmoe_says, tmp_path):
    prompts, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    prompts.write_text('{"prompt": "a", "id": 9}\n{"prompt": "b"}\n')
    words = ["generate", "m", "--prompts", prompts, "--out", out, "--max-new-tokens", "3", "--json"]
    code, said, err = specmoe_says(*words)
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert (code, err) == (0, "") and [(r["prompt"], r.get("id")) for r in found] == [
        ("a", 9),
        ("b", None),
    ]
    summary = json.loads(said)
    assert (summary["num_lines"], summary["num_written"], summary["num_errors"]) == (2, 2, 0)
    assert summary["num_new_tokens"] == 6

    code, said, err = specmoe_says(*words)
    assert code == 2 and "--resume" in err and "--overwrite" in json.loads(said)["error"]["message"]
    code, said, _ = specmoe_says(*words, "--resume")
    assert code == 0 and json.loads(said)["num_written"] == 0
    assert len(loaded.loads) == 1, "nothing was left to do, so nothing was loaded"
    assert specmoe_says(*words, "--overwrite")[0] == 0 and len(loaded.loads) == 2


def test_a_bad_line_is_named_and_the_exit_code_is_1_now_and_when_resumed(
    loaded, specmoe_says, tmp_path
):
    prompts, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    prompts.write_text('{"prompt": "a"}\n{broken\n{"prompt": "b"}\n')
    words = ["generate", "m", "--prompts", prompts, "--out", out]
    code, _, err = specmoe_says(*words)
    assert code == 1 and f"{prompts} line 2: not JSON" in err
    assert ["error" in json.loads(line) for line in out.read_text().splitlines()] == [
        False,
        True,
        False,
    ]
    assert specmoe_says(*words, "--resume")[0] == 1


class Stdin:
    """Standard input as a program that is given ``text`` has it."""

    def __init__(self, text: str):
        self.buffer = io.BytesIO(text.encode())


def test_prompts_from_stdin_and_texts_to_stdout_with_nothing_between(
    loaded, specmoe_says, monkeypatch
):
    monkeypatch.setattr(sys, "stdin", Stdin('{"prompt": "a"}\n{broken\n{"prompt": "b"}\n'))
    monkeypatch.setattr(loaded, "generate", printing(loaded.generate))
    words = ["generate", "m", "--prompts", "-", "--out", "-", "--max-new-tokens", "3"]
    code, out, err = specmoe_says(*words)
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 1 and [r["line"] for r in found] == [1, 2, 3]
    texts = FakeEngine().generate(["a", "b"], max_new_tokens=3).new_texts
    assert [found[0]["text"], found[2]["text"]] == texts
    assert "a library speaks" in err and "line 2: not JSON" in err and "num_written 3" in err
    assert "drafted in " in err and "which saved 0% of the " in err


def printing(generate):
    def also_prints(*arguments, **options):
        print("a library speaks")
        return generate(*arguments, **options)

    return also_prints


def test_a_reader_who_has_enough_ends_the_job_without_a_word(loaded, monkeypatch, capsys):
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(sys, "stdin", Stdin('{"prompt": "a"}\n'))
    with open(writer, "w") as left:
        monkeypatch.setattr(sys, "stdout", left)
        assert cli.main(["generate", "m", "--prompts", "-", "--out", "-"]) == 1
    assert capsys.readouterr().err == "" and loaded.num_closed == 1


def test_json_and_lines_do_not_share_stdout(specmoe_says, monkeypatch):
    monkeypatch.setattr(
        "specmoe.engine.engine.load", lambda *a, **k: pytest.fail("loaded all the same")
    )
    code, out, err = specmoe_says("generate", "m", "--prompts", "-", "--out", "-", "--json")
    assert code == 2 and "--json prints one object" in err and len(out.splitlines()) == 1


def test_a_job_knows_its_model_by_content_and_not_by_its_spelling(
    loaded, specmoe_says, monkeypatch, tmp_path
):
    contents = {"m": "one", "./m": "one", "copy": "one", "other": "two"}
    monkeypatch.setattr("specmoe.cli.identity.identity_of", lambda model, **_: contents[model])
    prompts, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    prompts.write_text('{"prompt": "a"}\n')
    words = ["--prompts", prompts, "--out", out, "--resume"]
    codes = {model: specmoe_says("generate", model, *words) for model in contents}
    assert [code for code, _, _ in codes.values()] == [0, 0, 0, 2]
    assert "a model of other content" in codes["other"][2]
    contents["m"] = "three"
    assert specmoe_says("generate", "m", *words)[0] == 2, "other weights under the same name"


def test_a_model_that_changes_between_its_naming_and_its_loading_writes_no_line(
    loaded, specmoe_says, monkeypatch, tmp_path
):
    """Its lines would stand under the name of the weights before."""
    names = iter(["one", "two", "two", "two"])
    monkeypatch.setattr("specmoe.cli.identity.identity_of", lambda model, **_: next(names))
    prompts, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    prompts.write_text('{"prompt": "a"}\n')
    words = ["generate", "m", "--prompts", prompts, "--out", out]
    code, _, err = specmoe_says(*words)
    assert code == 2 and "m changed after the job had begun: run it again" in err
    assert not out.exists() or not out.read_text()
    assert specmoe_says(*words, "--resume")[0] == 0 and len(out.read_text().splitlines()) == 1


# bench


def test_bench_flags_become_the_arguments_of_run_bench(specmoe_says, monkeypatch, tmp_path):
    asked = {}

    def run_bench(model, **options):
        asked.update(options, model=model)
        raise OptionError("seen enough")

    monkeypatch.setattr(bench, "run_bench", run_bench)
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    words = """--methods on_demand,specmoe --batch 1,16 --repeats 2 --new-tokens 8 --num-prompts 5
        --eviction temporal,lru --seed 3 --gamma 5 --draft-set random --substitute drop --no-prefetch --temperature 0
        --draft-experts 8 --source-lang eng --target-lang fra
        --store disk --link-bytes-per-s 2.5e8 --expert-bytes 3MiB --compile""".split()
    specmoe_says("bench", "m", *words, "--prompts", tmp_path / "in.jsonl")
    assert asked == {
        "model": "m",
        "methods": ["on_demand", "specmoe"],
        "batch": [1, 16],
        "repeats": 2,
        "load": {
            "draft_experts": 8,
            "store": "disk",
            "link_bytes_per_s": 2.5e8,
            "expert_bytes": "3MiB",
            "compile": True,
        },
        "generate": {
            "max_new_tokens": 8,
            "num_prompts": 5,
            "eviction": ["temporal", "lru"],
            "seed": 3,
            "gamma": 5,
            "draft_set": "random",
            "substitute": "drop",
            "prefetch": False,
            "temperature": 0.0,
            "prompts": ["a", "b"],
            "progress": None,
            "source_lang": "eng",
            "target_lang": "fra",
        },
    }


def test_bench_json_is_one_object_and_its_text_a_table(loaded, specmoe_says):
    words = [
        "bench",
        "m",
        "--methods",
        "on_demand,specmoe",
        "--batch",
        "2",
        "--new-tokens",
        "9",
        "--repeats",
        "1",
    ]
    code, out, err = specmoe_says(*words, "--json")
    found = json.loads(out)
    assert (code, err, list(found)) == (0, "", ["machine", "model", "rows"])
    assert [row["method"] for row in found["rows"]] == ["on_demand", "specmoe"]
    code, out, _ = specmoe_says(*words)
    assert (
        code == 0
        and "speedup_over_on_demand" in out
        and "specmoe" in out
        and "'reads': 'direct'" in out
    )


def test_a_bench_whose_tokens_differ_fails(loaded, specmoe_says):
    loaded.wrong = "specmoe"
    code, out, err = specmoe_says(
        "bench", "m", "--methods", "on_demand,specmoe", "--batch", "2", "--json"
    )
    assert code == 1 and "differ" in err
    assert [row["same_tokens_as_plain"] for row in json.loads(out)["rows"]] == [True, False]


# pack and verify


def test_pack_then_verify_and_an_altered_record_is_named(specmoe_says, tmp_path):
    code, out, _ = specmoe_says("pack", "tiny-balanced", tmp_path / "packed", "--json")
    found = json.loads(out)
    assert code == 0 and (found["layers"], found["experts"]) == (4, 8)
    assert found["bytes"] == 32 * found["record_bytes"]
    code, out, _ = specmoe_says("verify", tmp_path / "packed", "--json")
    assert (code, json.loads(out)["bad"], json.loads(out)["num_records"]) == (0, [], 32)

    packed = checkpoint.open_packed(tmp_path / "packed")
    with open(packed.data_file, "r+b") as file:
        file.seek(packed.offset(2, 5) + 7)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    code, out, err = specmoe_says("verify", tmp_path / "packed", "--json")
    assert (code, json.loads(out)["bad"]) == (1, [{"layer": 2, "expert": 5}])
    assert "expert 5 of MoE layer 2" in err
    code, out, err = specmoe_says("verify", tmp_path / "packed")
    assert code == 1 and "31 of 32 records are good" in out


def test_pack_and_verify_of_nothing_say_so(specmoe_says, tmp_path):
    assert specmoe_says("pack", tmp_path / "none", tmp_path / "packed")[0] == 2
    assert specmoe_says("verify", tmp_path / "none")[0] == 2
    assert list(tmp_path.iterdir()) == []


# report, train, doctor


def test_report_hands_over_to_the_report_module(specmoe_says, monkeypatch, tmp_path):
    asked = []
    fake_module(
        monkeypatch,
        "lab.report",
        list_reports=lambda: [{"name": "main", "summary": "figures"}],
        report_parameters=lambda name: {
            "gamma": {"type": "int", "default": 5, "help": f"of {name}"}
        },
        run_report=lambda *arguments, **how: asked.append((*arguments, how)) or tmp_path / "r.html",
    )
    assert json.loads(specmoe_says("report", "list", "--json")[1])["reports"][0]["name"] == "main"
    assert "main" in specmoe_says("report", "list")[1]
    assert (
        json.loads(specmoe_says("report", "params", "main", "--json")[1])["parameters"]["gamma"][
            "default"
        ]
        == 5
    )
    assert specmoe_says("report", "params", "main")[1] == "gamma  int = 5  (of main)\n"
    words = ["report", "run", "main", "-p", "gamma=5", "-p", "title=a=b", "--out", tmp_path]
    assert specmoe_says(*words)[:2] == (0, f"{tmp_path / 'r.html'}\n")
    assert specmoe_says("report", "run", "main", "--overwrite", "--against", "earlier")[0] == 0
    assert asked == [
        (
            "main",
            {"gamma": "5", "title": "a=b"},
            str(tmp_path),
            {"overwrite": False, "against": None, "progress": True},
        ),
        ("main", {}, None, {"overwrite": True, "against": "earlier", "progress": True}),
    ]


@pytest.mark.parametrize("name", ["tiny-skewed", "tiny-translate"])
def test_train_hands_over_to_the_recipe(name, specmoe_says, monkeypatch, tmp_path):
    import specmoe.tiny.making.train

    asked = []

    def train(name, out_dir, **limits):
        asked.append((name, out_dir, limits))
        return out_dir

    monkeypatch.setattr(specmoe.tiny.making.train, "train", train)
    code, out, _ = specmoe_says("train", name, "--out", tmp_path / "t", "--steps", "3", "--json")
    assert code == 0 and json.loads(out) == {"name": name, "checkpoint": str(tmp_path / "t")}
    assert asked == [(name, tmp_path / "t", {"progress": None, "steps": 3})]
    assert specmoe_says("train", name)[0] == 2, "--out is required"


@pytest.mark.parametrize("threads, code", [(2, 0), ({"failed": "no torch"}, 1)])
def test_doctor_prints_what_it_found_and_fails_only_without_torch(
    threads, code, specmoe_says, monkeypatch
):
    asked = []

    def examine(**options):
        asked.append(options)
        return {"threads": threads, "disk": {"failed": "OSError: full"}}

    monkeypatch.setattr("specmoe.lab.machine.doctor.examine", examine)
    assert specmoe_says("doctor", "--json", "--record-bytes", "1MiB", "--directory", "d")[0] == code
    assert asked == [{"quick": True, "directory": "d", "record_bytes": "1MiB", "hub": False}]
    assert "disk.failed" in specmoe_says("doctor")[1]


# The real program on a shipped model


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Environment of the real runs: one cache of packed experts for all."""
    return {**os.environ, "SPECMOE_CACHE": str(tmp_path_factory.mktemp("cache"))}


def test_the_program_gives_the_same_text_by_two_methods(real, monkeypatch, specmoe_says):
    words = ["generate", "tiny-balanced", "-p", "SELECT name FROM", "--max-new-tokens", "6"]
    done = program(*words, "--json", "--method", "specmoe", "--gamma", "3", env=real)
    assert done.returncode == 0, done.stderr
    monkeypatch.setenv("SPECMOE_CACHE", real["SPECMOE_CACHE"])
    code, said, _ = specmoe_says(*words, "--json", "--method", "on_demand")
    assert code == 0
    texts = [json.loads(out)["outputs"] for out in (done.stdout, said)]
    assert texts[0] == texts[1] and len(texts[0][0]["tokens"]) == 6


def test_the_real_engine_runs_a_file_and_refuses_one_prompt(
    real, monkeypatch, specmoe_says, tmp_path
):
    monkeypatch.setenv("SPECMOE_CACHE", real["SPECMOE_CACHE"])
    prompts, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    values = ["The", [3, 4, 5], [10**9], "x " * 5000, "SELECT"]
    prompts.write_text("".join(json.dumps({"prompt": value}) + "\n" for value in values))
    words = [
        "generate",
        "tiny-balanced",
        "--prompts",
        prompts,
        "--out",
        out,
        "--max-new-tokens",
        "4",
    ]
    code, _, err = specmoe_says(*words, "--batch-size", "1")
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert code == 1 and "vocabulary" in err and "positions" in err
    assert ["error" in record for record in found] == [False, False, True, True, False]
    assert all(len(record["tokens"]) == 4 for record in found if "tokens" in record)


@pytest.mark.skipif(
    "first_prompt" not in {field.name for field in dataclasses.fields(GenerateOptions)},
    reason="GenerateOptions has no first_prompt: sampled files of more than one chunk cannot be "
    "written",
)
def test_sampled_texts_of_a_file_do_not_depend_on_the_batch_size(
    real, monkeypatch, specmoe_says, tmp_path
):
    monkeypatch.setenv("SPECMOE_CACHE", real["SPECMOE_CACHE"])
    prompts = tmp_path / "in.jsonl"
    prompts.write_text('{"prompt": "The"}\n' * 6)
    files = []
    for batch_size in ("1", "6"):
        files.append(tmp_path / batch_size)
        words = [
            "--temperature",
            "1",
            "--seed",
            "3",
            "--max-new-tokens",
            "4",
            "--batch-size",
            batch_size,
        ]
        code, _, err = specmoe_says(
            "generate", "tiny-balanced", "--prompts", prompts, "--out", files[-1], *words
        )
        assert code == 0, err
    assert files[0].read_bytes() == files[1].read_bytes()
    texts = [json.loads(line)["text"] for line in files[0].read_text().splitlines()]
    assert len(set(texts)) > 1, "each prompt has its own noise"


@pytest.mark.parametrize("own", [None, "ACTIVE"])
def test_waiting_threads_spin_briefly_unless_told_otherwise(monkeypatch, own):
    for name in (SPIN[0], "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    if own:
        monkeypatch.setenv("OMP_WAIT_POLICY", own)
    cli.main(["models"])
    assert os.environ.get(SPIN[0]) == (None if own else SPIN[1])


def test_a_terminal_that_lacks_a_character_still_shows_the_text():
    """\u2192 is not in it; the prompt comes back with it."""
    command = [
        sys.executable,
        "-m",
        "specmoe",
        "generate",
        "tiny-skewed",
        "-p",
        "a \u2192 b",
        "--max-new-tokens",
        "2",
    ]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONIOENCODING": "cp1252"},
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"a \\u2192 b" in done.stdout
