"""``python -m specmoe.lab.bench.page``: write ``docs/performance.md`` and its figures from the
result files.

Comes in: ``specmoe/lab/bench/results/*.json``, those of other machines in ``results/elsewhere/``,
and ``specmoe/lab/bench/remarks.md`` (by hand). Goes out: Markdown and PNGs. Every table comes out
of the result files, so the page cannot drift from them; a test compares the two."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from ..entry import leave
from ..writing import write_whole
from . import pictures, results
from .gpu_page import gpu_section
from .settings import BATCHES, LINKS
from .tables import PEERS, SKEWED, TRANSLATE, Measured, Outcome, cell_rows, target_cells, targets

ROOT = Path(__file__).resolve().parents[3]
PAGE, IMAGES, REMARKS = (
    ROOT / "docs" / "performance.md",
    ROOT / "docs" / "images",
    Path(__file__).parent / "remarks.md",
)
FIGURES = {"performance_speed.png": pictures.speedups, "performance_floor.png": pictures.over_floor}
INTRO = """# Performance

Written by `python -m specmoe.lab.bench.page` from [specmoe/lab/bench/results](../specmoe/lab/bench/results); how each number was made stands in
[specmoe/lab/bench/README.md](../specmoe/lab/bench/README.md). Everything here was measured, nothing simulated. Ratios are between
methods that ran in turn on the same machine, with the same bytes of fast memory; a *floor* is max(bytes / link, FLOPs
/ rate) for the bytes and tokens that a method really needed, with the link and the compute rate measured in the same
run; drafting stands before the reads that nobody can ask for earlier, so it adds to them."""
SPEED_ALT = (
    "Decoding speed over on-demand by batch, for both models, on the disk as it is and at 0.25 GB/s"
)
FLOOR_ALT = (
    "Measured seconds over the floor of link and arithmetic, by batch, for both models and links"
)


def document(
    files: dict[str, dict], remarks: str = "", elsewhere: Sequence[dict[str, dict]] = ()
) -> str:
    """The whole page. ``elsewhere``: result files of other machines."""
    sections = [
        INTRO,
        machine_words(files),
        "## Targets",
        target_table(targets(files)),
        "## Targets that were not met",
        *missed(targets(files)),
        "## In pictures",
        f"![{SPEED_ALT}](images/performance_speed.png)",
        f"![{FLOOR_ALT}](images/performance_floor.png)",
        *cell_sections(files),
        "## The raw link and the compute rate",
        probe_table(files),
        "## Peers",
        peer_table(files),
        gpu_section(files.get("gpu")),
    ]
    sections += [remarks.strip()] if remarks.strip() else []
    sections += [section for there in elsewhere for section in elsewhere_sections(there)]
    return "\n\n".join(sections) + "\n"


def elsewhere_sections(files: dict[str, dict]) -> list[str]:
    """Another machine, in short: what it is, and the targets there."""
    name = next(content["machine"]["cpu"] for content in files.values())
    head = ["what", "target", "measured", "met"]
    rows = [list(target_cells(outcome))[:4] for outcome in targets(files)]
    return [f"## On another machine: {name}", machine_words(files), table(head, rows)]


def machine_words(files: dict[str, dict]) -> str:
    """Which machine, versions, dates, lengths."""
    timed = [content for part, content in files.items() if "-" in part and content.get("rows")]
    if not timed:
        return "Nothing has been measured yet."
    machine, length = timed[0]["machine"], timed[0]["length"]
    rows = [row for content in timed for row in content["rows"].values()]
    days = sorted({row["measured"][:10] for row in rows})
    codes = sorted({row["commit"] for row in rows})
    fewest, most = min(map(len, slices_of(rows).values())), max(map(len, slices_of(rows).values()))
    number = str(most) if fewest == most else f"{fewest} to {most}"
    memory = machine.get("memory", {}).get("total_bytes", 0) / 2**30
    return (
        f"Measured {' and '.join(dict.fromkeys([days[0], days[-1]]))} on {machine.get('cpu')}, "
        f"{machine.get('cores')} cores"
        f" ({machine.get('threads')} torch threads), {memory:.0f} GiB, no GPU; torch "
        f"{machine.get('torch')}, transformers"
        f" {machine.get('transformers')}, Python {machine.get('python')}; code at "
        f"{', '.join(codes)}. Windows of"
        f" {length['slice_s']:g} s, {number} for each method, methods in turn. {spread_words(rows)}"
    ).rstrip()


def slices_of(rows: list[dict]) -> dict[tuple, list[float]]:
    """(part, batch, method) -> tokens/s of each slice."""
    speeds: dict[tuple, list[float]] = {}
    for row in rows:
        if "tokens_per_second" in row:
            speeds.setdefault((row["part"], row["batch"], row["what"]), []).append(
                row["tokens_per_second"]
            )
    return speeds


def spread_words(rows: list[dict]) -> str:
    """How far slices of the same method lie apart: a ratio closer to 1 than that says nothing."""
    spreads = [
        max(speeds) / min(speeds) - 1 for speeds in slices_of(rows).values() if len(speeds) > 1
    ]
    if not spreads:
        return ""
    return (
        f"Slices of one method in one cell lie {statistics.median(spreads):.0%} apart in the "
        "median and"
        f" {max(spreads):.0%} at most: that is how far to trust a single ratio."
    )


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def target_table(outcomes: list[Outcome]) -> str:
    """Target, measured, whether it was met, the floor, and the single values behind it."""
    head = ["what", "target", "measured", "met", "what the floor would allow", "by batch"]
    return table(head, [list(target_cells(outcome)) for outcome in outcomes])


def missed(outcomes: list[Outcome]) -> list[str]:
    """One line for each target that was measured and not met, with what forbids it."""
    lines = []
    for outcome in outcomes:
        if outcome.met is False:
            name, goal, measured, _, floor, _ = target_cells(outcome)
            lines.append(
                f"- **{name}**: {measured} instead of {goal}. {outcome.why or floor or NO_FLOOR}"
            )
    return ["\n".join(lines)] if lines else ["None of those measured."]


NO_FLOOR = "No floor of the hardware forbids it."


def cell_sections(files: dict[str, dict]) -> list[str]:
    """A table for each model and link."""
    sections = []
    for model in (TRANSLATE, SKEWED):
        for link in LINKS:
            rows = cell_rows(files, model, link)
            if rows:
                sections += [
                    f"## {model}, {pictures.LINK_WORDS[link]}",
                    facts_words(files, model, link),
                    cell_table(rows),
                ]
    return sections


def facts_words(files: dict[str, dict], model: str, link: str) -> str:
    facts = files[f"{model.removeprefix('tiny-')}-{link}"]["models"][model]
    flops = facts["flops_per_token"]
    return (
        f"{facts['experts']} experts, top-{facts['top_k']}, {facts['decoding_layers']} MoE layers "
        "that decode; an expert's"
        f" record {facts['record_bytes'] / 2**20:.2f} MiB ({facts['expert_dtype']}); fast memory"
        f" {facts['fast_memory_bytes'] / 2**20:.0f} MiB for every method but `resident`; "
        f"{facts['cached_experts']} experts"
        f" per layer can be cached in it, {facts['draft_experts']} draft."
        f" {(flops['trunk'] + flops['experts']) / 1e6:.1f} MFLOP per token, "
        f"{flops['experts'] / 1e6:.1f} of them in experts."
    )


def cell_table(rows: list[dict]) -> str:
    head = [
        "B",
        "method",
        "tokens/s",
        "over on-demand",
        "gamma",
        "MiB per token",
        "floor, ms per token",
        "limit",
        "measured / floor",
        "waiting",
        "drafting",
    ]
    return table(head, [_cell_words(row) for row in rows])


def _cell_words(row: dict) -> list[str]:
    over = "" if row["over_on_demand"] is None else f"{row['over_on_demand']:.2f}×"
    return [
        str(row["batch"]),
        row["method"],
        f"{row['tokens_per_second']:.1f}",
        over,
        f"{row['gamma']:.1f}",
        f"{row['bytes_per_token'] / 2**20:.3f}",
        f"{row['floor_s'] * 1e3:.3f}",
        row["limit"],
        f"{row['measured_over_floor']:.2f}",
        f"{row['wait_share']:.1%}",
        f"{row['draft_share']:.1%}",
    ]


def probe_table(files: dict[str, dict]) -> str:
    """The probes before each batch: the link by reader count, arithmetic, balance."""
    found, rows = Measured(files), []
    for model in (TRANSLATE, SKEWED):
        for link in LINKS:
            for batch in BATCHES:
                for row in found.rows(model, link, batch, "probe"):
                    rates = [
                        row["sequential_bytes_per_s"],
                        *(row["random_bytes_per_s"][num] for num in ("1", "2", "4", "8")),
                    ]
                    flops = [
                        f"{row[f'{dtype}_flop_per_s'] / 1e9:.0f}" for dtype in ("fp32", "bf16")
                    ]
                    rows.append(
                        [
                            model,
                            pictures.LINK_WORDS[link],
                            str(batch),
                            *(f"{rate / 1e9:.2f}" for rate in rates),
                            *flops,
                            f"{row['fp32_flop_per_byte']:.0f}",
                        ]
                    )
    head = [
        "model",
        "link",
        "before B",
        "in sequence, GB/s",
        "records, 1 reader",
        "2",
        "4",
        "8",
        "fp32 GFLOP/s",
        "bf16",
        "balance, fp32 FLOP per byte",
    ]
    return table(head, rows) if rows else "Not measured."


def peer_table(files: dict[str, dict]) -> str:
    """Tokens per second of ours and of the peer, and under which memory."""
    found, rows = Measured(files), []
    for part, link, ours, peer in PEERS:
        for batch in (1, 16, 64):
            speeds = [found.speed(SKEWED, link, batch, what, part) for what in (ours, peer)]
            if all(speeds):
                row = found.rows(SKEWED, link, batch, peer, part)[0]
                limit = f", {row['limit_bytes'] / 2**20:.0f} MiB" if row.get("limit_bytes") else ""
                held = f"{row['held_by']}{limit}" if row.get("held_by") else ""
                rows.append(
                    [
                        f"{ours} / {peer}",
                        str(batch),
                        *(f"{speed:.1f}" for speed in speeds),
                        f"{speeds[0] / speeds[1]:.2f}×",
                        held,
                    ]
                )
    head = [
        "tiny-skewed",
        "B",
        "ours, tokens/s",
        "peer, tokens/s",
        "ratio",
        "peer's memory held by",
    ]
    return table(head, rows) if rows else "Not measured."


def main() -> int:
    files = results.read_all()
    for name, draw in FIGURES.items():
        write_whole(IMAGES / name, pictures.png(draw(files)))
    remarks = REMARKS.read_text(encoding="utf-8") if REMARKS.exists() else ""
    write_whole(PAGE, document(files, remarks, results.read_elsewhere()))
    print(PAGE)
    return 0


if __name__ == "__main__":
    leave(main)
