"""One forward pass of an encoder-decoder over ragged rows: ``CausalDecoder``'s verbs, with a source
beside every row.

Comes in: rows with a ``source`` (what the encoder reads) and decoder tokens. Goes out: the
decoder's logits ``[B, T, V]``. The encoder runs in ``prefill`` only, a chunk of the queue at a
time; the keys and values that the decoder's cross-attention needs of a source are computed there
once and kept with the row. ``speculate.loop`` calls next.

    B rows, T tokens of a block, S source tokens, V vocabulary, H heads, D head size
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer, EncoderDecoderCache
from transformers.modeling_outputs import MoEModelOutput

from ..checkpoint.adapters import check_blocks, largest_block
from ..errors import UnsupportedModelError
from .decoder import Decoder, as_bias, pad, tell_positions
from .kv_cache import RaggedKVCache


class CrossKV:
    """Cross-attention keys and values of the rows in use, per layer ``[B, H, S, D]``; grows to the
    longest source."""

    def __init__(self, num_layers: int, num_rows: int):
        self.buffers: list[list[torch.Tensor]] = [[] for _ in range(num_layers)]  # keys, values
        self.lengths = torch.zeros(num_rows, dtype=torch.long)  # S of each row

    def put_row(self, row: int, states: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Row ``row`` gets the keys and values [H, S, D] of a source."""
        self.lengths[row] = states[0][0].shape[1]
        for layer, pair in enumerate(states):
            if not self.buffers[layer]:
                # one row and position more than used, as in ``kv_cache``
                self.buffers[layer] = [
                    x.new_zeros(len(self.lengths) + 1, x.shape[0], 1, x.shape[2]) for x in pair
                ]
            for index, states_of_row in enumerate(pair):
                buffer, length = self.buffers[layer][index], states_of_row.shape[1]
                if buffer.shape[2] <= length:
                    buffer = self.buffers[layer][index] = F.pad(
                        buffer, (0, 0, 0, length + 1 - buffer.shape[2])
                    )
                buffer[row, :, :length] = states_of_row

    def move_row(self, source: int, target: int) -> None:
        """Row ``source`` takes the place of row ``target``."""
        self.lengths[target] = self.lengths[source]
        for buffer in (buffer for pair in self.buffers for buffer in pair):
            buffer[target] = buffer[source]

    def select(self, rows: torch.Tensor) -> CrossKV:
        """A copy that holds only ``rows``, in this order."""
        copy = CrossKV(len(self.buffers), len(rows))
        # and the row nobody uses
        kept = torch.cat([rows, rows[:1]]).to(self.buffers[0][0].device)
        copy.buffers = [[buffer[kept] for buffer in pair] for pair in self.buffers]
        copy.lengths = self.lengths[rows]
        return copy

    def view(self, num_rows: int) -> tuple[DynamicCache, torch.Tensor]:
        """The first ``num_rows`` rows as a cache that is already filled, and which keys are real,
        bool [B, 1, 1, S]."""
        longest = int(self.lengths[:num_rows].max())
        cache = DynamicCache()
        cache.layers = [
            _filled(*(x[:num_rows, :, :longest] for x in pair)) for pair in self.buffers
        ]
        real = torch.arange(longest) < self.lengths[:num_rows, None]
        return cache, real[:, None, None, :]


def _filled(keys: torch.Tensor, values: torch.Tensor) -> DynamicLayer:
    """A cache layer that holds these tensors themselves (``update`` would copy them)."""
    layer = DynamicLayer()
    layer.lazy_initialization(keys, values)
    layer.keys = keys
    layer.values = values
    return layer


