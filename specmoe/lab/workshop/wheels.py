"""Which packages a machine of another kind needs, at the versions that are installed here.

Comes in: specmoe's wheel, a platform, a Python version. Goes out: pins such as ``numpy==2.4.1``.
Requirements are read with the markers of the *other* machine, which ``pip download`` does not do:
it would ask a Windows machine for what Linux needs.
"""

from __future__ import annotations

import importlib.metadata
import re
import zipfile
from collections.abc import Iterator
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path
from typing import NamedTuple

OURS, EXTRA = "specmoe", "notebooks"


class Platform(NamedTuple):
    """``tags`` as pip wants them, and the markers of such a machine."""

    tags: tuple[str, ...]
    markers: dict[str, str]


PLATFORMS = {
    "linux": Platform(
        tuple(f"manylinux_2_{minor}_x86_64" for minor in (35, 34, 31, 28, 27, 26, 24, 17, 12, 5))
        + ("manylinux2014_x86_64", "linux_x86_64"),
        {
            "sys_platform": "linux",
            "platform_system": "Linux",
            "os_name": "posix",
            "platform_machine": "x86_64",
        },
    ),
    "macos": Platform(
        ("macosx_14_0_arm64",),
        {
            "sys_platform": "darwin",
            "platform_system": "Darwin",
            "os_name": "posix",
            "platform_machine": "arm64",
        },
    ),
    "windows": Platform(
        ("win_amd64",),
        {
            "sys_platform": "win32",
            "platform_system": "Windows",
            "os_name": "nt",
            "platform_machine": "AMD64",
        },
    ),
}


def is_version(text: str) -> bool:
    return bool(re.fullmatch(r"3\.\d+", text))


def closure(wheel: Path, platform: str, python: str) -> list[str]:
    """Pins of all that ``specmoe[notebooks]`` needs there. What is not installed here, because only
    that system needs it, has no version."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    markers = PLATFORMS[platform].markers | {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    waiting = [(line, EXTRA) for line in _requirements_of(wheel)]
    pins: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    while waiting:
        line, extra = waiting.pop()
        wanted = Requirement(line)
        if wanted.marker and not wanted.marker.evaluate(markers | {"extra": extra}):
            continue
        name = canonicalize_name(wanted.name)
        if name == OURS:
            # specmoe[report] in specmoe[notebooks]: more of the wheel itself
            lines = list(_requirements_of(wheel))
        else:
            version, lines = _installed(name)
            pins[name] = _pin(name, version, platform)
        for more in ("", *wanted.extras):
            if (name, more) not in seen:
                seen.add((name, more))
                waiting += [(each, more) for each in lines]
    return sorted(pins.values())


def _pin(name: str, version: str | None, platform: str) -> str:
    """A version with a label such as ``+cpu`` is of this machine: elsewhere the same without it,
    and torch for Linux always without its GPU libraries."""
    if version is None:
        return name
    public = version.partition("+")[0]
    label = "+cpu" if (name, platform) == ("torch", "linux") else ""
    return f"{name}=={public}{label}"


def _installed(name: str) -> tuple[str | None, list[str]]:
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None, []
    return found.version, found.requires or []


def first_patch(shelf: Path, python: str, last: int) -> int:
    """The first patch of Python ``python`` that all wheels of ``shelf`` take: 5 for 3.11.5. They
    take ``last``, for which they were downloaded."""
    from packaging.specifiers import SpecifierSet

    texts = [_metadata(path)["Requires-Python"] for path in shelf.glob("*.whl")]
    wanted = [SpecifierSet(text) for text in texts if text]
    fitting = (p for p in range(last) if all(f"{python}.{p}" in one for one in wanted))
    return next(fitting, last)


def _requirements_of(wheel: Path) -> Iterator[str]:
    yield from _metadata(wheel).get_all("Requires-Dist") or ()


def _metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        name = next(one for one in archive.namelist() if one.endswith(".dist-info/METADATA"))
        return HeaderParser().parsestr(archive.read(name).decode("utf-8"))
