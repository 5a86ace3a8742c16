"""What a model is made of: the parameters of transformers' own class, counted by name.

Comes in: a config. Goes out: ``Parameters``. The class is built on ``meta``, so nothing is
allocated, and no formula here can drift from it. ``sizes`` calls next.
"""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
import transformers
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ...checkpoint import adapters
from ...checkpoint.model import auto_class, expert_modules, meta_model
from ...errors import OptionError, UnsupportedModelError, door, nearest
from .weights import BF16, WeightFormat, format_of

TOP_K = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_k")
SHARED = re.compile(r"\.shared_?(expert|mlp)")
ROUTER = re.compile(r"(^|\.)(gate|router)(\.|$)")
SERVED = {
    transformers.AutoModelForCausalLM: transformers.MODEL_FOR_CAUSAL_LM_MAPPING,
    transformers.AutoModelForSeq2SeqLM: transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    transformers.AutoModelForImageTextToText: transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    transformers.AutoModel: transformers.MODEL_MAPPING,
}
PARTS = ("expert", "shared", "router", "embedding", "head", "encoder", "rest")


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters and bytes as stored, by part (``PARTS``): routed experts, shared
    experts, routers, input embeddings, an output head that is a matrix of its own, an encoder's
    other layers or an image tower, and the rest (attention, norms, dense layers)."""

    kind: str
    weights: str  # the format's name
    num_layers: int  # MoE layers that decode
    num_encoded: int  # MoE layers of an encoder
    num_experts: int  # of a layer
    top_k: int
    counts: dict[str, int]
    stored: dict[str, int]
    head: int  # parameters of the output head, be it tied to the embeddings or not

    @property
    def expert(self) -> int:
        return self.counts["expert"] // (self.num_layers + self.num_encoded) // self.num_experts

    @property
    def expert_bytes(self) -> int:
        return self.stored["expert"] // (self.num_layers + self.num_encoded) // self.num_experts

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def active(self) -> int:
        """Of a token: all but the experts it is not sent to (embeddings count, as is usual)."""
        routed = (self.num_layers + self.num_encoded) * self.top_k * self.expert
        return self.total - self.counts["expert"] + routed

    @property
    def touched(self) -> int:
        """What a decoding pass multiplies with besides routed experts."""
        own = sum(self.counts[part] for part in ("shared", "router", "rest"))
        return own + self.head

    @property
    def touched_bytes(self) -> int:
        own = sum(self.stored[part] for part in ("shared", "router", "rest"))
        return own + 2 * self.head

    @property
    def held_bytes(self) -> int:
        """All but the routed experts."""
        return sum(self.stored.values()) - self.stored["expert"]


def count_parameters(config, weights: str | WeightFormat | None = None) -> Parameters:
    """Of a config (object or dict) whose ``model_type`` transformers knows.

    ``weights``: the name of a format (see ``weights.FORMATS``), or None, that of the checkpoint's
    ``quantization_config``, else bf16. ``UnsupportedModelError``: dense, or not known.
    """
    fields = config if isinstance(config, dict) else config.to_dict()
    fields = {name: value for name, value in fields.items() if value is not None}
    stored = format_of(weights, fields.pop("quantization_config", None))
    return _count(json.dumps(fields, sort_keys=True, default=str), stored)


@lru_cache(maxsize=64)
def _count(text: str, weights: WeightFormat) -> Parameters:
    config = _config(json.loads(text))
    model = _on_meta(config)
    modules = _experts(model)
    decoded = [name for name in modules if not _is_encoders(name)]
    counts, stored = Counter(dict.fromkeys(PARTS, 0)), Counter(dict.fromkeys(PARTS, 0))
    for part, parameter, fmt in _parts(model, modules, weights):
        counts[part] += parameter.numel()
        stored[part] += fmt.num_bytes(parameter.shape) if fmt else 2 * parameter.numel()
    head = model.get_output_embeddings()
    return Parameters(
        config.model_type,
        weights.name,
        len(decoded),
        len(modules) - len(decoded),
        _experts_of_a_layer(modules, config),
        _top_k(config),
        dict(counts),
        dict(stored),
        head.weight.numel() if head is not None else 0,
    )


def model_without_memory(config) -> tuple[PreTrainedModel, list[nn.Module]]:
    """The model of a config (object or dict) on ``meta``, and its modules of experts."""
    fields = config if isinstance(config, dict) else config.to_dict()
    model = _on_meta(_config({k: v for k, v in fields.items() if k != "quantization_config"}))
    return model, list(_experts(model).values())


def _config(fields: dict) -> PreTrainedConfig:
    kind = fields.pop("model_type", None)
    if kind not in CONFIG_MAPPING:
        what = f"model_type {kind!r} is not known to transformers {transformers.__version__}"
        raise UnsupportedModelError(f"{what}: {nearest(kind, CONFIG_MAPPING)}")
    remedy = "correct it, or take it from the checkpoint's config.json again"
    with door(f"the config of {kind!r} cannot be used", remedy, OptionError):
        return AutoConfig.for_model(kind, **fields)


def _on_meta(config: PreTrainedConfig) -> PreTrainedModel:
    """By the class that the engine takes; else by one for images and texts, or without a head."""
    found = [auto for auto, known in SERVED.items() if type(config) in known]
    what = f"no model of {config.model_type!r} can be made"
    if not found:
        raise UnsupportedModelError(f"{what}: none of transformers' classes takes it whole")
    with door(what, "give a ModelSize", UnsupportedModelError), torch.device("meta"):
        if auto_class(config) in found:
            return meta_model(copy.deepcopy(config), torch.bfloat16)
        return found[0].from_config(copy.deepcopy(config), dtype=torch.bfloat16)


def _experts(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Those of the registry; else modules called so that hold one stacked tensor per matrix."""
    try:
        return expert_modules(model)
    except UnsupportedModelError:
        found = {name: each for name, each in model.named_modules() if _is_stack(each)}
        if found:
            return found
        # a config may make every layer of a MoE family dense
        if any("expert" in type(each).__name__.lower() for each in model.modules()):
            raise
        what = f"model_type {model.config.model_type!r} is dense: it has no experts to offload"
        raise UnsupportedModelError(what) from None


