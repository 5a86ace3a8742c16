"""Layers that keep a state instead of keys and values: it rolls back too.

Comes in: a model some of whose layers are recurrent (``MIXERS``). Goes out: ``HybridDecoder``, with
the verbs of ``CausalDecoder``. A state cannot be overwritten as keys and values can, so it is kept
as it was when a block began, beside what each recurrent layer was fed in that block. Once it is
known how many tokens count (``settle``), those layers alone, no expert, run over these inputs
again. After drafting nothing has to run: the states of the block's start are still there.

    B rows, T tokens of a block, D hidden size
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from .decoder import CausalDecoder, Passes, logger
from .kv_cache import MIXERS, UNMASKED, cache_argument

State = dict[tuple[str, int], torch.Tensor]  # ("conv" or "recurrent", number) -> [B, ...]


class StateCache:
    """What a recurrent layer takes for the cache of its model: one state of B rows, a copy, since
    some kernels write in place."""

    def __init__(self, state: State):
        self.state = {key: part.clone() for key, part in state.items()}

    def has_previous_state(
        self, layer_idx: int | None = None, state_idx: int | None = None
    ) -> bool:
        return bool(self.state)

    def is_recording_past(self, layer_idx: int) -> bool:
        return False

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        return self.state.get(("conv", state_idx))

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        return self.state.get(("recurrent", state_idx))

    def update_conv_state(
        self, inputs: torch.Tensor, layer_idx: int, state_idx: int = 0, conv_kernel_size=None, **_
    ) -> torch.Tensor:
        """The last inputs of a convolution ``[B, D, K]``; returns them with those of the block."""
        old = self.state.get(("conv", state_idx))
        kernel = conv_kernel_size or inputs.shape[-1]
        if old is not None:
            kernel, inputs = old.shape[-1], torch.cat([old, inputs], dim=-1)
        inputs = functional.pad(inputs, (max(0, kernel - inputs.shape[-1]), 0))
        self.state["conv", state_idx] = inputs[..., -kernel:]
        return inputs

    def update_recurrent_state(
        self, state: torch.Tensor, layer_idx: int, state_idx: int = 0, **_
    ) -> torch.Tensor:
        self.state["recurrent", state_idx] = state
        return state

    # MiniMax's names for the same

    def get_linear_cache(self, layer_idx: int) -> torch.Tensor | None:
        return self.get_recurrent_state(layer_idx)

    def set_linear_cache(self, layer_idx: int, state: torch.Tensor) -> None:
        self.update_recurrent_state(state, layer_idx)


class Mixer:
    """Stands in for ``module.forward``. State: that of every row at the block's start (``base``),
    that of now, and what it was fed since (``inputs`` [B, T, D])."""

    def __init__(self, module: nn.Module):
        self.compute = module.forward
        self.cache_argument = cache_argument(module.forward)
        # asked for by a signature that it shares with attention, and not used
        has_ropes = "position_embeddings" in signature(module.forward).parameters
        self.unused = {"position_embeddings": None} if has_ropes else {}
        self.returns_pair = False
        self.base: State = {}
        self.state: State = {}
        self.inputs: torch.Tensor | None = None
        self.lengths: list[int] | None = None  # of the prompts, in a prefill
        self.prefilled: list[State] = []
        module.forward = self

    def __call__(self, hidden_states: torch.Tensor, *_, **__):
        is_prefill = self.lengths is not None
        outputs = (self._prefill if is_prefill else self._step)(hidden_states)
        return (outputs, None) if self.returns_pair else outputs

    def _step(self, hidden_states: torch.Tensor) -> torch.Tensor:
        self.inputs, outputs = hidden_states, []
        for t in range(hidden_states.shape[1]):
            output, self.state = self._run(hidden_states[:, t : t + 1], self.state)
            outputs.append(output)
        return torch.cat(outputs, dim=1)

    def _run(self, hidden_states: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        cache = StateCache(state)
        given = {self.cache_argument: cache, "attention_mask": None, **self.unused}
        output = self.compute(hidden_states, **given)
        self.returns_pair = isinstance(output, tuple)
        return output[0] if self.returns_pair else output, cache.state

    def _prefill(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Rows of one length at a time, so that no padding enters a state."""
        outputs = torch.zeros_like(hidden_states)
        self.prefilled = [{} for _ in self.lengths]
        for length in set(self.lengths) - {0}:
            rows = [row for row, n in enumerate(self.lengths) if n == length]
            outputs[rows, :length], state = self._run(hidden_states[rows, :length], {})
            for place, row in enumerate(rows):
                self.prefilled[row] = pick(state, [place])
        return outputs

    def settle(self, counts: torch.Tensor) -> None:
        """Of the block's tokens the first ``counts`` [B] of each row are final."""
        state = self.base
        if self.inputs is not None and int(counts.min()) == self.inputs.shape[1]:
            state = self.state
        elif self.inputs is not None:
            for t in range(int(counts.max())):
                _, after = self._run(self.inputs[:, t : t + 1], state)
                state = chosen(counts > t, after, state)
        self.begin(state)

    def begin(self, state: State) -> None:
        """A block begins."""
        self.base = self.state = state
        self.inputs = None


