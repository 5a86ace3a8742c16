"""Rates of the link to a GPU: raw, and through the engine's store.

Comes in: a device, an engine. Goes out: bytes per second. The parts of ``gpu`` call this.
"""

from __future__ import annotations

import time

import torch

from ...offload.transfers import ExpertKey


def raw_copy_rate(device: torch.device, num_bytes: int, times: int, pin: bool = True) -> float:
    """Bytes per second from host memory (pinned, if asked) to the device, ``times`` copies one
    after the other."""
    source = torch.zeros(num_bytes, dtype=torch.uint8, pin_memory=pin and device.type == "cuda")
    target = torch.empty(num_bytes, dtype=torch.uint8, device=device)
    synchronize(device)
    target.copy_(source, non_blocking=True)
    synchronize(device)
    began_s = time.perf_counter()
    for _ in range(times):
        target.copy_(source, non_blocking=True)
    synchronize(device)
    return times * num_bytes / (time.perf_counter() - began_s)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def store_rate(engine, times: int) -> float:
    """Bytes per second that the engine's store moves when ``times`` records are asked for at
    once."""
    store, slots = engine.store, engine.slots
    keys = [
        ExpertKey(n % len(engine.packed.layers), n % engine.packed.num_experts)
        for n in range(times)
    ]
    for _ in range(2):  # the first turn compares checksums
        began_s = time.perf_counter()
        for start in range(0, times, len(slots)):
            reads = [
                store.submit(key, slots[place])
                for place, key in enumerate(keys[start : start + len(slots)])
            ]
            for read in reads:
                read.wait()
        seconds = time.perf_counter() - began_s
    return times * store.record_bytes / seconds
