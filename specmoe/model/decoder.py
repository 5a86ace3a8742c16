"""One forward pass of a transformers model over ragged rows.

Comes in: a model whose experts are offloaded, token blocks ``[B, T]`` and where they begin in each
row. Goes out: logits ``[B, T, V]``. ``speculate.loop`` calls next; it does not know what kind of
model it drives. ``seq2seq`` has the same verbs for an encoder-decoder: ``prefill``, ``add_row``,
``forward``, ``remove_row``.

    B rows, T tokens of a block, V vocabulary
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
import torch.fx.experimental._config  # noqa: F401 (an attribute of its package only once imported)
from transformers import PreTrainedModel

from ..checkpoint.adapters import position_modules, rope_switch
from ..errors import OptionError, SpecMoEError, UnsupportedModelError
from .kernels import MOST_SHAPES
from .kv_cache import RaggedKVCache, attention_windows, cache_argument, check_rollback
from .native import torch_rests
from .stored import MOST_ROWS

logger = logging.getLogger("specmoe")

# Found exact with 8, 16 and 32 random heads, found wrong with 1, 2 and 4.
FEWEST_INDEX_HEADS = 8
# Their indexer adds scores as they are, without a cut at zero.
UNCUT_SCORES = ("minimax_m3_vl_text",)


class Passes:
    """Calls a model; after ``compile()`` through torch.compile: one graph for any number of rows,
    tokens and positions. ``reads_stored``: all large products of few rows are ours (``native``)."""

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.compiled = None
        self.reads_stored = False
        self._plain = False

    def compile(self, mode: str | bool = True) -> None:
        """``mode`` as of torch.compile; True: its usual one."""
        name = mode if isinstance(mode, str) else None
        compiled = torch.compile(self.model.forward, dynamic=True, mode=name)
        self.compiled = compiled if name is None else partial(kept, compiled)

    @contextmanager
    def plainly(self):
        """Within, nothing is compiled (prefills, whose shapes never come again)."""
        before, self._plain = self._plain, True
        try:
            yield
        finally:
            self._plain = before

    def __call__(self, **inputs):
        if self.compiled is None or self._plain:
            tokens = inputs.get("input_ids", inputs.get("decoder_input_ids"))
            few = self.reads_stored and tokens.numel() <= MOST_ROWS
            with torch_rests() if few else nullcontext():
                return self.model(**inputs)
        try:
            with torch._dynamo.config.patch(recompile_limit=MOST_SHAPES), _no_shape_alike():
                return self.compiled(**inputs)
        except torch._dynamo.exc.TorchDynamoException as failure:
            kind = self.model.config.model_type
            logger.warning(
                "compile=True: %s cannot be compiled (%s); using the plain path", kind, failure
            )
            self.compiled = None
            return self.model(**inputs)


def kept(compiled: Callable, **inputs):
    """A graph that is replayed writes its logits where the last replay's are: a copy stays."""
    torch.compiler.cudagraph_mark_step_begin()
    output = compiled(**inputs)
    output.logits = output.logits.clone()
    return output


def _no_shape_alike():
    """Two sizes that happen to be equal now (rows and tokens, say) are not to be taken for one size
    for ever."""
    config = getattr(torch.fx.experimental, "_config", None)
    can = hasattr(config, "use_duck_shape")
    return config.patch(use_duck_shape=False) if can else nullcontext()


class Decoder:
    """What decoder-only and encoder-decoder models share: the KV cache of the rows in flight (rows
    0 .. B-1), and forward passes that know each row's own positions."""

    def __init__(self, model: PreTrainedModel, config, num_layers: int):
        check_rollback(model)
        self.model = model
        self.config = config
        self.num_layers = num_layers
        self.positioned = position_modules(model)
        self.kv_argument = cache_argument(model.forward)
        self.passes = Passes(model)
        self.kv_cache: RaggedKVCache | None = None
        self._all_rows: RaggedKVCache | None = None

    @property
    def max_positions(self) -> int | None:
        """None: no limit."""
        return getattr(self.config, "max_position_embeddings", None)

    @property
    def vocab_size(self) -> int:
        return self.model.get_input_embeddings().num_embeddings

    def allocate(self, num_rows: int, num_positions: int) -> None:
        """Make room for ``num_rows`` rows of ``num_positions`` tokens."""
        self.free()
        self.kv_cache = RaggedKVCache(self.num_layers, num_rows, num_positions, self.model.device)

    def free(self) -> None:
        self.kv_cache = self._all_rows = None

    def remove_row(self, row: int, last: int) -> None:
        """Row ``row`` has finished; row ``last`` takes its place, so that the rows in use stay
        together."""
        if row != last:
            self.kv_cache.move_row(last, row)

    def select_rows(self, rows: torch.Tensor) -> None:
        """Go on with ``rows`` only, until ``restore_rows``; what they write is lost then."""
        self._all_rows = self._all_rows or self.kv_cache
        self.kv_cache = self.kv_cache.select(rows)

    def restore_rows(self) -> None:
        """All rows again, as they were before ``select_rows``."""
        self.kv_cache, self._all_rows = self._all_rows or self.kv_cache, None

    def settle(self, starts: torch.Tensor) -> None:
        """What was fed before ``starts`` [B] is final. Keys and values behind that are overwritten
        by the next block, so nothing has to be done."""

    def largest_block(self, num_rows: int) -> int | None:
        """Tokens of a row that may run at once; None: any number."""


