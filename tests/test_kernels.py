"""The arithmetic of one expert: however a product is cut up, its rows are the same."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from specmoe.checkpoint import ExpertLayout
from specmoe.model import kernels
from specmoe.model.kernels import ExpertKernel, expert_forward
from specmoe.model.stored import StoredExpert, multiplies_stored

WIDTH, HIDDEN = 12, 20


def expert(
    gated: bool, transposed: bool, bias: bool
) -> tuple[SimpleNamespace, dict[str, torch.Tensor]]:
    """A fused experts module as far as the kernel looks at it, and one expert's weights by the
    module's names."""
    generator = torch.Generator().manual_seed(1)
    shapes = {
        "gate_up_proj" if gated else "up_proj": (2 * HIDDEN if gated else HIDDEN, WIDTH),
        "down_proj": (WIDTH, HIDDEN),
    }
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
# 4 divides all sides; 3 and 5 not: such a product is left whole
@pytest.mark.parametrize("cores", [2, 4, 3, 5])
def test_products_in_slices_give_the_same_rows(gated, transposed, bias, cores, monkeypatch):
    module, weights = expert(gated, transposed, bias)
    rows = [torch.randn(num, WIDTH, generator=torch.Generator().manual_seed(num)) for num in (1, 7)]
    whole = [expert_forward(module, weights, x) for x in rows]
    monkeypatch.setattr(kernels, "LEAST_SLICED", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    for x, expected in zip(rows, whole, strict=True):
        torch.testing.assert_close(expert_forward(module, weights, x), expected)


BIG = torch.empty(4, kernels.LEAST_SLICED // 4)


@pytest.mark.parametrize(
    ("x", "weight", "cores"),
    [
        (torch.empty(kernels.MOST_SLICED, 3), BIG, 4),
        (torch.empty(kernels.MOST_SLICED + 1, 3), BIG, 1),  # many rows
        (torch.empty(2, 3, dtype=torch.bfloat16), BIG, 1),
        (torch.empty(2, 3, device="meta"), BIG, 1),
        (torch.empty(2, 3), BIG[:, 1:], 1),  # a small weight
        # four threads cannot share five outputs
        (torch.empty(2, 3), torch.empty(5, kernels.LEAST_SLICED), 1),
    ],
)
def test_only_large_float32_products_of_few_rows_are_sliced_one_for_each_thread(
    x, weight, cores, monkeypatch
):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert kernels._cores(x, weight) == cores


def test_a_sliced_product_is_a_batch_of_slices(monkeypatch):
    """Else nothing but the clock would notice that slicing was lost."""
    module, weights = expert(gated=True, transposed=False, bias=False)
    shapes, multiply = [], torch.bmm
    monkeypatch.setattr(
        torch, "bmm", lambda x, slices: shapes.append(tuple(slices.shape)) or multiply(x, slices)
    )
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    expert_forward(module, weights, torch.ones(2, WIDTH))
    assert not shapes
    monkeypatch.setattr(kernels, "LEAST_SLICED", 0)
    expert_forward(module, weights, torch.ones(2, WIDTH))
    assert shapes == [(4, WIDTH, 2 * HIDDEN // 4), (4, HIDDEN, WIDTH // 4)]


def test_a_compiled_product_is_left_whole_and_in_one_graph(monkeypatch):
    """Asking for the number of threads would cut the graph in two."""
    module, weights = expert(gated=False, transposed=False, bias=False)
    x = torch.ones(2, WIDTH)
    monkeypatch.setattr(kernels, "LEAST_SLICED", 0)
    whole = torch.compile(expert_forward, backend="eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(whole(module, weights, x), expert_forward(module, weights, x))


@pytest.mark.parametrize(
    ("size", "widen_from"), [(kernels.LEAST_CALIBRATED - 1, 1), (kernels.LEAST_CALIBRATED, 1 << 30)]
)
def test_no_clock_decides_how_a_small_expert_drafts(size, widen_from, monkeypatch):
    """So counts repeat from load to load. For a large expert the clock is asked (here it says: do
    not widen)."""
    timed = []
    monkeypatch.setattr(kernels, "_best_s", lambda work: timed.append(1) or 1.0)
    layout = ExpertLayout.of({"up_proj": (2, 3)}, torch.bfloat16)
    kernel = ExpertKernel(layout, torch.float32)
    kernel.calibrate(None, torch.empty(size, dtype=torch.uint8), hidden=3)
    assert kernel.widen_from == widen_from and bool(timed) == (widen_from > 1)


# ---- large experts: no wide copy goes through memory ----

LARGE = ExpertLayout.of(
    {"gate_up_proj": (2 * HIDDEN, 16), "down_proj": (16, HIDDEN + 4)}, torch.bfloat16
)


@pytest.fixture(params=[False, True], ids=["[out, in]", "[in, out]"])
def large(request, monkeypatch):
    """A kernel that takes this expert for a large one, its module, a record and the weights in it
    in float32."""
    module, _ = expert(gated=True, transposed=request.param, bias=False)
    shapes = {name: shape[::-1] for name, shape in zip(LARGE.names, LARGE.shapes)}
    layout = ExpertLayout.of(shapes, torch.bfloat16) if request.param else LARGE
    module._apply_gate = lambda hidden: F.pad(hidden[:, :HIDDEN] * hidden[:, HIDDEN:], (0, 4))
    monkeypatch.setattr(kernels, "LEAST_STORED", LARGE.elements)
    record = torch.zeros(layout.record_bytes, dtype=torch.uint8)
    for name, view in layout.views(record).items():
        view.normal_(generator=torch.Generator().manual_seed(len(name)))
    wide = {name: view.float() for name, view in layout.views(record).items()}
    return ExpertKernel(layout, torch.float32), module, record, wide


@pytest.mark.usefixtures("c_compiler")
@pytest.mark.parametrize("num_rows", [1, 2, 7, kernels.MOST_STORED])
def test_few_rows_of_a_large_expert_are_multiplied_as_it_is_stored(num_rows, large, monkeypatch):
    kernel, module, record, wide = large
    kernel.calibrate(module, record, 16)
    monkeypatch.setattr(kernel, "_in_dtype", None)  # would fail if the whole were widened
    x = torch.randn(num_rows, 16, generator=torch.Generator().manual_seed(2))
    expected = expert_forward(module, wide, x)
    torch.testing.assert_close(kernel.target(module, record, x), expected, atol=1e-3, rtol=1e-4)
    # no clock decides how it drafts, and it drafts with the same numbers
    assert torch.equal(kernel.draft(module, record, x), kernel.target(module, record, x))


@pytest.mark.usefixtures("c_compiler")
def test_several_large_experts_at_once_are_what_each_is_alone(large):
    kernel, module, record, _ = large
    kernel.calibrate(module, record, 16)
    records, counts = [torch.zeros_like(record) for _ in range(3)], [1, 5, kernels.MOST_STORED]
    for one in records:
        for view in kernel.layout.views(one).values():
            view.normal_()
    x = torch.randn(sum(counts), 16)
    alone = [kernel.target(module, one, rows) for one, rows in zip(records, x.split(counts))]
    assert torch.equal(kernel.several(module, records, counts, x), torch.cat(alone))
    assert kernel.takes_several(counts) and not kernel.takes_several([1, kernels.MOST_STORED + 1])
    assert not kernel.takes_several([kernels.MOST_ROWS // 16] * 17)
    assert not kernel.takes_several([]) and not kernel.takes_several([5])


@pytest.mark.usefixtures("c_compiler")
def test_what_several_experts_add_goes_to_the_rows_of_each():
    layout = ExpertLayout.of({"down_proj": (8, 8), "down_proj_bias": (8,)}, torch.bfloat16)
    records = [torch.zeros(layout.record_bytes, dtype=torch.uint8) for _ in range(3)]
    for number, record in enumerate(records):
        layout.views(record)["down_proj_bias"].fill_(number)
    weights = StoredExpert(layout, transposed=False).weights(records, [2, 0, 1])
    assert weights["down_proj_bias"][:, 0].tolist() == [0, 0, 2]


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_a_large_expert_is_widened(large):
    kernel, module, record, wide = large
    kernel.calibrate(module, record, 16)
    assert not kernel.reads_stored()
    x = torch.ones(1, 16)
    torch.testing.assert_close(kernel.target(module, record, x), expert_forward(module, wide, x))


@pytest.mark.usefixtures("c_compiler")
def test_what_is_not_large_or_few_is_widened_whole(large, monkeypatch):
    kernel, module, record, _ = large
    kernel.calibrate(module, record, 16)
    most = kernels.MOST_STORED
    assert kernel.reads_stored(most) and not kernel.reads_stored(most + 1)
    low = copy.copy(kernel)
    low.layout, most = SimpleNamespace(is_low_bit=True), kernels.MOST_STORED_LOW
    assert low.reads_stored(most) and not low.reads_stored(most + 1)
    assert not ExpertKernel(LARGE, torch.bfloat16).may_read_stored, "nothing is to be widened"
    assert not ExpertKernel(LARGE, torch.float64).may_read_stored
    monkeypatch.setattr(kernels, "LEAST_STORED", LARGE.elements + 1)
    assert not ExpertKernel(LARGE, torch.float32).may_read_stored


def test_the_experts_of_the_shipped_benchmark_are_not_large():
    elements = 3 * 2**20 // 2
    assert kernels.LEAST_STORED > elements
    # but those in low bits are, as widening them takes several times as long as what it is for
    assert kernels.LEAST_STORED_LOW <= elements


@pytest.mark.usefixtures("c_compiler")
def test_what_is_left_to_torch_needs_its_threads(large):
    kernel, module, record, _ = large
    small, wide = nn.Linear(8, 8), nn.Linear(1024, 1024)
    assert not multiplies_stored(small, kernel)
    kernel.calibrate(module, record, 16)
    assert multiplies_stored(small, kernel) and not multiplies_stored(wide, kernel)
    mixed = ExpertKernel(ExpertLayout.mixed([kernel.layout, kernel.layout]), torch.float32)
    mixed.calibrate(module, record, 16)
    assert multiplies_stored(small, mixed)
    mixed.of_layer(1).stored = None
    assert not multiplies_stored(small, mixed)