def pick(state: State, rows: list[int] | torch.Tensor) -> State:
    return {key: part[rows] for key, part in state.items()}


def chosen(rows: torch.Tensor, yes: State, no: State) -> State:
    """``yes`` where ``rows`` [B], else ``no`` (zeros where it has nothing yet)."""
    made = {}
    for key, part in yes.items():
        mask = rows.to(part.device).view(-1, *[1] * (part.dim() - 1))
        made[key] = torch.where(mask, part, no.get(key, torch.zeros_like(part)))
    return made


def appended(state: State, row: State, num_rows: int) -> State:
    """``row`` after the ``num_rows`` rows of ``state``; who has none begins with zeros."""
    made = {}
    for key, like in {**state, **row}.items():
        before, new = like.new_zeros(num_rows, *like.shape[1:]), like.new_zeros(1, *like.shape[1:])
        made[key] = torch.cat([state.get(key, before), row.get(key, new)])
    return made


class EagerPasses(Passes):
    """Steps of recurrent layers keep what they were fed, which a graph would not."""

    def compile(self, mode: str | bool = True) -> None:
        kind = self.model.config.model_type
        logger.warning("compile=True: %s has recurrent layers: using the plain path", kind)


class HybridDecoder(CausalDecoder):
    """A decoder-only model with recurrent layers."""

    def __init__(self, model: PreTrainedModel):
        super().__init__(model)
        self.passes = EagerPasses(model)
        # only with this it wants a cache of its own class
        self.use_cache = self.config.model_type != "minimax"
        name = MIXERS[self.config.model_type]
        found = [module for module in model.modules() if type(module).__name__ == name]
        self.mixers = [Mixer(module) for module in found]
        self.starts = torch.zeros(0, dtype=torch.long)  # of the last block

    def allocate(self, num_rows: int, num_positions: int) -> None:
        super().allocate(num_rows, num_positions)
        self._each(lambda mixer: mixer.begin({}))

    def free(self) -> None:
        super().free()
        self._each(lambda mixer: mixer.begin({}))

    def prefill(self, rows: list, set_live: Callable) -> list:
        lengths = [len(row.tokens) - 1 for row in rows]
        try:
            for mixer in self.mixers:
                mixer.lengths, mixer.prefilled = lengths, [{} for _ in rows]
            states = super().prefill(rows, set_live)
            own = zip(*(mixer.prefilled for mixer in self.mixers), strict=True)
            return list(zip(states, own, strict=True))
        finally:
            for mixer in self.mixers:
                mixer.lengths, mixer.prefilled = None, []

    def add_row(self, row: int, state) -> None:
        kept, own = state
        super().add_row(row, kept)
        for mixer, one in zip(self.mixers, own, strict=True):
            mixer.begin(appended(mixer.base, one, row))

    def remove_row(self, row: int, last: int) -> None:
        super().remove_row(row, last)
        rows = [last if each == row else each for each in range(last)]
        self._each(lambda mixer: mixer.begin(pick(mixer.base, rows)))

    def select_rows(self, rows: torch.Tensor) -> None:
        super().select_rows(rows)
        for mixer in self.mixers:
            mixer.state = pick(mixer.state, rows)

    def restore_rows(self) -> None:
        super().restore_rows()
        self._each(lambda mixer: mixer.begin(mixer.base))

    def forward(self, tokens: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
        self.starts = starts
        return super().forward(tokens, starts)

    def settle(self, starts: torch.Tensor) -> None:
        counts = starts - self.starts
        self._each(lambda mixer: mixer.settle(counts))

    def _each(self, do: Callable[[Mixer], None]) -> None:
        for mixer in self.mixers:
            do(mixer)

    def _masks(self, kv_cache):
        """One for each kind of layer, none for those without attention."""
        own = {kind: w for kind, w in self.windows.items() if kind not in UNMASKED}
        masks = {kind: self.as_bias(kv_cache.mask(kind, window)) for kind, window in own.items()}
        return dict.fromkeys(UNMASKED) | masks


def decoder_of(model: PreTrainedModel) -> CausalDecoder:
    """For a decoder-only model."""
    kind = model.config.get_text_config(decoder=True).model_type
    return (HybridDecoder if kind in MIXERS else CausalDecoder)(model)
