"""The GPU's section of the performance page, from ``results/gpu.json`` (written by ``gpu``).

Comes in: the content of that file, or None. Goes out: Markdown.
"""

from __future__ import annotations

UNPROVEN = (
    "**The CUDA path is proven on CPU only.** `specmoe/lab/bench/gpu.py` runs in the tests, small, "
    "on a CPU; it has not run on a"
    " GPU yet, so there is no number of a GPU on this page. On a machine with one: `python -m "
    "specmoe.lab.bench.gpu`."
)


def gpu_section(content: dict | None) -> str:
    """What the script found on a GPU; or that it has not run on one."""
    if content is None or content["about"]["device"] != "cuda":
        return f"## On a GPU\n\n{UNPROVEN}"
    parts = ["## On a GPU", _machine(content["about"]), _targets(content["targets"])]
    parts += [_speeds(name, part) for name, part in content.items() if name.startswith("speed ")]
    parts += [f"![Speed by method and batch](images/{name})" for name in content.get("figures", [])]
    for words, sentences in (
        ("Failed", content["failed"]),
        ("Left out, no time", content["left_out"]),
    ):
        parts += [f"{words}: {'; '.join(sentences)}."] if sentences else []
    return "\n\n".join(parts)


def _machine(about: dict) -> str:
    memory = about["memory_bytes"] / 2**30
    return (
        f"Measured {about['date'][:10]} on {about['name']} ({memory:.0f} GiB), CUDA "
        f"{about['cuda']}, torch {about['torch']},"
        f" transformers {about['transformers']}; experts in pinned host memory."
    )


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows])


def _targets(targets: list[dict]) -> str:
    met = {None: "", True: "yes", False: "no"}
    rows = [
        [
            row["name"],
            f"≥ {row['goal']:.2f}",
            "not measured" if row["measured"] is None else f"{row['measured']:.2f}",
            met[row["met"]],
        ]
        for row in targets
    ]
    return _table(["what", "target", "measured", "met"], rows)


def _speeds(name: str, part: dict) -> str:
    """Tokens per second: one line for each method, one column for each batch."""
    batches = sorted({row["batch"] for row in part["rows"]})
    speeds = {
        (row["method"], row["batch"]): f"{row['tokens_per_second']:.1f} "
        f"({row['measured_over_floor']:.1f})"
        for row in part["rows"]
    }
    methods = dict.fromkeys(row["method"] for row in part["rows"])
    rows = [[method, *(speeds.get((method, batch), "") for batch in batches)] for method in methods]
    size = part["info"]["record_bytes"] / 2**20
    link = part["copies"]["raw_bytes_per_s"]
    rates = (
        f"raw pinned copies {link / 1e9:.1f} GB/s, bf16 "
        f"{part['rates']['bf16_flop_per_s'] / 1e12:.0f} TFLOP/s"
    )
    words = (
        f"{name.removeprefix('speed ')}, experts of {size:.4g} MiB, {rates}; tokens/s and, in "
        "brackets, measured over floor:"
    )
    return f"{words}\n\n{_table(['method', *(f'B = {batch}' for batch in batches)], rows)}"
