"""A number with a unit in prose has a source, and the source still says it.

Looked at: the README, the pages of docs/, the Markdown cells of the notebooks, the texts beside the
benchmarks and the tutorials. A number is fine where an output of the same notebook shows it; else it
stands in ``SOURCES`` with code that computes it from results, settings or the paper's numbers, or
with words where nothing can be computed. The model cards, docs/models.md and docs/exercises.md are generated whole and
compared in tests of their own (test_tiny, test_translation, test_families), and so are the pages
that are notebooks (test_reproduction, test_benchmarks); the tables of docs/bytes.md and docs/auto.md
are compared with their results (test_bound, test_auto), and docs/claims.md and
docs/drafts.md in test_claims and test_drafts. docs/log.md is a diary, true of its day: it is a source for what was measured once and not kept as a result.
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

import pytest

from specmoe.checkpoint.files import MAX_JSON_BYTES
from specmoe.cli.job_lines import MAX_LINE_BYTES
from specmoe.engine.ties import TIE_ULPS
from specmoe.lab import paper
from specmoe.lab.bench import cells, offload, real_grid, results
from specmoe.lab.bench import settings as bench
from specmoe.lab.paper.measured import measured_numbers
from specmoe.lab.paper.settings import LINK, WIDENED
from specmoe.lab.paper.simulated import IMPLIED
from specmoe.lab.paper.winners import BALANCES
from specmoe.lab.report import sentences as report
from specmoe.lab.simulate.hardware import LINK_SHARE

ROOT = Path(__file__).parent.parent
ELSEWHERE = (
    "docs/auto.md",
    "docs/bytes.md",
    "docs/claims.md",
    "docs/drafts.md",
    "docs/exercises.md",
    "docs/log.md",
    "docs/models.md",
    "docs/performance.md",
    "docs/reproduction.md",
)
PAGES = sorted(
    str(path.relative_to(ROOT))
    for pattern in (
        "*.md",
        "docs/*.md",
        "notebooks/*.ipynb",
        "tutorials/*.md",
        "specmoe/lab/**/*.md",
    )
    for path in ROOT.glob(pattern)
    if str(path.relative_to(ROOT)) not in ELSEWHERE
)
UNITS = (
    "tokens/s|tokens per second|tokens per round|times|%|KiB|MiB|GiB|KB|MB|GB/s|GB|ms|s|seconds|"
    "minutes|hours|lines/s|ulp|[GMT]FLOP/s|FLOP per byte"
)
VALUE = r"[-+]?\d[\d,]*(?:\.\d+)?"
NUMBER = re.compile(rf"(?<![\w.])(?:{VALUE} to )?{VALUE}(?: ?(?:{UNITS})(?![\w/])|[x×](?!\w))")


# ---- the sources ----

FACTS = paper.FACTS
GROWTH, TOKENS = "growth of bytes, batch 1 to 256", paper.facts.TOKENS
SAVED = "change against on_demand, best batch"


@functools.cache
def measured() -> list[paper.Number]:
    return measured_numbers(paper.load_results())


def value(*name, of=None, **more) -> float:
    numbers = measured() if of is None else of
    return paper.value_of(numbers, *name, kind="paper" if of else "measured", **more).value


@functools.cache
def simulated_speed_up() -> float:
    speed = paper.lines_at(paper.load_results(), "simulated speed")
    return (speed["specmoe"] / speed["on_demand"]).max()


def speed_ups(link: str) -> str:
    """The smallest and the largest ratio of specmoe over on-demand, both models, all batches, both
    machines, in whole times: "1 to 7 times"."""
    ratios = [
        cells.Measured(files).ratio(model, link, batch, "specmoe", "on_demand")
        for files in (results.read_all(), *results.read_elsewhere())
        for model in (cells.TRANSLATE, cells.SKEWED)
        for batch in bench.BATCHES
    ]
    known = [ratio.value for ratio in ratios if ratio is not None]
    return f"{min(known):.0f} to {max(known):.0f} times"


def of_a_round(name: str, batch: int = 16) -> float:
    """A sum over specmoe's slices on tiny-translate, the disk as it is, by its rounds."""
    sums = cells.Measured(results.read_all()).sums(cells.TRANSLATE, "native", batch, "specmoe")
    return sums[name] / sums["num_rounds"]


def gpu_speed_up(model: str, batch: int) -> float:
    """specmoe over on-demand, where ``gpu`` ran."""
    rows = results.read_all()["gpu"][f"speed {model}"]["rows"]
    speed = {row["method"]: row["tokens_per_second"] for row in rows if row["batch"] == batch}
    return speed["specmoe"] / speed["on_demand"]


