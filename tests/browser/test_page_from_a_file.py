"""``docs/specmoe.html`` from a file, with the network cut: no request, no error, every control by
keyboard, what is drawn follows at once; and the modules replay as the package does.

Where there is no Chromium or no playwright these tests skip.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from page import FIGURES, Problems  # noqa: E402

from specmoe.lab import live, replay  # noqa: E402

PAGE = Path(__file__).resolve().parents[2] / "docs" / "specmoe.html"
CHROMIUM = (
    os.environ.get("SPECMOE_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
)
FIELDS = ".sm-controls input, .sm-pair input, .sm-controls select, button:not([tabindex='-1'])"
# From a drag to the next frame that shows it, best of five: other work on the machine only adds.
MOST_MS = 50
DRAGGED = """async input => {
    const frame = () => new Promise(requestAnimationFrame), times = [];
    for (let i = 0; i < 5; i += 1) {
        await frame();
        const began = performance.now();
        input.value = Number(input.value) < Number(input.max) ? Number(input.value) + 1 : 0;
        input.dispatchEvent(new Event('input', { bubbles: true }));
        input.closest('.sm-live').getBoundingClientRect();  // laid out, too
        times.push(performance.now() - began);
    }
    return Math.min(...times);
}"""
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium, or name one in SPECMOE_CHROMIUM")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="no playwright here: make browser-test installs it"
    )
    with playwright.sync_playwright() as started:
        flags = ["--no-sandbox", "--disable-dev-shm-usage"]
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser):
    """``opened(html or path, **of the context)``: a page without a network, its problems, and every
    address that it asked for beside its own."""
    contexts = []

    def open_page(what: str | Path, **context):
        contexts.append(browser.new_context(**context))
        page, problems, asked = contexts[-1].new_page(), Problems(), []
        problems.watch(page)
        page.route(re.compile("^(?!file:)"), lambda route: route.abort())
        page.on("request", lambda request: asked.append(request.url))
        page.set_content(what) if isinstance(what, str) else page.goto(what.as_uri())
        return page, problems, asked

    yield open_page
    for each in contexts:
        each.close()


def one_module(kind: str, data: dict) -> str:
    style, script = live.style(), live.script([kind])
    return f"<style>{style}</style>{live.place(kind, data, 'about')}<script>{script}</script>"


def test_the_page_asks_for_nothing_but_itself_and_every_module_lives(opened):
    page, problems, asked = opened(PAGE)
    assert [Path(url).name for url in asked] == [PAGE.name] and problems == []
    kinds = page.eval_on_selector_all(".sm-live", "all => all.map(one => one.dataset.live)")
    assert sorted(kinds) == sorted(live.KINDS)
    for module in page.query_selector_all(".sm-live"):
        assert module.query_selector(".sm-summary").inner_text().strip()
        assert module.get_attribute("aria-label") and not module.query_selector("[role=alert]")


def press(field) -> None:
    """What a hand on the keyboard does with this field."""
    field.focus()
    kind = field.evaluate("one => one.type || one.tagName")
    if kind in ("checkbox", "submit", "button"):
        field.press("Space")
    elif kind == "range":
        at_end = field.evaluate("one => Number(one.value) >= Number(one.max)")
        field.press("ArrowLeft" if at_end else "ArrowRight")
    elif kind == "radio":
        field.press("ArrowRight")
    else:
        first = field.evaluate("one => one.selectedIndex === 0")
        field.press("ArrowDown" if first else "ArrowUp")


def test_every_control_changes_its_picture_by_keyboard(opened):
    page, problems, _ = opened(PAGE, reduced_motion="reduce")
    tried, still = 0, []
    for module in page.query_selector_all(".sm-live"):
        kind, done = module.get_attribute("data-live"), set()
        while True:  # what is hidden or dead at first may be offered later
            fields = [one for one in module.query_selector_all(FIELDS) if one.is_visible()]
            open_ = [(name_of(one), one) for one in fields if one.is_enabled()]
            left = [(name, one) for name, one in open_ if name not in done]
            if not left:
                break
            name, field = left[0]
            before = module.evaluate(FIGURES)
            press(field)
            done.add(name)
            tried += 1
            if module.evaluate(FIGURES) == before:
                still.append(f"{kind}: {name}")
    assert still == [] and problems == [] and tried >= 40


def name_of(field) -> str:
    return field.evaluate(
        "one => one.getAttribute('aria-label') || one.dataset.key || one.closest('label, button').innerText"
    )


def test_a_drag_is_drawn_at_once(opened):
    page, _, _ = opened(PAGE, reduced_motion="reduce")
    bars = [one for one in page.query_selector_all("input[type=range]") if one.is_enabled()]
    took = {name_of(bar): bar.evaluate(DRAGGED) for bar in bars if bar.is_visible()}
    print({name: round(ms, 1) for name, ms in took.items()})
    assert len(took) > 15 and max(took.values()) < MOST_MS, took


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_in_light_and_in_dark_and_a_phone_needs_no_sideways_scrolling(
    opened, scheme
):
    page, _, _ = opened(PAGE, color_scheme=scheme, viewport={"width": 390, "height": 800})
    colors = page.evaluate(
        "() => [...document.querySelectorAll('.sm-live')].map(one => getComputedStyle(one)).map(s => [s.color, s.backgroundColor])"
    )
    for words, ground in colors:
        light = [
            sum(map(float, re.findall(r"[\d.]+", color)[:3])) / 765 for color in (words, ground)
        ]
        assert abs(light[0] - light[1]) > 0.7 and (light[1] > 0.5) == (scheme == "light")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("policy", replay.REPLAYED)
def test_the_page_s_pool_is_the_package_s(opened, policy):
    chance = np.random.default_rng(5)
    counts = chance.poisson(0.25, (120, 16)).tolist()
    counts[0] = [3] * 16
    requests = [replay.Request(0, "verify", tuple(row)) for row in counts]
    pairs = [{"counts": [[e, n] for e, n in enumerate(row) if n]} for row in counts]
    page, _, _ = opened("<p>")
    code = f"{live.read('base.js')}\n{live.read('pool.js')}\nreturn poolReplay(requests, 16, kept, policy).misses"
    for kept in (1, 4, 16):
        given = [pairs, kept, policy]
        played = page.evaluate(f"([requests, kept, policy]) => {{ {code} }}", given)
        assert played == [one.misses for one in replay.replay_pool(requests, kept, policy)]


def test_what_was_played_in_python_is_shown_as_it_was_played(opened):
    """The page does not know this rule: it shows who left, and says where that was decided."""
    chance = np.random.default_rng(6)
    counts = [row for row in chance.poisson(0.3, (60, 8)).tolist() if any(row)]
    requests = [replay.Request(0, "verify", tuple(row)) for row in counts]
    rule = lambda counts, resident, kept: sorted({*resident, *np.flatnonzero(counts)})[:kept]  # noqa: E731
    played = replay.replay_pool(requests, 3, rule)
    left = [[int(e) for e in (one.before | one.needed) - one.after] for one in played]
    steps = [[n for e, c in enumerate(row) if c for n in (e, c)] for row in counts]
    data = {
        "layers": [0], "experts": 8, "prefills": {"0": []}, "steps": {"0": steps},
        "start": {"layer": 0, "kept": 3, "policy": "lowest"},
        "own": {"names": ["lowest"], "left": {"3": {"lowest": {"0": left}}}},
    }  # fmt: skip
    page, problems, _ = opened(one_module("pool", data))
    rows = page.eval_on_selector_all(
        "tbody tr", "all => all.map(one => one.innerText.split(/\\s+/))"
    )
    assert rows[-1][0] == "lowest" and rows[-1][2] == str(sum(one.misses for one in played))
    assert "lowest misses" in page.inner_text(".sm-summary") and problems == []
    assert "played in Python" in page.inner_text(".sm-summary")
    assert not page.is_visible("text=replay prefills, too")
    page.select_option("select >> nth=-1", label="LRU")
    assert "played in Python" not in page.inner_text(".sm-summary")


def test_axes_are_marked_at_round_numbers_and_a_simulated_one_says_so(opened):
    page, problems, _ = opened(PAGE)
    charts = page.query_selector_all("[data-live=knobs] .sm-chart")
    titles = [one.query_selector("figcaption").inner_text() for one in charts]
    assert "(simulated)" in titles[2]
    ticks = charts[1].query_selector_all("svg text[text-anchor=middle]")
    numbers = [one.text_content() for one in ticks]
    assert len(numbers) == 3 and all(re.fullmatch(r"0|0?\.?[125]0*", one) for one in numbers)
    assert "(simulated)" in page.inner_text("[data-live=winners] .sm-note") and problems == []


def test_by_hand_the_bound_is_never_beaten_and_lru_s_choices_score_as_lru(opened):
    """A whole game, each time dropping what was asked for longest ago."""
    data = {
        "layers": [0], "experts": 8, "prefills": {"0": []}, "start": {"layer": 0, "kept": 2},
        "steps": {"0": [[t * t % 7, 1] for t in range(30)]},
    }  # fmt: skip
    page, problems, _ = opened(one_module("pool", data))
    page.click("text=play by hand")
    for _ in range(60):
        drops = page.query_selector_all(".sm-drops button")
        if not drops:
            break
        ago = [
            int(re.search(r"(\d+) requests? ago|now", one.inner_text())[1] or 0) for one in drops
        ]
        drops[ago.index(max(ago))].click()
    scores = page.eval_on_selector_all(
        "table:last-of-type td", "all => all.map(one => Number(one.innerText))"
    )
    you, lru, bound = scores[-3:]
    assert you == lru and bound < lru and problems == []
    assert "level with LRU" in page.inner_text(".sm-summary")


CLOCK = {  # two rounds; the fetch of (1, 7) is waited for, that of (1, 5) is not
    "kinds": ["draft", "verify", "wait", "rest", "fetch", "prefetch"],
    "rounds": [
        {"round": 4, "bars": [[0, 0, -1, -1, 0, 4], [0, 1, 1, -1, 4, 10], [0, 2, 1, 7, 5, 8],
                              [1, 4, 1, 7, 4.5, 8], [2, 5, 1, 5, 1, 3]]},
        {"round": 5, "bars": [[0, 1, 0, -1, 0, 20]]},
    ],
    "lanes": 3, "longest": 20, "start": {"round": 0, "mark": [1, 7]},
}  # fmt: skip
MOVE = "(one, at) => { one.value = at; one.dispatchEvent(new Event('input')); }"


def test_the_clock_says_who_waits_for_a_read_and_its_axis_is_one_for_all_rounds(opened):
    page, problems, _ = opened(one_module("timeline", CLOCK))
    round_, _, _, read = page.query_selector_all("input[type=range]")
    said = page.inner_text(".sm-summary")
    assert said.startswith("Round 4: 10 ms (measured), 30 % of it waiting for reads. 2 reads, 1 of")
    assert "Chosen: layer 1, expert 7, fetched from 4.5 to 8 ms" in said
    assert "Computing waited 3 ms for it." in said
    # the read and the wait for it, both framed
    assert len(page.query_selector_all(".sm-chosen")) == 2
    read.evaluate(MOVE, 1)
    assert "layer 1, expert 5, prefetched from 1 to 3 ms" in page.inner_text(".sm-summary")
    assert "Computing did not wait for it." in page.inner_text(".sm-summary")
    ticks = page.eval_on_selector_all(
        "svg text[text-anchor=middle]", "all => all.map(o => o.textContent)"
    )
    round_.evaluate(MOVE, 1)
    again = page.eval_on_selector_all(
        "svg text[text-anchor=middle]", "all => all.map(o => o.textContent)"
    )
    numbers = [[one for one in each if one.replace(".", "").isdigit()] for each in (ticks, again)]
    assert numbers[0] == numbers[1] == ["0", "5", "10", "15", "20"] and problems == []
    assert page.inner_text(".sm-summary").endswith("waiting for reads. Nothing was read.")


def test_a_round_that_had_ended_by_then_says_so(opened):
    page, problems, _ = opened(one_module("timeline", CLOCK))
    _, zoom, from_, _ = page.query_selector_all("input[type=range]")
    zoom.evaluate(MOVE, 2)
    assert "this round ended" not in page.text_content("svg")
    from_.evaluate(MOVE, from_.get_attribute("max"))
    assert "this round ended at 10 ms" in page.text_content("svg") and problems == []


def test_a_read_outside_the_stretched_axis_is_brought_into_it(opened):
    page, problems, _ = opened(one_module("timeline", CLOCK))
    _, zoom, from_, read = page.query_selector_all("input[type=range]")
    read.evaluate(MOVE, 0)
    zoom.evaluate(MOVE, 2)  # 1 ms of 20
    shown, start = zoom.get_attribute("aria-valuetext"), from_.get_attribute("aria-valuetext")
    assert (shown, start) == ("1", "0 ms")
    read.evaluate(MOVE, 2)  # it runs from 4.5 to 8 ms
    assert 4.5 <= float(from_.get_attribute("aria-valuetext").removesuffix(" ms")) <= 8
    assert page.query_selector(".sm-chosen") and problems == []


@pytest.mark.parametrize(
    ("rule", "biased"),
    [("min(1, p/q); a", False), ("every draft", True), ("at least q", True), ("all of p", True)],
)
def test_only_the_right_rule_gives_text_that_follows_p(opened, rule, biased):
    data = {"p": [10, 6, 3, 1], "q": [5, 4, 2, 9], "words": ["the", "a", "one", "no"]}
    page, _, _ = opened(one_module("accept", data))
    labels = page.eval_on_selector_all("select option", "all => all.map(one => one.innerText)")
    page.select_option("select", index=next(i for i, words in enumerate(labels) if rule in words))
    page.click("text=10,000 tokens")
    assert ("biased" in page.inner_text("body")) == biased


def test_a_word_of_a_text_is_a_word_whatever_it_says(opened):
    hostile = "</script><img src=x onerror=document.title='broken'>"
    memory = {
        "before": {"0": [1]},
        "after": {"0": [1]},
        "reads": [],
        "needed": [[0, 1, 2]],
        "committed": 1,
    }
    block = {
        "round": 0,
        "start": 1,
        "drafted": [hostile],
        "accepted": 1,
        "committed": [hostile],
        "kinds": ["accepted"],
    }
    data = {
        "prompts": [{"number": 1, "words": [hostile, hostile], "rounds": [block]}], "memory": {"0": memory},
        "layers": [0], "experts": 2, "record_bytes": 8, "batch": 1, "start": {"prompt": 0, "round": 0, "act": 2},
    }  # fmt: skip
    page, problems, _ = opened(one_module("rounds", data))
    assert hostile in page.inner_text("body") and page.title() == "" and problems == []


@pytest.mark.parametrize("kind", live.KINDS)
def test_a_module_over_foreign_data_says_one_sentence(opened, kind):
    page, _, _ = opened(one_module(kind, {"nothing": "of ours"}))
    said = page.inner_text("[role=alert]")
    assert said.startswith(f"This {kind} module could not show its data:")


def test_the_colours_are_those_of_the_figures():
    """No browser needed: one palette in two languages."""
    from matplotlib.colors import to_hex

    from specmoe.lab.figures import METHOD_COLORS

    text = live.read("base.js")
    palette = dict(re.findall(r"(\w+): \"(#\w{6})\"", text))
    methods = dict(re.findall(r"(\w+): COLORS\.(\w+)", text))
    assert {name: palette[color] for name, color in methods.items()} == {
        name: to_hex(color) for name, color in METHOD_COLORS.items()
    }


def test_the_committed_page_is_small_and_of_this_version():
    import specmoe

    text = PAGE.read_text(encoding="utf-8")
    assert len(text.encode()) < 1_000_000 and f"specmoe {specmoe.__version__}" in text
    for kind in live.KINDS:
        assert live.read(f"{kind}.js") in text, f"{kind}.js has changed: make the page again"


@pytest.mark.long  # that its modules are today's is seen above
def test_making_the_page_again_gives_the_same_bytes():
    from specmoe.lab.live.page import page

    assert page() == PAGE.read_text(encoding="utf-8")
