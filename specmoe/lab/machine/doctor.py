"""What this machine can do: versions, devices, memory, and short measurements of disk, arithmetic
and copies.

Comes in: a folder to measure the disk in, and how large an expert record is. Goes out: one plain
``dict`` (JSON as it is), which ``specmoe doctor`` prints and ``bench`` keeps beside its rows. A
probe that fails becomes ``{"failed": reason}``; the others still run. Nothing here touches the
network unless ``hub=True``.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sysconfig
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from ...errors import one_line, path_of
from ...options import parse_bytes
from ..words import show_bytes
from . import probes

RECORD_BYTES = 3 * 2**20
HUB_TIMEOUT_S = 3.0


def examine(
    quick: bool = True,
    directory: str | os.PathLike | None = None,
    record_bytes: int | str | None = None,
    hub: bool = False,
) -> dict:
    """Everything: ``describe()`` and the measurements; a few seconds when ``quick``, some ten
    otherwise.

    The disk is measured in ``directory`` (default: the folder for packed experts) with a temporary
    file.
    """
    seconds = 0.3 if quick else 1.5
    file_bytes = 2**28 if quick else 2**30
    record_bytes = parse_bytes("record_bytes", record_bytes) or RECORD_BYTES
    folder = None if directory is None else path_of(directory, "a folder")
    found = describe()
    found["disk"] = _try(
        lambda: probes.disk_rates(folder or cache_folder(), file_bytes, record_bytes, seconds)
    )
    found["compute"] = _try(lambda: probes.compute_rates(seconds))
    found["memory_copy"] = _try(lambda: probes.memory_copy_rate(seconds))
    if any(device["device"] != "cpu" for device in found["devices"]):
        found["cuda_compute"] = _try(lambda: probes.compute_rates(seconds, "cuda", 8192))
        found["cuda_copy"] = _try(lambda: probes.cuda_copy_rates(seconds))
    found["balance"] = _try(lambda: balance(found))
    found["hub"] = _try(lambda: hub_settings(probe=hub))
    return found


def describe() -> dict:
    """What can be said without measuring: versions, processor, devices, memory, compiler."""
    found = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "os": platform.platform(),
        "kernel": " ".join(platform.uname()[i] for i in (0, 2, 4)),
        "python": platform.python_version(),
        "cpu": _try(cpu_model),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory": _try(memory_bytes),
        "compiler": _try(compiler),
    }
    for package in ("specmoe", "torch", "transformers"):
        found[package] = _try(lambda name=package: importlib.metadata.version(name))
    seen = _try(devices_and_threads)
    return {
        **found,
        **({"threads": seen, "devices": [{"device": "cpu"}]} if "failed" in seen else seen),
    }


def _try(probe: Callable):
    """What the probe says, or why it could not: a doctor does not die of what it finds."""
    try:
        return probe()
    except Exception as failure:  # any failure at all is a finding
        return {"failed": one_line(f"{type(failure).__name__}: {failure}")}


def cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.lower().startswith(("model name", "cpu model")):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def memory_bytes() -> dict:
    """Total and available memory of the machine, and this process's limit where a control group
    sets one."""
    info = Path("/proc/meminfo")
    if info.exists():
        kib = {line.split(":")[0]: int(line.split()[1]) for line in info.read_text().splitlines()}
        wanted = {"total_bytes": "MemTotal", "available_bytes": "MemAvailable"}
        found = {name: 1024 * kib[line] for name, line in wanted.items()}
    else:
        found = {"total_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")}
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        limit = Path("/sys/fs/cgroup") / name
        text = limit.read_text().strip() if limit.exists() else ""
        if text.isdigit() and int(text) < found["total_bytes"]:
            found["limit_bytes"] = int(text)
    return found


def devices_and_threads() -> dict:
    import torch

    devices: list[dict] = [{"device": "cpu"}]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        about = {"name": properties.name, "memory_bytes": properties.total_memory}
        devices.append({"device": f"cuda:{index}", **about})
    return {"devices": devices, "threads": torch.get_num_threads()}


def compiler() -> dict:
    """Whether ``compile=True`` can work: a C++ compiler and Python's headers."""
    wanted = [os.environ.get("CXX"), "g++", "clang++", "c++"]
    path = next((shutil.which(name) for name in wanted if name and shutil.which(name)), None)
    headers = (Path(sysconfig.get_paths()["include"]) / "Python.h").exists()
    return {"compiler": path, "python_headers": headers, "can_compile": bool(path and headers)}


def cache_folder() -> Path:
    """Where packed experts are kept unless told otherwise."""
    from ... import checkpoint

    return Path(checkpoint.cache_folder())


def balance(found: dict) -> dict:
    """FLOP the device does while a byte crosses the link: far above a run's own ratio, the link
    decides."""
    for name in ("disk", "compute"):
        if "failed" in found[name]:
            raise RuntimeError(f"needs the {name} probe, which failed")
    link = max(found["disk"]["random_bytes_per_s"].values())
    ratios = {"link_bytes_per_s": link} | _ratios("", found["compute"], link)
    cuda = [found.get(name, {"failed": ""}) for name in ("cuda_compute", "cuda_copy")]
    if not any("failed" in part for part in cuda):
        ratios |= _ratios("cuda_", found["cuda_compute"], found["cuda_copy"]["pinned_bytes_per_s"])
    return ratios


def _ratios(prefix: str, rates: dict, link: float) -> dict:
    names = ("fp32", "bf16")
    return {f"{prefix}{name}_flop_per_byte": rates[f"{name}_flop_per_s"] / link for name in names}


# Hub


def hub_settings(probe: bool = False) -> dict:
    """Where Hugging Face files are kept, whether the hub may be asked; ``probe`` asks it, for 3 s
    at most."""
    from huggingface_hub import constants

    found = {"offline": constants.HF_HUB_OFFLINE, "cache_folder": constants.HF_HUB_CACHE}
    if probe:
        found["reachable"] = _try(_reach_hub)
    return found


def _reach_hub() -> bool:
    from huggingface_hub import constants

    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=HUB_TIMEOUT_S).close()
    except urllib.error.HTTPError:  # it answered, if only to complain
        pass
    return True


# For people


def to_table(found: dict) -> str:
    """The report as aligned lines, ``disk.sequential_bytes_per_s   912 MB/s``."""
    rows = [(name, readable(name, value)) for name, value in _flat(found)]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _flat(value, prefix: str = "") -> list[tuple[str, object]]:
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, list):
        pairs = enumerate(value)
    else:
        return [(prefix, value)]
    return [
        leaf
        for key, inner in pairs
        for leaf in _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    ]


def readable(name: str, value) -> str:
    """A value with the unit its name says."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    if not isinstance(value, int | float):
        return one_line(value)
    for ending, scale, unit in (
        ("flop_per_s", 1e9, "GFLOP/s"),
        ("flop_per_byte", 1, "FLOP/byte"),
        ("latency_s", 1e-3, "ms"),
    ):
        if name.endswith(ending):
            return f"{value / scale:.4g} {unit}"
    if "bytes_per_s" in name:
        return f"{value / 1e6:.0f} MB/s"
    return show_bytes(value) if name.endswith("_bytes") else f"{value:g}"