def seconds_of_a_round(num: int) -> float:
    """Of the paper's, from its tokens per round and per second."""
    per_round = value("draft_experts", f"N = {num}", TOKENS, of=FACTS, batch=256)
    return 256 * per_round / value("draft_experts", f"N = {num}", "speed", of=FACTS, batch=256)


def peer_memory() -> str:
    """With one row."""
    rows = results.read_all()["offload"]["rows"].values()
    [size] = {
        row["limit_bytes"] for row in rows if row["batch"] == 1 and row["what"] == "accelerate"
    }
    return f"{size / 1e9:.1f} GB"


def of_record(name: str, key: str):
    return json.loads((ROOT / f"docs/results/{name}.json").read_text(encoding="utf-8"))[key]


def of_log(phrase: str):
    """docs/log.md says it."""
    return lambda: (
        phrase if phrase in " ".join(text_of("docs/log.md").split()) else "not in the log"
    )


def on_the_map(rows: int):
    """How many times as fast as the next the winner is, in the map's table on the paper's page: of
    tiny-translate at N = 4."""
    page = (ROOT / "docs/reproduction.md").read_text(encoding="utf-8")
    cells = re.search(r"^\| tiny-translate \| 4 \| ((?:specmoe|cached) .*) \|$", page, re.M)[1]
    heads = re.search(r"^\| model \| N \| (1 .*) \|$", page, re.M)[1]
    return dict(zip(heads.split(" | "), cells.split(" | ")))[str(rows)].split()


def shown_in(page: str, phrase: str):
    return lambda: phrase if phrase in outputs_of(page) else f"not in {page}"


