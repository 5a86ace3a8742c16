"""The arithmetic of one expert: however a product is cut up, its rows are the same."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from specmoe import kernels
from specmoe.kernels import ExpertKernel, expert_forward

WIDTH, HIDDEN = 12, 20


def expert(gated: bool, transposed: bool, bias: bool) -> tuple[SimpleNamespace, dict[str, torch.Tensor]]:
    """A fused experts module as far as the kernel looks at it, and one expert's weights by the module's names."""
    generator = torch.Generator().manual_seed(1)
    shapes = {"gate_up_proj" if gated else "up_proj": (2 * HIDDEN if gated else HIDDEN, WIDTH), "down_proj": (WIDTH, HIDDEN)}
    weights = {}
    for name, (out, wide) in shapes.items():
        weight = torch.randn(out, wide, generator=generator)
        weights[name] = weight.T.contiguous() if transposed else weight
        if bias:
            weights[f"{name}_bias"] = torch.randn(out, generator=generator)

    def gate(hidden):
        gates, ups = hidden.chunk(2, dim=-1)
        return gates.sigmoid() * ups

    return SimpleNamespace(is_transposed=transposed, act_fn=nn.ReLU(), _apply_gate=gate), weights


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cores", [2, 4, 3, 5])  # 4 divides all sides; 3 and 5 not: such a product is left whole
def test_products_in_slices_give_the_same_rows(gated, transposed, bias, cores, monkeypatch):
    monkeypatch.setattr(kernels, "LEAST_SLICED", 0)
    module, weights = expert(gated, transposed, bias)
    for num_rows in (1, 7):
        x = torch.randn(num_rows, WIDTH, generator=torch.Generator().manual_seed(num_rows))
        whole = expert_forward(module, weights, x)
        torch.testing.assert_close(expert_forward(module, weights, x, cores), whole)


def slices_of(monkeypatch, x: torch.Tensor) -> int:
    """In how many slices a kernel computes ``x`` where torch uses four threads."""
    given = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(kernels, "expert_forward", lambda module, weights, x, cores=1: given.append(cores) or x)
    kernel = ExpertKernel(SimpleNamespace(dtype=x.dtype, views=lambda record: {}), x.dtype)
    kernel.target(None, torch.empty(0), x)
    return given[0]


def test_only_float32_products_of_few_rows_are_sliced_one_for_each_thread(monkeypatch):
    assert slices_of(monkeypatch, torch.ones(kernels.MOST_SLICED, 3)) == 4
    assert slices_of(monkeypatch, torch.ones(kernels.MOST_SLICED + 1, 3)) == 1
    assert slices_of(monkeypatch, torch.ones(2, 3, dtype=torch.bfloat16)) == 1
    assert slices_of(monkeypatch, torch.ones(2, 3, device="meta")) == 1


@pytest.mark.parametrize(("size", "widen_from"), [(kernels.LEAST_CALIBRATED - 1, 1), (kernels.LEAST_CALIBRATED, 1 << 30)])
def test_no_clock_decides_how_a_small_expert_drafts(size, widen_from, monkeypatch):
    """So counts repeat from load to load. For a large expert the clock is asked (here it says: do not widen)."""
    timed = []
    monkeypatch.setattr(kernels, "_best_s", lambda work: timed.append(1) or 1.0)
    layout = SimpleNamespace(dtype=torch.bfloat16, names=("up_proj",), shapes=((2, 3),), views=lambda record: {})
    kernel = ExpertKernel(layout, torch.float32)
    kernel.calibrate(None, torch.empty(size, dtype=torch.uint8), hidden=3)
    assert kernel.widen_from == widen_from and bool(timed) == (widen_from > 1)


def test_a_small_product_is_left_whole(monkeypatch):
    module, weights = expert(gated=True, transposed=False, bias=False)
    sliced, multiply = [], torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda *given: sliced.append(1) or multiply(*given))
    x = torch.ones(2, WIDTH)
    expert_forward(module, weights, x, cores=4)
    assert not sliced
    monkeypatch.setattr(kernels, "LEAST_SLICED", weights["gate_up_proj"].numel())  # that one, and not the other
    expert_forward(module, weights, x, cores=4)
    assert len(sliced) == 1
