"""What the notebook ``performance`` shows, from the result files; ``python -m
specmoe.lab.bench.page`` executes it and writes ``docs/performance.md`` from it, and the sentence of docs/pools.md that the
clock says.

Comes in: the contents of ``specmoe/lab/bench/results/*.json``, or of another folder that ``run``
wrote. Goes out: frames of words, and the sentence that says what was measured where, when and at
which commit. The prose is in the notebook.
"""

from __future__ import annotations

import statistics
from collections import Counter

import pandas as pd

from ..entry import leave
from ..markdown import DOCS, write_page
from ..words import show_bytes
from ..writing import write_whole
from . import pairs
from .cells import SKEWED, TRANSLATE, Measured, cell_rows, newest_code
from .control import words
from .outcomes import Outcome
from .pictures import LINK_WORDS
from .results import read_all
from .settings import AGAIN, BATCHES, LINKS, PEER_BATCHES
from .tables import HEADLINES, PEERS, targets


def headlines(files: dict[str, dict]) -> list[Outcome]:
    """The five numbers that the page opens with."""
    by_name = {outcome.name: outcome for outcome in targets(files)}
    return [by_name[name] for name in HEADLINES]


def machine_words(files: dict[str, dict]) -> str:
    """Which machine, versions, dates, lengths."""
    timed = [content for part, content in files.items() if "-" in part and content.get("rows")]
    if not timed:
        return "Nothing has been measured yet."
    newest = newest_code(files)
    rows = [row for content in timed for row in content["rows"].values()]
    new = [row for row in rows if row.get("code") == newest]
    latest = next(c for c in timed if any(row in new for row in c["rows"].values()))
    machine, length = latest["machine"], latest["length"]
    slices = Counter(
        (row["part"], row["batch"], row["what"]) for row in new if "tokens_per_second" in row
    ).values()
    fewest, most = min(slices, default=0), max(slices, default=0)
    number = str(most) if fewest == most else f"{fewest} to {most}"
    memory = machine.get("memory", {}).get("total_bytes", 0) / 2**30
    return (
        f"Measured {_days(new)} on {machine.get('cpu')}, "
        f"{machine.get('cores')} cores"
        f" ({machine.get('threads')} torch threads), {memory:.0f} GiB, no GPU; torch "
        f"{machine.get('torch')}, transformers"
        f" {machine.get('transformers')}, Python {machine.get('python')}; code at "
        f"{', '.join(sorted({row['commit'] for row in new}))}. Slices of"
        f" {length['slice_s']:g} s, {number} for each method, methods in turn. "
        f"{control_words(files)} {_old_words(rows, new)}"
    ).rstrip()


def _days(rows: list[dict]) -> str:
    days = sorted({row["measured"][:10] for row in rows})
    return " and ".join(dict.fromkeys([days[0], days[-1]]))


def _old_words(rows: list[dict], new: list[dict]) -> str:
    old = [row for row in rows if row not in new]
    if not old:
        return ""
    return (
        f"{len(old)} of {len(rows)} rows are older ({_days(old)}, code at "
        f"{', '.join(sorted({row['commit'] for row in old}))}), and are said to be old."
    )


def control_words(files: dict[str, dict]) -> str:
    """How far the two arms of the control lie apart, over the cells that have one."""
    found = Measured(files)
    spreads = [
        found.spread(*key[1:4], part=key[0]) for key in found.cells if key[4].endswith(AGAIN)
    ]
    known = [spread - 1 for spread in spreads if spread is not None]
    if not known:
        return ""
    return (
        "In brackets: the 95 % interval over slices that followed each other. One method ran twice in "
        f"each cell (A/A): the interval of its two arms reaches {statistics.median(known):.1%} from 1 in "
        f"the median and {max(known):.1%} at most, and where measured and target lie closer than "
        "that in their cell, nothing is claimed."
    )


def measured_places(files: dict[str, dict]) -> list[tuple[str, str, str]]:
    """Model, link, and the link in words, where there are rows."""
    return [
        (model, link, LINK_WORDS[link])
        for model in (TRANSLATE, SKEWED)
        for link in LINKS
        if cell_rows(files, model, link)
    ]


def facts_words(files: dict[str, dict], model: str, link: str) -> str:
    facts = files[f"{model.removeprefix('tiny-')}-{link}"]["models"][model]
    flops = facts["flops_per_token"]
    return (
        f"{facts['experts']} experts, top-{facts['top_k']}, {facts['decoding_layers']} MoE layers "
        "that decode; an expert's"
        f" record {show_bytes(facts['record_bytes'])} ({facts['expert_dtype']}); fast memory"
        f" {show_bytes(facts['fast_memory_bytes'])} for every method but `resident`; "
        f"{facts['cached_experts']} experts"
        f" per layer can be cached in it, {facts['draft_experts']} draft."
        f" {(flops['trunk'] + flops['experts']) / 1e6:.1f} MFLOP per token, "
        f"{flops['experts'] / 1e6:.1f} of them in experts."
    )


def cell_frame(files: dict[str, dict], model: str, link: str) -> pd.DataFrame:
    """Every batch and method of one model and link beside its floor, in words."""
    rows = [
        {
            "B": row["batch"],
            "method": row["method"],
            "tokens/s": f"{row['tokens_per_second']:.1f}",
            "over on-demand": words(row["over"]) if row["over"] else "",
            "gamma": f"{row['gamma']:.1f}",
            "MiB per token": f"{row['bytes_per_token'] / 2**20:.3f}",
            "floor, ms per token": f"{row['floor_s'] * 1e3:.3f}",
            "limit": row["limit"],
            "measured / floor": f"{row['measured_over_floor']:.2f}",
            "waiting": f"{row['wait_share']:.1%}",
            "drafting": f"{row['draft_share']:.1%}",
            "measured": "old" if row["old"] else "",
        }
        for row in cell_rows(files, model, link)
    ]
    return pd.DataFrame(rows)


