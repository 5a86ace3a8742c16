"""Which reports there are, and what can be set in each.

Comes in: the notebooks folder, a report's name, values as texts or typed. Goes out: values of the
declared types, for ``run``. Nothing unknown and nothing of the wrong type gets through.
"""

from __future__ import annotations

import ast
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import OptionError, SpecMoEError, nearest

OUT_DIR = "out_dir"  # the parameter that ``run_report`` fills in itself
_TYPES = {"int": int, "float": float, "str": str, "bool": bool}
_BOOLS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def notebooks_dir() -> Path:
    """``SPECMOE_NOTEBOOKS``, or ``notebooks/`` of the checkout that this package runs from."""
    named = os.environ.get("SPECMOE_NOTEBOOKS")
    folder = Path(named) if named else Path(__file__).resolve().parents[3] / "notebooks"
    if not folder.is_dir():
        raise OptionError(
            f"there is no folder of notebooks at {folder}: reports come with a checkout of "
            "specmoe; run from one, or "
            "name its notebooks folder in the environment variable SPECMOE_NOTEBOOKS"
        )
    return folder


def list_reports() -> list[dict[str, str]]:
    """``name``, ``title`` and ``path`` of every notebook with a parameters cell."""
    found = []
    for path in sorted(notebooks_dir().glob("*.ipynb")):
        cells = _read(path)["cells"]
        if any("parameters" in cell["metadata"].get("tags", []) for cell in cells):
            found.append(
                {"name": path.stem, "title": _title(cells) or path.stem, "path": str(path)}
            )
    return found


def _read(path: Path) -> dict[str, Any]:
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except Exception as failure:  # nbformat raises many kinds, JSON's among them
        raise OptionError(f"{path} is not a notebook: {one_line(failure)}") from None


def _title(cells: list[dict]) -> str | None:
    headings = (
        re.search(r"^#\s+(.+)$", cell["source"], re.M)
        for cell in cells
        if cell["cell_type"] == "markdown"
    )
    return next((heading[1].strip() for heading in headings if heading), None)


def find_report(name: str) -> Path:
    paths = {report["name"]: Path(report["path"]) for report in list_reports()}
    if name not in paths:
        raise OptionError(f"report {name!r} is unknown: {nearest(name, paths)}")
    return paths[name]


@dataclass(frozen=True)
class _Type:
    """A parameter's declared type: ``base``, a list of it, or null too."""

    base: str
    many: bool = False
    optional: bool = False

    def __str__(self) -> str:
        name = f"List[{self.base}]" if self.many else self.base
        return f"Optional[{name}]" if self.optional else name


def _declared(name: str, annotation: str, default: Any) -> _Type:
    """The type in the notebook's annotation; without one, that of the default."""
    if annotation == "None":
        many = isinstance(default, list)
        sample = default[0] if many and default else default
        return _Type(
            "str" if sample is None or sample == [] else type(sample).__name__, many, sample is None
        )
    match = re.fullmatch(
        r"(Optional\[)?([Ll]ist\[)?(int|float|str|bool)\]*", annotation.replace(" ", "")
    )
    if not match or annotation.count("[") != annotation.count("]"):
        raise OptionError(
            f"parameter {name} is declared as {annotation!r}: write int, float, str, bool, "
            "List[...] or Optional[...]"
        )
    return _Type(match[3], many=bool(match[2]), optional=bool(match[1]))


def report_parameters(name: str) -> dict[str, dict[str, Any]]:
    """``type``, ``default`` and ``help`` of each parameter of a report, in its order."""
    papermill = need("papermill")
    parameters = {}
    for found in papermill.inspect_notebook(literal(find_report(name))).values():
        default = ast.literal_eval(found["default"])
        declared = _declared(found["name"], found["inferred_type_name"], default)
        if found["name"] != OUT_DIR:
            parameters[found["name"]] = {
                "type": str(declared),
                "default": default,
                "help": found["help"],
            }
    return parameters


def typed_parameters(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` in the declared types; strings are read ("7e10", "1,16,64", "null"). Nothing
    unknown gets through."""
    known = report_parameters(name)
    typed = {}
    for key, value in given.items():
        if key == OUT_DIR:
            raise OptionError(
                f"{OUT_DIR} is no parameter to set: name the folder with --out (out_dir=...)"
            )
        if key not in known:
            raise OptionError(f"report {name!r} has no parameter {key!r}: {nearest(key, known)}")
        declared = _declared(key, known[key]["type"], None)
        try:
            typed[key] = _typed(declared, value)
        except (ValueError, TypeError, SyntaxError):
            raise OptionError(f"parameter {key}={value!r} is not {_article(declared)}") from None
    return typed


def _typed(declared: _Type, value: Any) -> Any:
    if value is None or (isinstance(value, str) and value.strip().lower() in ("null", "none")):
        if declared.optional:
            return None
        raise ValueError
    if not declared.many:
        return _scalar(declared.base, value)
    if isinstance(value, str):
        text = value.strip()
        value = ast.literal_eval(text) if text.startswith("[") else text.split(",")
    if not isinstance(value, list | tuple) or not value:
        raise ValueError
    return [_scalar(declared.base, item) for item in value]


def _scalar(base: str, value: Any) -> Any:
    """``value`` as ``base``: strings are read, an int may stand for a float, nothing else changes
    its type."""
    if isinstance(value, str):
        return _from_text(base, value.strip())
    if base == "float" and type(value) is int:
        value = float(value)
    if type(value) is not _TYPES[base] or (base == "float" and not math.isfinite(value)):
        raise TypeError
    return value


def _from_text(base: str, text: str) -> Any:
    if base == "bool":
        if text.lower() not in _BOOLS:
            raise ValueError
        return _BOOLS[text.lower()]
    if base == "str":
        if not text:
            raise ValueError
        return text
    number = int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
    if not math.isfinite(number) or (base == "int" and number != int(number)):
        raise ValueError
    return _TYPES[base](number)


def _article(declared: _Type) -> str:
    words = {
        "int": "a whole number",
        "float": "a number",
        "str": "a text",
        "bool": "true or false",
    }[declared.base]
    example = {
        "int": "1,16,64",
        "float": "0.5,1",
        "str": "on_demand,specmoe",
        "bool": "true,false",
    }[declared.base]
    words = f"a list such as {example}" if declared.many else words
    return f"{words}{' (or null)' if declared.optional else ''}; its type is {declared}"


def need(module: str):
    try:
        return __import__(module)
    except ImportError:
        raise SpecMoEError(f"reports need {module}: pip install 'specmoe[notebooks]'") from None


def literal(path: Path) -> str:
    """A path as papermill wants it, which takes braces for its own parameters."""
    return str(path).replace("{", "{{").replace("}", "}}")


def first_line(text: str) -> str:
    return next((line for line in str(text).splitlines() if line.strip()), "no message")


def one_line(failure: BaseException) -> str:
    return f"{type(failure).__name__}: {first_line(str(failure))}"
