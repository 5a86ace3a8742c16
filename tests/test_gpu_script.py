"""Each part of the GPU script on a GPU that is not there (``fake_gpu``), and on the CPU: what is
copied, what is waited for, and that the numbers written are those measured."""

from types import SimpleNamespace

import pytest
import torch
from fake_gpu import FakeCuda, Mode, OnGpu, is_pinned

import specmoe
from specmoe.lab.bench import gpu, gpu_copies, gpu_low_bit, gpu_numbers, gpu_parts

RATE = 2e9  # bytes per second of the link that is not there
SMALL = gpu.SMALL.low_bit
CUDA = torch.device("cuda")


@pytest.fixture
def cuda(monkeypatch):
    """Its clock is the script's: only what is synchronised has taken time."""
    found = FakeCuda(RATE)
    found.install(monkeypatch)
    clock = SimpleNamespace(perf_counter=found.clock, monotonic=found.clock)
    monkeypatch.setattr(gpu_copies, "time", clock)
    with Mode():
        yield found


class Nothing:
    """A ``Found`` with time for everything."""

    device = torch.device("cpu")

    def has_time(self, what, seconds):
        return True


@pytest.mark.parametrize("pin", [True, False])
def test_the_raw_rate_is_that_of_the_copies_and_of_nothing_else(cuda, pin):
    assert gpu_copies.raw_copy_rate(CUDA, 10**6, 5, pin) == pytest.approx(RATE)
    copies = [note for note in cuda.notes if note[0] == "copy"]
    assert len(copies) == 6  # one warms up
    for _, stream, target, source in copies:
        assert stream is cuda.compute and isinstance(target, OnGpu) and target.numel() == 10**6
        assert is_pinned(source) is pin
    # not before the first has ended, and to the end of the last
    assert [note[0] for note in cuda.notes] == ["done", "copy", "done", *["copy"] * 5, "done"]


@pytest.fixture(scope="module")
def low_bits(tmp_path_factory):
    """Folders of ``gpu_low_bit``'s checkpoints, by kind."""
    root = tmp_path_factory.mktemp("low_bits")
    for kind in gpu_low_bit.KINDS:
        (root / kind).mkdir()
        gpu_low_bit.make(root / kind, kind, **SMALL)
    return root


def opened(folder, device):
    return specmoe.load(str(folder), store="memory", device=device, draft_experts=2, trace=False)


@pytest.mark.parametrize("kind", gpu_low_bit.KINDS)
def test_the_stores_rate_is_that_of_records_as_they_are_stored(cuda, low_bits, kind):
    with opened(low_bits / kind, "cuda") as engine:
        del cuda.notes[:]
        rate = gpu_copies.store_rate(engine, 6)
        widening = gpu_low_bit.widened(engine, CUDA)
        record_bytes, elements = engine.packed.layout.record_bytes, engine.packed.layout.elements
    assert rate == pytest.approx(RATE) and widening["same_bits"]
    copies = [note for note in cuda.notes if note[0] == "copy" and note[1] is not cuda.compute]
    assert [source.numel() for *_, source in copies] == [record_bytes] * 12  # two turns
    assert all(isinstance(target, OnGpu) and is_pinned(source) for *_, target, source in copies)
    bits = 8 * record_bytes / elements
    assert {"bf16": 16, "fp8": 8, "int4": 4.5, "mxfp4": 4.25}[kind] == pytest.approx(bits, rel=0.05)


def test_other_bits_on_the_gpu_are_told(cuda, low_bits, monkeypatch):
    with opened(low_bits / "fp8", "cuda") as engine:
        layout, widen = engine.packed.layout, type(engine.packed.layout).widen

        def wrong(self, record, into):
            widen(self, record, into)
            if isinstance(record, OnGpu):
                next(iter(into.values())).view(-1)[0] += 1

        monkeypatch.setattr(type(layout), "widen", wrong)
        assert not gpu_low_bit.widened(engine, CUDA)["same_bits"]