def _is_stack(module: nn.Module) -> bool:
    own = list(module.parameters(recurse=False))
    named = type(module).__name__.endswith("Experts")
    return named and bool(own) and all(p.dim() == 3 for p in own)


def _experts_of_a_layer(modules: dict[str, nn.Module], config: PreTrainedConfig) -> int:
    shapes = {
        tuple(sorted(tuple(p.shape) for p in each.parameters(recurse=False)))
        for each in modules.values()
    }
    if len(shapes) > 1:
        what = f"the experts of {config.model_type!r} differ from layer to layer"
        raise UnsupportedModelError(f"{what}: give a ModelSize")
    return shapes.pop()[0][0]


def _is_encoders(name: str) -> bool:
    return re.search(r"(^|\.)encoder\.", name) is not None


def _parts(
    model: PreTrainedModel, experts: dict[str, nn.Module], weights: WeightFormat
) -> Iterator[tuple[str, nn.Parameter, WeightFormat | None]]:
    """Every parameter with its part, and its format where it is not a vector's."""
    kinds = {name: type(module) for name, module in model.named_modules()}
    head = model.get_output_embeddings()
    for name, parameter in model.named_parameters():
        module = name.rpartition(".")[0]
        part = _part(name, module, module in experts, kinds[module])
        if head is not None and parameter is head.weight and part != "embedding":
            part = "head"
        quantised = part == "expert" or (
            part in ("shared", "encoder", "rest") and issubclass(kinds[module], nn.Linear)
        )
        quantised &= part == "expert" or not weights.experts_only
        matrix = parameter.dim() > (2 if part == "expert" else 1)
        chosen = weights if quantised and not weights.keeps(module) else BF16
        yield part, parameter, chosen if matrix else None


def _part(name: str, module: str, is_expert: bool, kind: type) -> str:
    if is_expert:
        return "expert"
    if issubclass(kind, nn.Embedding):
        return "embedding"
    if _is_encoders(name) or re.search(r"(^|\.)(vision|visual|audio)", name):
        return "encoder"
    if SHARED.search(name):
        return "shared"
    return "router" if ROUTER.search(module) else "rest"


def _top_k(config: PreTrainedConfig) -> int:
    text = config.get_text_config(decoder=True)
    given = (getattr(text, name, None) for name in TOP_K)
    found = adapters.top_k(text) or next((value for value in given if value), None)
    if found is None:
        what = f"the config of {config.model_type!r} does not say how many experts a token gets"
        raise OptionError(f"{what}: give it num_experts_per_tok, or give a ModelSize")
    return found
