"""The draft: how well its routers foretell the full model's experts, and what one step does.

Comes in: a run's routing, or an engine and prompts. Goes out: small frames.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import torch

from ...errors import OptionError

if TYPE_CHECKING:
    from ...engine.engine import Engine
    from ..routing import Routing


def draft_foresight(routing: Routing) -> pd.DataFrame:
    """How well the draft's routers foretell the full model's experts, by layer: named (expert,
    round) pairs, needed ones, both, recall = both / needed, precision = both / named. Only tokens
    of the final text, see ``Routing``.
    """
    picks = routing.picks
    drafted = picks[picks["step"] == "draft"]
    verified = picks[(picks["step"] == "target") & picks["round"].isin(drafted["round"].unique())]
    rows = []
    for layer in range(routing.num_layers):
        named, needed = (
            {*zip(part["round"], part["expert"])}
            for part in (drafted[drafted["layer"] == layer], verified[verified["layer"] == layer])
        )
        both = len(named & needed)
        rows.append(
            (
                layer,
                len(named),
                len(needed),
                both,
                both / max(1, len(needed)),
                both / max(1, len(named)),
            )
        )
    return pd.DataFrame(
        rows, columns=["layer", "named", "needed", "both", "recall", "precision"]
    ).set_index("layer")


class _Profiled:
    """A decoder that profiles draft step number ``step``."""

    def __init__(self, decoder, trace, step: int):
        self.decoder = decoder
        self.trace = trace
        self.step = step
        self.seen = 0
        self.profile = None

    def __getattr__(self, name: str):
        return getattr(self.decoder, name)

    def forward(self, tokens: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
        self.seen += self.trace.phase == "draft"
        if self.trace.phase != "draft" or self.seen != self.step:
            return self.decoder.forward(tokens, starts)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            logits = self.decoder.forward(tokens, starts)
        self.profile = profile
        return logits


def profile_draft_step(engine: Engine, prompts, step: int = 8, **options) -> pd.DataFrame:
    """torch.profiler over one draft step: a row per operator, calls, own milliseconds on the CPU,
    share of the step.

    ``step``: which one (the first ones warm up). ``options`` are those of ``Engine.generate``,
    method specmoe. Raises ``OptionError`` if fewer steps were drafted.
    """
    with engine.start(prompts, method="specmoe", **options) as run:
        run.batch.decoder = watched = _Profiled(run.batch.decoder, run.batch.trace, step)
        for _ in run:
            if watched.profile is not None:
                break
    if watched.profile is None:
        raise OptionError(f"step={step} was not reached: {watched.seen} draft steps ran")
    rows = [
        (event.key, event.count, event.self_cpu_time_total / 1e3)
        for event in watched.profile.key_averages()
    ]
    table = pd.DataFrame(rows, columns=["operator", "calls", "own_ms"]).sort_values(
        "own_ms", ascending=False
    )
    table["share"] = table["own_ms"] / table["own_ms"].sum()
    return table.set_index("operator")
