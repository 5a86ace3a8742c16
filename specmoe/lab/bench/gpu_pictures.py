"""The figure of ``gpu.py``: speed of every method by batch. Needs seaborn; ``gpu`` does without
where it is missing.

Comes in: a part "speed <model>" of ``gpu.json``. Goes out: PNG bytes.
"""

from __future__ import annotations

import matplotlib.pyplot as plt

from ..figures.base import METHOD_COLORS, styled
from .pictures import png


@styled
def speed_figure(part: dict, model: str, device: str) -> bytes:
    """Tokens per second by batch, one line for each method, both axes logarithmic."""
    figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
    for name, color in METHOD_COLORS.items():
        points = sorted(
            (row["batch"], row["tokens_per_second"])
            for row in part["rows"]
            if row["method"] == name
        )
        if points:
            axis.plot(*zip(*points), "o-", color=color, label=name)
    shown = sorted({row["batch"] for row in part["rows"]})
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(shown, [str(batch) for batch in shown])
    axis.set_xlabel("batch (rows in flight)")
    axis.set_ylabel("tokens per second")
    size = part["info"]["record_bytes"] / 2**20
    axis.set_title(f"{model}, experts of {size:.4g} MiB in host memory, on {device}", loc="left")
    axis.legend(frameon=False)
    return png(figure)
