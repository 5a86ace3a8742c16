"""The transformers model without its experts: built on ``meta``, everything else loaded.

Comes in: a checkpoint. Goes out: a ``PreTrainedModel`` in eval mode whose expert parameters stay on
``meta`` (``experts`` computes with records instead), and ``expert_modules`` to find them. ``plan``
takes shapes from the same model.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from ..errors import CheckpointError, UnsupportedModelError, door
from . import adapters
from .files import Checkpoint, open_checkpoint, resolve
from .leftovers import without_leftovers
from .recipes import recipes

logger = logging.getLogger("specmoe")

# transformers makes these with its class for images and texts alone; their texts were found exact.
WITH_IMAGES = ("glm4v_moe", "hy_v4_vl", "mistral4", "mistral_large4", "qwen3_vl_moe")


def build_model(
    path: str | Path, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> PreTrainedModel:
    """The model of a checkpoint on ``device``, expert parameters on ``meta``, eval mode, no
    gradients.

    ``dtype`` None: float32 on the CPU, the checkpoint's own elsewhere.
    """
    checkpoint, device = open_checkpoint(resolve(path)), torch.device(device)
    with door(
        f"the model of {checkpoint.folder} could not be built",
        "correct config.json or download it again",
    ):
        return _build(checkpoint, dtype, device)


def _build(
    checkpoint: Checkpoint, dtype: torch.dtype | None, device: torch.device
) -> PreTrainedModel:
    config = read_config(checkpoint)
    if dtype is None:
        dtype = torch.float32 if device.type == "cpu" else config.dtype or torch.float32
    model = meta_model(config, dtype)
    experts = set(expert_parameters(model))
    missing = _load_trunk(model, checkpoint, experts, device)
    _tie_and_compute(model, checkpoint, missing, experts, device)
    _check_complete(model, experts)
    _read_generation_config(model, checkpoint.folder)
    model.name_or_path = model.config.name_or_path = str(checkpoint.folder)
    return model.requires_grad_(False).eval()


def read_config(checkpoint: Checkpoint) -> PreTrainedConfig:
    kind = checkpoint.config.get("model_type")
    what = (
        f"transformers does not know the model of {checkpoint.folder} (model_type {kind!r}), "
        "or "
        "not its config.json"
    )
    with door(what, "correct config.json, or try a newer transformers", UnsupportedModelError):
        return AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False)


def meta_model(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The model of ``config`` with all tensors on ``meta``: shapes and names, no memory."""
    try:
        with torch.device("meta"):
            model = auto_class(config).from_config(without_leftovers(config), dtype=dtype)
    except ValueError as error:
        raise UnsupportedModelError(
            f"model_type {config.model_type!r} generates no text: {error}"
        ) from error
    return adapters.adapt(model)


def auto_class(config: PreTrainedConfig) -> type:
    """transformers' class that makes the model of ``config``."""
    if config.is_encoder_decoder:
        return AutoModelForSeq2SeqLM
    if config.model_type in WITH_IMAGES:
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


def expert_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The experts modules that transformers' registry dispatches, by name, in order of depth."""
    found = {name: module for name, module in model.named_modules() if _is_dispatched(module)}
    if found:
        return found
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    classes = {type(module).__name__ for module in model.modules() if module is not model}
    suspects = sorted(
        name for name in classes if re.search("expert|sparsem|moe(block|mlp|layer)", name.lower())
    )
    if suspects:
        raise UnsupportedModelError(
            f"model_type {kind!r} keeps its experts in {', '.join(suspects)}, outside the experts "
            "registry of"
            f" transformers {transformers.__version__}, and specmoe has no adapter for it: a newer "
            "transformers may"
            " have it in the registry"
        )
    raise UnsupportedModelError(f"model_type {kind!r} is dense: it has no experts to offload")


def expert_parameters(model: nn.Module) -> dict[str, tuple[str, str]]:
    """Every expert parameter of the model, ``[E, ...]``: full name -> (experts module, name inside
    it)."""
    return {
        f"{module_name}.{name}": (module_name, name)
        for module_name, module in expert_modules(model).items()
        for name, _ in module.named_parameters(recurse=False)
    }


def _is_dispatched(module: nn.Module) -> bool:
    marked = hasattr(module, "is_transposed") and hasattr(module, "_apply_gate")
    return marked and any(p.dim() == 3 for p in module.parameters(recurse=False))


