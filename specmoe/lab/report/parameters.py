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
from ...shipped import notebooks_dir

OUT_DIR = "out_dir"  # the parameter that ``run_report`` fills in itself
AGAINST = "against"  # the folder of an earlier run, for a report that compares itself with one
_BOOLS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
# base type -> the type, its name in a sentence, a list of it as one writes it
_TYPES = {
    "int": (int, "a whole number", "1,16,64"),
    "float": (float, "a number", "0.5,1"),
    "str": (str, "a text", "on_demand,specmoe"),
    "bool": (bool, "true or false", "true,false"),
}


def list_reports() -> list[dict[str, str]]:
    """``name``, ``title`` and ``path`` of every notebook with a parameters cell."""
    read = [(path, _cells(path)) for path in sorted(notebooks_dir().glob("*.ipynb"))]
    return [
        {"name": path.stem, "title": _title(cells) or path.stem, "path": str(path)}
        for path, cells in read
        if _has_parameters(cells)
    ]


def _cells(path: Path) -> list[dict[str, Any]]:
    nbformat = need("nbformat")
    try:
        return nbformat.read(path, as_version=4)["cells"]
    except Exception as failure:  # nbformat raises many kinds, JSON's among them
        raise OptionError(f"{path} is not a notebook: {one_line(failure)}") from None


def _has_parameters(cells: list[dict]) -> bool:
    return any("parameters" in cell["metadata"].get("tags", []) for cell in cells)


def _title(cells: list[dict]) -> str | None:
    prose = "\n".join(cell["source"] for cell in cells if cell["cell_type"] == "markdown")
    heading = re.search(r"^#\s+(.+)$", prose, re.M)
    return heading and heading[1].strip()


@dataclass(frozen=True)
class Parameter:
    """One parameter of a report. Its type is ``base``, a list of it, or null too."""

    base: str
    many: bool
    optional: bool
    default: Any
    help: str

    @classmethod
    def declared(cls, name: str, found: Mapping[str, Any]) -> Parameter:
        """Of the type in the notebook's annotation; without one, of that of the default."""
        annotation, default = found["inferred_type_name"], ast.literal_eval(found["default"])
        if annotation == "None":
            many = isinstance(default, list)
            sample = default[0] if many and default else default
            base = "str" if sample is None or sample == [] else type(sample).__name__
            return cls(base, many, sample is None, default, found["help"])
        match = re.fullmatch(
            r"(Optional\[)?([Ll]ist\[)?(int|float|str|bool)\]*", annotation.replace(" ", "")
        )
        if not match or annotation.count("[") != annotation.count("]"):
            raise OptionError(
                f"parameter {name} is declared as {annotation!r}: write int, float, str, bool, "
                "List[...] or Optional[...]"
            )
        return cls(match[3], bool(match[2]), bool(match[1]), default, found["help"])

    @property
    def type(self) -> str:
        name = f"List[{self.base}]" if self.many else self.base
        return f"Optional[{name}]" if self.optional else name

    def read(self, name: str, value: Any) -> Any:
        """``value`` in the declared type; a wrong one is named with what is wanted."""
        try:
            return self._typed(value)
        except (ValueError, TypeError, SyntaxError, KeyError):
            _, words, example = _TYPES[self.base]
            words = f"a list such as {example}" if self.many else words
            words += " (or null)" if self.optional else ""
            raise OptionError(
                f"parameter {name}={value!r} is not {words}; its type is {self.type}"
            ) from None

    def _typed(self, value: Any) -> Any:
        null = value is None or str(value).strip().lower() in ("null", "none")
        if null and self.optional:
            return None
        if null or not self.many:
            return _scalar(self.base, None if null else value)
        if isinstance(value, str):
            text = value.strip()
            value = ast.literal_eval(text) if text.startswith("[") else text.split(",")
        if not isinstance(value, list | tuple) or not value:
            raise ValueError
        return [_scalar(self.base, item) for item in value]


def _scalar(base: str, value: Any) -> Any:
    """``value`` as ``base``: strings are read, an int may stand for a float, nothing else changes
    its type."""
    if isinstance(value, str):
        value = _from_text(base, value.strip())
    elif base == "float" and type(value) is int:
        value = float(value)
    endless = isinstance(value, float) and not math.isfinite(value)
    if type(value) is not _TYPES[base][0] or value == "" or endless:
        raise TypeError
    return value


def _from_text(base: str, text: str) -> Any:
    if base == "str":
        return text
    if base == "bool":
        return _BOOLS[text.lower()]
    number = int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
    if base == "int":
        # 1e3 is a whole number, 2.5 and nan stay what they are
        return int(number) if float(number).is_integer() else number
    return float(number)


@dataclass(frozen=True)
class Report:
    """A notebook that takes parameters, read and inspected once."""

    name: str
    path: Path
    parameters: dict[str, Parameter]
    takes_out_dir: bool

    @classmethod
    def find(cls, name: str) -> Report:
        """The report called ``name``; the other notebooks are read only to name the nearest."""
        path = notebooks_dir() / f"{name}.ipynb"
        here = os.path.basename(name) == name and path.is_file()
        if not here or not _has_parameters(_cells(path)):
            known = [report["name"] for report in list_reports()]
            raise OptionError(f"report {name!r} is unknown: {nearest(name, known)}")
        inspected = need("papermill").inspect_notebook(literal(path))
        takes_out_dir = inspected.pop(OUT_DIR, None) is not None
        parameters = {key: Parameter.declared(key, found) for key, found in inspected.items()}
        return cls(name, path, parameters, takes_out_dir)

    def typed(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """``given`` in the declared types; strings are read ("7e10", "1,16,64", "null"). Nothing
        unknown gets through."""
        return {key: self._known(key).read(key, value) for key, value in given.items()}

    def _known(self, key: str) -> Parameter:
        if key == OUT_DIR:
            raise OptionError(
                f"{OUT_DIR} is no parameter to set: name the folder with --out (out_dir=...)"
            )
        if key not in self.parameters:
            close = nearest(key, self.parameters)
            raise OptionError(f"report {self.name!r} has no parameter {key!r}: {close}")
        return self.parameters[key]


def report_parameters(name: str) -> dict[str, dict[str, Any]]:
    """``type``, ``default`` and ``help`` of each parameter of a report, in its order."""
    return {
        key: {"type": found.type, "default": found.default, "help": found.help}
        for key, found in Report.find(name).parameters.items()
    }


def typed_parameters(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    return Report.find(name).typed(given)


def need(module: str):
    try:
        return __import__(module)
    except ImportError:
        raise SpecMoEError(f"reports need {module}: pip install 'specmoe[report]'") from None


def literal(path: Path) -> str:
    """A path as papermill wants it, which takes braces for its own parameters."""
    return str(path).replace("{", "{{").replace("}", "}}")


def first_line(text: str) -> str:
    return next((line for line in str(text).splitlines() if line.strip()), "no message")


def one_line(failure: BaseException) -> str:
    return f"{type(failure).__name__}: {first_line(str(failure))}"
