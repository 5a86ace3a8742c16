"""The transformers model without its experts: built on ``meta``, everything else loaded.

Expert parameters stay on ``meta``: ``offload`` computes with records.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..errors import CheckpointError, UnsupportedModelError, door
from . import adapters
from .files import Checkpoint, open_checkpoint, resolve
from .gguf_file import config_of
from .gguf_header import read_gguf
from .recipes import recipes

PLAIN_ATTENTIONS = ("eager", "sdpa")
# What a forward pass would return, or compute, besides logits.
SETTLED = {"output_router_logits": False, "output_attentions": False, "return_dict": True}
SETTLED |= {"output_hidden_states": False, "torchscript": False, "use_cache": True}
# Elements of a matrix from which on it may stay as it is stored.
LEAST_STORED = 2**20
# Names of classes that hold experts.
SUSPECT = re.compile("expert|sparsem|moe(block|mlp|layer)")
# transformers makes these with its class for images and texts alone; their texts were found exact.
WITH_IMAGES = ("glm4v_moe", "hy_v4_vl", "mistral4", "mistral_large4", "qwen3_vl_moe")


def build_model(
    path: str | Path,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device = "cpu",
    keep_stored: bool = False,
) -> PreTrainedModel:
    """The model of a checkpoint on ``device``, expert parameters on ``meta``, eval mode, no
    gradients. ``dtype`` "auto": the checkpoint's own; None: float32 on the CPU, "auto" elsewhere.
    ``keep_stored``: large bf16 matrices of a float32 model stay bf16, for a caller who computes
    with them."""
    checkpoint, device = open_checkpoint(resolve(path)), torch.device(device)
    what = f"the model of {checkpoint.folder} could not be built"
    with door(what, "correct config.json or download it again"):
        config = read_config(checkpoint)
        if dtype is None and device.type == "cpu":
            dtype = torch.float32
        elif not isinstance(dtype, torch.dtype):
            dtype = config.dtype or torch.float32
        model = meta_model(config, dtype)
        experts = set(expert_parameters(model))
        missing = _load_backbone(model, checkpoint, experts, device, keep_stored)
        _compute_the_rest(model, experts, missing, _to_compute(model, checkpoint, missing), device)
        _check_complete(model, experts)
        if checkpoint.architecture is None:
            _read_generation_config(model, checkpoint.folder)
        model.name_or_path = model.config.name_or_path = str(checkpoint.folder)
        return model.requires_grad_(False).eval()


def read_config(checkpoint: Checkpoint) -> PreTrainedConfig:
    named = f"{checkpoint.folder} (model_type {checkpoint.config.get('model_type')!r})"
    what = f"transformers does not know the model of {named}, or not its config.json"
    if checkpoint.architecture:
        instead = "try a newer transformers, or the safetensors of that model"
        with door(what, instead, UnsupportedModelError):
            return config_of(read_gguf(checkpoint.folder))
    with door(what, "correct config.json, or try a newer transformers", UnsupportedModelError):
        return transformers.AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False)


def meta_model(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The model of ``config`` with all tensors on ``meta``: shapes and names, no memory."""
    try:
        with torch.device("meta"):
            model = auto_class(config).from_config(_without_leftovers(config), dtype=dtype)
    except ValueError as error:
        what = f"model_type {config.model_type!r} generates no text: {error}"
        raise UnsupportedModelError(what) from error
    return adapters.adapt(model)


def auto_class(config: PreTrainedConfig) -> type:
    """transformers' class that makes the model of ``config``."""
    if config.is_encoder_decoder:
        return transformers.AutoModelForSeq2SeqLM
    if config.model_type in WITH_IMAGES:
        return transformers.AutoModelForImageTextToText
    return transformers.AutoModelForCausalLM


def _without_leftovers(config: PreTrainedConfig) -> PreTrainedConfig:
    """No flag that training left behind may crash a run or change its tokens; which kernels it ran
    with is transformers' choice again."""
    parts = [getattr(config, name, None) for name in config.sub_configs]
    for part in [config, *(part for part in parts if part is not None)]:
        if part._attn_implementation not in PLAIN_ATTENTIONS:
            part._attn_implementation = None
        part._experts_implementation = None
        for name, value in SETTLED.items():
            if hasattr(part, name):
                setattr(part, name, value)
    return config


def expert_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The experts modules that transformers' registry dispatches, by name, in order of depth."""
    found = {name: module for name, module in model.named_modules() if _is_dispatched(module)}
    if found:
        return found
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    classes = {type(module).__name__ for module in model.modules() if module is not model}
    suspects = sorted(name for name in classes if SUSPECT.search(name.lower()))
    if not suspects:
        raise UnsupportedModelError(f"model_type {kind!r} is dense: it has no experts to offload")
    registry = f"the experts registry of transformers {transformers.__version__}"
    what = f"model_type {kind!r} keeps its experts in {', '.join(suspects)}, outside {registry}"
    hint = "a newer transformers may have it in the registry"
    raise UnsupportedModelError(f"{what}, and specmoe has no adapter for it: {hint}")


