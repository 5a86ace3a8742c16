"""A name that begins with ``_`` is used where it is defined, nowhere else: every room has a public
way in."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "specmoe"

# Private names of other people's that no public name stands for, and why each is needed.
FOREIGN = {
    "_replace": "a named tuple's, public by its documentation",
    "_option_string_actions": "argparse: what may be typed, to name the nearest",
    "_actions": "argparse: the same, to complete it",
    "_dynamo": "torch: the compiler's counters and limits, and whether it is at work",
    "_config": "torch: what the compiler's guards hold on to",
    "_buffers": "torch: a module's own buffers, to be moved from the meta device",
    "_non_persistent_buffers_set": "torch: buffers that no checkpoint holds",
    "_attn_implementation": "transformers: which attention a model runs",
    "_experts_implementation": "transformers: which experts function a model runs",
    "_apply_gate": "transformers: a fused expert's activation",
    "_can_record_outputs": "transformers: where a model's routers are",
    "_is_stateful": "transformers: a model whose cache cannot be cut",
    "_is_hf_initialized": "transformers: a weight that must not be drawn anew",
    "_keep_in_fp32_modules": "transformers: what stays in float32",
    "_keep_in_fp32_modules_strict": "transformers: what stays in float32",
    "_keys_to_ignore_on_load_missing": "transformers: weights that may be missing",
    "_eos_token_tensor": "transformers: what its logits processors read",
    "_get_logits_processor": "transformers: the processors of a generation config",
    "_relative_position_bucket": "transformers: T5's, which Switch Transformers inherit",
    "_make_wrapper_subclass": "torch: a tensor that stands for another",
    "_specmoe_forward": "our mark on transformers' modules, set and taken away in one file",
}
ASKS_BY_NAME = ("getattr", "setattr", "hasattr", "delattr")


def is_private(name: object) -> bool:
    return isinstance(name, str) and name.startswith("_") and not name.startswith("__")


def own_names(tree: ast.Module) -> set[str]:
    """Names that a file defines: its functions, classes and variables, and what it sets on
    ``self``."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names |= {node.attr} if getattr(node.value, "id", None) in ("self", "cls") else set()
    return names


def private_uses(tree: ast.Module) -> list[tuple[int, str, str]]:
    """(line, name, how it is written) of every private name that a file takes from an object or a
    module."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            found.append((node.lineno, node.attr, ast.unparse(node)))
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names if is_private(alias.name)]
            found += [(node.lineno, name, f"import {name}") for name in names]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", None) in ASKS_BY_NAME:
            name = node.args[1].value if isinstance(node.args[1], ast.Constant) else None
            found += [(node.lineno, name, ast.unparse(node))] if is_private(name) else []
    return found


def foreign_uses(text: str) -> list[str]:
    """Private names that are used here and defined elsewhere, of ``self`` too: a base class has
    its own."""
    tree = ast.parse(text)
    own = own_names(tree) | set(FOREIGN)
    return [f"line {line}: {how}" for line, name, how in private_uses(tree) if name not in own]


def test_no_file_uses_a_private_name_of_another():
    wrong = [
        f"{path.relative_to(PACKAGE)}, {use}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for use in foreign_uses(path.read_text(encoding="utf-8"))
    ]
    assert not wrong, "give it a public name, or a seam of its own:\n" + "\n".join(wrong)


def test_every_private_name_of_other_people_is_still_needed():
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")]
    used = {name for tree in trees for _, name, _ in private_uses(tree)}
    assert set(FOREIGN) <= used, set(FOREIGN) - used


@pytest.mark.parametrize(
    "line",
    [
        "slots = engine._slots",
        "engine._slots = None",
        "from ..metrics import _part",
        "read = getattr(engine, '_read')",
        "def late(bench):\n    return bench._Prompts()",
        "class Wrong(Sampler):\n    def draft(self):\n        return self._noise()",
    ],
)
def test_the_walk_sees_a_planted_use(line):
    assert len(foreign_uses(line)) == 1


def test_the_walk_allows_what_a_file_defines():
    text = "class Own:\n    def __init__(self, other):\n        self._slots = other._slots\n"
    assert foreign_uses(text + "def _part():\n    return _part.__name__\n") == []
