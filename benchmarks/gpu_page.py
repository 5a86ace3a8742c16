"""The GPU's section of the performance page, from ``results/gpu.json`` (written by ``gpu.py``).

Comes in: the content of that file, or None. Goes out: Markdown.
"""

from __future__ import annotations

UNPROVEN = (
    "**The CUDA path is proven on CPU only.** `benchmarks/gpu.py` runs in the tests, small, on a CPU; it has not run on a"
    " GPU yet, so there is no number of a GPU on this page. On a machine with one: `python -m benchmarks.gpu`."
)


def gpu_section(content: dict | None) -> str:
    """What the GPU script found, or that it has not run on one."""
    return f"## On a GPU\n\n{UNPROVEN}"
