"""A model's sizes as far as time depends on them.

Comes in: an engine, its ``info``, or a transformers config. Goes out: a ``ModelSize``. ``replay``
and ``expectation`` call next. The real models' sizes are in ``real_models``.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import OptionError
from .weights import WeightFormat

ENCODER_DECODERS = ("nllb-moe", "switch_transformers")


@dataclass(frozen=True)
class ModelSize:
    """Sizes of the part that decodes. A multiplication and an addition are two FLOP."""

    name: str
    expert_bytes: int  # of one expert, as it crosses the link
    num_layers: int  # MoE layers that take part in rounds
    num_experts: int  # per layer
    top_k: int
    expert_flops_per_token: float  # of one expert
    trunk_flops_per_token: float  # all but the routed experts, one pass, every layer
    trunk_bytes: int  # what that pass reads from fast memory
    source: str = ""
    held_bytes: int = 0  # all but the routed experts: trunk, embeddings, an encoder's own layers
    total: int = 0  # parameters; 0: not counted
    active: int = 0  # of a token, embeddings included
    encoder_bytes: int = 0  # routed experts of an encoder, which run in prefill alone

    def __post_init__(self):
        flops = "expert_flops_per_token"
        for name in ("expert_bytes", "num_layers", "num_experts", "top_k", flops):
            if not getattr(self, name) > 0:
                raise OptionError(
                    f"{name}={getattr(self, name)!r} of model size {self.name!r} must be above zero"
                )

    @property
    def experts_bytes(self) -> int:
        """Of all routed experts that decode."""
        return self.num_layers * self.num_experts * self.expert_bytes

    @property
    def bytes_per_token(self) -> int:
        """Top-k experts of every MoE layer: what one token needs of the slow memory, batch 1."""
        return self.num_layers * self.top_k * self.expert_bytes

    @classmethod
    def of(cls, model, weights: str | WeightFormat | None = None) -> ModelSize:
        """Of an engine, an engine's ``info``, or a config (object or dict) of any MoE family that
        transformers knows.

        Of a config the parameters are counted (``parameters.count_parameters``); ``weights`` names
        the format they are stored in, None: that of its ``quantization_config``, else bf16. A dense
        or unknown model is an ``UnsupportedModelError``, a wrong config an ``OptionError``.
        """
        if isinstance(model, dict) and "record_bytes" in model:
            return _from_info(
                model, model["layers"] // (2 if model["architecture"] in ENCODER_DECODERS else 1)
            )
        if hasattr(model, "info") and hasattr(model, "memory"):
            return _from_info(model.info, model.memory.num_layers)
        return _from_config(model, weights)


def _from_info(info: dict, num_layers: int) -> ModelSize:
    weight_bytes = 4 if info["expert_dtype"] == "float32" else 2
    # recordings from before large matrices stayed in bf16 do not say
    counted = info["trunk_bytes"] // (4 if info["dtype"] == "float32" else 2)
    trunk_weights = info.get("trunk_weights", counted)
    counts = (info["record_bytes"], num_layers, info["experts"], info["top_k"])
    flops = (2 * info["expert_bytes"] / weight_bytes, 2 * trunk_weights)
    trunk_bytes = info["trunk_bytes"]
    return ModelSize(info["name"], *counts, *flops, trunk_bytes, "engine.info", trunk_bytes)


def _from_config(config, weights: str | WeightFormat | None) -> ModelSize:
    # builds transformers' own class, so nothing above needs torch
    from .parameters import count_parameters

    found = count_parameters(config, weights)
    return ModelSize(
        found.kind,
        found.expert_bytes,
        found.num_layers,
        found.num_experts,
        found.top_k,
        2.0 * found.expert,
        2.0 * found.touched,
        found.touched_bytes,
        f"its config, counted in transformers' class; weights in {found.weights}",
        found.held_bytes,
        found.total,
        found.active,
        found.num_encoded * found.num_experts * found.expert_bytes,
    )
