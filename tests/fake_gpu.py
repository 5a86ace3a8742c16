"""A GPU without one: tensors that say they are on ``cuda`` and lie in host memory, so that a whole
engine runs with ``device="cuda"`` on any machine, and everything that would fail on a real one does.

What mixes devices, or looks at a tensor's memory from the host, raises as CUDA would. Streams and
events do nothing but note, in order, what was asked of them (``FakeCuda.notes``). Its clock goes on
only by what a copy takes at ``bytes_per_s``, and by it only once somebody synchronises.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode

from specmoe.model import native, stored
from specmoe.offload import base_store, checksum, direct, shards, store, transfers

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
READS = {name: getattr(torch.Tensor, name).__get__ for name in ("device", "is_cuda", "is_cpu")}
# what carries values to the host by itself; ``to`` and ``copy_`` are looked at
TO_HOST = ("cpu", "item", "tolist", "__bool__", "__int__", "__float__", "__index__", "__repr__")
TO_HOST += ("__format__", "data_ptr", "equal", "allclose", "__len__", "__contains__")
# their other tensors may lie elsewhere
CROSSING = ("copy_", "to", "type_as", "__getitem__", "__get__", "__set__", "set_data")


class OnGpu(torch.Tensor):
    """In host memory, but nobody may know."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return called(function, args, dict(kwargs or {}))


