"""What goes wrong at a notebook's keyboard: a stopped cell, a misspelt model, a kernel without the
package."""

from __future__ import annotations

import json
import signal
import sys
import time

import pytest
from conftest import PROMPTS, tokens_of

import specmoe

METHODS = ("on_demand", "overlapped", "cached", "specmoe", "resident")


@pytest.fixture(autouse=True)
def listening():
    """Ctrl-C counts even where the tests were started in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt_at(monkeypatch, owner, name: str, count: int) -> None:
    """Ctrl-C, as Jupyter's stop button sends it, when ``owner.name`` is called for the ``count``-th
    time."""
    original, calls = getattr(owner, name), []

    def counting(*arguments, **options):
        calls.append(name)
        if len(calls) == count:
            signal.raise_signal(signal.SIGINT)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, counting)


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_generate_leaves_an_engine_that_gives_the_same_tokens(
    open_engine, plain, monkeypatch, method, count
):
    engine = open_engine("mixtral", store="disk")
    options = {"method": method, "max_new_tokens": 16, "batch_size": 2, "eos_token_id": []}
    with monkeypatch.context() as patched:
        interrupt_at(patched, engine.model, "forward", count)
        with pytest.raises(KeyboardInterrupt):
            engine.generate(PROMPTS, **options)
    assert tokens_of(engine.generate(PROMPTS, **options)) == plain("mixtral")


@pytest.mark.parametrize("method", ("on_demand", "cached", "specmoe"))
def test_an_interrupted_fetch_leaves_no_half_read_expert(open_engine, plain, monkeypatch, method):
    engine = open_engine("mixtral", store="disk")
    options = {"method": method, "max_new_tokens": 16, "batch_size": 2, "eos_token_id": []}
    with monkeypatch.context() as patched:
        interrupt_at(patched, engine.store, "submit", 3)
        with pytest.raises(KeyboardInterrupt):
            engine.generate(PROMPTS, **options)
    assert tokens_of(engine.generate(PROMPTS, **options)) == plain("mixtral")


# ---- in a real kernel ----

OPEN = """
import specmoe
engine = specmoe.load("tiny-skewed", store="memory", draft_experts=4)
job = {"max_new_tokens": 12, "eos_token_id": []}
plain = engine.generate(["json: order 1"], method="on_demand", **job).sequences[0].tolist()
"""
ENDLESS = """
print("started", flush=True)
while True:
    engine.generate(["json: order 1", "sql: year of books"], method="specmoe", gamma=3, **job)
"""
AGAIN = (
    'print(engine.generate(["json: order 1"], method="specmoe", gamma=3, '
    "**job).sequences[0].tolist() == plain)"
)


def run_cell(client, code: str, meanwhile=None) -> tuple[str, str]:
    """(printed text, name of the error or "") of one cell; ``meanwhile`` is called at its first
    output."""
    from queue import Empty

    number, printed, error = client.execute(code), "", ""
    for _ in range(4000):
        try:
            message = client.get_iopub_msg(timeout=300)
        except Empty:
            raise AssertionError(f"the kernel says nothing: {code[:60]!r}") from None
        if message["parent_header"].get("msg_id") != number:
            continue
        kind, content = message["msg_type"], message["content"]
        if kind == "stream" and content["name"] == "stdout":
            printed += content["text"]
            if meanwhile:
                meanwhile()
                meanwhile = None
        error = content["ename"] if kind == "error" else error
        if kind == "status" and content["execution_state"] == "idle":
            return printed, error
    raise AssertionError("the cell never ended")


@pytest.fixture
def kernel():
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(kernel_name="python3", startup_timeout=300)
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def test_a_cell_is_stopped_and_the_next_one_works(kernel):
    """What the stop button does: the cell ends with KeyboardInterrupt, and the engine writes what
    it wrote before."""
    manager, client = kernel
    assert run_cell(client, OPEN) == ("", "")
    printed, error = run_cell(
        client, ENDLESS, meanwhile=lambda: (time.sleep(1.0), manager.interrupt_kernel())
    )
    assert error == "KeyboardInterrupt" and printed.strip() == "started"
    assert run_cell(client, AGAIN) == ("True\n", "")


def test_a_model_that_is_not_shipped_is_named_with_the_nearest_when_there_is_no_network(
    monkeypatch,
):
    """A misspelt name is looked up on the hub, which nobody can reach here."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(specmoe.SpecMoEError, match="tiny-skewd.*tiny-skewed"):
        specmoe.load("tiny-skewd")


def test_a_report_whose_kernel_lacks_the_package_says_which_python_and_what_to_do(
    tmp_path, monkeypatch
):
    """The kernel python3 is started by a Python that has everything but this package."""
    folder = tmp_path / "data" / "kernels" / "python3"
    folder.mkdir(parents=True)
    argv = [sys.executable, "-c", KERNEL_WITHOUT_SPECMOE, "-f", "{connection_file}"]
    (folder / "kernel.json").write_text(
        json.dumps({"argv": argv, "display_name": "other", "language": "python"})
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "data"))
    from specmoe.lab import report

    with pytest.raises(
        specmoe.SpecMoEError, match="No module named 'specmoe'.*another Python.*ipykernel install"
    ):
        report.run_report("07_sampling_without_bias", out_dir=tmp_path / "out")


KERNEL_WITHOUT_SPECMOE = (
    "import sys; sys.path[:] = [p for p in sys.path if p]; sys.meta_path.insert(0, type('Without', "
    "(), {'find_spec': "
    "staticmethod(lambda name, *rest: (_ for _ in ()).throw(ModuleNotFoundError(f'No module named "
    "{name!r}', name=name)) "
    "if name.split('.')[0] == 'specmoe' else None)})); from ipykernel import kernelapp; "
    "kernelapp.launch_new_instance()"
)
