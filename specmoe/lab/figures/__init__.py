"""Figures: a frame in, matplotlib ``Axes`` out.

``base`` holds what all share (colours, style, words), ``bench`` the figures of a bench, ``routing``,
``tokens``, ``pool`` and ``clock`` those of one run taken apart, ``machines`` what is calculated for
real ones. Notebooks and reports show them; a widget's still picture is one of them.
"""

from .acceptance import accept_or_reject
from .base import (
    METHOD_COLORS,
    ORDER,
    PART_NAMES,
    as_table,
    caption,
    show,
    show_bytes,
    show_number,
    size_unit,
)
from .bench import (
    bytes_per_token,
    expert_use,
    settings_map,
    throughput,
    time_shares,
    tokens_per_round,
)
from .choices import knobs, winners_map
from .clock import timeline
from .drafts import map_of_drafts, speeds_of_drafts
from .machines import speeds_on_machines
from .pool import pool_replay
from .routing import routing_map
from .tokens import round_steps
