"""Products with weights as they are stored, in C: the very numbers of the widened weight, the same
for any number of rows and threads, and never an error where there is no compiler."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import models_table
import pytest
import torch
from conftest import PROMPTS
from tiny_architectures import make_checkpoint
from tiny_families import CONFIGS, make_family
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForSeq2SeqLM

import specmoe
from specmoe.checkpoint import model as checkpoint_model
from specmoe.checkpoint.formats import WIDEN
from specmoe.errors import StoreError
from specmoe.model import decoder, native, stored

ROWS, COLUMNS = 301, 2048  # neither fits a tile or a block evenly


def random() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def floats(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=random())


def whole(dtype: torch.dtype, low: int, high: int, *shape: int) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=random(), dtype=dtype)


def words(*shape: int) -> torch.Tensor:
    return whole(torch.int32, -(2**31), 2**31 - 1, *shape)


def exponents(*shape: int) -> torch.Tensor:
    return whole(torch.uint8, 100, 140, *shape)


SCALES = floats(3, 16).abs()  # of blocks of 128 rows and columns
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
# name -> format, serialised parts, numbers
WEIGHTS = {
    "bf16": ("plain", [floats(ROWS, COLUMNS).bfloat16()], ()),
    "bf16, a short row": ("plain", [floats(5, 8).bfloat16()], ()),
    "e4m3": ("fp8", [floats(ROWS, COLUMNS).to(E4M3), SCALES], (128, 128)),
    "e4m3, bf16 scales": ("fp8", [floats(ROWS, COLUMNS).to(E4M3), SCALES.bfloat16()], (128, 128)),
    "e4m3, ue8m0": ("fp8", [floats(ROWS, COLUMNS).to(E4M3), exponents(3, 16)], (128, 128)),
    "e4m3, a scale for all": ("fp8", [floats(ROWS, COLUMNS).to(E4M3), SCALES[0, 0]], (301, 2048)),
    "e5m2, a scale for a row": (
        "fp8",
        [floats(ROWS, COLUMNS).to(E5M2), floats(ROWS, 1)],
        (1, COLUMNS),
    ),
    "mxfp4": ("mxfp4", [whole(torch.uint8, 0, 256, ROWS, 64, 16), exponents(ROWS, 64)], ()),
    "fp4": ("fp4", [whole(torch.int8, -128, 127, ROWS, 1024), exponents(ROWS, 64)], (1, 32)),
    "int4": ("int4", [words(ROWS, 256), floats(ROWS, 16).bfloat16()], (1, 128, 4, COLUMNS)),
    # a group that begins in one piece of columns and ends in the next
    "int4, odd groups": (
        "int4",
        [words(ROWS, 240), floats(ROWS, 20).bfloat16()],
        (1, 96, 4, 1920),
    ),
    "int4, cut": ("int4", [words(ROWS, 257), floats(ROWS, 1)], (1, 2050 - 2, 4, 2050 - 2)),
    "int8": ("int8", [words(ROWS, 512), floats(ROWS, 16).bfloat16()], (1, 128, 8, COLUMNS)),
}
# name -> weights and bytes of a block of ggml's, and where in it halves lie
BLOCKS = {
    "q8_0": (32, 34, [0]),
    "q4_0": (32, 18, [0]),
    "q4_1": (32, 20, [0, 2]),
    "q4_k": (256, 144, [0, 2]),
    "q6_k": (256, 210, [208]),
}


def of_blocks(name: str) -> torch.Tensor:
    """Any bits, but factors that are numbers: denormal ones and zeros too."""
    size, num_bytes, halves = BLOCKS[name]
    blocks = whole(torch.uint8, 0, 256, ROWS * COLUMNS // size, num_bytes)
    factors = whole(torch.int16, -(2**15), 2**15 - 1, len(blocks), len(halves))
    factors = torch.where(factors & 0x7C00 == 0x7C00, factors & 0x83FF, factors & ~0x4000)
    for index, at in enumerate(halves):
        blocks[:, at : at + 2] = factors[:, index : index + 1].contiguous().view(torch.uint8)
    return blocks.view(ROWS, -1)


WEIGHTS |= {name: (name, [of_blocks(name)], ()) for name in BLOCKS}


def multiply(name: str, x: torch.Tensor, gap: int = 1) -> torch.Tensor:
    format, parts, numbers = WEIGHTS[name]
    shape = WIDEN[format](*parts, *numbers).shape
    made, y = native.native(format, shape, parts, numbers), x.new_empty(len(x), gap * shape[0])
    made.product(x, [part.data_ptr() for part in parts], y[:, ::gap])
    return y[:, ::gap]


def widened(name: str) -> torch.Tensor:
    format, parts, numbers = WEIGHTS[name]
    return WIDEN[format](*parts, *numbers).float()


@pytest.mark.usefixtures("c_compiler")
@pytest.mark.parametrize("name", WEIGHTS)
def test_a_product_widens_to_the_very_numbers(name):
    wide = widened(name)
    assert torch.equal(multiply(name, torch.eye(wide.shape[1])).T, wide)


@pytest.mark.usefixtures("c_compiler")
@pytest.mark.parametrize("name", WEIGHTS)
def test_a_row_has_the_same_product_alone_among_many_and_on_any_number_of_threads(name):
    wide = widened(name)
    x = floats(70, wide.shape[1])
    many = multiply(name, x)
    want = x.double() @ wide.double().T
    assert (many - want).abs().max() < 2e-6 * want.abs().max()
    threads = torch.get_num_threads()
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        try:
            assert torch.equal(multiply(name, x[-1:].contiguous(), gap=2), many[-1:])
        finally:
            torch.set_num_threads(threads)


@pytest.mark.usefixtures("c_compiler")
def test_every_byte_of_fp8_is_what_torch_says():
    byte = torch.arange(256, dtype=torch.uint8).view(32, 8)
    for dtype in (E4M3, E5M2):
        parts = [byte.view(dtype), torch.ones(())]
        made, y = native.native("fp8", (32, 8), parts, (32, 8)), torch.empty(8, 32)
        # one column at a time: a value that is no number would spoil the others of its row
        finite = parts[0].float().nan_to_num(7, posinf=7, neginf=7)
        clean = torch.where(parts[0].float().isfinite(), byte, 0).view(dtype)
        made.product(torch.eye(8), [clean.data_ptr(), parts[1].data_ptr()], y)
        assert torch.equal(y.T, torch.where(parts[0].float().isfinite(), finite, 0.0))


@pytest.mark.usefixtures("c_compiler")
@pytest.mark.parametrize("turned", [False, True])
def test_several_matrices_are_multiplied_with_the_rows_of_each(turned):
    """With more rows than are done at once, with none, and into rows that lie apart."""
    counts, sides = [1, 70, 0, 3], (528, 296) if turned else (301, 2048)
    weights = [floats(*sides).bfloat16() * (number + 1) for number in range(len(counts))]
    made = native.native("plain", sides, weights, (), turned)
    x, y = floats(sum(counts), made.columns), torch.zeros(sum(counts), made.out + 5)
    addresses = [weight.data_ptr() for weight in weights]
    native.Pieces([made.piece((0,))]).products(addresses, counts, x, y)
    alone = torch.empty(sum(counts), made.out)
    for address, rows, into in zip(addresses, x.split(counts), alone.split(counts)):
        made.product(rows, [address], into)
    assert torch.equal(y[:, : made.out], alone) and not y[:, made.out :].any()
    whole = torch.cat(
        [rows @ (w if turned else w.T).float() for rows, w in zip(x.split(counts), weights)]
    )
    torch.testing.assert_close(alone, whole, atol=1e-3, rtol=1e-4)


@pytest.mark.usefixtures("c_compiler")
def test_products_of_several_python_threads_do_not_mix(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    x = floats(3, COLUMNS)
    wrong, want = [], {name: multiply(name, x) for name in ("bf16", "mxfp4")}

    def repeat(name):
        for _ in range(30):
            if not torch.equal(multiply(name, x), want[name]):
                wrong.append(name)

    threads = [threading.Thread(target=repeat, args=[name]) for name in want for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.usefixtures("c_compiler")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_multiplies_with_threads_of_its_own(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    x = floats(1, COLUMNS)
    want = multiply("bf16", x)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(multiply("bf16", x), want) else 1)
    assert os.waitpid(child, 0)[1] == 0


MOVES = """
import os, time, torch
from specmoe.model import native
torch.set_num_threads(2)
weight, x, y = torch.zeros(512, 2048).bfloat16(), torch.zeros(1, 2048), torch.zeros(1, 512)
made = native.native("plain", weight.shape, [weight], ())
before = set(os.listdir("/proc/self/task"))
made.product(x, [weight.data_ptr()], y)
[helper] = map(int, set(os.listdir("/proc/self/task")) - before)
core = min(os.sched_getaffinity(0))
os.sched_setaffinity(0, {core})
os.sched_setaffinity(helper, {core})
until_s = time.monotonic() + 60
while core in os.sched_getaffinity(helper) and time.monotonic() < until_s:
    made.product(x, [weight.data_ptr()], y)
    time.sleep(0.001)
