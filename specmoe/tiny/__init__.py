"""The small trained checkpoints that come with specmoe: where they are and what they are.

Comes in: a name. Goes out: a folder, or one dictionary per model for ``specmoe models``. Imports
nothing heavy; the recipes, the data and the training live in the modules beside this one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ..errors import OptionError, nearest
from ..shipped import need_path, package_path

_CHECKPOINTS = package_path("tiny/checkpoints")


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
        Shipped(
            "tiny-translate", "NLLB-MoE class, 128 experts top-2, skewed use, English to French"
        ),
    )
}


def shipped_path(name: str) -> Path:
    """The folder of a shipped checkpoint; an unknown name raises with the nearest one."""
    if name not in SHIPPED:
        raise OptionError(f"no shipped model is called {name!r}: {nearest(name, SHIPPED)}")
    return SHIPPED[name].folder


def list_models() -> list[dict]:
    """What ``specmoe models`` prints: name, bytes, MoE layers that decode, experts, top_k, measured
    mean Gini of their use."""
    rows = []
    for name, model in SHIPPED.items():
        config, record = (
            json.loads(need_path(model.folder / file).read_text(encoding="utf-8"))
            for file in ("config.json", "training.json")
        )
        rows.append(
            {
                "name": name,
                "bytes": sum(file.stat().st_size for file in model.folder.iterdir()),
                **_moe_facts(config, record["expert_use"]),
                "summary": model.summary,
            }
        )
    return rows


def _moe_facts(config: dict, use: dict) -> dict:
    """Of an encoder-decoder only the decoder counts: there the rounds run."""
    if config["model_type"] == "nllb-moe":
        step = config["decoder_sparse_step"]
        layers, experts, top_k = config["decoder_layers"] // step, config["num_experts"], 2
        mean_gini = use["mean_gini_decoder"]
    else:
        layers, experts, top_k = (
            config[f"num_{name}"] for name in ("hidden_layers", "local_experts", "experts_per_tok")
        )
        mean_gini = use["mean_gini"]
    return {"layers": layers, "experts": experts, "top_k": top_k, "mean_gini": mean_gini}


def train_shipped(name: str, out_dir: Path, **options) -> Path:
    """Follow the recipe of a shipped model: ``minutes``, ``steps`` and ``progress`` as in
    ``train.train``."""
    from ..lab.writing import check_folder

    # Before the minutes of training, not after them.
    check_folder(out_dir)
    from .making.train import train

    return train(name, out_dir, **options)
