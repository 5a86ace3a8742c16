"""A ragged KV cache: every row has its own length, and rejected tokens are forgotten by arithmetic.

Comes in: keys and values of a block of T tokens per row, written at the row's own positions. Goes
out: the whole ``[B, H, L, D]`` buffers, and a mask ``kv_position <= query_position`` that hides
what is stale. Nothing is copied when tokens are rejected: the next block simply overwrites them.
``decoder`` calls next.

    B rows, T tokens of a block, H heads, L positions, D head size
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import torch
import transformers
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from ..errors import FastMemoryError, UnsupportedModelError

# Positions that the buffers have room for at first; they double when a row grows out of them.
FEWEST_POSITIONS = 256
ATTENTIONS = ("full_attention", "sliding_attention", "chunked_attention", "indexed_attention")
# Kinds of layers that look at no earlier token by attention.
UNMASKED = ("conv", "linear_attention", "moe", "mlp")
# model_type -> the class of its layers with a state, which ``recurrent`` rolls back. Only what was
# found exact is here.
MIXERS = {
    "bailing_hybrid": "BailingHybridDeltaAttention",
    "granitemoehybrid": "GraniteMoeHybridMambaLayer",
    "jamba": "JambaMambaMixer",
    "kimi_linear": "KimiLinearDeltaAttention",
    "lara_mini": "LaraMiniGatedDeltaNet",
    "lfm2_moe": "Lfm2MoeShortConv",
    "minimax": "MiniMaxLightningAttention",
    "nemotron_h": "NemotronHMamba2Mixer",
    "qwen3_5_moe_text": "Qwen3_5MoeGatedDeltaNet",
    "qwen3_next": "Qwen3NextGatedDeltaNet",
}


# The version whose caches are first asked for states by the names of ``recurrent.StateCache``.
STATES_SINCE = "5.21"
# transformers 5.24 says ``cache`` and warns at the older names.
CACHE_NAMES = ("cache", "past_key_values", "cache_params")


def cache_argument(forward: Callable) -> str:
    """What ``forward`` calls its cache, which transformers renames. A name that it does not know
    may be swallowed (``**kwargs``): nothing would be kept, and the tokens would be others."""
    known = inspect.signature(forward).parameters
    for name in CACHE_NAMES:
        if name in known:
            return name
    raise UnsupportedModelError(
        f"{forward.__qualname__} of transformers {transformers.__version__} takes no cache under a "
        f"name that specmoe knows ({', '.join(CACHE_NAMES)}): use another version of transformers"
    )


def check_rollback(model: PreTrainedModel) -> None:
    """Refuse models whose state cannot be rolled back to an earlier token."""
    if model.config.get_text_config(decoder=True).model_type in MIXERS:
        return check_states(model.config.model_type)
    if getattr(model, "_is_stateful", False) or getattr(model.config, "is_hybrid", False):
        raise UnsupportedModelError(
            f"{model.config.model_type} keeps recurrent state, which cannot be rolled back when "
            "drafted tokens are rejected; use a model with attention layers only"
        )


def check_states(kind: str) -> None:
    """Refuse recurrent layers of a transformers that asks its cache otherwise than ours answers."""
    if not hasattr(Cache, "get_conv_state"):
        raise UnsupportedModelError(
            f"{kind} has recurrent layers, whose state specmoe rolls back with transformers "
            f"{STATES_SINCE} or newer, and this is {transformers.__version__}: pip install -U "
            "transformers"
        )


class Places:
    """Where the next block is written, shared by the layers of a cache (which do not hold each
    other: what is dropped is freed at once). ``capacity``: positions that the buffers have room for
    now, at most ``num_positions``."""

    def __init__(self, num_rows: int, num_positions: int, device: torch.device):
        self.num_rows = num_rows
        self.num_positions = num_positions
        self.device = device
        self.capacity = min(num_positions, FEWEST_POSITIONS)
        self.positions = torch.zeros(1, 1, dtype=torch.long, device=device)  # [B, T]
        self.rows = torch.zeros(1, 1, dtype=torch.long, device=device)  # [B, 1]
        self.length = 1


class RaggedLayer(CacheLayerMixin):
    """Keys and values of one attention layer, ``[B, H, L, D]``; allocated at the first write (H and
    D may differ between keys and values, as in multi-head latent attention), grown as rows grow."""

    def __init__(self, places: Places):
        super().__init__()
        self.places = places
        self.keys: torch.Tensor | None = None
        self.values: torch.Tensor | None = None
        self.is_initialized = False

    def lazy_initialization(self, key_states, value_states):
        self.keys = self._buffer(key_states)
        self.values = self._buffer(value_states)
        self.is_initialized = True

    def _buffer(self, states: torch.Tensor, old: torch.Tensor | None = None) -> torch.Tensor:
        """Zeros with room for ``places.capacity``; what ``old`` holds is copied."""
        places, (_, heads, _, size) = self.places, states.shape
        # One row and position more than can be used: a used part is never the whole, which
        # torch.compile would tell apart.
        shape = (places.num_rows + 1, heads, places.capacity + 1, size)
        try:
            # zeros, not empty: a masked NaN would still poison the weighted sum
            buffer = torch.zeros(shape, dtype=states.dtype, device=states.device)
        except RuntimeError as failure:
            raise _too_large(places, math.prod(shape) * states.element_size(), failure) from None
        if old is not None:
            buffer[:, :, : old.shape[2]] = old
        return buffer

    def grow(self) -> None:
        """Room for ``places.capacity`` positions, with what was written."""
        if self.is_initialized:
            self.keys = self._buffer(self.keys, self.keys)
            self.values = self._buffer(self.values, self.values)

    def update(self, key_states, value_states, *args, **kwargs):
        """Write ``[B, H, T, D]`` at ``places.positions`` [B, T]; returns buffers up to the longest
        row in use."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rows, positions, length = self.places.rows, self.places.positions, self.places.length
        self.keys[rows, :, positions] = key_states.transpose(1, 2)  # [B, T, H, D]
        self.values[rows, :, positions] = value_states.transpose(1, 2)
        num_rows = positions.shape[0]
        return self.keys[:num_rows, :, :length], self.values[:num_rows, :, :length]

    def get_mask_sizes(self, query_length):
        return self.places.length, 0

    def get_seq_length(self):
        return self.places.length - self.places.positions.shape[1]

    def get_max_length(self):
        return self.places.num_positions

    get_max_cache_shape = get_max_length  # its name in older transformers


