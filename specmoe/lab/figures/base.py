"""What all figures share: colours, style, panels by batch.

A method has one colour everywhere, from seaborn's colour-blind palette. Styles live in a context,
so nobody's own settings change. Figures by batch have one panel per batch, all on one scale: equal
lengths are equal numbers. Where batches are so far apart that no scale fits them all, each panel has
its own and the figure says so. Give ``ax`` one ``Axes`` per batch to draw into a figure of your own.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterable, Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from ...errors import OptionError, check_choice
from ...options import METHODS
from ..words import show_bytes, show_number, size_unit  # noqa: F401 - figures say numbers so, too

COLORS = sns.color_palette("colorblind")
METHOD_COLORS = {  # in the order of every figure, top to bottom
    "on_demand": COLORS[7],
    "overlapped": COLORS[2],
    "cached": COLORS[1],
    "specmoe": COLORS[0],
    "auto": COLORS[4],
    "resident": COLORS[5],
}
ORDER = tuple(METHOD_COLORS)
PART_COLORS = {"draft": COLORS[9], "verify": "#44546a", "wait": COLORS[3], "rest": "#d4d4d4"}
PART_NAMES = {
    "draft": "drafting",
    "verify": "full model",
    "wait": "waiting for reads",
    "rest": "the rest",
}
DARK = ("verify", "wait")  # parts whose labels are white
GREY = "#505050"
# A legend right of its axes.
BESIDE = {"loc": "upper left", "bbox_to_anchor": (1.005, 1), "frameon": False, "fontsize": 12}
FARTHEST = 10  # panels whose largest values are further apart than this do not share a scale
OWN_SCALES = "each panel has its own scale"
TIMES, MINUS, GAMMA = "\N{MULTIPLICATION SIGN}", "\N{MINUS SIGN}", "\N{GREEK SMALL LETTER GAMMA}"


def styled(draw):
    """Run a figure function inside our style; the caller's settings come back afterwards."""

    @functools.wraps(draw)
    def styled(*args, **kwargs):
        quiet = {"axes.spines.top": False, "axes.spines.right": False, "grid.color": "#e4e4e4"}
        with sns.axes_style("whitegrid", quiet), sns.plotting_context("notebook", font_scale=1.1):
            return draw(*args, **kwargs)

    return styled


def compact_png(axes, dots_per_inch: int = 100, num_colors: int = 96) -> bytes:
    """The figure of ``axes`` as a PNG of few colours: sharp on a projector, small in a notebook."""
    from PIL import Image

    drawn, packed = io.BytesIO(), io.BytesIO()
    np.atleast_1d(axes)[0].figure.savefig(
        drawn, format="png", dpi=dots_per_inch, bbox_inches="tight"
    )
    picture = Image.open(drawn).convert("RGB").quantize(num_colors, dither=Image.Dither.NONE)
    picture.save(packed, format="png", optimize=True)
    return packed.getvalue()


def show(axes, num_colors: int = 96, dots_per_inch: int = 100) -> None:
    """In a notebook: display the figure of ``axes`` as ``compact_png``, with its title as
    alternative text; close it."""
    from IPython.display import Image, display

    figure = np.atleast_1d(axes)[0].figure
    title = figure.get_suptitle() or np.atleast_1d(axes)[0].get_title(loc="left")
    said = ". ".join(words for words in (title, figure.get_supxlabel()) if words)
    picture = compact_png(axes, dots_per_inch, num_colors)
    display(Image(picture, width=int(72 * figure.get_figwidth()), alt=f"Figure: {said}"))
    plt.close(figure)


# ---- words ----


def plain(text: object) -> str:
    """``text`` for matplotlib, which would take what stands between two dollars for a formula."""
    return str(text).replace("$", r"\$")


def as_table(rows: Iterable[Mapping] | pd.DataFrame) -> pd.DataFrame:
    """Bench rows as a frame, batches ascending and methods in ``ORDER``, with a ``label``: the
    method, and its eviction where ``cached`` was run with several."""
    table = pd.DataFrame(rows if isinstance(rows, pd.DataFrame) else list(rows)).copy()
    if not len(table) or not {"method", "batch"} <= set(table.columns):
        raise OptionError(
            "there is nothing to draw: give the rows of a bench, each with method and batch"
        )
    for method in table["method"].unique():
        check_choice("method", method, METHODS)
    table["label"] = table["method"]
    cached = table["method"] == "cached"
    if "eviction" in table and table.loc[cached, "eviction"].nunique() > 1:
        table.loc[cached, "label"] = "cached:" + table.loc[cached, "eviction"].astype(str)
    table["_order"] = table["method"].map(ORDER.index)
    table = table.sort_values(["batch", "_order"], kind="stable", ignore_index=True)
    return table.drop(columns="_order")


def method_labels(table: pd.DataFrame) -> list[str]:
    """Labels of a table, top to bottom; a batch may lack some."""
    labels = sorted(table["label"], key=lambda label: ORDER.index(label.split(":")[0]))
    return list(dict.fromkeys(labels))