SETTINGS = {  # wherever they are named
    "2 ulp": lambda: f"{TIE_ULPS} ulp",
    "0.25 GB/s": lambda: (
        f"{LINK / 1e9:g} GB/s" if bench.LINKS["throttled"] == LINK else "two links"
    ),
    "256 KiB": lambda: WIDENED["throttled"].replace("KiB", " KiB"),
    "3 MiB": lambda: (
        f"{bench.EXPERT_BYTES / 2**20:g} MiB" if WIDENED["disk"] == "3MiB" else "two sizes"
    ),
}
SOURCES = {
    "README.md": {
        "3.55 MiB": shown_in("notebooks/report.ipynb", "3.55 MiB"),
        "-76.7 %": lambda: f"{value('bytes', 'specmoe', SAVED, of=FACTS):.1f} %",
        "-80.8 %": lambda: f"{value('bytes', 'specmoe', SAVED):.1f} %",
        "11.0x": lambda: f"{value('growth', 'specmoe', GROWTH, of=FACTS):.1f}x",
        "45.3x": lambda: f"{value('growth', 'on_demand', GROWTH, of=FACTS):.1f}x",
        "9.4x": lambda: f"{value('growth', 'specmoe', GROWTH):.1f}x",
        "33.5x": lambda: f"{value('growth', 'on_demand', GROWTH):.1f}x",
        "4.3x": lambda: f"{value('throughput', 'specmoe', 'speed-up, best batch', of=FACTS):.1f}x",
        "3.2x": lambda: f"{value('throughput', 'specmoe', 'speed-up', batch=256):.1f}x",
        "3.7x": lambda: f"{value('throughput', 'specmoe', 'speed-up', batch=64):.1f}x",
        "5.0x": lambda: f"{simulated_speed_up():.1f}x",
        "1 to 7 times": lambda: speed_ups("native"),
        "4 to 15 times": lambda: speed_ups("throttled"),
        "5.9 times": lambda: f"{gpu_speed_up('tiny-translate', 256):.1f} times",
        "90 minutes": "a plan's length: the title of tutorials/README.md",
    },
    "SECURITY.md": {
        "100 MB": lambda: f"{MAX_JSON_BYTES / 1e6:.0f} MB",
        "500 GB": "an example of a large checkpoint",
    },
    "docs/scaling.md": {
        "1.13x": lambda: f"{on_the_map(1)[1]}x",
        "2.29x": lambda: f"{on_the_map(16)[1]}x",
        "3.55x": lambda: f"{on_the_map(64)[1]}x",
        "4.63x": lambda: f"{on_the_map(256)[1]}x",
    },
    "docs/testing-fuzz.md": {
        "300 s": "the length of the run of which the page is the record",
        "4 s": "when it found something in that run",
    },
    "tutorials/answers.md": {
        "1 GB/s": "the question's own",
        "20 GB/s": "the question's own, 20 times 1 GB/s",
        "3.3 GB/s": lambda: f"{(20 * 3.36 - 40) / (25 - 5 * 3.36):.1f} GB/s",
    },
    "tutorials/room.md": {
        "369 MB": "what `make usb` said in the run of the table",
    },
    "docs/testing.md": {
        "3 to 11 ulp": "how wide the ties of a router in tests/long/results/ties.jsonl are",
        "3 ulp": "the widest of those that were looked into layer by layer",
    },
    "docs/testing-jobs.md": {
        "8 MiB": lambda: f"{MAX_LINE_BYTES / 2**20:.0f} MiB",
        "21.1 minutes": lambda: f"{of_record('jobs', 'minutes_in_all')} minutes",
        "395.2 MiB": lambda: f"{of_record('jobs', 'rss_mib_at_end')} MiB",
        "1.37 %": lambda: f"{of_record('jobs', 'rss_drift_percent')} %",
        "351.5 MiB": of_log("351.5 MiB"),
        "0.0 %": "351.5 against 351.5",
    },
    "notebooks/02_why_offloading_hurts.ipynb": {"0.25 GB": "a setting: link_bytes_per_s"},
    "notebooks/04_hot_experts.ipynb": {
        "12.5 %": lambda: f"{100 * 4 / 32} %",
        "7.220 tokens per round": lambda: (
            f"{value('draft_set', 'hot_global', TOKENS, of=FACTS, batch=256):.3f} {TOKENS}"
        ),
    },
    "notebooks/05_self_draft.ipynb": {
        "7.23 %": lambda: (
            f"{value('substitution', 'affinity', f'{TOKENS} against random', of=FACTS)} %"
        ),
    },
    "notebooks/08_overlap_and_prefetch.ipynb": {"16MiB": "a value to try"},
    "notebooks/09_when_does_it_pay.ipynb": {
        "20 %": "a setting of the cell below",
        "1 MB": "imagined, for the sum by hand",
        "5 ms": "imagined, for the sum by hand",
        "1 ms": "imagined: 1 MB at 1 GB/s",
        "20 times": "the fastest link of the sum by hand over its slowest",
    },
    "notebooks/report.ipynb": {"10 %": lambda: f"{100 * (report.LEVEL - 1):.0f} %"},
    "notebooks/paper.ipynb": {
        "85 %": lambda: f"{100 * LINK_SHARE:.0f} %",
        "28 GB": lambda: f"{IMPLIED.link_bytes_per_s * 256 / 28.6 * 0.9011 / 1e9:.0f} GB",
        "35 times": lambda: f"{70 / 2:.0f} times",
        "45 times": lambda: f"{value('growth', 'on_demand', GROWTH, of=FACTS):.0f} times",
        "0.6 %": lambda: (
            f"{100 * (value('draft_set', 'hot_temporal', TOKENS, of=FACTS, batch=256) / value('draft_set', 'hot_global', TOKENS, of=FACTS, batch=256) - 1):.1f} %"
        ),
        "28.6 tokens per second": lambda: (
            f"{value('throughput', 'on_demand', 'speed', of=FACTS, batch=256)} tokens per second"
        ),
        "90 %": lambda: (
            f"{value('migration', 'on_demand', 'time in expert migration, largest', of=FACTS):.0f} %"
        ),
        "3.5 GB/s": lambda: f"{IMPLIED.link_bytes_per_s / 1e9:.1f} GB/s",
        "2.1 ms": lambda: f"{1000 * IMPLIED.expert_overhead_s:.1f} ms",
        "2 s": lambda: f"{seconds_of_a_round(16) - seconds_of_a_round(4):.0f} s",
        "1.5 s": lambda: f"{720 * IMPLIED.expert_overhead_s:.1f} s",
    },
    "notebooks/performance.ipynb": {
        "0.20 GB": lambda: f"{of_a_round('fetched_bytes') / 1e9:.2f} GB",
        "0.18 s": lambda: f"{of_a_round('seconds'):.2f} s",
        "2 GB": lambda: f"{real_grid.PROBED_BYTES / 1e9:.0f} GB",
        "1.1 GB/s": lambda: f"{of_a_round('fetched_bytes') / of_a_round('seconds') / 1e9:.1f} GB/s",
        "95 %": "the level of lab/bench/control.T95",
        "0.4 GB": lambda: (
            peer_memory()
            if peer_memory() == f"{32 * 4 * bench.EXPERT_BYTES / 1e9:.1f} GB"
            else "no"
        ),
    },
    "specmoe/lab/bench/README.md": {
        "1.5 s": lambda: f"{bench.FULL.warm_up_s:g} s",
        "3.5 s": lambda: f"{bench.FULL.slice_s:g} s",
        "95 %": "the level of lab/bench/control.T95",
        "10 %": lambda: f"{100 * (offload.SPARE - 1):.0f} %",
    },
}


# ---- pages ----


