"""What others claim, beside what was counted here: the table of docs/claims.md.

Comes in: committed results. Goes out: a frame. Claims are their authors' (the papers, or where a
claim is quoted second-hand, what quotes it); none was run here. Ours are counts, and simulated where
that is said.
"""

from __future__ import annotations

import pandas as pd

from . import by_bytes_counts, drafts, pools, second_branch, stand_ins

CANNOT = "cannot speak to it: "


def table() -> pd.DataFrame:
    """Columns who, claim, ours; a row per claim."""
    rows = [*_affinity(), *_ss_moe(), *_augspec(), *_evict(), *_specmd()]
    return pd.DataFrame(rows, columns=["who", "claim", "ours"])


def _affinity() -> list[tuple]:
    who = "SpecMoE (arXiv 2604.10152)"
    found = stand_ins.differences(stand_ins.shipped())
    found = found[found["other"] == "random"]
    said = "; ".join(
        f"{row.model} {_points(row.mean)} ({_points(row.low)} to {_points(row.high)})"
        for row in found.itertuples()
    )
    ours = (
        f"acceptance, points over random stand-ins: {said}, {found['sets'].min()} sets of prompts"
    )
    return [
        (who, "the nearest resident stands in: 7.23 % more tokens per round than a random", ours)
    ]


def _ss_moe() -> list[tuple]:
    who = "SS-MoE (WWW 2026)"
    gate = _against_ten("auto").iloc[0]
    counted = (
        "`auto` gates by confidence, too, and stays exact: against ten tokens always it moves "
        f"{gate['bytes']} the bytes at {gate['link']}"
    )
    speed = f"{CANNOT}its systems, its models and a mode that changes the text are not here"
    return [
        (who, "drafts of fewer experts, verified where confidence asks for it", counted),
        (who, "3.72 times the best offloading system (adaptive mode, not lossless)", speed),
    ]


def _augspec() -> list[tuple]:
    who = "AugSpec (its PROGRESS.md)"
    found = drafts.shipped()
    found = found[found["batch"] == 16].set_index(["model", "size", "source"])["acceptance_rate"]
    ahead = {
        model: [found[model, n, f"merged:{n}"] - found[model, n, "resident"] for n in sizes]
        for model, sizes in drafts.SIZES.items()
    }
    said = "; ".join(f"{name} {_points(min(g))} to {_points(max(g))}" for name, g in ahead.items())
    freezing = f"{CANNOT}no draft set here is frozen at the prefill"
    return [
        (
            who,
            "merged experts over residents, acceptance: Mixtral 8 to 1 level (0.675, 0.672), "
            "Qwen3-30B-A3B 128 to 16 ahead (0.437, 0.342)",
            f"points over as many residents, all sizes: {said}",
        ),
        (who, "residents frozen at the prefill fail on Qwen3 (0.119)", freezing),
    ]


def _evict() -> list[tuple]:
    who = "EVICT (arXiv 2605.00342)"
    said = "; ".join(
        f"{row.link} {row.bytes} the bytes, {row.seconds} the seconds (simulated)"
        for row in _against_ten("by_bytes, waste").itertuples()
    )
    worth = second_branch.shipped().set_index(["model", "batch"])["worth"]
    skewed = worth[worth.index.get_level_values("model") != "tiny-balanced"].max()
    tree = f"a second branch brings at most {skewed:.2f} of its price on skewed routing"
    tree += f", {worth['tiny-balanced'].min():.2f} to {worth['tiny-balanced'].max():.2f} on even"
    return [
        (who, "a draft cut where its experts cost more than it brings", said),
        (
            who,
            "trees: 1.21 times EAGLE-3, 2.35 times plain decoding",
            f"{tree}; no EAGLE head here",
        ),
    ]


def _specmd() -> list[tuple]:
    who = "SpecMD (arXiv 2602.03921)"
    ratios = pools.against_today(pools.shipped())
    stale, lru = ratios["least_stale"], ratios["lru"]
    said = (
        f"fetches {(stale / lru).mean():.2f} of LRU's ({(stale / lru).min():.2f} to "
        f"{(stale / lru).max():.2f}), with a share of the pool for each layer"
    )
    hits = (
        f"{CANNOT}counted with one queue over all layers of OLMoE; our smallest pool keeps 8 of 128"
    )
    return [
        (who, "Least-Stale: 85 times fewer collision misses than LRU", said),
        (who, "Least-Stale: 88 % hits with 5 % of the experts", hits),
    ]


def _points(share: float) -> str:
    """Of an acceptance, in hundredths."""
    return f"{100 * share:+.1f}"


def _against_ten(planner: str) -> pd.DataFrame:
    """Rows of ``by_bytes_counts.summary``, the slowest link first."""
    found = by_bytes_counts.summary(by_bytes_counts.shipped())
    return found[found["planner"] == planner]
