"""One record on its way: where it goes, who waits for it, and the link it crosses.

Comes in: an expert's key and a buffer. Goes out: a ``Read`` ticket that is done when the buffer is
filled. ``offload.store`` makes and serves the tickets; ``offload.pool`` waits for them.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from ..errors import FastMemoryError, OptionError, StoreError
from .direct import PAGE, pages

# Bytes of memory from which on its pages are large: fewer to ask for, and to find the address of.
LEAST_LARGE = 2**26
STALL_S = 120.0  # a read that takes longer is reported, not waited for


class ExpertKey(NamedTuple):
    """One expert: ``layer`` counts MoE layers from 0. As text it is how errors name it."""

    layer: int
    expert: int

    def __str__(self) -> str:
        return f"expert {self.expert} of MoE layer {self.layer}"


def aligned_bytes(num_bytes: int, pin: bool = False, large: bool = False) -> torch.Tensor:
    """A page-aligned uint8 tensor ``[num_bytes]``, as direct I/O needs it, from ``LEAST_LARGE`` on
    and if ``large`` in large pages; ``pin`` page-locks it for CUDA copies, ``FastMemoryError``
    where the system gives no such memory."""
    if pin:
        return _page_locked(num_bytes)
    found = pages(num_bytes, large or num_bytes >= LEAST_LARGE)
    return torch.frombuffer(found, dtype=torch.uint8)[:num_bytes]


def _page_locked(num_bytes: int) -> torch.Tensor:
    try:
        found = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
        if found.data_ptr() % PAGE:  # whoever allocates it promises nothing
            found = torch.empty(num_bytes + PAGE, dtype=torch.uint8, pin_memory=True)
            found = found[-found.data_ptr() % PAGE :][:num_bytes]
    except RuntimeError as failure:
        raise FastMemoryError(
            f"{num_bytes} bytes of host memory cannot be page-locked for copies to the GPU: lower "
            f"num_readers, or use store='disk' ({str(failure).splitlines()[0]})"
        ) from None
    return found


# readers write from threads of their own, which are not in a caller's inference mode
@torch.inference_mode(False)
def allocate_slots(num_slots: int, store) -> torch.Tensor:
    """The fast tier's memory, uint8 ``[num_slots, slot_bytes]`` on the store's device,
    page-aligned on the CPU."""
    if store.device.type == "cpu":
        memory = aligned_bytes(num_slots * store.slot_bytes, large=True)
        return memory.view(num_slots, store.slot_bytes)
    try:
        return torch.empty(num_slots, store.slot_bytes, dtype=torch.uint8, device=store.device)
    except torch.cuda.OutOfMemoryError as failure:
        raise FastMemoryError(
            f"{num_slots * store.slot_bytes} bytes for experts do not fit on {store.device}: "
            f"lower fast_memory or draft_experts ({failure})"
        ) from None


def give_back_memory() -> None:
    """What was held for a moment and is free now goes back to the system, where libc can do it:
    after opening a model of real size that is hundreds of MiB."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def memory_of(buffer: torch.Tensor) -> memoryview:
    """The bytes of a CPU tensor as something ``os.preadv`` can write into; does not keep the tensor
    alive."""
    raw = (ctypes.c_char * buffer.numel()).from_address(buffer.data_ptr())
    return memoryview(raw).cast("B")


class Link:
    """A shared link of ``bytes_per_s``: one transfer after the other, honoured in wall-clock
    time."""

    def __init__(self, bytes_per_s: float | None):
        if bytes_per_s is not None and not bytes_per_s > 0:
            raise OptionError(f"link_bytes_per_s={bytes_per_s!r} must be above zero")
        self.bytes_per_s = bytes_per_s
        self._free_at_s = 0.0
        self._lock = threading.Lock()

    def reserve(self, num_bytes: int) -> float:
        """Book the link for ``num_bytes``; returns the clock time at which they will have
        crossed."""
        if self.bytes_per_s is None:
            return 0.0
        with self._lock:
            start_s = max(time.perf_counter(), self._free_at_s)
            self._free_at_s = start_s + num_bytes / self.bytes_per_s
            return self._free_at_s

    @contextmanager
    def unthrottled(self) -> Iterator[None]:
        """Within, bytes cross at the store's own speed."""
        rate, self.bytes_per_s = self.bytes_per_s, None
        try:
            yield
        finally:
            self.bytes_per_s = rate

    @staticmethod
    def wait_until(clock_s: float) -> None:
        left_s = clock_s - time.perf_counter()
        if left_s > 0:
            time.sleep(left_s)


@dataclass(eq=False)
class Read:
    """A ticket for one record on its way into ``buffer``. ``seconds`` is the read's own duration
    once done."""

    key: ExpertKey
    buffer: torch.Tensor
    after: object = None  # CUDA event: the buffer's last use, which the copy has to wait for
    number: int = 0  # order of submission
    seconds: float = 0.0
    ended_s: float = 0.0  # time.perf_counter()
    error: Exception | None = None
    started: bool = False
    cancelled: bool = False
    # nobody waits for it any more, but its reader may still write into the buffer
    abandoned: bool = False
    _finished: threading.Event = field(default_factory=threading.Event, repr=False)

    def done(self) -> bool:
        return self._finished.is_set()

    def finish(self, error: Exception | None = None) -> None:
        self.error = error
        self._finished.set()

    def wait(self, timeout_s: float | None = None) -> None:
        """Block until the record is in the buffer; ``StoreError`` naming the record if it failed or
        stalled."""
        timeout_s = STALL_S if timeout_s is None else timeout_s
        if not self._finished.wait(timeout_s):
            raise StoreError(
                f"reading {self.key} has stalled for {timeout_s:.0f} s: is the disk still there?"
            )
        if self.error is not None:
            raise self.error

    def wait_released(self) -> None:
        """Block until the reader lets go of the buffer, whatever became of the read; give up on one
        that has stalled."""
        self.abandoned = not self._finished.wait(0 if self.abandoned else STALL_S)
