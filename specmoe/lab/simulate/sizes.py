"""A model's sizes as far as time depends on them.

Comes in: an engine, its ``info``, or a transformers config. Goes out: a ``ModelSize``. ``replay``
calls next.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import OptionError

BF16_BYTES = 2


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
    trunk_bytes: int
    source: str = ""

    def __post_init__(self):
        for name in (
            "expert_bytes",
            "num_layers",
            "num_experts",
            "top_k",
            "expert_flops_per_token",
        ):
            if not getattr(self, name) > 0:
                raise OptionError(
                    f"{name}={getattr(self, name)!r} of model size {self.name!r} must be above zero"
                )

    @classmethod
    def of(cls, model) -> ModelSize:
        """Of an engine, an engine's ``info``, or a config (object or dict); ``OptionError`` names
        what it lacks."""
        if isinstance(model, dict) and "record_bytes" in model:
            return _from_info(
                model, model["layers"] // (2 if model["architecture"] in ENCODER_DECODERS else 1)
            )
        if hasattr(model, "info") and hasattr(model, "memory"):
            return _from_info(model.info, model.memory.num_layers)
        return _from_config(model)


ENCODER_DECODERS = ("nllb-moe", "switch_transformers")


def _from_info(info: dict, num_layers: int) -> ModelSize:
    weight_bytes = 4 if info["expert_dtype"] == "float32" else 2
    trunk_weights = info["trunk_bytes"] // (4 if info["dtype"] == "float32" else 2)
    counts = (info["record_bytes"], num_layers, info["experts"], info["top_k"])
    flops = (2 * info["expert_bytes"] / weight_bytes, 2 * trunk_weights)
    return ModelSize(info["name"], *counts, *flops, info["trunk_bytes"], "engine.info")


_NAMES = {
    "d": ("d_model", "hidden_size"),
    "ffn": ("decoder_ffn_dim", "d_ff", "intermediate_size"),
    "layers": ("decoder_layers", "num_decoder_layers", "num_hidden_layers"),
    "experts": ("num_local_experts", "num_experts"),
    "vocab": ("vocab_size",),
}


def _from_config(config) -> ModelSize:
    fields = (
        config
        if isinstance(config, dict)
        else {name: getattr(config, name) for name in dir(config) if name[:1] != "_"}
    )
    inner = fields.get("text_config")
    if inner is not None:
        return _from_config(inner)
    kind, found = fields.get("model_type", "config"), {}
    for what, names in _NAMES.items():
        found[what] = next((fields[name] for name in names if fields.get(name)), None)
        if found[what] is None:
            raise OptionError(
                f"the config of {kind!r} lacks {names[-1]!r}, which the simulator "
                "needs: give a ModelSize"
            )
    is_old = kind in ENCODER_DECODERS  # two matrices per expert and cross-attention
    matrices, attentions = (2, 2) if is_old else (3, 1)
    step = fields.get("decoder_sparse_step") or fields.get("interleave_moe_layer_step") or 1
    moe = len(fields["moe_layers"]) if fields.get("moe_layers") else found["layers"] // step
    heads, kv_heads = fields.get("num_attention_heads") or 1, fields.get("num_key_value_heads")
    share = 1 if is_old or not kv_heads else kv_heads / heads
    attention = attentions * (2 + 2 * share) * found["d"] ** 2
    dense_ffn = fields.get("intermediate_size_mlp") or found["ffn"]
    shared = moe * matrices * found["d"] * found["ffn"] if kind.startswith("llama4") else 0
    dense = (found["layers"] - moe) * matrices * found["d"] * dense_ffn
    trunk = found["layers"] * attention + dense + shared + found["vocab"] * found["d"]
    expert = matrices * found["d"] * found["ffn"]
    top_k = fields.get("num_experts_per_tok") or (1 if kind == "switch_transformers" else 2)
    return ModelSize(
        kind,
        int(BF16_BYTES * expert),
        moe,
        found["experts"],
        top_k,
        2.0 * expert,
        2.0 * trunk,
        int(BF16_BYTES * trunk),
        "config, weights in bf16",
    )


def _published(name: str, source: str, **config) -> ModelSize:
    size = _from_config(config)
    return ModelSize(**{**vars(size), "name": name, "source": f"{source}; bf16"})


_HUB = "https://huggingface.co"
_NLLB = (
    f"{_HUB}/facebook/nllb-moe-54b/blob/474e46382230380d8f0f0c1908a2c7e7617006f6/config.json (its "
    "decoder: the encoder runs "
    "in prefill)"
)
_MIXTRAL = f"{_HUB}/mistralai/Mixtral-8x7B-Instruct-v0.1/blob/eba92302a2861cdc0098cc54bc9f17cb2c47eb61/config.json"
_SCOUT = (
    "https://github.com/huggingface/transformers/blob/b17cfe48c5a9631dcf9f57f3865a055903800f81/src/transformers/models/llama4/"
    "configuration_llama4.py (defaults of the text config; Scout's own config.json was not found)"
)
PAPER_SIZES = {
    "nllb-moe-54b": _published(
        "NLLB-MoE-54B",
        _NLLB,
        model_type="nllb-moe",
        d_model=2048,
        decoder_ffn_dim=8192,
        decoder_layers=24,
        decoder_sparse_step=4,
        num_experts=128,
        vocab_size=256206,
    ),
    "mixtral-8x7b": _published(
        "Mixtral-8x7B",
        _MIXTRAL,
        model_type="mixtral",
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_local_experts=8,
        num_experts_per_tok=2,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=32000,
    ),
    "llama-4-scout": _published(
        "Llama-4-Scout",
        _SCOUT,
        model_type="llama4_text",
        hidden_size=5120,
        intermediate_size=8192,
        intermediate_size_mlp=16384,
        num_hidden_layers=48,
        interleave_moe_layer_step=1,
        num_local_experts=16,
        num_experts_per_tok=1,
        num_attention_heads=40,
        num_key_value_heads=8,
        vocab_size=202048,
    ),
}
