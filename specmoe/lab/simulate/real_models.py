"""Real models in a table: the fields of their published configs that sizes depend on, the source,
the parameters their makers publish, and the sizes counted from the config.

Comes in: a name of the table, a ``config.json``, or a config. Goes out: a ``ModelSize``.
``python -m specmoe.lab.simulate count`` counts all again and writes the table; a test compares.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ...errors import CheckpointError, OptionError, door, nearest, path_of
from ...shipped import need_path, package_path
from .sizes import ModelSize

TABLE = package_path("lab/simulate/real_models.json")


@dataclass(frozen=True)
class RealModel:
    """``published`` has ``total`` and ``active`` parameters as their makers write them ("46.7B"),
    whether ``active`` counts the input embeddings, its own ``source``, and what it counts and we do
    not (``besides``)."""

    title: str
    config: dict[str, Any]
    source: str  # of the config
    published: dict[str, Any]
    size: ModelSize
    note: str = ""


@cache
def known_models() -> dict[str, RealModel]:
    """The table, by name."""
    rows = json.loads(need_path(TABLE).read_text(encoding="utf-8"))
    return {name: _row(**row) for name, row in rows.items()}


def _row(title: str, counted: dict, source: str, note: str = "", **row) -> RealModel:
    said = f"{source}{f' ({note})' if note else ''}; weights in {counted.pop('weights')}"
    return RealModel(
        title, source=source, note=note, size=ModelSize(title, **counted, source=said), **row
    )


def size_of(model, weights: str | None = None) -> ModelSize:
    """Of a ``ModelSize`` (itself), a name of the table, a ``config.json`` or its folder, or what
    ``ModelSize.of`` takes. ``weights``: another format than the published one, such as "int4"."""
    if isinstance(model, ModelSize):
        return model
    if not isinstance(model, str | Path):
        return ModelSize.of(model, weights)
    if str(model) in known_models():
        found = known_models()[str(model)]
        return found.size if weights is None else ModelSize.of(found.config, weights)
    return ModelSize.of(read_config(model), weights)


def read_config(path: str | Path) -> dict:
    """Of a ``config.json``, or of the folder that has it."""
    file = path_of(path, "a config.json or a model")
    file = file / "config.json" if file.is_dir() else file
    if not file.is_file():
        known = nearest(path, known_models())
        raise OptionError(f"{str(path)!r} is no model of the table and no file: {known}")
    with door(f"{file} is no config", "give a checkpoint's config.json", CheckpointError):
        return dict(json.loads(file.read_text(encoding="utf-8")))


def count_again(names: Iterable[str] | None = None) -> dict[str, dict]:
    """Rows of the table (None: all) with ``counted`` from their configs."""
    rows = json.loads(need_path(TABLE).read_text(encoding="utf-8"))
    chosen = {name: rows[name] for name in (rows if names is None else names)}
    return {name: row | {"counted": _counted(row["config"])} for name, row in chosen.items()}


def _counted(config: dict) -> dict[str, Any]:
    size = asdict(ModelSize.of(config))
    weights = size.pop("source").rpartition("weights in ")[2]
    return {"weights": weights} | {k: v for k, v in size.items() if k != "name"}


def write() -> Path:
    TABLE.write_text(json.dumps(count_again(), indent=1) + "\n", encoding="utf-8")
    return TABLE


# The models that the paper names, and whose sizes its simulated numbers are computed with.
PAPER_SIZES = {
    name: known_models()[name].size for name in ("nllb-moe-54b", "mixtral-8x7b", "llama-4-scout")
}
