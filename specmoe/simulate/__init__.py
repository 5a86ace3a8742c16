"""The simulator: a recorded run replayed on described hardware, at its own size or another's. Nothing is measured here.

Comes in: a ``Recording`` (of any run's trace), a ``Hardware``, a ``ModelSize``. Goes out: ``Simulated`` (seconds, bytes,
waits), the frame of the map of winners, bounds. ``fit_machine`` describes this machine from probes;
``clock`` compares with its clock.
"""

from __future__ import annotations

from .bounds import floor_seconds
from .hardware import PRESETS, Hardware, preset
from .knobs import knob_rows
from .machine import fit_machine, probe_machine
from .recording import Recording
from .replay import Simulated, simulate
from .sizes import PAPER_SIZES, ModelSize
from .winners import winners

__all__ = [
    "PAPER_SIZES", "PRESETS", "Hardware", "ModelSize", "Recording", "Simulated", "fit_machine", "floor_seconds", "knob_rows",
    "preset", "probe_machine", "simulate", "winners",
]  # fmt: skip
