"""The small trained checkpoints that come with specmoe: where they are and what they are.

Comes in: a name. Goes out: a folder, or one dictionary per model for ``specmoe models``. Imports nothing heavy; the
recipes, the data and the training live in the modules beside this one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ..errors import OptionError, nearest

_CHECKPOINTS = Path(__file__).parent / "checkpoints"


@dataclass(frozen=True)
class Shipped:
    """One shipped checkpoint."""

    name: str
    summary: str

    @property
    def folder(self) -> Path:
        return _CHECKPOINTS / self.name


SHIPPED = {
    model.name: model
    for model in (
        Shipped("tiny-skewed", "Mixtral class, 32 experts top-2, skewed use"),
        Shipped("tiny-balanced", "Mixtral class, 8 experts top-2, even use"),
    )
}


def shipped_path(name: str) -> Path:
    """The folder of a shipped checkpoint; an unknown name raises with the nearest one."""
    if name not in SHIPPED:
        raise OptionError(f"no shipped model is called {name!r}: {nearest(name, SHIPPED)}")
    return SHIPPED[name].folder


def list_models() -> list[dict]:
    """What ``specmoe models`` prints: name, bytes, layers, experts, top_k, measured mean Gini of expert use."""
    rows = []
    for name, model in SHIPPED.items():
        if not (model.folder / "config.json").exists():
            continue
        config = json.loads((model.folder / "config.json").read_text(encoding="utf-8"))
        record = json.loads((model.folder / "training.json").read_text(encoding="utf-8"))
        rows.append(
            {
                "name": name,
                "bytes": sum(file.stat().st_size for file in model.folder.iterdir()),
                "layers": config["num_hidden_layers"],
                "experts": config["num_local_experts"],
                "top_k": config["num_experts_per_tok"],
                "mean_gini": record["expert_use"]["mean_gini"],
                "summary": model.summary,
            }
        )
    return rows