def caption(rows, model: str | None = None) -> str:
    """What one must know to read a figure: fast memory, the settings of drafting, whether the batch
    was kept full."""
    table = as_table(rows)
    offloaded = table[table["method"] != "resident"]
    drafting = table[table["method"] == "specmoe"]
    said = [plain(model)] if model else []
    if fast := _values(offloaded, "fast_memory_bytes"):
        said.append(f"{' or '.join(show_bytes(size) for size in fast)} of fast memory for experts")
    named = []
    if num := _values(drafting, "draft_experts"):
        named.append(f"N = {' or '.join(f'{n:g}' for n in num)}")
    if drafted := _values(drafting.round({"gamma": 1}), "gamma"):
        least, most = drafted[0], drafted[-1]
        span = f" = {least:g}" if least == most else f" {least:g} to {most:g} on average"
        named.append(GAMMA + span)
    said += [f"specmoe: {', '.join(named)}"] if named else []
    if "kept_full" in table:
        said.append(_fullness(offloaded if len(offloaded) else table))
    if len(offloaded) < len(table):
        said.append("resident: all experts in memory")
    return "; ".join(said)


def _values(table: pd.DataFrame, name: str) -> list:
    return sorted(table[name].dropna().unique().tolist()) if name in table else []


def _fullness(table: pd.DataFrame) -> str:
    short = sorted(set(table.loc[~table["kept_full"].astype(bool), "batch"]))
    if not short:
        return "batch kept full"
    if len(short) == table["batch"].nunique():
        return "batch not kept full"
    return f"batch kept full except at {', '.join(map(str, short))}"


# ---- panels ----


def batch_panels(table: pd.DataFrame, ax) -> tuple[list[Axes], list[int]]:
    """One ``Axes`` per batch: those given, or those of a new figure."""
    batches = sorted(table["batch"].unique().tolist())
    if ax is None:
        size = (2.0 + 3.2 * len(batches), 1.8 + 0.42 * table["label"].nunique())
        _, axes = plt.subplots(1, len(batches), figsize=size, squeeze=False, layout="constrained")
        return list(axes[0]), batches
    axes = list(np.atleast_1d(ax))
    if len(axes) != len(batches):
        raise OptionError(
            f"ax holds {len(axes)} Axes for {len(batches)} batches {batches}: give one for each"
        )
    return axes, batches


def dress_panels(panels: list[Axes], batches: list[int], labels: list[str], xlabel: str) -> None:
    for place, (panel, batch) in enumerate(zip(panels, batches)):
        panel.set_yticks(range(len(labels)), labels if place == 0 else [""] * len(labels))
        panel.set_ylim(len(labels) - 0.45, -0.55)
        panel.set(xlabel=xlabel, title=f"batch {batch}")
        panel.grid(False, axis="y")
        panel.locator_params(axis="x", nbins=4)


def titled(axes: list[Axes], own: bool, title: str, note: str):
    """Title and caption, on our figure or at the given ``Axes``; a lone panel comes back as a plain
    ``Axes``."""
    if own:
        axes[0].figure.suptitle(title, fontweight="bold", x=0.01, ha="left")
        axes[0].figure.supxlabel(note, fontsize="small", color=GREY, x=0.01, ha="left")
    else:
        axes[-1].set_xlabel(f"{axes[-1].get_xlabel()}\n({note})")
    return axes[0] if len(axes) == 1 else np.array(axes, dtype=object)


def need_columns(table: pd.DataFrame, *names: str) -> None:
    for name in names:
        if name not in table:
            raise OptionError(
                f"the rows have no {name!r}; they have {', '.join(map(str, table.columns))}"
            )


def bars_by_batch(table: pd.DataFrame, value: str, xlabel: str, title: str, compare, ax):
    """Bars of ``value`` by method, a panel per batch, each labelled with its number and
    ``compare(value, base)``, where base is on_demand's value in the same batch."""
    panels, batches = batch_panels(table, ax)
    labels, most = method_labels(table), {}
    for panel, batch in zip(panels, batches):
        rows = table[table["batch"] == batch].drop_duplicates("label").set_index("label")
        rows = rows.reindex(labels)
        part, reach = rows[value], _reach(rows, value)
        colors = [METHOD_COLORS[label.split(":")[0]] for label in labels]
        bars = panel.barh(
            range(len(labels)), part.fillna(0), 0.72, color=colors, xerr=reach, ecolor=GREY
        )
        for bar, label in zip(bars, labels):
            bar.set_hatch("//" if label == "resident" else None)
        base = part.get("on_demand", np.nan)
        words = [_bar_words(label, part[label], base, compare) for label in labels]
        panel.bar_label(bars, words, padding=4, fontsize="small")
        ends = part.fillna(0).to_numpy(dtype=float) + (0 if reach is None else reach[1])
        most[panel] = float(ends.max()) or 1.0
    notes = [caption(table), *_set_scales(most)]
    dress_panels(panels, batches, labels, xlabel)
    return titled(panels, ax is None, title, "; ".join(notes))


def _set_scales(most: dict[Axes, float]) -> list[str]:
    """One scale for all panels, given the largest value of each, or a word that there is none."""
    widest = max(most.values())
    shared = widest <= FARTHEST * min(most.values())
    for panel, largest in most.items():
        panel.set_xlim(0, 1.5 * (widest if shared else largest))
    return [] if shared else [OWN_SCALES]


def _reach(rows: pd.DataFrame, value: str) -> np.ndarray | None:
    """How far the repeats lie below and above each median; None where the rows do not say, or did
    not repeat."""
    least, most = f"{value}_min", f"{value}_max"
    if not {least, most} <= set(rows.columns):
        return None
    rows = rows.fillna(dict.fromkeys([value, least, most], 0))
    reach = np.array([rows[value] - rows[least], rows[most] - rows[value]], dtype=float)
    reach = reach.clip(min=0)
    return reach if reach.any() else None


def _bar_words(label: str, value: float, base: float, compare) -> str:
    if np.isnan(value):
        return "not run"
    ratio = base > 0 and label != "on_demand"
    return show_number(value) + (f"  ({compare(value, base)})" if ratio else "")
