"""The capstone's machine: the shipped model in plain torch, its experts in slow memory.

Comes in: calls of the student's decoder. Goes out: logits, bytes fetched, and an ``ExerciseError``
for what a machine could not do. It attends and counts; what drafts, is fetched and is kept is the
student's.

    B rows, T tokens of a block, L positions, D hidden, E experts, V vocabulary
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from safetensors.torch import load_file

from ... import checkpoint
from .verdict import require
from .workload import MODEL, NUM_DRAFT, shipped_distances

NUM_SLOTS, LENGTH = 6, 160
HEADS, KV_HEADS, HEAD_DIM, THETA, EPS = 4, 2, 32, 10000.0, 1e-5


@functools.lru_cache(maxsize=1)
def weights() -> dict[str, torch.Tensor]:
    """The shipped model's tensors in float32."""
    path = checkpoint.resolve(MODEL)
    stored = load_file(str(path / "model.safetensors"))
    return {name.removeprefix("model."): tensor.float() for name, tensor in stored.items()}


def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return weight * x * (x.pow(2).mean(-1, keepdim=True) + EPS).rsqrt()


def rotate(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Rotary positions: x [B, H, T, D], positions [B, T]."""
    rates = THETA ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    angles = (positions[:, None, :, None] * rates).repeat(1, 1, 1, 2)
    first, second = x.chunk(2, dim=-1)
    return x * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()


class Machine:
    """The model without its experts, and the two memories. State: keys and values of ``num_rows``
    rows, who is resident in each layer, ``bytes`` fetched so far."""

    num_layers, num_experts, top_k = 4, 32, 2
    num_slots, num_draft, length = NUM_SLOTS, NUM_DRAFT, LENGTH
    record_bytes = 98304

    def __init__(self, num_rows: int):
        shape = (self.num_layers, num_rows, KV_HEADS, LENGTH, HEAD_DIM)
        self._keys, self._values = torch.zeros(shape), torch.zeros(shape)
        self._resident: list[set[int]] = [set() for _ in range(self.num_layers)]
        self.bytes = 0

    def __repr__(self) -> str:
        return "machine"

    # ---- the two memories ----

    def resident(self, layer: int) -> set[int]:
        """The experts of ``layer`` that are in fast memory."""
        return set(self._resident[layer])

    def fetch(self, layer: int, expert: int) -> None:
        """Bring an expert into fast memory; its bytes are counted."""
        here = self._resident[layer]
        require(
            expert in range(self.num_experts),
            f"there is no expert {expert} to fetch: they are 0 to {self.num_experts - 1}",
        )
        require(expert not in here, f"expert {expert} of layer {layer} is resident already")
        require(
            len(here) < self.num_slots,
            f"layer {layer} has {self.num_slots} slots and all hold an expert: drop one first",
        )
        here.add(expert)
        self.bytes += self.record_bytes

    def drop(self, layer: int, expert: int) -> None:
        """Free an expert's slot."""
        require(
            expert in self._resident[layer],
            f"expert {expert} of layer {layer} is not resident, so it cannot be dropped",
        )
        self._resident[layer].remove(expert)

    def experts(self, layer: int) -> list[Callable]:
        """E functions [.., D] -> [.., D]; one that is not resident refuses."""
        return [functools.partial(self._compute, layer, e) for e in range(self.num_experts)]

    def _compute(self, layer: int, expert: int, x: torch.Tensor) -> torch.Tensor:
        require(
            expert in self._resident[layer],
            f"expert {expert} of layer {layer} is not resident: fetch it first, or let a stand-in "
            "compute while drafting",
        )
        w1, w2, w3 = (
            weights()[f"layers.{layer}.block_sparse_moe.experts.{expert}.{name}.weight"]
            for name in ("w1", "w2", "w3")
        )
        return (torch.nn.functional.silu(x @ w1.T) * (x @ w3.T)) @ w2.T

    def router(self, layer: int) -> torch.Tensor:
        """The router's weight [E, D]."""
        return weights()[f"layers.{layer}.block_sparse_moe.gate.weight"]

    def distances(self, layer: int) -> list[list[float]]:
        """Distances [E][E] between the layer's experts."""
        return shipped_distances()[layer].tolist()

    # ---- the model ----

    def forward(self, tokens, begins, visible, moe: Callable) -> torch.Tensor:
        """Logits [B, T, V] of ``tokens`` [B][T], which begin at ``begins`` [B] in their rows and
        see the keys ``visible`` [B][T][L]. ``moe(layer, hidden [B, T, D])`` gives each MoE layer's
        output. Keys are written at the tokens' positions."""
        tokens, mask = torch.tensor(tokens), torch.tensor(visible)
        positions = torch.tensor(begins)[:, None] + torch.arange(tokens.shape[1])
        require(
            int(positions.max()) < LENGTH and int(positions.min()) >= 0,
            f"a token stands at {int(positions.max())}, and the cache has {LENGTH} positions: "
            "begins are wrong, or a row is past its end",
        )
        shape = (*tokens.shape, LENGTH)
        require(
            mask.shape == shape,
            f"the mask has the shape {list(mask.shape)}: {list(shape)} is needed",
        )
        x = weights()["embed_tokens.weight"][tokens]
        for layer in range(self.num_layers):
            name = f"layers.{layer}"
            x = x + self._attend(
                layer, norm(x, weights()[f"{name}.input_layernorm.weight"]), positions, mask.bool()
            )
            given = norm(x, weights()[f"{name}.post_attention_layernorm.weight"])
            x = x + self._checked(moe(layer, given), x)
        return norm(x, weights()["norm.weight"]) @ weights()["embed_tokens.weight"].T

    def _checked(self, out, x: torch.Tensor) -> torch.Tensor:
        require(
            isinstance(out, torch.Tensor) and out.shape == x.shape,
            f"your layer gives {getattr(out, 'shape', type(out).__name__)}: a tensor of the shape "
            f"{list(x.shape)} is needed",
        )
        return out

    def _attend(self, layer: int, x, positions, mask) -> torch.Tensor:
        rows, num, name = x.shape[0], x.shape[1], f"layers.{layer}.self_attn"
        q, k, v = (
            (x @ weights()[f"{name}.{part}_proj.weight"].T)
            .view(rows, num, -1, HEAD_DIM)
            .transpose(1, 2)
            for part in "qkv"
        )
        q, k = rotate(q, positions), rotate(k, positions)
        for row in range(rows):
            self._keys[layer, row, :, positions[row]] = k[row]
            self._values[layer, row, :, positions[row]] = v[row]
        keys, values = (
            kept[layer, :rows].repeat_interleave(HEADS // KV_HEADS, dim=1)
            for kept in (self._keys, self._values)
        )
        scores = (q @ keys.transpose(2, 3) / HEAD_DIM**0.5).masked_fill(~mask[:, None], -torch.inf)
        out = scores.softmax(dim=-1) @ values
        return out.transpose(1, 2).reshape(rows, num, -1) @ weights()[f"{name}.o_proj.weight"].T