def _too_large(places: Places, num_bytes: int, failure: Exception) -> FastMemoryError:
    first = str(failure).split("\n")[0][:120]
    return FastMemoryError(
        f"the KV cache cannot grow to {places.num_rows} rows x {places.capacity} positions "
        f"({num_bytes} bytes for one layer's keys; {first}): lower batch_size or max_new_tokens"
    )


class RaggedKVCache(Cache):
    """KV cache of ``num_rows`` rows x up to ``num_positions``; rows in use are always 0 .. B-1.

    ``place(starts, T)`` says where the next block goes; a model's forward pass then writes there.
    ``move_row`` and ``take_row`` / ``put_row`` keep the rows in use together when one finishes or
    enters. Memory follows what is written.
    """

    def __init__(self, num_layers: int, num_rows: int, num_positions: int, device="cpu"):
        self.places = Places(num_rows, num_positions, torch.device(device))
        super().__init__(layers=[RaggedLayer(self.places) for _ in range(num_layers)])

    def place(self, starts: torch.Tensor, num_tokens: int) -> torch.Tensor:
        """The next block of ``num_tokens`` begins at ``starts`` [B] (CPU); returns its positions
        [B, T].

        Positions past the end (tokens after a row's limit, which nobody will read) are folded onto
        the last one."""
        places = self.places
        positions = starts[:, None] + torch.arange(num_tokens)
        positions.clamp_(max=places.num_positions - 1)
        places.length = int(positions.max()) + 1
        places.positions = positions.to(places.device, non_blocking=True)
        places.rows = torch.arange(len(starts), device=places.device)[:, None]  # [B, 1]
        self._make_room(places.length)
        return places.positions

    def _make_room(self, length: int) -> None:
        """Buffers that are too short for ``length`` positions double."""
        places = self.places
        if length > places.capacity:
            places.capacity = min(places.num_positions, max(length, 2 * places.capacity))
            for layer in self.layers:
                layer.grow()

    def mask(self, attention: str = "full_attention", window: int | None = None) -> torch.Tensor:
        """bool ``[B, 1, T, L]``: may this query see this key? ``window`` positions for sliding, or
        chunk size."""
        query = self.places.positions[:, None, :, None]  # [B, 1, T, 1]
        key = torch.arange(self.places.length, device=self.places.device)  # [L]
        visible = key <= query
        if attention == "sliding_attention":
            visible &= key > query - window
        elif attention == "chunked_attention":
            visible &= key // window == query // window
        return visible

    def update_indexer(self, keys: torch.Tensor, layer: int) -> torch.Tensor:
        """Keys [B, T, D] of a sparse attention's indexer -> [B, L, D]; their own layers come after
        the others."""
        keys = keys[:, None]  # one head
        return self.layers[len(self.layers) // 2 + layer].update(keys, keys[..., :0])[0][:, 0]

    def move_row(self, source: int, target: int) -> None:
        """Row ``source`` takes the place of row ``target``."""
        for layer in self.layers:
            if layer.is_initialized:
                layer.keys[target] = layer.keys[source]
                layer.values[target] = layer.values[source]

    def select(self, rows: torch.Tensor) -> RaggedKVCache:
        """A copy that holds only ``rows``, in this order."""
        places = self.places
        copy = RaggedKVCache(len(self.layers), len(rows), places.num_positions, places.device)
        copy.places.capacity = places.capacity
        kept = torch.cat([rows, rows[:1]]).to(places.device)  # and the row nobody uses
        for mine, other in zip(self.layers, copy.layers, strict=True):
            if mine.is_initialized:
                other.keys = mine.keys[kept]
                other.values = mine.values[kept]
                other.is_initialized = True
        return copy

    def take_row(self, row: int, length: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Copies of the first ``length`` positions of a row, per layer ([H, length, D] keys and
        values; None: unused)."""
        return [
            (layer.keys[row, :, :length].clone(), layer.values[row, :, :length].clone())
            if layer.is_initialized
            else None
            for layer in self.layers
        ]

    def put_row(self, row: int, states: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Write what ``take_row`` gave (of any cache of this model) into ``row``."""
        lengths = (state[0].shape[1] for state in states if state is not None)
        self._make_room(max(lengths, default=0))
        for layer, state in zip(self.layers, states, strict=True):
            if state is None:
                continue
            keys, values = state
            if not layer.is_initialized:
                layer.lazy_initialization(keys[None], values[None])
            layer.keys[row, :, : keys.shape[1]] = keys
            layer.values[row, :, : values.shape[1]] = values


def attention_windows(config) -> dict[str, int | None]:
    """The kinds of attention a decoder config mixes -> window (None for full), or
    ``UnsupportedModelError``."""
    kinds = set(getattr(config, "layer_types", None) or [])
    if not kinds:
        slides = getattr(config, "sliding_window", None)
        kinds = {"sliding_attention" if slides else "full_attention"}
    known = (*ATTENTIONS, *(UNMASKED if config.model_type in MIXERS else ()))
    strange = sorted(kind for kind in kinds if kind not in known)
    if strange:
        raise UnsupportedModelError(
            f"{config.model_type} has layers of type {', '.join(strange)}: such state cannot be "
            "rolled back when drafted tokens are rejected; use a model with attention layers only"
        )
    windows = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
    return {
        kind: getattr(config, windows[kind]) if kind in windows else None for kind in sorted(kinds)
    }
