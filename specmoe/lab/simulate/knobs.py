"""Rows for the knobs: recordings replayed at several link rates, one row per method and setting.

Comes in: recordings made beforehand, a ``Hardware``. Goes out: the frame that ``figures.knobs`` and
``widgets.knobs`` take.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from ...errors import OptionError
from .hardware import Hardware
from .recording import Recording
from .replay import simulate
from .sizes import ModelSize

DRAFTING = ("specmoe", "auto")
KEEPING = (*DRAFTING, "cached")  # methods whose fast memory follows N


def knob_rows(
    recordings: Iterable[Recording] | Mapping[str, Iterable[Recording]],
    hardware: Hardware,
    links: Iterable[float] | None = None,
    size: ModelSize | None = None,
) -> pd.DataFrame:
    """One row per recording and link rate: model, method, batch, gamma, draft_experts, draft_set,
    link_bytes_per_s, fetched_bytes_per_token, tokens_per_round, tokens_per_second (simulated). A
    setting that a method does not have is nan.

    ``recordings``: of any methods; a mapping names the draft set of each group. ``links``: bytes
    per second (None: a quarter of ``hardware``'s rate to four times it). Raises ``OptionError``
    without recordings.
    """
    groups = recordings if isinstance(recordings, Mapping) else {None: recordings}
    links = (
        [hardware.link_bytes_per_s * 2.0**power for power in range(-2, 3)]
        if links is None
        else list(links)
    )
    rows = []
    for draft_set, runs in groups.items():
        for run in runs:
            if not isinstance(run, Recording):
                raise OptionError(
                    f"{type(run).__name__} is not a recording: make one with Recording.of(output, "
                    "engine.info)"
                )
            rows += [
                _row(run, replace(hardware, link_bytes_per_s=link), draft_set, size)
                for link in links
            ]
    if not rows:
        raise OptionError("there are no recordings: give at least one")
    return pd.DataFrame(rows)


def _row(run: Recording, hardware: Hardware, draft_set: str | None, size: ModelSize | None) -> dict:
    played = simulate(run, hardware, size)
    return {
        "model": run.info["name"],
        "method": run.method,
        "batch": run.batch,
        "gamma": int(run.gammas.max()) if run.method == "specmoe" else np.nan,
        "draft_experts": run.info["draft_experts"] if run.method in KEEPING else np.nan,
        "draft_set": draft_set if run.method in DRAFTING else None,
        "link_bytes_per_s": hardware.link_bytes_per_s,
        "fetched_bytes_per_token": played.fetched_bytes / played.num_new_tokens,
        "tokens_per_round": run.num_new_tokens / int(run.rows.sum()),
        "tokens_per_second": played.tokens_per_second,
    }
