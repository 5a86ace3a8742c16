"""Widgets: one call each on a run's output, with sliders that replay or simulate.

Each has a static twin of nearly the same name in ``specmoe.lab.figures``, which is also what a page
without widgets shows. This folder alone imports anywidget (``pip install specmoe[notebooks]``).
"""

from .base import Live
from .choices import accept_or_reject, knobs, winners_map
from .mechanisms import pool_replay, round_stepper, routing_explorer, timeline