assert core not in os.sched_getaffinity(helper)
"""


@pytest.mark.usefixtures("c_compiler")
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no cores to choose")
def test_a_helper_leaves_the_core_of_its_caller():
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core")
    done = subprocess.run([sys.executable, "-c", MOVES], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("c_compiler")
@pytest.mark.parametrize("rows, columns", [(4, 40), (9, 8), (7, 72), (301, 2048)])
def test_one_row_and_two_of_bf16_are_what_many_give(rows, columns):
    weight = floats(rows, columns).bfloat16()
    made, x = native.native("plain", weight.shape, [weight], ()), floats(3, columns)
    y = torch.empty(6, rows)
    for first, last, into in [(0, 3, y[:3]), (0, 2, y[3:5]), (2, 3, y[5:])]:
        made.product(x[first:last], [weight.data_ptr()], into)
    assert torch.equal(y[:3], y[3:])


@pytest.mark.usefixtures("c_compiler")
def test_what_c_does_not_know_is_left_to_torch():
    half, odd = floats(8, 16).half(), floats(8, 12).bfloat16()
    assert native.native("plain", half.shape, [half], ()) is None
    assert native.native("plain", odd.shape, [odd], ()) is None
    assert native.native("q2_k", (8, 256), [whole(torch.uint8, 0, 9, 8, 84)], ()) is None
    turned = floats(8, 16).bfloat16()
    assert native.native("plain", (12, 16), [floats(12, 16).bfloat16()], (), turned=True) is None
    assert native.native("plain", (8, 16), [turned], (), turned=True) is not None
    e4m3 = [turned.to(E4M3), torch.ones(8, 1)]
    assert native.native("fp8", (8, 16), e4m3, (1, 16), turned=True) is None


@pytest.mark.usefixtures("c_compiler")
@pytest.mark.parametrize("inputs, outputs", [(2048, 1544), (8, 8), (72, 520)])
def test_what_lies_turned_is_multiplied_too(inputs, outputs):
    weight, x = floats(inputs, outputs).bfloat16(), floats(70, inputs)
    made = native.native("plain", weight.shape, [weight], (), turned=True)
    many, eye = torch.empty(70, outputs), torch.empty(inputs, outputs)
    made.product(torch.eye(inputs), [weight.data_ptr()], eye)
    assert torch.equal(eye, weight.float())
    made.product(x, [weight.data_ptr()], many)
    want = x.double() @ weight.double()
    assert (many - want).abs().max() < 2e-6 * want.abs().max()
    with_gaps = torch.empty(1, 2 * outputs)
    made.product(x[-1:].contiguous(), [weight.data_ptr()], with_gaps[:, ::2])
    assert torch.equal(with_gaps[:, ::2], many[-1:])


@pytest.mark.usefixtures("c_compiler")
def test_products_have_the_threads_that_torch_lends_them():
    number, threads = 3, torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        with pytest.raises(KeyError), native.torch_rests():
            assert (torch.get_num_threads(), native.num_threads()) == (1, number)
            with native.torch_rests():
                assert (torch.get_num_threads(), native.num_threads()) == (1, number)
            assert (torch.get_num_threads(), native.num_threads()) == (1, number)
            raise KeyError
        assert (torch.get_num_threads(), native.num_threads()) == (number, number)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_there_is_one_warning_and_nothing_breaks(caplog):
    layer = nn.Linear(32, 8, bias=False)
    layer.weight.data = layer.weight.data.bfloat16()
    want, model = layer.weight.data.float(), nn.Sequential(layer)
    stored.keep_stored(model)
    assert native.native("plain", layer.weight.shape, [layer.weight], ()) is None
    assert type(layer) is nn.Linear and torch.equal(layer.weight, want)
    [said] = [record for record in caplog.records if record.name == "specmoe"]
    assert said.getMessage().endswith("without a compiled kernel (no compiler)")


@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize("failure", [StoreError("no home"), subprocess.TimeoutExpired("cc", 1)])
def test_no_folder_and_no_patience_are_no_error(failure, monkeypatch, caplog):
    def fails():
        raise failure

    monkeypatch.setattr(native, "_compiled", fails)
    assert native.library() is None and len(caplog.records) == 1


def test_the_first_tuning_that_the_compiler_takes_is_the_one(tmp_path, monkeypatch):
    compiler, asked = tmp_path / "cc", tmp_path / "asked"
    lines = [f'echo "$*" >> {asked}', 'case "$*" in *-march=native*) exit 1;; esac']
    compiler.write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
    compiler.chmod(0o700)
    monkeypatch.setenv("CC", str(compiler))
    native._compile(tmp_path / "made.so")
    assert ["-mcpu=native" in command for command in asked.read_text().splitlines()] == [0, 1]


@pytest.mark.usefixtures("c_compiler", "own_cache")
def test_what_was_compiled_is_found_again(monkeypatch):
    first = native._compiled()
    monkeypatch.setattr(native, "_compile", None)  # would fail
    assert native._compiled() == first
    monkeypatch.setattr(native, "_processor", lambda: "another")
    with pytest.raises(TypeError):
        native._compiled()


@pytest.mark.usefixtures("c_compiler", "own_cache")
def test_a_damaged_library_is_not_loaded_but_made_again():
    file = native._compiled()
    whole_file = file.read_bytes()
    file.write_bytes(whole_file[: len(whole_file) // 2])
    assert len(native._compiled().read_bytes()) > len(whole_file) // 2


@pytest.mark.parametrize(
    "stored, tokens, one", [(True, 64, True), (True, 65, False), (False, 1, False)]
)
def test_torch_has_one_thread_where_all_large_products_are_ours(stored, tokens, one):
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        passes = decoder.Passes(lambda **_: torch.get_num_threads())
        passes.reads_stored = stored
        assert passes(input_ids=torch.zeros(tokens, 1)) == (1 if one else 3)
        assert passes(decoder_input_ids=torch.zeros(1, tokens)) == (1 if one else 3)
    finally:
        torch.set_num_threads(threads)


# ---- the model's own layers ----


@pytest.mark.usefixtures("c_compiler")
@pytest.mark.parametrize("num_rows", [1, 5, stored.MOST_ROWS + 1])
def test_layers_kept_in_bf16_compute_in_float32(num_rows, monkeypatch):
    monkeypatch.setattr(stored, "BLOCK_ELEMENTS", 40 * 7)
    model = nn.ModuleDict(
        {"embed": nn.Embedding(50, 40), "norm": nn.LayerNorm(40), "head": nn.Linear(40, 50)}
    )
    wide = model["embed"].weight.data.bfloat16()
    model["embed"].weight.data = wide
    model["head"].weight = model["embed"].weight  # tied
    bias = model["head"].bias.data
    stored.keep_stored(model)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model["head"].stored.data_ptr() == model["embed"].stored.data_ptr()
    tokens = torch.arange(num_rows).view(1, -1) % 50
    x = model["embed"](tokens)
    assert torch.equal(x, F.embedding(tokens, wide.float()))
    torch.testing.assert_close(model["head"](x), F.linear(x, wide.float(), bias))
    held = {weight.data_ptr() for weight in stored.trunk_weights(model)}
    assert len(held) == 4 and wide.data_ptr() in held


@pytest.mark.usefixtures("c_compiler")
@pytest.mark.parametrize("architecture", ["mixtral", "deepseek_v3", "gpt_oss"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_model_computes_the_same_with_its_layers_in_bf16(
    architecture, tied, monkeypatch, tmp_path
):
    folder = make_checkpoint(architecture, tmp_path, torch.bfloat16, tie_word_embeddings=tied)
    found = []
    for least in (1 << 60, 0):
        monkeypatch.setattr(checkpoint_model, "LEAST_STORED", least)
        with specmoe.load(folder) as engine:
            kept = [m for m in engine.model.modules() if type(m) in stored.STORED.values()]
            assert bool(kept) == (least == 0) and engine.info["dtype"] == "float32"
            found.append((engine.next_logits(PROMPTS[0]), engine.info))
    (wide, before), (narrow, after) = found
    torch.testing.assert_close(narrow, wide, atol=1e-4, rtol=1e-4)
    assert after["trunk_weights"] == before["trunk_weights"]
    assert before["trunk_bytes"] == 4 * before["trunk_weights"] > 1.5 * after["trunk_bytes"]


def bf16_checkpoint(kind: str, folder: Path) -> Path:
    if kind not in CONFIGS:
        return models_table.write_tiny(kind, folder, torch.bfloat16)
    made = make_family(kind, folder / "wide")
    AutoModelForSeq2SeqLM.from_pretrained(made, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


# Their code casts what a layer gets to the dtype of its weight: of the head, of an indexer, of the
# last layer of a dense block. The last has experts before any parameter that is not kept.
ODD = ("hy_v4", "axk2", "nllb-moe", "switch_transformers", "solar_open")
OTHERS = [kind for kind in models_table.architectures() if kind not in ODD]


@pytest.mark.usefixtures("c_compiler")
@pytest.mark.parametrize(
    "kind", [*ODD, *(pytest.param(kind, marks=pytest.mark.long) for kind in OTHERS)]
)
def test_no_model_computes_in_the_dtype_of_a_kept_layer(kind, monkeypatch, tmp_path):
    try:
        folder, found = bf16_checkpoint(kind, tmp_path), []
    except Exception as error:
        pytest.skip(f"transformers does not build {kind}: {error}")
    text = models_table.PROMPTS[3]
    for least in (1 << 60, 0):
        monkeypatch.setattr(checkpoint_model, "LEAST_STORED", least)
        try:
            with specmoe.load(folder, draft_experts=2) as engine:
                source = {"source": text} if engine.is_translation else {}
                found.append(engine.next_logits([2] if source else text, **source))
                kept = any(isinstance(m, stored.Stored) for m in engine.model.modules())
                assert kept == (least == 0)
        except specmoe.UnsupportedModelError as refusal:
            pytest.skip(str(refusal))
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("c_compiler")
def test_who_asks_a_kept_layer_for_its_weight_sees_what_it_computes_with():
    narrow = torch.randn(16, 8, generator=random()).bfloat16()
    model = nn.ModuleDict({"head": nn.Linear(8, 16, bias=False)})
    model["head"].weight.data = narrow
    stored.keep_stored(model)
    weight = model["head"].weight
    assert (weight.dtype, weight.shape, weight.device) == (torch.float32, (16, 8), narrow.device)
    assert weight.stored.data_ptr() == narrow.data_ptr(), "no copy for a question"
    assert torch.equal(weight[3], narrow[3].float()) and torch.equal(weight + 0, narrow.float())
    x = floats(2, 8)
    assert torch.equal(F.linear(x, weight=weight), F.linear(x, narrow.float()))
    with pytest.raises(RuntimeError, match="dtype"):
        model["head"](x.bfloat16())
    model["head"].to(torch.float32)  # as routers do with themselves
    assert torch.equal(model["head"](x), F.linear(x, narrow.float()))


@pytest.mark.usefixtures("c_compiler")
@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_every_byte_of_fp8_is_what_torch_makes_of_it(dtype):
    """Those that are no number and those that are infinite, too."""
    every = torch.zeros(256, 8, dtype=torch.uint8)
    every[:, 0] = torch.arange(256)
    values, scales = every.view(dtype), torch.ones(1, 1)
    x, y = torch.zeros(1, 8), torch.empty(1, 256)
    x[0, 0] = 1
    made = native.native("fp8", (256, 8), [values, scales], (256, 8))
    made.product(x, [values.data_ptr(), scales.data_ptr()], y)
    torch.testing.assert_close(y[0], values[:, 0].float(), rtol=0, atol=0, equal_nan=True)
