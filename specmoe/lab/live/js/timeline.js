// One round on the clock: what computes, what is read, and who waits for whom. Every round is drawn on
// one axis. Data: specmoe/lab/live/traces.py:timeline.
LIVE.timeline = (root, data, { ready, say, timed }) => {
  const NAMES = { draft: "drafting", verify: "full model", wait: "waiting for a read", rest: "the rest",
    fetch: "fetch (the router asked)", prefetch: "prefetch (before it asked)" };
  const FILLS = { draft: COLORS.sky, verify: "#5f7390", wait: COLORS.red, rest: "#c8c8c8", fetch: COLORS.green, prefetch: COLORS.yellow };
  const HIGH = 26, TOP = 20, LEFT = 62; // a lane, the words above the first, the lanes' names
  const dots = `sm-dots-${Math.random().toString(36).slice(2)}`, lines = dots.replace("dots", "lines");
  const draw = timed(show), chart = el("div"), marks = el("div"), sums = el("div");
  const rounds = data.rounds.map(({ round, bars }) => ({ round, bars: bars.map(([lane, kind, layer, expert, begin, end]) =>
    ({ lane, kind: data.kinds[kind], layer, expert, begin, end })) }));
  const round = slider("round", range(0, rounds.length), data.start.round, () => { offer(); draw(); }, (i) => String(rounds[i].round));
  const read = slider("read", [-1], -1, () => { follow(); draw(); }, (i) => (i < 0 ? "none chosen" : name(reads()[i])));
  const zoom = slider("milliseconds shown", zooms(), data.longest, () => { starts(from.value); follow(); draw(); }, digits);
  const from = slider("from", [0], 0, draw, (ms) => `${digits(ms)} ms`);

  function zooms() {
    const nice = range(-2, 6).flatMap((power) => [1, 2, 5].map((one) => one * 10 ** power));
    return nice.filter((one) => one < data.longest && one > data.longest / 200).concat(data.longest);
  }
  function starts(wanted) { // tenths of what is shown, so that a stretched axis moves in small steps
    const step = zoom.value / 10, last = Math.max(0, data.longest - zoom.value);
    const offered = range(0, Math.ceil(last / step - 1e-9) + 1).map((i) => Math.min(i * step, last));
    from.offer(offered, offered.reduce((best, one) => (Math.abs(one - wanted) < Math.abs(best - wanted) ? one : best), 0));
  }
  function reads() { return rounds[round.value].bars.filter((bar) => bar.lane > 0).sort((a, b) => a.begin - b.begin); }
  function name(bar) { return `layer ${bar.layer}, expert ${bar.expert}`; }
  function offer(mark = null) {
    const offered = reads(), at = mark ? offered.findIndex((bar) => bar.layer === mark[0] && bar.expert === mark[1]) : -1;
    read.offer(range(-1, offered.length), at);
  }
  function follow() { // what is chosen is in the picture
    const bar = reads()[read.value];
    if (bar && (bar.end > from.value + zoom.value || bar.begin < from.value)) starts((bar.begin + bar.end - zoom.value) / 2);
  }
  const waitsFor = (bar) => rounds[round.value].bars.filter((one) => one.kind === "wait" && one.layer === bar.layer
    && one.expert === bar.expert && one.end > bar.begin && one.begin <= bar.end);
  const ends = (bars) => Math.max(...bars.map((bar) => bar.end));
  const took = (bars) => sum(bars.map((bar) => bar.end - bar.begin));

  function show() {
    const { bars } = rounds[round.value], list = reads(), chosen = list[read.value];
    const wide = clamp(root.clientWidth - 8, 280, 1100), span = wide - LEFT - 10;
    const foot = TOP + data.lanes * HIGH, at = (ms) => LEFT + (span * (ms - from.value)) / zoom.value;
    const here = bars.filter((bar) => bar.end > from.value && bar.begin < from.value + zoom.value);
    const drawn = [...frame(at, foot), ...here.flatMap((bar) => shape(bar, at, wide, list))];
    if (chosen) drawn.push(...outline(chosen, at, foot, wide));
    if (!here.length) drawn.push(el("text", { x: LEFT + 12, y: TOP + 17 }, `this round ended at ${digits(ends(bars))} ms`));
    fill(chart, el("svg", { width: wide, height: foot + 36, role: "img", "aria-label": `round ${rounds[round.value].round} on the clock: ${spoken(bars)}` }, patterns(), ...drawn));
    const kinds = data.kinds.filter((kind) => rounds.some((one) => one.bars.some((bar) => bar.kind === kind)));
    fill(marks, legend(...kinds.map((kind) => [{ wait: "sm-waits", prefetch: "sm-soon" }[kind] || FILLS[kind], NAMES[kind]])));
    fill(sums, shares(bars));
    say(told(bars, list, chosen));
  }

  function patterns() {
    return el("defs", {},
      el("pattern", { id: lines, width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
        el("rect", { width: 6, height: 6, fill: FILLS.wait }), el("rect", { width: 1.4, height: 6, fill: "#fff" })),
      el("pattern", { id: dots, width: 6, height: 6, patternUnits: "userSpaceOnUse" },
        el("rect", { width: 6, height: 6, fill: FILLS.prefetch }), el("circle", { cx: 3, cy: 3, r: 1.1, fill: "#000" })));
  }

  /** Ticks of the axis, and the names of the lanes. */
  function frame(at, foot) {
    const step = [1, 2, 5, 10].map((one) => one * 10 ** Math.floor(Math.log10(zoom.value / 5))).find((one) => zoom.value / one <= 7);
    const first = Math.ceil(from.value / step - 1e-9), last = Math.floor((from.value + zoom.value) / step + 1e-9);
    const ticks = range(first, last + 1).map((i) => i * step).flatMap((ms) => [
      el("line", { x1: at(ms), x2: at(ms), y1: TOP - 4, y2: foot + 3, class: "sm-rule" }),
      el("text", { x: at(ms), y: foot + 16, "text-anchor": "middle" }, digits(ms))]);
    const lanes = range(0, data.lanes).map((lane) => el("text", { x: LEFT - 8, y: TOP + lane * HIGH + 17, "text-anchor": "end" }, lane ? `read ${lane}` : "compute"));
    return [...ticks, ...lanes, el("text", { x: LEFT, y: foot + 32 }, "milliseconds since the round began (measured)")];
  }

  /** The bar, and its words where there is room: those of a layer above it, as waits fill most of it. */
  function shape(bar, at, wide, list) {
    const x = Math.max(at(bar.begin), LEFT), end = Math.min(at(bar.end), wide - 10), y = TOP + bar.lane * HIGH;
    const inked = end - x < 4 ? FILLS[bar.kind] : { wait: `url(#${lines})`, prefetch: `url(#${dots})` }[bar.kind] || FILLS[bar.kind];
    const choose = bar.lane ? { onclick: () => { read.value = list.indexOf(bar); draw(); }, style: "cursor:pointer" } : {};
    const rect = el("rect", { x, y: y + 2, width: Math.max(0.7, end - x), height: HIGH - 5, fill: inked, class: end - x < 4 ? null : "sm-block", ...choose });
    const words = { verify: `L${bar.layer}`, draft: "draft", fetch: `L${bar.layer} e${bar.expert}`, prefetch: `L${bar.layer} e${bar.expert}` }[bar.kind];
    if (!words || end - x < 7 * words.length + 4) return [rect];
    const above = bar.kind === "verify", ink = above ? "" : `fill:${bar.kind === "fetch" ? "#fff" : "#000"};pointer-events:none`;
    return [rect, el("text", { x: (x + end) / 2, y: above ? TOP - 5 : y + 17, "text-anchor": "middle", style: ink,
      class: bar.kind === "prefetch" ? "sm-plated" : null }, words)];
  }

  /** A frame around the chosen read and the waits for it, and lines where it began and ended. */
  function outline(bar, at, foot, wide) {
    const inside = (ms) => clamp(at(ms), LEFT, wide - 10);
    return [...[bar.begin, bar.end].filter((ms) => at(ms) === inside(ms)).map((ms) => el("line", { x1: at(ms), x2: at(ms), y1: TOP, y2: foot, class: "sm-was" })),
      ...[bar, ...waitsFor(bar)].map((one) => el("rect", { x: inside(one.begin), y: TOP + one.lane * HIGH + 1,
        width: Math.max(1, inside(one.end) - inside(one.begin)), height: HIGH - 3, class: "sm-chosen" }))];
  }

  /** Milliseconds of each kind; a layer's time is what is left of it after the waits. */
  function parts(bars) {
    const of = (kind) => took(bars.filter((bar) => bar.kind === kind));
    return [["draft", of("draft")], ["verify", of("verify") - of("wait")], ["wait", of("wait")], ["rest", of("rest")]];
  }
  function shares(bars) {
    const all = parts(bars), whole = sum(all.map(([, ms]) => ms));
    return table("what computing did", ["", "ms", "share"], all.map(([kind, ms]) => [NAMES[kind], digits(ms), `${Math.round((100 * ms) / whole)} %`]));
  }
  function spoken(bars) { return parts(bars).map(([kind, ms]) => `${NAMES[kind]} ${digits(ms)} ms`).join(", "); }

  function told(bars, list, chosen) {
    const whole = ends(bars), waited = took(bars.filter((bar) => bar.kind === "wait"));
    const early = list.filter((bar) => bar.kind === "prefetch").length;
    const head = `Round ${rounds[round.value].round}: ${digits(whole)} ms (measured), ${Math.round((100 * waited) / whole)} % of it waiting for reads.`
      + (list.length ? ` ${count(list.length, "read")}, ${early || "none"} of them before the router asked.` : " Nothing was read.");
    if (!list.length) return head;
    if (!chosen) return `${head} Choose a read to see who waits for it.`;
    const waits = took(waitsFor(chosen));
    return `${head} Chosen: ${name(chosen)}, ${chosen.kind}ed from ${digits(chosen.begin)} to ${digits(chosen.end)} ms. ${waits ? `Computing waited ${digits(waits)} ms for it.` : "Computing did not wait for it."}`;
  }

  starts(0);
  offer(data.start.mark);
  ready(el("div", { class: "sm-controls" }, round.box, zoom.box, from.box, read.box), chart, marks, sums, draw);
};