def probe_frame(files: dict[str, dict]) -> pd.DataFrame:
    """The probes before each batch: the link by reader count, arithmetic, balance."""
    found = Measured(files)
    places = [(m, link, b) for m in (TRANSLATE, SKEWED) for link in LINKS for b in BATCHES]
    rows = [
        {
            "model": model,
            "link": LINK_WORDS[link],
            "before B": batch,
            "in sequence, GB/s": f"{row['sequential_bytes_per_s'] / 1e9:.2f}",
            **{
                f"{readers} reader{'s' * (readers > 1)}": f"{rate / 1e9:.2f}"
                for readers in (1, 2, 4, 8)
                for rate in [row["random_bytes_per_s"][str(readers)]]
            },
            "fp32 GFLOP/s": f"{row['fp32_flop_per_s'] / 1e9:.0f}",
            "bf16": f"{row['bf16_flop_per_s'] / 1e9:.0f}",
            "balance, fp32 FLOP per byte": f"{row['fp32_flop_per_byte']:.0f}",
        }
        for model, link, batch in places
        for row in found.rows(model, link, batch, "probe")
    ]
    return pd.DataFrame(rows)


def peer_frame(files: dict[str, dict]) -> pd.DataFrame:
    """Tokens per second of ours and of the peer, and under which memory."""
    found, rows = Measured(files), []
    for part, link, ours, peer in PEERS:
        for batch in PEER_BATCHES:
            ratio = found.ratio(SKEWED, link, batch, ours, peer, part)
            if ratio is not None:
                row = found.rows(SKEWED, link, batch, peer, part)[0]
                limit = f", {show_bytes(row['limit_bytes'])}" if row.get("limit_bytes") else ""
                speeds = [found.speed(SKEWED, link, batch, what, part) for what in (ours, peer)]
                said = {
                    SKEWED: f"{ours} / {peer}",
                    "B": batch,
                    "ours, tokens/s": f"{speeds[0]:.1f}",
                    "peer, tokens/s": f"{speeds[1]:.1f}",
                    "ratio": words(ratio),
                    "peer's memory held by": f"{row['held_by']}{limit}"
                    if row.get("held_by")
                    else "",
                    "measured": "old" if ratio.old else "",
                }
                rows.append(said)
    return pd.DataFrame(rows)


def gpu_words(content: dict) -> str:
    """What ran on a GPU, on which and how often; or that nothing has."""
    about = content.get("about", {})
    if about.get("device") != "cuda":
        return "No GPU has run this code yet: `python -m specmoe.lab.bench.gpu` does, where one is."
    tokens = content.get("correctness", [])
    exact = [row for row in tokens if row["dtype"] == "float32"]
    parted = [row for row in tokens if row["dtype"] != "float32"]
    same, prompts = (sum(row[name] for row in exact) for name in ("same", "prompts"))
    left, all_parted = (sum(row[name] for row in parted) for name in ("same", "prompts"))
    said = "Tokens were not compared."
    if tokens:
        said = (
            f"Tokens against those of the CPU in fp32: {same} of {prompts} prompts the same in fp32 "
            f"(TF32 off), all methods together; in bf16 {left} of {all_parted}."
        )
    return (
        f"Measured {about['date'][:10]} on one {about['name']}, torch {about['torch']}, transformers "
        f"{about['transformers']}: one window of 2 s for each cell, not repeated, so there is no "
        "interval, and small differences mean nothing. Experts lie in pinned host memory and are "
        f"padded with zeros to the size of the paper's models; the rest is on the GPU, in bf16.\n\n{said}"
    )


def gpu_models(content: dict) -> list[str]:
    """The models whose speed was measured on a GPU."""
    on_gpu = content.get("about", {}).get("device") == "cuda"
    return [name.split()[1] for name in sorted(content) if on_gpu and name.startswith("speed ")]


def gpu_frames(content: dict) -> dict[str, pd.DataFrame]:
    """What ``gpu`` found: its targets, and by model tokens per second (in brackets: measured over
    floor) of every method and batch. Empty unless it ran on a GPU."""
    if content.get("about", {}).get("device") != "cuda":
        return {}
    rows = [
        {
            "what": row["name"],
            "target": f"≥ {row['goal']:.2f}",
            "measured": "" if row["measured"] is None else f"{row['measured']:.2f}",
            "met": {True: "yes", False: "no", None: "not measured"}[row["met"]],
        }
        for row in content["targets"]
    ]
    frames = {f"Targets, {content['about']['name']}": pd.DataFrame(rows)}
    for model in gpu_models(content):
        part = content[f"speed {model}"]
        rows = pd.DataFrame(part["rows"])
        speed, over = rows["tokens_per_second"], rows["measured_over_floor"]
        said = speed.map("{:.1f} ".format) + over.map("({:.1f})".format)
        table = rows.assign(said=said).pivot(index="method", columns="batch", values="said")
        size = show_bytes(part["info"]["expert_bytes"])
        words = f"{model}, experts of {size}: tokens per second"
        frames[f"{words} (in brackets: measured time over floor)"] = table.reset_index()
    return frames


def main() -> int:
    print(write_page("performance", "performance.md"))
    pools = DOCS / "pools.md"
    print(write_whole(pools, pairs.with_clock(pools.read_text(encoding="utf-8"), read_all())))
    return 0


if __name__ == "__main__":
    leave(main)