@functools.cache
def text_of(page: str) -> str:
    """The prose: of a notebook its Markdown cells; without code."""
    text = (ROOT / page).read_text(encoding="utf-8")
    if page.endswith(".ipynb"):
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    return re.sub(r"```.*?```|`[^`]*`", "`code`", text, flags=re.DOTALL)


@functools.cache
def outputs_of(page: str) -> str:
    """What a notebook's cells show, pictures aside."""
    if not page.endswith(".ipynb"):
        return ""
    cells = json.loads((ROOT / page).read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    texts = [output.get("text", "") for output in outputs]
    texts += [
        content
        for output in outputs
        for kind, content in output.get("data", {}).items()
        if kind.startswith("text/")
    ]
    return "\n".join("".join(text) for text in texts)


def numbers_in(prose: str) -> list[str]:
    return [" ".join(match[0].split()) for match in NUMBER.finditer(prose)]


def without_source(page: str) -> list[str]:
    known = SETTINGS | SOURCES.get(page, {})
    return [
        number
        for number in numbers_in(text_of(page))
        if number not in known and number not in outputs_of(page)
    ]


@pytest.mark.parametrize("page", PAGES)
def test_every_number_in_prose_has_a_source(page):
    assert without_source(page) == [], "correct it, or say in SOURCES where it comes from"


COMPUTED = [
    pytest.param(page, number, source, id=f"{Path(page).stem} {number}")
    for page, sources in {"": SETTINGS, **SOURCES}.items()
    for number, source in sources.items()
    if callable(source)
]


@pytest.mark.parametrize(("page", "number", "source"), COMPUTED)
def test_the_source_still_says_the_number(page, number, source):
    assert source() == number


def test_no_source_is_left_of_a_number_that_no_page_has():
    stale = [
        (page, number)
        for page, sources in SOURCES.items()
        for number in sources
        if number not in numbers_in(text_of(page))
    ]
    assert stale == []


def test_a_number_without_a_source_is_found(monkeypatch):
    found = numbers_in(
        "It makes 31.5 tokens/s, 2 to 7 times\nas many; 12x, 40 % of 3 MiB in B = 4."
    )
    assert found == ["31.5 tokens/s", "2 to 7 times", "12x", "40 %", "3 MiB"]
    monkeypatch.setitem(SOURCES, "README.md", SOURCES["README.md"] | {})
    del SOURCES["README.md"]["-80.8 %"]
    assert without_source("README.md") == ["-80.8 %"]


# ---- numbers that have no unit ----


def test_the_readmes_table_is_the_results():
    paper_tokens = value("draft_set", "hot_temporal", TOKENS, of=FACTS, batch=256)
    tokens = value("draft_set", "hot_temporal", TOKENS, batch=256)
    rows = (
        f"| tokens per round | {paper_tokens:g} | {tokens:.1f} (measured) |",
        "| expert bytes against on-demand | -76.7 % | -80.8 % (measured) |",
        "| 11.0x, 45.3x | 9.4x, 33.5x (measured) |",
    )
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [row for row in rows if row not in readme] == []


def test_the_reads_of_a_round_are_what_the_performance_page_says():
    prose = " ".join(text_of("notebooks/performance.ipynb").split())
    assert f"16 rows reads {of_a_round('num_misses'):.0f} experts" in prose


def test_what_the_readme_says_of_one_row_is_on_the_map():
    """ "on tiny-translate a plain pool is ahead or level, on tiny-balanced drafting is ahead" """
    nearest = min(BALANCES, key=lambda balance: abs(balance / paper.BASE.balance - 1))
    recordings = paper.map_recordings(("tiny-balanced", "tiny-translate"))
    cells = paper.winners([each for each in recordings if each.batch == 1], [nearest])
    lead = paper.leads(cells, paper.BASE.balance).set_index("model")[1]
    assert all(words.startswith("specmoe") for words in lead["tiny-balanced"])
    assert all(
        words.startswith("cached") or float(words.split()[1]) < 1.05
        for words in lead["tiny-translate"]
    )


def test_the_winners_that_scaling_names_are_those_of_the_map():
    page = (ROOT / "docs/scaling.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \| ([\d.]+)x \|$", page, re.M)
    assert [[*on_the_map(int(count))] for count, *_ in rows] == [[*said] for _, *said in rows]
    assert len(rows) == 4


def test_counts_in_words_are_right():
    readme = " ".join(text_of("README.md").split())
    words = {7: "seven", 11: "eleven", 12: "twelve", 13: "thirteen", 14: "fourteen"}
    steps = len(list((ROOT / "notebooks").glob("[0-9]*.ipynb")))
    exercises = len(list((ROOT / "tutorials/source").glob("[0-9]*.py")))
    assert f"takes the method apart in {words[steps]} steps" in readme
    assert f"has {words[exercises]} exercises with checks" in readme
