"""The arithmetic of one expert: ``y = down(act(gate(x)) * up(x))``, whatever layout the model
family uses.

Comes in: the fused experts module (for its flags and activation), one record, token rows ``x`` [n,
D]. Goes out: ``y`` [n, D]. ``experts`` calls this. Plain PyTorch; ``compile=True`` sends the same
function through ``torch.compile`` on padded token counts, so that few shapes are ever compiled.

The verification's arithmetic is exact-friendly: a bf16 record is widened to the model's dtype, one
expert at a time, in one bounded scratch buffer; a large one, for few rows, within the product,
where ``stored`` can. Drafting computes in the record's own dtype, or does the same: only the
verification decides tokens.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from ..checkpoint import ExpertLayout
from .stored import MOST_ROWS as MOST_STORED
from .stored import StoredExpert, StoredMatrix

logger = logging.getLogger("specmoe")
SMALLEST_BUCKET = 16
# bytes of a record under which drafts always widen: faster, and no clock decides what they are
LEAST_CALIBRATED = 2**17
# bytes of a record above which timing it would take longer than it may save
LARGEST_CALIBRATED = 2**26
# of one product: a prompt's rows may be thousands, and their hidden layer many times as wide
MOST_ROWS = 512
MOST_SLICED = 64  # rows of a product in slices: MKL splits a larger one well by itself
# elements of its weight: a smaller product is done before the slices are laid out
LEAST_SLICED = 2**17
# Elements of an expert from which on few rows are multiplied with its weights as they are stored:
# widened whole, they would go through memory three times. Below it nothing changes.
LEAST_STORED = 2**21
# The same of weights in low bits, which take far longer to widen than to read.
LEAST_STORED_LOW = 2**17
# Their rows: up to here C, which widens some values once for 64 rows, is faster than torch, which
# widens all of them first.
MOST_STORED_LOW = 256
MOST_SHAPES = 64  # distinct shapes that are compiled before torch gives up and runs plainly


def expert_forward(
    module: nn.Module, weights: dict[str, torch.Tensor], x: torch.Tensor
) -> torch.Tensor:
    """``x`` [n, D] through one expert whose ``weights`` carry the module's own parameter names ->
    [n, D]."""
    gated = "gate_up_proj" in weights
    # [n, 2F] or [n, F]
    hidden = _linear(x, weights, "gate_up_proj" if gated else "up_proj", module.is_transposed)
    hidden = module._apply_gate(hidden) if gated else _activate(module.act_fn, hidden)  # [n, F]
    y = _linear(hidden, weights, "down_proj", module.is_transposed)  # [n, D]
    return module.post_expert_norm(y) if getattr(module, "has_post_expert_norm", False) else y


def _activate(act_fn, hidden: torch.Tensor) -> torch.Tensor:
    """In place where it can be: a second buffer of this size costs more than the arithmetic."""
    return hidden.relu_() if isinstance(act_fn, nn.ReLU) else act_fn(hidden)


def _linear(
    x: torch.Tensor, weights: dict[str, torch.Tensor], name: str, transposed: bool
) -> torch.Tensor:
    weight, bias = weights[name], weights.get(f"{name}_bias")
    if isinstance(weight, StoredMatrix):
        y = weight.product(x)
        return y if bias is None else y + bias.to(y.dtype)
    return _product(x, weight.T if transposed else weight, bias)


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    cores = _cores(x, weight)
    if cores == 1:
        return F.linear(x, weight, bias)
    slices = weight.unflatten(0, (cores, -1)).transpose(1, 2)  # [cores, in, out / cores]
    y = torch.bmm(x.expand(cores, -1, -1), slices).transpose(0, 1).flatten(1)  # [n, out]
    return y if bias is None else y + bias


def _first_line(failure: Exception) -> str:
    lines = [line for line in str(failure).splitlines() if line.strip()]
    return lines[0] if lines else type(failure).__name__


def _cores(x: torch.Tensor, weight: torch.Tensor) -> int:
    """In how many slices to multiply: on a CPU a float32 product of few rows leaves all cores but
    one nearly idle."""
    sliced = (
        x.dtype == torch.float32
        and x.device.type == "cpu"
        and len(x) <= MOST_SLICED
        and weight.numel() >= LEAST_SLICED
    )
    cores = torch.get_num_threads() if sliced and not torch.compiler.is_compiling() else 1
    return cores if len(weight) % cores == 0 else 1


def bucket(num_tokens: int) -> int:
    """The next power of two: how many rows a compiled kernel gets for ``num_tokens``."""
    return max(SMALLEST_BUCKET, 1 << (num_tokens - 1).bit_length())


class ExpertKernel:
    """Computes records. Owns the scratch in which an expert is widened to ``dtype``."""

    def __init__(
        self, layout: ExpertLayout, dtype: torch.dtype, device="cpu", compile: bool = False
    ):
        self.layout = layout
        self.dtype = dtype
        upcast = layout.is_low_bit or layout.dtype != dtype
        self.scratch = layout.empty(dtype, device) if upcast else None
        least = LEAST_STORED_LOW if layout.is_low_bit else LEAST_STORED
        is_large = layout.elements >= least and torch.device(device).type == "cpu"
        self.may_read_stored = is_large and upcast and dtype == torch.float32 and not compile
        self.stored: StoredExpert | None = None
        self._forward = torch.compile(expert_forward, dynamic=False) if compile else expert_forward
        self.compiled = compile
        # tokens of a draft from which on widening pays; see ``calibrate``
        self.widen_from = 0 if layout.is_low_bit else 1 << 30
        # one for each layer where their formats differ; the scratch is this one's
        self._by_layer: list[ExpertKernel] = []
        self._by_layer = [self._with(one) for one in layout.by_layer]

    def _with(self, layout: ExpertLayout) -> ExpertKernel:
        other = copy.copy(self)
        other.layout = layout
        return other

    def of_layer(self, layer: int) -> ExpertKernel:
        return self._by_layer[layer] if self._by_layer else self

    def calibrate(self, module: nn.Module, record: torch.Tensor, hidden: int) -> None:
        """Time both ways to draft, for some numbers of tokens, on any record: many CPUs multiply
        bf16 slower than fp32. Where the two are close the choice differs from load to load, and so
        may the drafts, never what is decoded."""
        for other in self._by_layer:
            other.calibrate(module, record, hidden)
        if self.may_read_stored:
            found = StoredExpert(self.layout, module.is_transposed)
            self.stored = found if found.complete else None
        if self.stored is not None:
            self.widen_from = 1
            return
        if (
            self.scratch is None
            or self.layout.is_low_bit
            or record.device.type != "cpu"
            or record.numel() > LARGEST_CALIBRATED
        ):
            return
        if record.numel() < LEAST_CALIBRATED:
            self.widen_from = 1
            return
        for num_tokens in (256, 128, 64, 32, 16):
            x = torch.zeros(num_tokens, hidden, dtype=self.dtype)
            plain_s = _best_s(
                lambda x=x: self.run(module, self.layout.views(record), x.to(self.layout.dtype))
            )
            if _best_s(lambda x=x: self.target(module, record, x)) > 0.9 * plain_s:
                break
            self.widen_from = num_tokens

    @staticmethod
    def scratch_bytes(layout: ExpertLayout, dtype: torch.dtype) -> int:
        """Bytes that widening one expert to ``dtype`` takes (0 when it needs none)."""
        if layout.dtype == dtype and not layout.is_low_bit:
            return 0
        return layout.elements * dtype.itemsize

    def target(self, module: nn.Module, record: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """``x`` [n, D] in the model's dtype -> [n, D], exact-friendly."""
        # not len(x), which asks whether it is being traced
        if self.reads_stored(x.shape[0]):
            return self.several(module, [record], x.shape[:1], x)
        return self.run(module, self._in_dtype(record), x)

    def several(
        self,
        module: nn.Module,
        records: Sequence[torch.Tensor],
        counts: Sequence[int],
        x: torch.Tensor,
    ) -> torch.Tensor:
        """``target`` of experts whose weights are multiplied as they are stored, one call for all:
        the first ``counts[0]`` of the rows ``x`` [n, D] are the first record's -> [n, D]."""
        return self.run(module, self.stored.weights(records, counts), x)

    def takes_several(self, counts: Sequence[int]) -> bool:
        """Whether ``several`` computes experts with so many rows each."""
        return len(counts) > 1 and self.reads_stored(max(counts)) and sum(counts) <= MOST_ROWS

    def reads_stored(self, num_rows: int = 1) -> bool:
        """Whether so few rows are multiplied with the weights of a large expert as they are stored:
        nothing is gained by keeping wide ones."""
        most = MOST_STORED_LOW if self.layout.is_low_bit else MOST_STORED
        return self.stored is not None and num_rows <= most

    def _in_dtype(self, record: torch.Tensor) -> dict[str, torch.Tensor]:
        """The record's weights in the model's dtype: as they are, or widened in the scratch."""
        if self.scratch is None:
            return self.layout.views(record)
        self.layout.widen(record, self.scratch)
        return self.scratch

    def upcast_copy(self, record: torch.Tensor) -> dict[str, torch.Tensor]:
        """The record's weights in the model's dtype, in memory of their own (for records that never
        move)."""
        if self.scratch is None:
            return self.layout.views(record)
        made = self.layout.empty(self.dtype, record.device)
        self.layout.widen(record, made)
        return made

    def draft(self, module: nn.Module, record: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """``x`` [n, D] in any dtype -> [n, D] of the same, computed in the record's dtype; or
        widened, for as many tokens as make that faster on this machine."""
        if self.scratch is not None and len(x) >= self.widen_from:
            return self.target(module, record, x.to(self.dtype)).to(x.dtype)
        return self.run(module, self.layout.views(record), x.to(self.layout.dtype)).to(x.dtype)

    def run(
        self, module: nn.Module, weights: dict[str, torch.Tensor], x: torch.Tensor
    ) -> torch.Tensor:
        """``x`` [n, D] through one expert's ``weights``, in the dtype of both -> [n, D]."""
        if not self.compiled:
            if x.shape[0] <= MOST_ROWS:
                return expert_forward(module, weights, x)
            return torch.cat([expert_forward(module, weights, rows) for rows in x.split(MOST_ROWS)])
        padded = F.pad(x, (0, 0, 0, bucket(len(x)) - len(x)))
        with torch._dynamo.config.patch(recompile_limit=MOST_SHAPES):
            return self._forward(module, weights, padded)[: len(x)]


def _best_s(work, repeats: int = 5) -> float:
    """The shortest of some calls, in seconds, after one that warms up."""
    work()
    times = []
    for _ in range(repeats):
        began_s = time.perf_counter()
        work()
        times.append(time.perf_counter() - began_s)
    return min(times)


def compiler_works(device="cpu") -> bool:
    """Does ``torch.compile`` work here? One warning when it does not."""
    try:
        torch.compile(lambda x: x.sin() + 1, dynamic=False)(torch.ones(8, device=device))
    except Exception as failure:
        what = "compile=True: torch.compile does not work here (%s); using the plain path"
        logger.warning(what, _first_line(failure))
        return False
    return True
