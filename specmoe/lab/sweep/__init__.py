"""Sweeps: many settings, one run each, on this machine or on a cluster.

Comes in: a grid (option -> values), and an executor that runs functions. Goes out: one JSON line
for each setting as it finishes, and a frame of all. ``specmoe.sweep`` and ``cli`` call this.
"""

from __future__ import annotations

from .grid import MOST, key_of, read_grid, settings_of
from .run import measure, sweep

__all__ = ["MOST", "key_of", "measure", "read_grid", "settings_of", "sweep"]