class CausalDecoder(Decoder):
    """A decoder-only model."""

    use_cache = True

    def __init__(self, model: PreTrainedModel):
        config = model.config.get_text_config(decoder=True)
        super().__init__(model, config, config.num_hidden_layers)
        self.windows = attention_windows(config)
        check_indexer(config)
        self.eager = config._attn_implementation == "eager"
        if "indexed_attention" in self.windows:  # an indexer's keys are in layers of their own
            self.num_layers *= 2

    @property
    def max_positions(self) -> int | None:
        positions = getattr(self.config, "max_position_embeddings", None)
        rope = getattr(self.config, "rope_parameters", None) or {}
        # dynamic frequencies begin where the others end
        is_dynamic = positions and rope.get("rope_type") == "dynamic"
        return int(positions * rope["factor"]) if is_dynamic else positions

    def check_blocks(self, rows: list, num_rows: int, gamma: int) -> None:
        """Blocks of any size are fine: no router of a decoder-only model has a capacity. Raises
        ``OptionError`` for a row that would pass the length at which transformers computes all its
        keys anew."""
        switch = rope_switch(self.model)
        for index, row in enumerate(rows if switch else []):
            if len(row.tokens) <= switch < row.limit - 1:
                raise OptionError(
                    f"prompt {index} has {len(row.tokens)} tokens and may grow to {row.limit}: "
                    f"past {switch} tokens the rope of {self.config.model_type} changes for all "
                    "earlier tokens too, which specmoe does not do; ask for at most "
                    f"max_new_tokens={switch + 1 - len(row.tokens)}"
                )

    def prefill(self, rows: list, set_live: Callable) -> list:
        """Run the prompts of ``rows`` (all but their last token, which the first round feeds) ->
        one state per row for ``add_row``. ``set_live(live)`` is told which tokens are real."""
        tokens, live = pad([row.tokens[:-1] for row in rows])
        if tokens.shape[1] == 0:
            return [None] * len(rows)
        set_live(live)
        kv_cache = RaggedKVCache(self.num_layers, *tokens.shape, self.model.device)
        with self.passes.plainly():
            lengths = torch.tensor([len(row.tokens) for row in rows])[:, None].expand(tokens.shape)
            starts = torch.zeros(len(rows), dtype=torch.long)
            self._forward(kv_cache, tokens, starts, lengths, logits_to_keep=1)
        lengths = live.sum(dim=1).tolist()
        return [kv_cache.take_row(row, length) for row, length in enumerate(lengths)]

    def add_row(self, row: int, state) -> None:
        """A prefilled prompt becomes row ``row``."""
        if state is not None:
            self.kv_cache.put_row(row, state)

    def forward(self, tokens: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
        """``tokens`` [B, T] at positions ``starts`` [B] .. starts + T - 1 -> logits float ``[B, T,
        V]``."""
        return self._forward(self.kv_cache, tokens, starts)

    def _forward(
        self,
        kv_cache: RaggedKVCache,
        tokens: torch.Tensor,
        starts: torch.Tensor,
        lengths=None,
        **kwargs,
    ):
        positions = kv_cache.place(starts, tokens.shape[1])
        tell_positions(self.positioned, positions, lengths)
        output = self.passes(
            input_ids=tokens.to(self.model.device),
            position_ids=positions,
            attention_mask=self._masks(kv_cache),
            use_cache=self.use_cache,
            **{self.kv_argument: kv_cache},
            **kwargs,
        )
        return output.logits

    def _masks(self, kv_cache: RaggedKVCache):
        """One 4-D mask, or one per kind of attention for a model that mixes them."""
        masks = {kind: self.as_bias(kv_cache.mask(kind, w)) for kind, w in self.windows.items()}
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def as_bias(self, visible: torch.Tensor) -> torch.Tensor:
        """Scaled-dot-product attention takes the bool mask; eager attention adds a bias."""
        return as_bias(visible, self.model.dtype) if self.eager else visible


def as_bias(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A bool mask as what eager attention adds to its scores."""
    bias = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return bias.masked_fill_(~visible, torch.finfo(dtype).min)


def pad(sequences: list[list[int]], pad_id: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded tokens [B, T] and which of them are real, bool [B, T]."""
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    live = torch.arange(int(lengths.max())) < lengths[:, None]
    tokens = torch.full(live.shape, pad_id, dtype=torch.long)
    real = [token for sequence in sequences for token in sequence]
    tokens[live] = torch.tensor(real, dtype=torch.long)
    return tokens, live


def tell_positions(
    modules: list, positions: torch.Tensor, lengths: torch.Tensor | None = None
) -> None:
    """Each row's positions [B, T] for the modules that would assume one length for all rows, and
    how long the text is at each token [B, T] (None: it ends there)."""
    for module in modules:
        module.positions = positions
        module.lengths = positions + 1 if lengths is None else lengths.to(positions.device)


def check_indexer(config) -> None:
    """Refuse an indexer with so few heads that often all of them cut a score to zero. Such keys
    tie, and which of them attention reads then depends on how many run together."""
    heads = getattr(config, "index_n_heads", None) or FEWEST_INDEX_HEADS
    if heads < FEWEST_INDEX_HEADS and config.model_type not in UNCUT_SCORES:
        raise UnsupportedModelError(
            f"{config.model_type} has an indexer with index_n_heads={heads}, whose scores tie at "
            f"zero: specmoe is exact from {FEWEST_INDEX_HEADS} heads on (published models have 16 "
            "or more); use such a model"
        )


def check_finite(logits: torch.Tensor) -> None:
    """Refuse to decode from NaN logits."""
    # the largest is NaN where one is; a mask of them all would take ten times as long
    if logits.numel() and logits.amax().isnan():
        raise SpecMoEError(
            "the model's logits are NaN: the checkpoint holds NaN or overflows in this dtype; try "
            "dtype='float32' or check the weights"
        )
