"""The decoder that ``notebooks/01_specmoe_from_scratch`` builds in its cells is the engine's, token
by token and byte by byte; and a bug planted in it is named by the check of its step."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import nbformat
import pytest
import torch

from specmoe.lab import scratch
from specmoe.lab.exercises import ExerciseError
from specmoe.tiny.texts.data import DOMAINS
from specmoe.tiny.texts.data import prompts as held_out

ROOT = Path(__file__).parent.parent
NOTEBOOK = nbformat.read(ROOT / "notebooks/01_specmoe_from_scratch.ipynb", as_version=4)
CODE = [cell.source for cell in NOTEBOOK.cells if cell.cell_type == "code"]
NUM_DRAFT, GAMMA = 4, 5
# What the reader leaves behind on the way to the final decoder.
ON_THE_WAY = {"InMemory", "decode_plainly", "most_used_by_the_prompt"}


@pytest.fixture(scope="module")
def engine():
    with scratch.load("tiny-skewed", NUM_DRAFT) as engine:
        yield engine


@pytest.fixture(autouse=True)
def gradients_as_before():
    """The notebook turns them off for its whole kernel."""
    before = torch.is_grad_enabled()
    yield
    torch.set_grad_enabled(before)


@pytest.fixture(scope="module")
def built(engine):
    """The names that the notebook's definitions make: nothing is decoded."""
    names = {"print": lambda *values: None}
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(scratch, "load", lambda *given: engine)
        for source in CODE[:3]:  # parameters, imports, the trunk
            exec(source, names)
        for source in CODE[3:]:
            exec(compile(ast.Module(definitions(source), []), "notebook", "exec"), names)
        layers = range(names["num_layers"])
        names["distances"] = [names["expert_distances"](layer) for layer in layers]
    return names


def definitions(source: str) -> list[ast.stmt]:
    kinds = ast.FunctionDef | ast.ClassDef
    return [node for node in ast.parse(source).body if isinstance(node, kinds)]


# ---- the final decoder ----

TWENTY = [(domain, number) for number in range(3) for domain in DOMAINS[:7]][:20]


def decoded(built, prompts: list[list[int]], new_tokens: int):
    """Rows and store of the notebook's own decoder."""
    store = built["Store"]()
    pool = built["Pool"](store, built["hot_temporal"]())
    with torch.inference_mode():
        rows, _ = built["decode"](prompts, new_tokens, GAMMA, pool)
    return rows, store


def of_engine(engine, prompts: list[list[int]], new_tokens: int):
    return engine.generate(
        prompts,
        batch_size=len(prompts),
        max_new_tokens=new_tokens,
        method="specmoe",
        gamma=GAMMA,
        prefetch=False,
    )


def assert_equal(store, rows, output):
    assert rows == [row.tolist() for row in output.sequences]
    assert store.bytes == output.stats.prefill_bytes + output.stats.fetched_bytes
    assert len(store.reads) * 98304 == store.bytes


def ids(engine, domain: str, number: int) -> list[int]:
    return engine.tokenizer(held_out(domain, number + 1)[number].text)["input_ids"]


@pytest.mark.parametrize(("domain", "number"), TWENTY)
def test_the_final_decoder_is_the_engine_in_tokens_and_bytes(built, engine, domain, number):
    prompt = ids(engine, domain, number)
    rows, store = decoded(built, [prompt], 32)
    assert_equal(store, rows, of_engine(engine, [prompt], 32))


@pytest.mark.parametrize("size", [4, 7])
def test_a_batch_is_the_engines_too_where_rows_end_at_different_places(built, engine, size):
    prompts = [ids(engine, domain, 0) for domain in DOMAINS[:size]]
    rows, store = decoded(built, prompts, 40)
    assert_equal(store, rows, of_engine(engine, prompts, 40))
    assert size == 4 or len({len(row) - len(p) for row, p in zip(rows, prompts)}) > 1


def test_it_is_about_150_lines(built):
    lines = 0
    for source in CODE[2:]:
        for node in definitions(source):
            if node.name not in ON_THE_WAY:
                text = ast.unparse(without_docstrings(node))
                lines += len([line for line in text.splitlines() if line.strip()])
    assert 140 <= lines <= 160