def test_the_part_of_low_bits_writes_what_it_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("SPECMOE_CACHE", str(tmp_path))
    sums = {"num_new_tokens": 30, "seconds": 2.0, "fetched_bytes": 600}
    asked = []

    def measure(engine, prompts, window, **options):
        asked.append((engine.packed.layout.stored_as, options["method"], window.batch))
        return sums

    monkeypatch.setattr(gpu_low_bit, "measure", measure)
    monkeypatch.setattr(gpu_low_bit, "raw_copy_rate", lambda device, num_bytes, times: 8.0)
    monkeypatch.setattr(gpu_low_bit, "store_rate", lambda engine, times: 6.0)
    rows = gpu_low_bit.low_bit(Nothing(), gpu.SMALL)
    assert [stored for stored, *_ in asked] == ["bfloat16", "fp8", "int4", "mxfp4"]
    assert {(method, batch) for _, method, batch in asked} == {("on_demand", 2)}
    for row in rows.values():
        assert row["share"] == 0.75 and row["same_bits"] and row["widen_s"] > 0
        assert row["tokens_per_second"] == 15 and row["bytes_per_token"] == 20
    assert not any(tmp_path.glob("*/model.safetensors")), "a checkpoint stayed"
    met = {row["name"]: row["measured"] for row in gpu_numbers.targets({"low bits": rows})}
    assert met["low bits: formats widened bit for bit as on the CPU"] == 1
    assert met["low bits: store's copies / raw copies, every format"] == 0.75
    assert met["on-demand, fp8 / bf16"] == met["on-demand, int4 / bf16"] == 1


def test_random_low_bits_decode(low_bits):
    for kind in gpu_low_bit.KINDS:
        with opened(low_bits / kind, "cpu") as engine:
            rows = [
                engine.generate([[1, 2]], max_new_tokens=3, eos_token_id=[], method=method)
                for method in ("on_demand", "specmoe")
            ]
        assert rows[0].sequences[0].tolist() == rows[1].sequences[0].tolist()


class Engine:
    """What the part of compiled steps asks of an engine."""

    def __init__(self, compile):
        self.compile = compile
        self.compiled = bool(compile)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def test_the_part_of_compiled_steps_times_all_three_ways(monkeypatch):
    found, loaded, skips = Nothing(), [], iter([0, 0, 5, 5, 5, 7])
    found.place = SimpleNamespace(texts=lambda model: [], prompts=lambda model: [])

    def load(model, compile, **options):
        loaded.append((compile, options["device"], options["store"]))
        return Engine(compile)

    def measure(engine, prompts, window, **options):
        drafted = {False: 16.0, True: 8.0, "reduce-overhead": 4.0}[engine.compile]
        return {"draft_s": drafted, "gamma": 4.0, "num_rounds": 2}

    monkeypatch.setattr(gpu_parts.specmoe, "load", load)
    monkeypatch.setattr(gpu_parts, "measure", measure)
    monkeypatch.setattr(gpu_parts, "graphs_skipped", lambda: next(skips))
    row = gpu_parts.compiled(found, gpu.SMALL)
    steps = [row[f"{name}_step_s"] for name in ("plain", "compiled", "replayed")]
    assert steps == [2.0, 1.0, 0.5]
    really = [row[f"{name}_really"] for name in ("plain", "compiled", "replayed")]
    assert really == [False, True, True]
    skipped = [row[f"{name}_graphs_skipped"] for name in ("plain", "compiled", "replayed")]
    assert skipped == [0, 0, 2]
    on = [(way, torch.device("cpu"), "memory") for way in (False, True, "reduce-overhead")]
    assert loaded == on
    met = {each["name"]: each["measured"] for each in gpu_numbers.targets({"compiled": row})}
    assert met["plain / compiled draft step"] == 2 and met["plain / replayed draft step"] == 4


def test_experts_that_do_not_fit_beside_the_rest_are_not_all_loaded(cuda):
    found = SimpleNamespace(device=CUDA)
    layout = SimpleNamespace(record_bytes=2**20)
    packed = SimpleNamespace(layers=[0] * 8, num_experts=64, layout=layout)
    fits = lambda: gpu_parts._fits(found, SimpleNamespace(packed=packed))  # noqa: E731
    assert fits()
    packed.num_experts = 1024  # 8 GiB of the 8 that are free
    assert not fits()
