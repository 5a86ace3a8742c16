"""A checkpoint of a real model's shape, names, dtype and shards, with random weights: what speed at
real size is measured on where nothing can be downloaded.

Comes in: a folder and how many layers. Goes out: config, index and shards, as a hub has them. The
same seed gives the same bytes. ``real`` and ``peers`` measure on it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from ...errors import OptionError, path_of
from ..simulate.real_models import known_models

NUM_SHARDS = 10
STD = 0.02
# Of embeddings: large beside all that layers add, so that the token decides its experts. With ``STD``
# the attention's mean over the context, a deviation of nearly 1, drowns it, and every token of a
# text goes to the same few experts.
EMBEDDING_STD = 4.0
# name on the command line -> name in the table of real models
SHAPES = {"olmoe": "olmoe-1b-7b"}
# What the table leaves out, as the published config has it.
FIELDS = {
    "architectures": ["OlmoeForCausalLM"],
    "max_position_embeddings": 4096,
    "norm_topk_prob": False,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "eos_token_id": 50279,
    "pad_token_id": 1,
    "dtype": "bfloat16",
}


def make_checkpoint(folder, model: str = "olmoe", layers: int | None = None, seed: int = 0) -> Path:
    """Write the checkpoint into ``folder``, which must be new or empty; ``layers`` None: all. Takes
    minutes and, whole, 13.8 GB."""
    if model not in SHAPES:
        raise OptionError(f"{model!r} has no maker: {', '.join(SHAPES)}")
    folder = path_of(folder, "a folder")
    if folder.exists() and any(folder.iterdir()):
        raise OptionError(f"{folder} is not empty: name a new folder")
    config = known_models()[SHAPES[model]].config | FIELDS
    config["num_hidden_layers"] = layers or config["num_hidden_layers"]
    folder.mkdir(parents=True, exist_ok=True)
    shards, random = _shards(list(tensors(config))), np.random.Generator(np.random.SFC64(seed))
    index = {}
    for number, shapes in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        made = {name: _weight(name, shape, random) for name, shape in shapes}
        save_file(made, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(made, file)
    total = sum(2 * math.prod(shape) for shapes in shards for _, shape in shapes)
    content = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content, indent=1) + "\n")
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    return folder


def tensors(config: dict) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of every tensor of OLMoE, in the order of its layers."""
    hidden, width, vocab = (
        config[name] for name in ("hidden_size", "intermediate_size", "vocab_size")
    )
    yield "model.embed_tokens.weight", (vocab, hidden)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{at}.{name}.weight", (hidden,)
        for name in ("q_norm", "k_norm"):
            yield f"{at}.self_attn.{name}.weight", (hidden,)
        for name in "qkvo":
            yield f"{at}.self_attn.{name}_proj.weight", (hidden, hidden)
        yield f"{at}.mlp.gate.weight", (config["num_experts"], hidden)
        for expert in range(config["num_experts"]):
            for name in ("gate", "up", "down"):
                sides = (hidden, width) if name == "down" else (width, hidden)
                yield f"{at}.mlp.experts.{expert}.{name}_proj.weight", sides
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (vocab, hidden)


def _shards(named: list[tuple[str, tuple[int, ...]]]) -> list[list]:
    """Cut in order into shards of about the same size; an expert's weights may be parted."""
    total, begun = sum(math.prod(shape) for _, shape in named), 0
    shards = [[] for _ in range(NUM_SHARDS)]
    for name, shape in named:
        shards[begun * NUM_SHARDS // total].append((name, shape))
        begun += math.prod(shape)
    return [shard for shard in shards if shard]


def _weight(name: str, shape: tuple[int, ...], random: np.random.Generator) -> torch.Tensor:
    """Of a norm ones, else uniform with a deviation of ``STD`` (``EMBEDDING_STD``), in bf16."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    whole = random.integers(-(2**15), 2**15, shape, dtype=np.int16)
    std = EMBEDDING_STD if "embed_tokens" in name else STD
    return torch.from_numpy(whole).bfloat16().mul_(std * math.sqrt(3) / 2**15)
