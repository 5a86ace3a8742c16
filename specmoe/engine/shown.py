"""How what a user holds shows itself: in a line, and in a notebook as a table.

Comes in: a dict of facts. Goes out: text and HTML. ``Engine``, ``Run``, ``Output`` and ``Stats``
stand on ``Shown``.
"""

from __future__ import annotations

import html
from typing import Any

IN_A_LINE = 6  # facts of a repr


def show(value: Any) -> str:
    """A number for people."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


class Shown:
    """Shows its ``info``, the first of it first."""

    @property
    def info(self) -> dict[str, Any]:
        raise NotImplementedError

    def __repr__(self) -> str:
        facts = list(self.info.items())[:IN_A_LINE]
        return f"{type(self).__name__}({', '.join(f'{name}={show(fact)}' for name, fact in facts)})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td style='text-align:left'>{html.escape(name)}</td><td "
            f"style='text-align:right'>{html.escape(show(fact))}</td></tr>"
            for name, fact in self.info.items()
        )
        head = f"<thead><tr><th>{type(self).__name__.lower()}</th><th>value</th></tr></thead>"
        return f"<table>{head}<tbody>{rows}</tbody></table>"
