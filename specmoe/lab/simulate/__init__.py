"""The simulator: a recorded run replayed on described hardware, at its own size or another's.
Nothing is measured here.

Comes in: a ``Recording`` (of any run's trace; ``recordings()`` gives those that come with the
package), a ``Hardware``, a ``ModelSize``. Goes out: ``Simulated`` (seconds, bytes, waits), the
frame of the map of winners, a ``Plan``. ``probe_machine`` and ``fit_machine`` describe this machine;
``clock`` compares with its clock.
"""

from __future__ import annotations

from .expectation import Expectation, counts_at, expect, expectations
from .hardware import PRESETS, Hardware, preset
from .machine import fit_machine
from .maps import knob_rows, winners
from .plan import Plan, plan
from .probe import probe_machine
from .real_models import PAPER_SIZES, RealModel, known_models, size_of
from .recording import Recording
from .replay import Simulated, simulate
from .shipped import recordings
from .sizes import ModelSize