def _load_trunk(
    model: PreTrainedModel, checkpoint: Checkpoint, experts: set[str], device: torch.device
) -> set[str]:
    """Load every tensor that is no expert; returns the names that the checkpoint does not have."""
    expected = {name: tensor for name, tensor in model.state_dict().items() if name not in experts}
    missing = set(expected)
    for recipe in recipes(model, checkpoint.tensors):
        if recipe.target in experts:
            continue
        tensors = {p: [checkpoint.read(key) for key in keys] for p, keys in recipe.sources.items()}
        for name, tensor in recipe.convert(tensors, model).items():
            if name not in expected:
                continue
            if tensor.shape != expected[name].shape:
                raise CheckpointError(
                    f"tensor {name!r} (from {recipe.first_source!r} in {checkpoint.folder}) has "
                    "shape"
                    f" {list(tensor.shape)}, but config.json asks for {list(expected[name].shape)}"
                )
            _assign(model, name, tensor.to(device, _dtype_of(model, name, expected[name].dtype)))
            missing.discard(name)
    return missing


def _dtype_of(model: PreTrainedModel, name: str, dtype: torch.dtype) -> torch.dtype:
    """``dtype``, or float32 where the model asks for it whatever the rest is in."""
    if dtype not in (torch.float16, torch.bfloat16):
        return dtype
    kept = set(model._keep_in_fp32_modules_strict or ())
    if dtype == torch.float16:
        kept |= set(model._keep_in_fp32_modules or ())
    return torch.float32 if any(re.search(p.replace("*", ".*"), name) for p in kept) else dtype


def _assign(model: nn.Module, name: str, tensor: torch.Tensor, loaded: bool = True) -> None:
    """Put ``tensor`` in place of parameter or buffer ``name``; no init touches a loaded one."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if leaf in module._buffers:
        module._buffers[leaf] = tensor
    else:
        module._parameters[leaf] = tensor = nn.Parameter(tensor, requires_grad=False)
    tensor._is_hf_initialized = loaded


def _tie_and_compute(
    model: PreTrainedModel,
    checkpoint: Checkpoint,
    missing: set[str],
    experts: set[str],
    device: torch.device,
) -> None:
    """Tie weights and compute what no checkpoint holds (rotary frequencies), as ``from_pretrained``
    does."""
    tied = set(model.all_tied_weights_keys) | set(model.all_tied_weights_keys.values())
    optional = model._keys_to_ignore_on_load_missing or ()
    computed = {
        name for name in missing - tied if any(re.search(pattern, name) for pattern in optional)
    }
    lost = sorted(missing - tied - computed)
    if lost:
        raise checkpoint.lacks(f"lacks {len(lost)} tensors of the model, first {lost[0]!r}")
    for name in computed:
        _assign(
            model, name, torch.empty_like(model.state_dict()[name], device=device), loaded=False
        )
    for name in experts | (missing & tied):
        model.get_parameter(name)._is_hf_initialized = True
    for module, name, buffer in _unsaved_buffers(model):
        # NaN, so that a buffer which nothing computes is noticed.
        value = torch.nan if buffer.is_floating_point() else 0
        module._buffers[name] = torch.full_like(buffer, value, device=device)
    model.initialize_weights()
    model.tie_weights(missing_keys=missing, recompute_mapping=False)


def _unsaved_buffers(model: nn.Module) -> Iterator[tuple[nn.Module, str, torch.Tensor]]:
    for module in model.modules():
        for name in module._non_persistent_buffers_set:
            if module._buffers.get(name) is not None:
                yield module, name, module._buffers[name]


def _check_complete(model: PreTrainedModel, experts: set[str]) -> None:
    named = [*model.named_parameters(), *model.named_buffers()]
    empty = [name for name, tensor in named if tensor.is_meta and name not in experts]
    if empty:
        raise CheckpointError(
            f"the checkpoint lacks {empty[0]!r} ({len(empty)} in all): download it again"
        )
    for module, name, buffer in _unsaved_buffers(model):
        if buffer.is_floating_point() and buffer.isnan().any():
            raise UnsupportedModelError(
                f"buffer {name!r} of {type(module).__name__} is not in the checkpoint, and "
                "transformers does"
                " not compute it for a model built without memory"
            )


def _read_generation_config(model: PreTrainedModel, folder: Path) -> None:
    """From its own file, else, as in transformers, from what an old ``config.json`` says of it."""
    file = folder / "generation_config.json"
    where = {} if file.exists() else {"config_file_name": "config.json", "_from_model_config": True}
    with door(f"{file} cannot be used", "correct it, or take it out for transformers' defaults"):
        model.generation_config = GenerationConfig.from_pretrained(folder, **where)