class Mode(TorchFunctionMode):
    """What is made with ``device="cuda"``, or sent there, is ``OnGpu``."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return called(function, args, dict(kwargs or {}))


def device_of(value) -> torch.device | None:
    if isinstance(value, str) and value.split(":")[0] in ("cuda", "cpu", "meta"):
        return torch.device(value)
    return value if isinstance(value, torch.device) else None


def called(function, args, kwargs):
    """``function`` as PyTorch would run it if the ``OnGpu`` tensors were on a GPU."""
    name = function.__name__
    is_method = bool(args) and isinstance(args[0], torch.Tensor)
    if is_method and isinstance(args[0], OnGpu) and function in READS.values():
        return {"device": CUDA, "is_cuda": True, "is_cpu": False}[
            next(name for name, read in READS.items() if read == function)
        ]
    tensors = list(tensors_in((*args, *kwargs.values())))
    asked = device_of(kwargs.get("device"))
    if name == "to" and asked is None:
        asked = next(filter(None, map(device_of, args[1:])), None)
        like = [one for one in args[1:] if isinstance(one, torch.Tensor)]
        asked = CUDA if like and isinstance(like[0], OnGpu) else asked
    refuse_mixture(name, function, args, tensors)
    if asked is not None and asked.type == "cuda":
        kwargs = {k: CPU if k == "device" else v for k, v in kwargs.items()}
        args = tuple(CPU if device_of(one) is not None else one for one in args)
    is_pinned = kwargs.pop("pin_memory", False)
    if name == "copy_" and isinstance(args[0], OnGpu) != isinstance(args[1], OnGpu):
        Installed.cuda.copied(*args[:2])
    with torch._C.DisableTorchFunctionSubclass():
        found = function(*args, **kwargs)
    if is_pinned:
        PINNED.append((found.data_ptr(), found.numel()))
    of_gpu = any(isinstance(one, OnGpu) for one in tensors) and name not in TO_HOST
    if name == "copy_" or name == "__set__":
        of_gpu = isinstance(args[0], OnGpu)
    goes = of_gpu if asked is None else asked.type == "cuda"
    return each(on_gpu if goes else off_gpu, found)


def tensors_in(values):
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from tensors_in(value)


def each(change, found):
    """``change`` of a tensor, or of those in what an operator returned."""
    if isinstance(found, torch.Tensor):
        return change(found)
    if type(found) in (tuple, list):
        return type(found)(each(change, one) for one in found)
    if isinstance(found, tuple):  # torch.return_types
        return type(found)([each(change, one) for one in found])
    return found


PINNED: list[tuple[int, int]] = []


class Installed:
    cuda: FakeCuda | None = None


def on_gpu(found):
    is_plain = isinstance(found, torch.Tensor) and not isinstance(found, OnGpu)
    return found.as_subclass(OnGpu) if is_plain and not found.is_meta else found


def off_gpu(found):
    if not isinstance(found, OnGpu):
        return found
    with torch._C.DisableTorchFunctionSubclass():
        return found.clone().as_subclass(torch.Tensor)


def refuse_mixture(name: str, function, args, tensors) -> None:
    """As CUDA: a tensor of the host beside one of the GPU may only be a number, or an index."""
    if name == "numpy" and isinstance(args[0], OnGpu):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")
    gpu = [one for one in tensors if isinstance(one, OnGpu)]
    if not gpu or len(gpu) == len(tensors):
        return
    with torch._C.DisableTorchFunctionSubclass():
        host = [one for one in tensors if not (isinstance(one, OnGpu) or one.is_meta)]
        host = [one for one in host if one.dim() > 0]
        if not host or name in CROSSING and isinstance(args[0], OnGpu):
            return
        if name == "__setitem__" and isinstance(args[0], OnGpu) and is_slice(args[1]):
            return
        if name in ("copy_", "to", "__set__"):
            return
    raise RuntimeError(
        f"Expected all tensors to be on the same device, but found cuda:0 and cpu ({function})"
    )


def is_slice(index) -> bool:
    """No tensor or list is in it: what is assigned is copied."""
    parts = index if isinstance(index, tuple) else (index,)
    return not any(isinstance(part, torch.Tensor | list) for part in parts)


# ---- streams, events, memory of the host


class Event:
    def __init__(self, stream):
        self.stream = stream


class Stream:
    """``notes`` get ("wait", stream, event), ("copy", stream, target, source), ("done", stream)."""

    def __init__(self, cuda: FakeCuda, name: str):
        self.cuda = cuda
        self.name = name
        self.pending_s = 0.0

    def wait_event(self, event: Event) -> None:
        self.cuda.note("wait", self, event)

    def record_event(self) -> Event:
        event = Event(self)
        self.cuda.note("event", self, event)
        return event

    def synchronize(self) -> None:
        self.cuda.note("done", self)
        with self.cuda.lock:
            self.cuda.now_s += self.pending_s
        self.pending_s = 0.0


class FakeCuda:
    """What was asked of streams, in order; and a clock that copies alone turn."""

    def __init__(self, bytes_per_s: float = 1e9):
        self.bytes_per_s = bytes_per_s
        self.notes: list[tuple] = []
        self.now_s = 0.0
        self.lock = threading.Lock()
        self.compute = Stream(self, "compute")
        self._of_thread = threading.local()
        self._numbers = iter(range(10**6))

    def note(self, *what) -> None:
        self.notes.append(what)

    def clock(self) -> float:
        return self.now_s

    @property
    def current(self) -> Stream:
        return getattr(self._of_thread, "stream", self.compute)

    def new_stream(self, device=None) -> Stream:
        assert torch.device(device).type == "cuda"
        return Stream(self, f"copy {next(self._numbers)}")

    @contextmanager
    def using(self, stream: Stream):
        before, self._of_thread.stream = self.current, stream
        try:
            yield
        finally:
            self._of_thread.stream = before

    def synchronize(self, device=None) -> None:
        self.compute.synchronize()

    def copied(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Between host and GPU."""
        self.note("copy", self.current, target, source)
        self.current.pending_s += source.numel() * source.element_size() / self.bytes_per_s

    def install(self, patch) -> None:
        """For a test, by its ``monkeypatch``; ``Mode`` makes tensors besides."""
        for name, value in {
            "Stream": self.new_stream,
            "stream": self.using,
            "current_stream": lambda device=None: self.compute,
            "synchronize": self.synchronize,
            "mem_get_info": lambda device=None: (2**33, 2**34),
            "is_available": lambda: True,
        }.items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(Installed, "cuda", self)
        for module in (base_store, checksum, direct, shards, store, transfers):
            if hasattr(module, "memory_of"):
                patch.setattr(module, "memory_of", of_host(transfers.memory_of))
        patch.setattr(native.Pieces, "products", of_host(native.Pieces.products))
        patch.setattr(checksum.Checksum, "copied", of_host(checksum.Checksum.copied))
        patch.setattr(stored, "product", of_host(stored.product))


def of_host(function):
    """``function``, which reads memory by its address, never of a GPU."""

    def checked(*args, **kwargs):
        assert not any(isinstance(one, OnGpu) for one in args), "C reads memory of the GPU"
        return function(*args, **kwargs)

    return checked


def is_pinned(tensor: torch.Tensor) -> bool:
    with torch._C.DisableTorchFunctionSubclass():
        at = tensor.data_ptr()
    return any(begin <= at < begin + size for begin, size in PINNED)
