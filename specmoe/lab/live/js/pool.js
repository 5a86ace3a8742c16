// One layer's requests against a pool of any size: under a policy, or with the reader choosing what
// leaves. Data: specmoe/lab/live/traces.py:pool. The rules are those of specmoe/offload/policies.py;
// policies that this page has no rules for were played in Python (data.own).
LIVE.pool = (root, data, { ready, say, timed }) => {
  const OWN = data.own?.names ?? [];
  const POLICIES = { lru: "LRU", lfu: "LFU", temporal: "temporal", belady: "Belady (the bound)", ...Object.fromEntries(OWN.map((name) => [name, name])) };
  const LOOKS = { temporal: [COLORS.blue, 4, []], lfu: [COLORS.pink, 2.5, [2, 3]], lru: [COLORS.orange, 2.5, [7, 4]], belady: ["", 2.5, []] };
  OWN.forEach((name, i) => { LOOKS[name] = [[COLORS.green, COLORS.red, COLORS.brown][i], 2.5, [[9, 3, 2, 3], [12, 3], [4, 2]][i]]; });
  const TURNS = 20; // requests of one game
  const draw = timed(show), changed = () => { game = null; draw(); };
  const mode = radios("pool", [["watch a policy", "watch"], ["play by hand", "play"]], "watch", changed);
  const layer = menu("layer", data.layers.map((one) => [one, one]), data.start.layer, () => { window_(); changed(); });
  const policy = menu("policy drawn", Object.entries(POLICIES).map(([name, words]) => [words, name]), data.start.policy ?? "temporal", draw);
  const sizes_ = OWN.length ? Object.keys(data.own.left).map(Number) : range(1, data.experts + 1);
  const kept = slider("experts kept", sizes_, data.start.kept, changed);
  const prefills = check("replay prefills, too", false, () => { window_(); changed(); });
  const zoom = slider("steps shown", [1], 1, () => { starts(); draw(); });
  const first = slider("from step", [0], 0, changed);
  const ahead = check("show me the next requests", false, draw);
  const raster = canvas("experts by step: resident, hit or miss"), lines = canvas("misses so far, by policy");
  const scores = el("div"), board = el("div"), key = el("ul", { class: "sm-legend" }), watched = el("div", {}, legend(
    ["sm-here", "resident, not needed"], ["sm-hit", "hit: needed and there"], ["sm-read", "miss: needed and read"], [COLORS.yellow, "P: a prompt's prefill"]),
  raster.box, key, lines.box, scores);
  const steps = Object.fromEntries(data.layers.map((name) => [name, data.steps[name].map((flat, t) => ({
    prefill: data.prefills[name].includes(t),
    first: data.prefills[name].includes(t - 1), // the first step after a prefill
    counts: range(0, flat.length / 2).map((i) => [flat[2 * i], flat[2 * i + 1]]), // [expert, tokens]
  }))]));
  let game = null, cached = {};

  function requests() { return steps[layer.value].filter((one) => prefills.value || !one.prefill); }

  function window_() { // the sliders of the time line, for as many steps as there are
    const most = requests().length;
    const sizes = [10, 20, 50, 100, 200, 500, 1000].filter((size) => size < most).concat(most);
    zoom.offer(sizes, sizes.find((size) => size >= Math.min(most, 100)));
    starts();
  }
  function starts() {
    const offered = range(0, requests().length - zoom.value + 1);
    first.offer(offered, clamp(first.value || 0, 0, offered.length - 1));
  }

  function show() {
    const plays = mode.value === "play";
    [policy, zoom, prefills].forEach((one) => { one.box.hidden = plays; });
    if (OWN.length) prefills.box.hidden = true; // decoding alone was played
    ahead.box.hidden = !plays;
    watched.hidden = plays;
    board.hidden = !plays;
    if (plays) playOn();
    else showReplay();
  }

  // ---- watching ----

  function replayed(name) { // kept until another layer, size or set of requests is chosen
    const key = [name, layer.value, kept.value, prefills.value].join();
    const left = OWN.includes(name) ? data.own.left[kept.value][name][layer.value] : null;
    return (cached[key] ??= poolReplay(requests(), data.experts, kept.value, name, left));
  }

  function showReplay() {
    const from = first.value, to = from + zoom.value;
    drawRaster(replayed(policy.value), from, to);
    const all = Object.keys(POLICIES).map((name) => [name, replayed(name)]);
    drawLines(all, from, to);
    const rows = all.map(([name, { misses, hits }]) => [POLICIES[name], sum(misses.slice(from, to)), sum(misses), sum(hits)]);
    fill(scores, table(`pool of ${kept.value}, layer ${layer.value}`, ["policy", "misses here", "misses in all", "hits in all"], rows));
    const best = rows.find(([words]) => words === POLICIES[policy.value]), bound = rows[3], own = OWN.includes(policy.value) ? " Its rule was played in Python when this was made." : "", unasked = replayed(policy.value).unasked;
    say(`Layer ${layer.value}, ${count(kept.value, "expert")} kept, steps ${from} to ${to - 1}: ${POLICIES[policy.value]} misses ${best[1]} times here and ${best[2]} in all${unasked ? ` (${count(unasked, "read")} of that before anybody asked)` : ""}; the bound misses ${bound[2]}. Replayed, not run: the requests stay what they were.${own}`);
  }

  const X = 46; // room for the words at the left
  function drawRaster(played, from, to) {
    const height = clamp(data.experts * 8, 130, 330), top = 16, { pen, width } = raster.begin(height + top);
    const wide = (width - X) / (to - from), high = height / data.experts;
    const fill_ = { before: theme(root, "there"), hit: COLORS.blue, miss: COLORS.red };
    for (const t of range(from, to)) {
      const x = X + (t - from) * wide, cell = (e, color) => {
        pen.fillStyle = color;
        pen.fillRect(x, top + e * high, Math.max(1, wide - (wide > 4 ? 1 : 0)), Math.max(1, high - (high > 4 ? 1 : 0)));
      };
      if (prefills.value ? requests()[t].prefill : requests()[t].first) {
        pen.fillStyle = COLORS.yellow;
        pen.fillRect(x, 0, Math.max(2, wide - 1), top - 2);
        if (wide > 9) { pen.fillStyle = "#000"; pen.fillText("P", x + wide / 2 - 4, 11); }
      }
      played.before[t].forEach((e) => cell(e, fill_.before));
      played.needed[t].forEach((e) => cell(e, played.before[t].has(e) ? fill_.hit : fill_.miss));
    }
    pen.fillStyle = theme(root, "fg");
    for (const e of range(0, data.experts)) if (e % Math.ceil(14 / high) === 0) pen.fillText(e, 20, top + e * high + Math.min(high, 11));
    pen.save();
    pen.translate(11, top + height / 2 + 22);
    pen.rotate(-Math.PI / 2);
    pen.fillText("expert", 0, 0);
    pen.restore();
  }

  function drawLines(all, from, to) {
    const height = 130, { pen, width } = lines.begin(height + 8), ink = theme(root, "fg");
    const totals = all.map(([name, { misses }]) => [name, misses.slice(from, to).reduce((done, one) => [...done, (done.at(-1) || 0) + one], [])]);
    const most = Math.max(1, ...totals.map(([, total]) => total.at(-1)));
    const at = (t, value) => [X + ((t + 1) * (width - X - 2)) / (to - from), 6 + (height - 6) * (1 - value / most)];
    pen.strokeStyle = theme(root, "rim");
    pen.strokeRect(X, 6, width - X - 2, height - 6);
    for (const name of Object.keys(LOOKS)) {
      const [color, thick, dash] = LOOKS[name], total = totals.find(([one]) => one === name)[1];
      pen.beginPath();
      pen.moveTo(...at(-1, 0));
      total.forEach((value, t) => pen.lineTo(...at(t, value)));
      pen.strokeStyle = color || ink;
      pen.lineWidth = thick;
      pen.setLineDash(dash);
      pen.stroke();
    }
    fill(key, el("li", {}, `misses from step ${from} to ${to - 1}:`), ...Object.keys(LOOKS).map((name) => {
      const [color, thick, dash] = LOOKS[name], look = { stroke: color || ink, "stroke-width": thick, "stroke-dasharray": dash.join(" ") };
      return el("li", {}, el("svg", { width: 34, height: 8, "aria-hidden": "true" }, el("line", { x1: 0, x2: 34, y1: 4, y2: 4, ...look })), POLICIES[name]);
    }));
    pen.fillStyle = ink;
    pen.fillText(String(most), 4, 16);
    pen.fillText("0", 4, height);
  }

  // ---- playing ----

  function newGame() {
    const turns = requests().filter((one) => !one.prefill);
    const from = clamp(first.value, 0, Math.max(0, turns.length - TURNS)), slice = turns.slice(from, from + TURNS);
    const score = (name) => poolReplay(slice, data.experts, kept.value, name).misses;
    return { slice, turn: -1, mine: new Set(), reads: 0, last: {}, uses: {}, past: [], lru: score("lru"), belady: score("belady") };
  }

  /** The next request comes in: what it needs is read. */
  function take(now) {
    now.turn += 1;
    const needed = now.slice[now.turn].counts.map(([e]) => e);
    now.fresh = needed.filter((e) => !now.mine.has(e));
    now.reads += now.fresh.length;
    needed.forEach((e) => { now.mine.add(e); now.last[e] = now.turn; now.uses[e] = (now.uses[e] || 0) + 1; });
  }

  function playOn() {
    game ??= newGame();
    while (game.turn < game.slice.length - 1 && game.mine.size <= kept.value) take(game);
    showBoard(game, game.mine.size <= kept.value);
  }

  function drop(e) {
    game.past.push(structuredClone({ ...game, past: [] }));
    game.mine.delete(e);
    draw();
    board.querySelector(".sm-drops button")?.focus();
  }

  function undo() {
    const past = game.past;
    game = { ...past.pop(), past };
    draw();
  }

  function showBoard(now, over) {
    const soFar = (misses) => sum(misses.slice(0, now.turn + 1)), needed = now.slice[now.turn].counts.map(([e]) => e);
    const many = now.mine.size - kept.value, upcoming = now.slice.slice(now.turn + 1, now.turn + 9);
    ahead.box.hidden = over; // nothing is asked for any more
    const turn = `Request ${now.turn + 1} of ${now.slice.length}`;
    const asks = `the router asks for ${needed.join(", ")}; ${now.fresh.length ? `${now.fresh.join(", ")} had to be read` : "all were there"}`;
    const chips = [...now.mine].sort((a, b) => a - b).map((e) => button(
      el("span", {}, el("strong", {}, `drop ${e}`), el("br"), el("small", {}, needed.includes(e) ? "asked for now" : `${count(now.turn - now.last[e], "request")} ago`, `, ${now.uses[e]}×`)),
      () => drop(e), { "data-key": `drop ${e}`, disabled: over }));
    const scores_ = [["you", now.reads], ["LRU", soFar(now.lru)], ["Belady (the bound)", soFar(now.belady)]];
    fill(board,
      el("h4", {}, over ? "All requests served" : `${turn}: ${asks}`),
      el("p", {}, over ? `Your pool read ${now.reads}.` : `There is room for ${kept.value}: choose ${many === 1 ? "the one" : `the ${many}`} to drop.`),
      el("div", { class: "sm-controls sm-drops" }, ...(over ? [] : chips)),
      ahead.value && !over ? el("p", { class: "sm-note" }, `next requests: ${upcoming.map((one) => one.counts.map(([e]) => e).join(" ")).join(" | ") || "none"}`) : null,
      table("experts read so far", ["who chooses", "reads"], scores_),
      el("div", { class: "sm-controls" }, button("Undo", undo, { disabled: !now.past.length, "data-key": "undo" }),
        button("Start again", () => { game = null; draw(); }, { "data-key": "again" })));
    const verdict = now.reads < soFar(now.lru) ? "You beat LRU" : now.reads === soFar(now.lru) ? "You are level with LRU" : "LRU read less";
    say(over ? `${verdict}: you read ${now.reads}, LRU ${soFar(now.lru)}, the bound ${soFar(now.belady)}. Nobody can read less than the bound, which sees the future.`
      : `${turn}: ${asks}. Drop ${many}. So far you read ${now.reads}, LRU ${soFar(now.lru)}, the bound ${soFar(now.belady)}.`);
  }

  window_();
  ready(el("div", { class: "sm-controls" }, mode.box, layer.box, kept.box, policy.box, zoom.box, first.box, prefills.box, ahead.box), watched, board, draw);
};