def expert_parameters(model: nn.Module) -> dict[str, str]:
    """Every expert parameter of the model, ``[E, ...]``: its name -> that of the experts module."""
    found = expert_modules(model).items()
    return {f"{at}.{name}": at for at, m in found for name, _ in m.named_parameters(recurse=False)}


def _is_dispatched(module: nn.Module) -> bool:
    marked = hasattr(module, "is_transposed") and hasattr(module, "_apply_gate")
    return marked and any(p.dim() == 3 for p in module.parameters(recurse=False))


def _load_backbone(
    model: PreTrainedModel,
    checkpoint: Checkpoint,
    experts: set[str],
    device: torch.device,
    keep_stored: bool,
) -> set[str]:
    """Load every tensor that is no expert; returns the names that the checkpoint does not have."""
    expected = {name: tensor for name, tensor in model.state_dict().items() if name not in experts}
    missing = set(expected)
    for recipe in recipes(model, checkpoint):
        if recipe.target in experts:
            continue
        tensors = {p: [t.read() for t in stored] for p, stored in recipe.sources.items()}
        for name, tensor in recipe.convert(tensors, model).items():
            if (want := expected.get(name)) is None:
                continue
            if tensor.shape != want.shape:
                what = f"tensor {name!r} (from {recipe.first_source!r} in {checkpoint.folder})"
                asked = f"config.json asks for {list(want.shape)}"
                raise CheckpointError(f"{what} has shape {list(tensor.shape)}, but {asked}")
            dtype = _dtype_of(model, name, want.dtype)
            if not (keep_stored and _may_stay(model, name, tensor, dtype)):
                tensor = tensor.to(device, dtype)
            _assign(model, name, tensor)
            missing.discard(name)
    return missing


def _may_stay(model, name: str, tensor: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether ``tensor`` is a large matrix whose layer does nothing but multiply or look up."""
    path, _, leaf = name.rpartition(".")
    is_plain = leaf == "weight" and type(model.get_submodule(path)) in (nn.Linear, nn.Embedding)
    is_narrow = (tensor.dtype, dtype) == (torch.bfloat16, torch.float32)
    return is_plain and is_narrow and tensor.numel() >= LEAST_STORED and tensor.shape[1] % 8 == 0


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
    if leaf not in module._buffers:
        tensor = nn.Parameter(tensor, requires_grad=False)
    tensor._is_hf_initialized = loaded
    setattr(module, leaf, tensor)


def _to_compute(model: PreTrainedModel, checkpoint: Checkpoint, missing: set[str]) -> set[str]:
    """What of ``missing`` no checkpoint holds, if the rest is tied to what was loaded."""
    untied = missing - {*model.all_tied_weights_keys, *model.all_tied_weights_keys.values()}
    optional = model._keys_to_ignore_on_load_missing or ()
    computed = {name for name in untied if any(re.search(pattern, name) for pattern in optional)}
    if lost := sorted(untied - computed):
        raise checkpoint.lacks(f"lacks {len(lost)} tensors of the model, first {lost[0]!r}")
    return computed


def _compute_the_rest(model, experts: set[str], missing: set[str], computed: set[str], device):
    """Tie weights and compute the rest (rotary frequencies), as ``from_pretrained`` does."""
    for name in computed:
        empty = torch.empty_like(model.state_dict()[name], device=device)
        _assign(model, name, empty, loaded=False)
    for name in experts | (missing - computed):
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
        what = f"the checkpoint lacks {empty[0]!r} ({len(empty)} in all)"
        raise CheckpointError(f"{what}: download it again")
    for module, name, buffer in _unsaved_buffers(model):
        if buffer.is_floating_point() and buffer.isnan().any():
            what = f"buffer {name!r} of {type(module).__name__} is not in the checkpoint"
            why = "transformers does not compute it for a model built without memory"
            raise UnsupportedModelError(f"{what}, and {why}")


def _read_generation_config(model: PreTrainedModel, folder: Path) -> None:
    """From its own file, else, as in transformers, from what an old ``config.json`` says of it."""
    file = folder / "generation_config.json"
    where = {} if file.exists() else {"config_file_name": "config.json", "_from_model_config": True}
    with door(f"{file} cannot be used", "correct it, or take it out for transformers' defaults"):
        model.generation_config = transformers.GenerationConfig.from_pretrained(folder, **where)
