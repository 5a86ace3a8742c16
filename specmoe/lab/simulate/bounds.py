"""What no schedule can beat on a machine.

Comes in: a ``Recording``, a ``Hardware``, a ``ModelSize``. Goes out: seconds.
"""

from __future__ import annotations

import numpy as np

from .hardware import Hardware
from .recording import Recording
from .sizes import ModelSize


def floor_seconds(recording: Recording, hardware: Hardware, size: ModelSize | None = None) -> float:
    """max(bytes / link, FLOP / rate) of all decoding reads and all passes: no overhead, no latency,
    perfect overlap."""
    recorded = recording.experts.shape[1]
    own = ModelSize.of(recording.info)
    size = size or own
    num_layers = recorded if size == own else size.num_layers
    layers = np.arange(num_layers) * recorded // num_layers
    reads = (recording.fetches + recording.prefetches)[:, layers].sum()
    drafted = recording.drafting.sum()
    routed = recording.pairs[:, layers].sum() + drafted * size.top_k * num_layers
    trunk = (recording.live.sum() + drafted) * size.trunk_flops_per_token
    flop_s = (trunk + routed * size.expert_flops_per_token) / hardware.flop_per_s
    return float(max(reads * size.expert_bytes / hardware.link_bytes_per_s, flop_s))
