"""A number in words, and a table: the one place that says how reports, figures, pages and commands
write one.

What is read back, ``"64MiB"`` as an option, is ``options.parse_bytes``."""

from __future__ import annotations

from collections.abc import Iterable

SIZES = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B"))


def size_unit(num_bytes: float) -> tuple[int, str]:
    """The largest unit that leaves at least 1 of it: ``(1048576, "MiB")``."""
    return next((unit for unit in SIZES if num_bytes >= unit[0]), SIZES[-1])


def show_bytes(num_bytes: float) -> str:
    """``"1.5 MiB"``."""
    unit, name = size_unit(num_bytes)
    return f"{show_number(num_bytes / unit)} {name}"


def show_number(value: float) -> str:
    """Three digits that count, never an exponent: ``1234``, ``41.3``, ``0.052``."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def markdown_rows(head: Iterable, rows: Iterable[Iterable]) -> str:
    """A table as Markdown."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
