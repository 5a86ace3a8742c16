"""What the engine's own parts cost on this machine with experts and a trunk of a model's size: found
on a small cut of the model with random weights, so nothing has to be downloaded and no method is timed.

Comes in: a config. Goes out: ``EngineParts``, seconds of a pass through the trunk and of a MoE layer
by rows; ``None`` where no cut can be made. ``timed`` computes the seconds of a method from it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from ...errors import SpecMoEError
from .costs import Layer, bilinear, linear
from .sizes import ModelSize

MOST_BYTES = 2**30  # of the cut's experts
MOST_WORDS = 2**13  # of its vocabulary
EXPERTS_OF_A_CUT = 16
ROWS, BLOCKS, POSITIONS = (1, 16), (1, 5), (16,)
# experts, tokens of each; of one token each, two numbers of experts tell a layer from an expert
CASES = ((8, 1), (16, 1), (16, 2), (16, 4), (8, 16), (2, 64))
DRAFTING = (1, 16)  # tokens
REPEATS = 3
LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
# lists with a value for each layer
BY_LAYER = ("layer_types", "mlp_layer_types", "mlp_only_layers")


@dataclass(frozen=True)
class EngineParts:
    """Timings of a cut; ``trunk_bytes``: what its pass touches, as a published checkpoint stores
    it, so that another trunk's pass takes as many times as long as it has bytes."""

    expert_bytes: int
    trunk_bytes: int
    passes: list  # [rows, tokens of each, seconds]
    steps: list  # [rows, seconds]: of a draft step without experts
    layer: Layer
    drafts: list  # [tokens, seconds]
    draft_experts: int  # that are resident in ``drafts``

    def pass_s(self, size: ModelSize, rows: float, block: float = 1.0) -> float:
        """Trunk of ``size``, no experts."""
        return self._scaled(size, bilinear([tuple(each) for each in self.passes], rows, block))

    def step_s(self, size: ModelSize, rows: float) -> float:
        return self._scaled(size, linear(rows, *zip(*self.steps)))

    def _scaled(self, size: ModelSize, seconds: float) -> float:
        return seconds * size.trunk_bytes / self.trunk_bytes

    def draft_s(self, size: ModelSize, tokens: float, residents: float) -> float:
        """A MoE layer of a draft step: it streams the residents that the tokens ask for."""
        asked = tokens * size.top_k
        touched = min(residents, asked) / min(self.draft_experts, asked)
        return touched * linear(tokens, *zip(*self.drafts))

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def of_json(cls, found: dict) -> EngineParts:
        layer = Layer(
            **{k: tuple(v) if isinstance(v, list) else v for k, v in found["layer"].items()}
        )
        return cls(**{**found, "layer": layer})


def probe_parts(config) -> EngineParts | None:
    """Some seconds, and for their length up to some GB of memory and disk. The name of a shipped
    model stands for itself."""
    if isinstance(config, str):
        return _probe(config, config)
    try:
        fields = cut(config)
        if fields is None:
            return None
        with tempfile.TemporaryDirectory(prefix="specmoe-plan-") as folder:
            return _probe(_write(fields, Path(folder)))
    except (SpecMoEError, OSError, RuntimeError, ValueError, TypeError):
        return None  # a config that cannot be cut this way: the plan says that it has ceilings


def cut(config) -> dict | None:
    """Fields of the config with one MoE layer, few experts and few words; None: not of this kind."""
    fields = dict(config if isinstance(config, dict) else config.to_dict())
    size = ModelSize.of(fields)
    experts = max(size.top_k, min(EXPERTS_OF_A_CUT, MOST_BYTES // size.expert_bytes))
    if "quantization_config" in fields or experts * size.expert_bytes > 2 * MOST_BYTES:
        return None
    layers = [name for name in LAYERS if name in fields]
    named = [name for name in EXPERTS if name in fields]
    if len(layers) != 1 or not named or size.encoder_bytes or fields.get("is_encoder_decoder"):
        return None
    fields |= dict.fromkeys(layers, 1) | dict.fromkeys(named, experts)
    fields["vocab_size"] = min(fields.get("vocab_size", MOST_WORDS), MOST_WORDS)
    fields = {name: value for name, value in fields.items() if name not in BY_LAYER}
    fields |= {"first_k_dense_replace": 0} if "first_k_dense_replace" in fields else {}
    # within the vocabulary that is left
    return fields | dict.fromkeys(("eos_token_id", "pad_token_id", "bos_token_id"), 0)


def _write(fields: dict, folder: Path) -> Path:
    """The cut as a checkpoint of random weights, in bf16."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    fields = json.loads(json.dumps(fields, default=str))
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    progress_bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model.save_pretrained(folder)
    finally:
        if progress_bar:
            logging.enable_progress_bar()
    return folder


def _probe(model: str | Path, shipped: str | None = None) -> EngineParts:
    import torch

    from ...checkpoint import resolve
    from ...engine.engine import load
    from .machine import fit_layer
    from .probe_layers import LayerProber
    from .probe_passes import PassProber
    from .shipped import prompts_for

    size = ModelSize.of(json.loads((Path(resolve(str(model))) / "config.json").read_text()))
    number = min(size.top_k, size.num_experts)
    with (
        load(str(model), store="memory", trace=False, draft_experts=number) as engine,
        torch.inference_mode(),
    ):
        prompt = max(prompts_for(engine, 16), key=len) if shipped else None
        passes = PassProber(engine, prompt, REPEATS, (ROWS, BLOCKS, POSITIONS))
        experts = LayerProber(engine, prompt, REPEATS, CASES, DRAFTING)
        return EngineParts(
            size.expert_bytes,
            size.trunk_bytes,
            [[rows, block, s] for rows, block, _, s in passes.passes()],
            [[rows, s] for rows, _, s in passes.steps()],
            fit_layer(experts.resident()),
            experts.draft(),
            number,
        )


def main(file: str) -> int:
    """``python -m specmoe.lab.simulate.engine_parts config.json``: the parts as one line of JSON."""
    found = probe_parts(json.loads(Path(file).read_text(encoding="utf-8")))
    print(json.dumps(found and found.to_json()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
