"""The simulator: a recorded run replayed on described hardware, at its own size or another's.
Nothing is measured here.

Comes in: a ``Recording`` (of any run's trace; ``recordings()`` gives those that come with the
package), a ``Hardware``, a ``ModelSize``. Goes out: ``Simulated`` (seconds, bytes, waits), the
frame of the map of winners, bounds. ``probe_machine`` and ``fit_machine`` describe this machine;
``clock`` compares with its clock.
"""

from __future__ import annotations

from .bounds import floor_seconds
from .hardware import PRESETS, Hardware, preset
from .knobs import knob_rows
from .machine import fit_machine
from .probe import probe_machine
from .recording import Recording
from .replay import Simulated, simulate
from .shipped import recordings
from .sizes import PAPER_SIZES, ModelSize
from .winners import winners

__all__ = [
    "PAPER_SIZES",
    "PRESETS",
    "Hardware",
    "ModelSize",
    "Recording",
    "Simulated",
    "fit_machine",
    "floor_seconds",
    "knob_rows",
    "preset",
    "probe_machine",
    "recordings",
    "simulate",
    "winners",
]
