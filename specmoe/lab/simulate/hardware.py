"""A machine in a few numbers: its link, arithmetic, memory and overheads.

Comes in: rates from a data sheet or from probes. Goes out: a checked, frozen ``Hardware``.
``replay`` calls next.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from ...errors import OptionError, nearest
from .costs import Probed
from .engine_parts import EngineParts


@dataclass(frozen=True)
class Hardware:
    """Rates per second, overheads in seconds. ``OptionError`` when a rate is missing, zero or
    negative."""

    name: str
    # slow to fast memory; None of any rate: missing, and refused
    link_bytes_per_s: float | None = None
    link_latency_s: float | None = None  # before the first byte of a burst of reads
    flop_per_s: float | None = None
    memory_bytes_per_s: float | None = None  # of the fast memory
    step_overhead_s: float = 0.0  # of one forward pass, whatever its size
    layer_overhead_s: float = 0.0  # of one MoE layer in a pass
    expert_overhead_s: float = 0.0  # of one expert computed
    num_readers: int = 4  # reads of one wave (on_demand waits for a wave)
    # probed seconds of one model's parts, for replays of that model at its own size
    parts: Probed | None = None
    source: str = ""
    fast_memory_bytes: float = 0  # its size; 0: not said
    # what the engine's own parts take here with experts of a model's size, for ``expect``
    engine: EngineParts | None = field(default=None, repr=False)

    def __post_init__(self):
        for name in ("link_bytes_per_s", "flop_per_s", "memory_bytes_per_s", "num_readers"):
            if not is_number(getattr(self, name)) or getattr(self, name) <= 0:
                raise OptionError(
                    f"{name}={getattr(self, name)!r} of hardware {self.name!r} must "
                    "be a number above zero"
                )
        for name in ("link_latency_s", "step_overhead_s", "layer_overhead_s", "expert_overhead_s"):
            if not is_number(getattr(self, name)) or getattr(self, name) < 0:
                raise OptionError(
                    f"{name}={getattr(self, name)!r} of hardware {self.name!r} must "
                    "be zero or more seconds"
                )

    @property
    def balance(self) -> float:
        """FLOP computed while the link moves one byte."""
        return self.flop_per_s / self.link_bytes_per_s

    @property
    def is_unified(self) -> bool:
        """Slow and fast memory are one: nothing has to cross a link."""
        return self.link_bytes_per_s >= self.memory_bytes_per_s


def is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# Peaks of data sheets times the share that large transfers and products reach: assumptions, not
# measurements.
LINK_SHARE, COMPUTE_SHARE, MEMORY_SHARE = 0.85, 0.5, 0.8
_ASSUMED = (
    f"; assumed: {LINK_SHARE:.0%} (link), {COMPUTE_SHARE:.0%} (FLOP) and {MEMORY_SHARE:.0%} "
    "(memory) of these peaks, "
    "latencies, overheads"
)
_HOPPER = (
    "https://glennklockwood.com/garden/processors/h100 (BF16 989 TFLOP/s, HBM3 3.35 TB/s, PCIe "
    "Gen5 128 GB/s both ways)"
)
_H200 = (
    "https://aiwiki.ai/wiki/nvidia_h200 (141 GB HBM3e, 4.8 TB/s, computes as an H100); " + _HOPPER
)
_ADA = (
    "https://holynerdvana.blogspot.com/2022/10/nvidia-geforce-rtx-4090-specifications.html (1008 "
    "GB/s); "
    "https://gist.github.com/mikasenghaas/d63ded03f1f0417b1677627119bacc0d (165 TFLOP/s dense "
    "bf16); PCIe 4.0 x16: 32 GB/s, "
    "from memory"
)
_NVME = (
    "https://www.slashcam.com/news/single/Samsung-990-PRO--New-NVMe-SSD-top-model-reaches-th-17407.html (7450 MB/s, in "
    "practice about 7 GB/s on PCIe 4.0 x4)"
)

_SATA = "https://www.tomshardware.com/uk/news/samsung-announces-870-evo (560 MB/s sequential read)"
_PCIE = (
    "https://hpc-notes.pages.dev/reference/pcie (x16, one way: 15.7 GB/s with 3.0, 31.5 with 4.0, "
    "63 with 5.0)"
)
_LAPTOP = "2 TFLOP/s, two channels of DDR5-5300 (85 GB/s) and 32 GB are assumed, no source"
_M4 = (
    "https://www.notebookcheck.net/Apple-M4-Max-official-with-incremental-upgrades-over-the-M3-Max."
    "911098.0.html (546 GB/s, up to 128 GB; 34 TFLOP/s are assumed, no source)"
)


def _sheet(name: str, rates: tuple, step_s: float, source: str, gigabytes: float) -> Hardware:
    """From peak numbers, ``rates``: of the link (bytes/s, s of latency), FLOP/s, of the memory
    (bytes/s). Overheads are assumed: 20 us per MoE layer, 10 us per expert, as small kernel
    launches take. ``gigabytes``: of fast memory."""
    link, latency_s, flop, memory = rates
    rates = (link * LINK_SHARE, latency_s, flop * COMPUTE_SHARE, memory * MEMORY_SHARE)
    size = {"fast_memory_bytes": gigabytes * 1e9}
    return Hardware(name, *rates, step_s, 2e-5, 1e-5, source=source + _ASSUMED, **size)


# Peaks of (FLOP/s, bytes/s of memory).
_H100, _RTX_4090, _CPU = (989e12, 3.35e12), (165e12, 1.008e12), (2e12, 8.5e10)
_GPU_24 = "24 GB consumer GPU (RTX 4090)"
_SXM = "those are of the 80 GB SXM part, no sheet of a 96 GB part was found"
# NVIDIA's own data sheets could not be reached when this was written; the pages named repeat their
# numbers. Name, rates, seconds of a step, source, GB.
_SHEETS = {
    "h100": (
        "H100 96 GB, PCIe 5.0 x16 (the paper's)",
        (64e9, 1e-5, *_H100),
        1e-3,
        f"{_HOPPER}; {_SXM}",
        96,
    ),
    "h200": ("H200 141 GB, PCIe 5.0 x16", (64e9, 1e-5, 989e12, 4.8e12), 1e-3, _H200, 141),
    "consumer": (f"{_GPU_24}, PCIe 4.0 x16", (32e9, 1e-5, *_RTX_4090), 1e-3, _ADA, 24),
    "pcie3": (f"{_GPU_24}, PCIe 3.0 x16", (16e9, 1e-5, *_RTX_4090), 1e-3, f"{_PCIE}; {_ADA}", 24),
    "laptop": ("laptop CPU, NVMe PCIe 4.0", (7e9, 1e-4, *_CPU), 2e-3, f"{_NVME}; {_LAPTOP}", 32),
    "laptop-sata": ("laptop CPU, SATA SSD", (5.6e8, 1e-4, *_CPU), 2e-3, f"{_SATA}; {_LAPTOP}", 32),
    "unified": ("laptop with unified memory (M4 Max)", (1, 0, 34e12, 5.46e11), 2e-3, _M4, 128),
    "h100-ssd": (
        "H100 96 GB, experts on one NVMe SSD",
        (7e9, 1e-4, *_H100),
        1e-3,
        f"{_NVME}; {_HOPPER}",
        96,
    ),
}
PRESETS = {name: _sheet(*sheet) for name, sheet in _SHEETS.items()}
# Where memory is unified, its link is its memory.
_memory = PRESETS["unified"].memory_bytes_per_s
PRESETS["unified"] = replace(PRESETS["unified"], link_bytes_per_s=_memory)


def preset(name: str) -> Hardware:
    """The preset ``name``; ``OptionError`` names the nearest."""
    if name not in PRESETS:
        raise OptionError(f"hardware preset {name!r} is unknown: {nearest(name, PRESETS)}")
    return PRESETS[name]