/** Play `requests` against a pool that keeps `kept` experts after each step, starting empty. `left`:
    who leaves after each step (-1 - e: e comes, unasked for), where the rule is not of this page. */
function poolReplay(requests, experts, kept, policy, left = null) {
  const keep = left ? null : POOL_RULES[policy](requests, experts), played = { before: [], needed: [], hits: [], misses: [], unasked: 0 };
  let resident = new Set();
  requests.forEach(({ counts }, t) => {
    const needed = new Set(counts.map(([e]) => e)), hits = [...needed].filter((e) => resident.has(e)).length;
    played.before.push(resident);
    played.needed.push(needed);
    played.hits.push(hits);
    const candidates = [...new Set([...needed, ...resident])], come = left ? left[t].filter((e) => e < 0).map((e) => -1 - e) : [];
    played.misses.push(needed.size - hits + come.length);
    played.unasked += come.length;
    const ahead = left ? null : keep(counts, t);
    resident = new Set(left ? [...candidates.filter((e) => !left[t].includes(e)), ...come]
      : candidates.sort((a, b) => ahead(a, b) || a - b).slice(0, kept));
  });
  return played;
}

/** For each policy: (requests, experts) => (counts, t) => order of two experts, the one to keep first. */
const POOL_RULES = {
  lru(requests, experts) { // the most recently requested; ties: more tokens
    const last = Array.from({ length: experts }, () => [-1, 0]);
    return (counts, t) => {
      counts.forEach(([e, n]) => { last[e] = [t, n]; });
      return (a, b) => last[b][0] - last[a][0] || last[b][1] - last[a][1];
    };
  },
  lfu(requests, experts) { // the most tokens since the beginning
    const total = new Array(experts).fill(0);
    return (counts) => {
      counts.forEach(([e, n]) => { total[e] += n; });
      return (a, b) => total[b] - total[a];
    };
  },
  temporal(requests, experts) { // the most used in this step; earlier use is squeezed below one token
    let score = new Array(experts).fill(0);
    return (counts) => {
      const highest = Math.max(0, ...score) + 1, now = new Array(experts).fill(0);
      counts.forEach(([e, n]) => { now[e] = n; });
      score = score.map((old, e) => now[e] + (0.5 * old) / highest);
      return (a, b) => score[b] - score[a];
    };
  },
  belady(requests, experts) { // the soonest needed again: sees the future
    const next = new Array(requests.length + 1);
    next[requests.length] = new Array(experts).fill(Infinity);
    for (let t = requests.length - 1; t >= 0; t -= 1) {
      next[t] = next[t + 1].slice();
      requests[t].counts.forEach(([e]) => { next[t][e] = t; });
    }
    return (counts, t) => (a, b) => (next[t + 1][a] === next[t + 1][b] ? 0 : next[t + 1][a] - next[t + 1][b]);
  },
};
