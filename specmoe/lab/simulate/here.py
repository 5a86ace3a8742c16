"""The machine of a plan: a described one, or this one by short probes: its rates, and what the
engine's own parts take on a cut of the model."""

from __future__ import annotations

from dataclasses import replace

from ...errors import CheckpointError
from .engine_parts import probe_parts
from .hardware import Hardware, preset

DESCRIBED = ("memory_bytes_per_s", "flop_per_s")  # with these given it is another machine


def machine_of(
    machine: Hardware | str | None, rates: dict[str, float], record_bytes: int, config
) -> Hardware:
    """A described machine, or this one; ``rates`` stand in place of its own, and what they say is
    not probed. ``config``: of the model, or its name if it is a shipped one."""
    if machine is None:
        here = this_machine(record_bytes, rates)
        described = any(name in rates for name in DESCRIBED)
        return here if described else replace(here, engine=probe_parts(config))
    machine = preset(machine) if isinstance(machine, str) else machine
    return replace(machine, name=_changed(machine.name, rates), **rates)


def _changed(name: str, rates: dict[str, float]) -> str:
    return f"{name}, with given rates" if rates else name


def this_machine(record_bytes: int, rates: dict[str, float]) -> Hardware:
    """Short probes, a few seconds: the disk of the packed copies, memory, fp32 products."""
    from ..machine import doctor, probes

    def link() -> float:
        found = probes.disk_rates(doctor.cache_folder(), 2**28, record_bytes, 0.3)
        return max(found["random_bytes_per_s"].values())

    def memory() -> float:
        # each byte copied is read once and written once
        return 2 * probes.memory_copy_rate(0.3)["bytes_per_s"]

    known = {
        "link_bytes_per_s": link,
        "memory_bytes_per_s": memory,
        "flop_per_s": lambda: probes.compute_rates(0.3)["fp32_flop_per_s"],
    }
    try:
        found = {name: rates[name] if name in rates else probe() for name, probe in known.items()}
    except OSError as failure:
        remedy = "give its rate as link_bytes_per_s (--link), or a machine by name"
        raise CheckpointError(f"the disk could not be probed ({failure}): {remedy}") from None
    holds = doctor.memory_bytes()
    found["fast_memory_bytes"] = min(
        holds.get(name, holds["total_bytes"]) for name in ("available_bytes", "limit_bytes")
    )
    name = _changed("this machine", rates)
    return Hardware(name, link_latency_s=0.0, **found, source="short probes of this machine")