def without_docstrings(node):
    for each in ast.walk(node):
        if isinstance(each, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(each):
            each.body = each.body[1:] or [ast.Pass()]
    return node


def test_nothing_of_the_method_is_imported():
    nodes = [node for source in CODE for node in ast.walk(ast.parse(source))]
    plain = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    named = {
        (node.module, name.name)
        for node in nodes
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    assert plain == {"json", "math", "torch", "torch.nn.functional"}
    assert named == {
        ("safetensors", "safe_open"),
        ("specmoe.lab", "scratch"),
        ("specmoe.tiny", "shipped_path"),
    }


def test_the_files_that_it_names_are_there():
    prose = "\n".join(cell.source for cell in NOTEBOOK.cells if cell.cell_type == "markdown")
    files = re.findall(r"`((?:model|offload|speculate)/\w+\.py)`", prose)
    assert len(files) > 8 and all((ROOT / "specmoe" / file).exists() for file in files)
    linked = re.findall(r"\]\((\w+\.ipynb)\)", prose)
    assert linked and all((ROOT / "notebooks" / file).exists() for file in linked)


# ---- the checks ----

BUGS = {  # what is changed in the cells -> the check that notices, and words of its sentence
    "weights that do not add up to one": (
        "weights / weights.sum(dim=-1, keepdim=True)",
        "weights",
        "check_decoder",
        "away from the engine's",
    ),
    "a KV cache that never moves on": (
        "kv_cache.lengths = kv_cache.lengths + tokens.shape[1]",
        "pass",
        "check_decoder",
        "keeps between passes",
    ),
    "one matrix is counted": (
        "sum(matrix.nbytes for matrix in record.values())",
        'record["w1"].nbytes',
        "check_on_demand",
        "all of its matrices",
    ),
    "every record of the layer is read": (
        "((e, self.read(layer, e)) for e in range(num_experts) if counts[e])",
        "((e, self.read(layer, e)) for e in range(num_experts))",
        "check_on_demand",
        "no token asks for it",
    ),
    "kept experts leave": (
        "if e not in self.kept[o] and (o, e)",
        "if (o, e)",
        "check_pool",
        "is in fast memory already",
    ),
    "more slots than there are": (
        "num_layers * draft_experts + 1",
        "num_layers * draft_experts + 9",
        "check_pool",
        "must have left fast memory before",
    ),
    "the first resident stands in for all": (
        "kept[distances[layer][:, kept].argmin(dim=1)]",
        "kept[torch.zeros(num_experts, dtype=torch.long)]",
        "check_draft",
        "the resident whose weights are nearest",
    ),
    "the draft reads": (
        "[[] for _ in rows], restricted(pool)",
        "[[] for _ in rows], full(pool)",
        "check_draft",
        "you draft",
    ),
    "the block is not rolled back": (
        "kv_cache.roll_back([prompt])\nown",
        "own",
        "check_verification",
        "roll the KV cache back to before the draft",
    ),
    "read twice: the block goes token by token": (
        "return forward(blocks, kv_cache, full(pool, live)).argmax(dim=-1).tolist()",
        "passes = [forward([b[t : t + 1] for b in blocks], kv_cache, full(pool)) for t in range(width)]\n"
        "    return torch.cat(passes, dim=1).argmax(dim=-1).tolist()",
        "check_verification",
        "is read twice in round 0",
    ),
    "one accepted too many": (
        "return drafted[:num] + [own[num]]",
        "return drafted[: num + 1] + [own[num]]",
        "check_rounds",
        "you accept drafted token 4",
    ),
    "one accepted too few": (
        "while num < len(drafted) and",
        "while num < len(drafted) - 1 and",
        "check_rounds",
        "then one of its own",
    ),
    "nothing of its own": (
        "return drafted[:num] + [own[num]]",
        "return drafted[:num] or [own[0]]",
        "check_rounds",
        "then one of its own",
    ),
    "rejected tokens are not forgotten": (
        "        kv_cache.roll_back(rows)\n        rounds.append",
        "        rounds.append",
        "check_rounds",
        "whose keys and values must be forgotten",
    ),
    "drafted keys and values are not forgotten": (
        "        kv_cache.roll_back(rows)\n        for row",
        "        for row",
        "check_rounds",
        "roll the KV cache back to before the draft",
    ),
    "the residents are not replaced": (
        "return set(sorted(candidates, key=lambda expert: (-score[layer][expert], expert))[:draft_experts])",
        "return first.setdefault(layer, set(sorted(candidates, key=lambda e: -score[layer][e])[:draft_experts]))",
        "check_specmoe",
        "residents",
    ),
    "padding asks for experts": (
        "forward(blocks, kv_cache, full(pool, live))",
        "forward(blocks, kv_cache, full(pool))",
        "check_specmoe",
        "no token asks for it",
    ),
}


def run_cells(engine, monkeypatch, old: str = "", new: str = "") -> str:
    """The notebook's cells in order, with ``old`` replaced -> the check that failed, and what it
    said. Checks of steps before the change pass (another test), and are left out."""
    begun = []
    monkeypatch.setattr(scratch, "load", lambda *given: engine)
    for name in scratch.__all__:
        if name.startswith("check_"):
            monkeypatch.setattr(scratch, name, noting(getattr(scratch, name), begun))
    names = {"print": lambda *values: None, "first": {}}
    last = next(index for index, source in enumerate(CODE) if "engine.close()" in source)
    changed = next(index for index, source in enumerate(CODE) if old in source)
    try:
        for index, source in enumerate(CODE[:last]):
            if index > changed or "scratch.check_" not in source:
                exec(source.replace(old, new) if old else source, names)
                names["new_tokens"] = 20
    except ExerciseError as failure:
        return f"{begun[-1]}: {failure}"
    return ""


def noting(check, begun: list[str]):
    def checked(*given):
        begun.append(check.__name__)
        return check(*given)

    return checked


def test_the_cells_as_they_are_pass_every_check(engine, monkeypatch):
    assert run_cells(engine, monkeypatch) == ""


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_named_by_the_check_of_its_step(engine, monkeypatch, bug):
    old, new, check, words = BUGS[bug]
    assert sum(source.count(old) for source in CODE) == 1, "the cells have changed"
    said = run_cells(engine, monkeypatch, old, new)
    assert said.startswith(f"{check}: ") and words in said, said
    assert "\n" not in said and not said.endswith(".")


@pytest.mark.parametrize("given", [None, 3, (3,), "text", [[]], object])
def test_a_check_that_cannot_read_what_it_is_given_says_so(engine, given):
    with pytest.raises(ExerciseError, match="cannot read what it is given|should be the prompt"):
        scratch.check_specmoe(engine, ([[0, 5, 6]], 2, 1), given, given)
    with pytest.raises(ExerciseError, match="cannot read what it is given|should be the prompt"):
        scratch.check_pool(engine, [0, 5, 6], given, given)


def test_a_prediction_stands_beside_what_came_out():
    assert scratch.beside(None, 1234) == "1,234"
    assert scratch.beside("many", 1234) == "1,234 (you said many)"
