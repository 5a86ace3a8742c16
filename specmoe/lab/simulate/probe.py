"""Probes of this machine through an engine's own parts; none of them times a method.

Comes in: an engine. Goes out: ``probe_machine``'s dict of timings (medians), which
``machine.fit_machine`` reads:

========  ==========================================================================================
reads     [records, seconds]: a burst of reads from the engine's store, until all have landed
passes    [rows, tokens per row, positions, seconds]: a verification with the experts left out, and
          its verdicts
steps     [rows, positions, seconds]: one draft step with the experts left out
resident  [experts, pairs, seconds]: a MoE layer in target mode, every expert resident
draft     [tokens, seconds]: a MoE layer in draft mode, with as many residents as the engine has
waves     [experts, pairs, read, seconds, wait]: a MoE layer of which nothing is resident, in a
          synchronous pool (on_demand)
stream    the same in pools that compute experts as they arrive; of some cases a part is resident
          (all other methods)
guess     [tokens, seconds]: the next layer's router asked what to read (overlapped)
keep      [seconds]: choosing which experts a layer keeps (cached, specmoe)
prepare   [seconds]: what comes before a round's first draft step: the tables of stand-ins
========  ==========================================================================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import OptionError
from .sizes import ModelSize

if TYPE_CHECKING:
    from ...engine.engine import Engine

PASSES = ("passes", "steps")
PARTS = "reads passes steps resident draft waves stream guess keep prepare".split()


def probe_machine(engine: Engine, prompt=None, repeats: int = 5) -> dict:
    """Every probe of the table above; seconds. ``prompt``: one of the job's, for an encoder-decoder
    its source, whose length its cross-attention looks at. Takes a few seconds; leaves the engine as
    it was."""
    if engine.is_translation and prompt is None:
        raise OptionError(
            "the probes of an encoder-decoder need a source to attend to: give "
            "probe_machine(engine, prompt)"
        )
    import torch

    from .probe_layers import LayerProber
    from .probe_passes import PassProber

    engine.check_open()
    layers, passes = LayerProber(engine, prompt, repeats), PassProber(engine, prompt, repeats)
    with torch.inference_mode():
        layers.read_all()
        found = {name: getattr(passes if name in PASSES else layers, name)() for name in PARTS}
    return found | {
        "record_bytes": engine.store.record_bytes,
        "num_readers": engine.store.num_readers,
        "model": engine.info["name"],
        "expert_flops_per_token": ModelSize.of(engine).expert_flops_per_token,
    }
