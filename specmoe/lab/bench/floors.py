"""What the hardware allows a window that was measured: ``lab.floor`` of its own counts, per token;
and drafting before the reads that nobody can ask for earlier.

Comes in: the sums of a window, the facts of its model, the probes of the machine. Goes out: seconds
per token that no implementation of this method with these counts could beat here. ``cells`` and
``gpu_numbers`` call this.

FLOPs are those of linear layers: 2 per weight and token, the trunk's once, an expert's for each of
``top_k``; widened experts count with all their columns, because all are computed. Attention scores,
norms and routing tables are left out. Drafted tokens may be computed in the experts' own dtype and
with one expert for each layer, verified ones are in fp32 with all.

Weights touched are, for every pass, the trunk and the distinct experts that it asked for, as they are
stored; of a draft step, which nobody counted, one expert for each layer. So the floor is a little
too low, never too high.

A round drafts, then verifies, and while it drafts only what it prefetches can cross the link: into
slots that hold nothing else. So drafting adds to the reads on demand; it does not hide behind
them."""

from __future__ import annotations

from torch import nn

from ..floor import Rates
from ..floor import floor as least

# keys and values of a source are made in prefill
ENCODED_ONCE = ("encoder_attn.k_proj", "encoder_attn.v_proj")


def flops_per_token(engine) -> dict:
    """FLOPs of one token in one decoding step, of all layers: of the trunk, of its experts."""
    trunk = 0
    for name, module in engine.model.named_modules():
        encoder = ".encoder." in f".{name}." or any(part in name for part in ENCODED_ONCE)
        if isinstance(module, nn.Linear) and not module.weight.is_meta and not encoder:
            trunk += 2 * module.weight.numel()
    elements = engine.packed.layout.elements
    return {
        "trunk": trunk,
        "experts": 2 * elements * engine.info["top_k"] * engine.memory.num_layers,
    }


def facts(engine) -> dict:
    """What the floors need to know of a loaded model, beside ``engine.info``."""
    return dict(engine.info) | {
        "flops_per_token": flops_per_token(engine),
        "decoding_layers": engine.memory.num_layers,
    }


def link_rate(row_link: float | None, probe: dict) -> float:
    """Bytes per second: the rate that was set; else the best that the probe saw with any number of
    readers, or that a run reached: disks drift, and a floor may be too low, never too high."""
    if row_link:
        return row_link
    seen = (probe["sequential_bytes_per_s"], probe.get("reached_bytes_per_s", 0.0))
    return max([*probe["random_bytes_per_s"].values(), *seen])


def floor(sums: dict, model: dict, probe: dict, link_bytes_per_s: float | None) -> dict:
    """Seconds per token at least: of each resource, if they overlapped for ever, and with drafting
    first. A probe without the memory's rate leaves weights touched out."""
    tokens = max(1, sums["num_new_tokens"])
    trunk, experts = model["flops_per_token"]["trunk"], model["flops_per_token"]["experts"]
    fp32 = probe["fp32_flop_per_s"]
    fastest = max(fp32, probe["bf16_flop_per_s"])
    verified_s = (trunk + experts) * (sums["row_rounds"] + sums["num_drafted"]) / fp32
    drafted_s = (trunk + experts / model["top_k"]) * sums["num_drafted"] / fastest
    rates = Rates(
        link_rate(link_bytes_per_s, probe),
        fp32,
        probe.get("memory_bytes_per_s"),
        probe.get("cache_bytes", 0),
    )
    touched, passes = touched_bytes(sums, model)
    found = least(sums["fetched_bytes"], (verified_s + drafted_s) * fp32, touched, rates, passes)
    ahead_s = sums["num_prefetches"] * model["record_bytes"] / rates.link_bytes
    in_turn_s = drafted_s + max(found.link_s - ahead_s, verified_s)
    return {
        "link_s": found.link_s / tokens,
        "compute_s": found.compute_s / tokens,
        "memory_s": found.memory_s / tokens,
        "floor_s": max(found.seconds, in_turn_s) / tokens,
        "limit": found.limit,
    }


def touched_bytes(sums: dict, model: dict) -> tuple[float, float]:
    """Bytes of weights that the passes of a window touched, each pass its own, and how many passes
    there were."""
    steps = sums["num_steps"]
    passes = sums["num_rounds"] + steps
    experts = sums["num_hits"] + sums["num_misses"] + steps * model["decoding_layers"]
    weights = model["flops_per_token"]["trunk"] / 2
    weight_bytes = 4 if model["dtype"] == "float32" else 2
    # large matrices may be held in fewer bytes than the dtype says
    if "trunk_weights" in model:
        weight_bytes = model["trunk_bytes"] / model["trunk_weights"]
    return passes * weights * weight_bytes + experts * model["record_bytes"], passes