class Seq2SeqDecoder(Decoder):
    """An encoder-decoder model. State: beside the KV cache the cross-attention's keys and values of
    the rows in flight."""

    def __init__(self, model: PreTrainedModel):
        config = model.config
        num_layers = getattr(config, "decoder_layers", None) or config.num_decoder_layers
        super().__init__(model, config, num_layers)
        if config._attn_implementation != "eager":
            # the one whose masks and biases are given here, row by row
            model.set_attn_implementation("eager")
        self.cross: CrossKV | None = None
        self._all_cross: CrossKV | None = None
        self._view: tuple[DynamicCache, torch.Tensor] | None = None

    @property
    def start_token(self) -> int:
        """What every decoder sequence begins with."""
        for config in (self.model.generation_config, self.config):
            if getattr(config, "decoder_start_token_id", None) is not None:
                return config.decoder_start_token_id
        raise UnsupportedModelError(
            f"{self.config.model_type}: neither config names a decoder_start_token_id; add it"
        )

    def allocate(self, num_rows: int, num_positions: int) -> None:
        super().allocate(num_rows, num_positions)
        self.cross = CrossKV(self.num_layers, num_rows)

    def free(self) -> None:
        super().free()
        self.cross = self._all_cross = self._view = None

    def largest_block(self, num_rows: int) -> int | None:
        return largest_block(self.config, num_rows)

    def check_blocks(self, rows: list, num_rows: int, gamma: int) -> None:
        """Refuse a run whose blocks could exceed a router's capacity."""
        check_blocks(
            self.config,
            num_rows=num_rows,
            block=gamma + 1,
            source=max(len(row.source) for row in rows),
        )

    def prefill(self, rows: list, set_live: Callable) -> list:
        """Encode the sources of ``rows`` and run their decoder prompts (all but the last token) ->
        one state per row. ``set_live(live)`` is told which tokens are real before each pass. A
        prompt of one token has nothing to run: it runs, with no token live, for its cross-attention
        alone."""
        source, real = pad([row.source for row in rows], pad_id=self.config.pad_token_id or 0)
        set_live(real)
        device = self.model.device
        encoded = self.model.get_encoder()(
            input_ids=source.to(device), attention_mask=real.to(device).long()
        )
        tokens, live = pad([row.tokens[:-1] for row in rows])
        lengths = live.sum(dim=1).tolist()
        if tokens.shape[1] == 0:
            tokens = torch.tensor([row.tokens for row in rows])
            live = torch.zeros(len(rows), 1, dtype=torch.bool)
        set_live(live)
        written = RaggedKVCache(self.num_layers, *tokens.shape, device)
        view, starts = (DynamicCache(), real[:, None, None, :]), torch.zeros(len(rows)).long()
        with self.passes.plainly():
            self._forward(written, view, tokens, starts, encoded.last_hidden_state)
        read, layers = real.sum(dim=1).tolist(), view[0].layers
        return [
            (
                written.take_row(row, lengths[row]),
                [(x.keys[row, :, : read[row]], x.values[row, :, : read[row]]) for x in layers],
            )
            for row in range(len(rows))
        ]

    def add_row(self, row: int, state) -> None:
        """A prefilled prompt becomes row ``row``."""
        self_states, cross_states = state
        self.kv_cache.put_row(row, self_states)
        self.cross.put_row(row, cross_states)
        self._view = None

    def remove_row(self, row: int, last: int) -> None:
        super().remove_row(row, last)
        if row != last:
            self.cross.move_row(last, row)
        self._view = None

    def forward(self, tokens: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
        """``tokens`` [B, T] at positions ``starts`` [B] .. starts + T - 1 -> logits float ``[B, T,
        V]``."""
        if self._view is None:
            self._view = self.cross.view(len(tokens))
        shape, model = (len(tokens), 1, self.config.d_model), self.model
        unused = torch.empty(shape, dtype=model.dtype, device=model.device)
        return self._forward(self.kv_cache, self._view, tokens, starts, unused)

    def select_rows(self, rows: torch.Tensor) -> None:
        super().select_rows(rows)
        self._all_cross = self._all_cross or self.cross
        self.cross = self.cross.select(rows)
        self._view = None

    def restore_rows(self) -> None:
        super().restore_rows()
        if self._all_cross is not None:
            self.cross, self._all_cross, self._view = self._all_cross, None, None

    def _forward(
        self,
        self_kv: RaggedKVCache,
        view: tuple[DynamicCache, torch.Tensor],
        tokens: torch.Tensor,
        starts: torch.Tensor,
        encoded: torch.Tensor,
    ) -> torch.Tensor:
        """The decoder over a block. ``view``: the cross-attention's cache, and which of its keys
        are real; ``encoded`` [B, S, d_model] is read only while that cache is empty."""
        cross, real = view
        positions = self_kv.place(starts, tokens.shape[1])
        tell_positions(self.positioned, positions)
        output = self.passes(
            encoder_outputs=MoEModelOutput(last_hidden_state=encoded),
            attention_mask=as_bias(real.to(self.model.device), self.model.dtype),
            decoder_input_ids=tokens.to(self.model.device),
            decoder_attention_mask=as_bias(self_kv.mask(), self.model.dtype),
            use_cache=True,
            **{self.kv_argument: EncoderDecoderCache(self_kv, cross)},
        )
        return output.logits
