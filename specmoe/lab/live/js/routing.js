// Which experts each token of one prompt went to, layer by layer. Colour: how much the text uses the
// expert. Data: specmoe/lab/live/data.py:routing.
LIVE.routing = (root, data, { ready, say, timed }) => {
  const CIVIDIS = [[0, 34, 78], [53, 69, 108], [102, 105, 112], [148, 142, 119], [200, 184, 102], [253, 234, 69]];
  const STATES = { fetched: "fetched", prefetched: "read ahead of the router", resident: "was in fast memory",
    substituted: "a stand-in ran", "left out": "none ran" };
  const draw = timed(show);
  const steps = [["the full model", 0], ...(data.drafted ? [["the draft, with stand-ins", 1]] : []),
    ...(data.own ?? []).map((name, i) => [`the draft, with ${name} (replayed)`, 2 + i])];
  const step = radios("computed by", steps, data.start.step ?? 0, draw);
  const token = slider("token", range(0, data.positions), data.start.token, draw, (at) => `${at + 1}: ${data.labels[at]}`);
  const room = Math.max(1, Math.floor(16 / data.top_k)); // layers in one picture
  const firsts = range(0, Math.max(1, data.layers.length - room + 1));
  const layer = slider("layers", firsts, 0, draw, (i) => `${data.layers[i]} to ${data.layers[Math.min(i + room, data.layers.length) - 1]}`);
  const text = el("div", { class: "sm-text sm-clicks", role: "group", "aria-label": "the text, token by token" });
  const grid = el("div", { class: "sm-scroll" }), spelled = el("div");
  // the text is made once; a click on a token selects that one, whichever others are spelled alike
  const words = range(0, data.positions).map((at) => button(el("span", {}, data.words[at],
    data.labels[at] === data.words[at] ? null : el("sub", {}, data.labels[at].slice(data.words[at].length).replace(/[ ()]/g, ""))),
  () => { token.value = at; draw(); }, { "aria-label": `token ${at + 1}: ${data.labels[at]}`, tabindex: -1, class: at < data.prompt ? "sm-given" : "" }));
  text.append(...words);

  /** Per choice of the router: [expert, who ran, state, weight]. */
  const picksOf = (at, name) => (data.picks[step.value][at]?.[name] || []).map(([expert, ran, state, weight]) => [expert, ran, data.states[state], weight]);

  function show() {
    words.forEach((one, at) => one.setAttribute("aria-pressed", at === token.value));
    const wide = 36, high = 21, left = 34, top = 92, fits = Math.max(6, Math.floor((root.clientWidth - left - 8) / wide));
    const shown = Math.min(fits, data.width, data.positions), from = clamp(token.value - (shown >> 1), 0, data.positions - shown);
    const layers = data.layers.slice(layer.value, layer.value + room), parts = [];
    range(from, from + shown).forEach((at, x) => {
      parts.push(el("text", { transform: `translate(${left + x * wide + wide / 2 + 4} ${top - 6}) rotate(-90)`,
        class: at >= data.prompt ? "sm-made" : "sm-given" }, data.labels[at].slice(0, 12)));
      layers.forEach((name, y) => picksOf(at, name).forEach((pick, choice) =>
        parts.push(...cell(pick, left + x * wide, top + (y * data.top_k + choice) * high, wide - 2, high - 2, name))));
    });
    layers.forEach((name, y) => {
      const at = top + y * data.top_k * high;
      parts.push(el("text", { x: 2, y: at + (data.top_k * high) / 2 + 4 }, `L${name}`),
        el("line", { x1: 0, x2: left + shown * wide, y1: at - 1, y2: at - 1, class: "sm-rule" }));
    });
    const tall = top + layers.length * data.top_k * high;
    parts.push(el("rect", { x: left + (token.value - from) * wide - 2, y: 2, width: wide + 1, height: tall - 3, class: "sm-chosen" }));
    fill(grid, el("svg", { width: left + shown * wide + 4, height: tall + 2, role: "img",
      "aria-label": `experts of tokens ${from + 1} to ${from + shown}, by layer` }, ...parts));
    showToken(layers);
  }

  /** One choice of a router: [expert, who ran, state, weight]. */
  function cell([expert, ran, state], x, y, wide, high, name) {
    const rank = data.ranks[name]?.[ran] ?? data.experts, cold = ran < 0 ? null : Math.log2(1 + rank) / Math.log2(1 + data.experts);
    const [r, g, b] = cold === null ? [0, 0, 0] : shade(cold), bright = 0.3 * r + 0.59 * g + 0.11 * b;
    const words_ = state === "substituted" ? `${ran}*` : state === "left out" ? "–" : String(expert);
    const frame = { fetched: "sm-fetched", prefetched: "sm-early" }[state];
    return [el("rect", { x, y, width: wide, height: high, style: cold === null ? "fill:none" : `fill:rgb(${r},${g},${b})`, class: frame || "" }),
      el("text", { x: x + wide / 2, y: y + high / 2 + 4, "text-anchor": "middle", style: cold === null ? "" : `fill:${bright > 120 ? "#000" : "#fff"}` }, words_)];
  }
  function shade(cold) { // the most used is darkest
    const at = clamp(cold, 0, 1) * (CIVIDIS.length - 1), low = Math.min(Math.floor(at), CIVIDIS.length - 2);
    return CIVIDIS[low].map((one, i) => Math.round(one + (CIVIDIS[low + 1][i] - one) * (at - low)));
  }

  function showToken(layers) {
    const at = token.value, rows = layers.flatMap((name) => picksOf(at, name).map(([expert, ran, state, weight], choice) =>
      [choice ? "" : `layer ${name}`, expert, weight.toFixed(2), state === "substituted" ? `${ran} stands in` : STATES[state]]));
    fill(spelled, legend(["#00224e", "expert this text uses most"], ["#fdea45", "... and least"],
      ...(step.value ? [] : [["sm-framed", "framed: read, not resident"]])),
    rows.length ? table(`token ${at + 1}, ${data.labels[at]}`, ["layer", "expert", "weight", "what happened"], rows)
      : el("p", {}, `The draft never read token ${at + 1}.`));
    const read = rows.filter((row) => row[3] === STATES.fetched).length;
    say(`Token ${at + 1} of ${data.positions}, ${data.labels[at]}, ${at < data.prompt ? "of the prompt" : "generated"}: ${rows.length
      ? `${count(rows.length, "choice")} of the routers${step.value ? ` as the draft computed, ${rows.filter((row) => row[3].endsWith("stands in")).length} by a stand-in` : `, ${read} of them read`}` : "the draft never read it"}.${step.value > 1 ? " Replayed, not run: its routers chose as in the run." : ""}`);
  }

  ready(el("div", { class: "sm-controls" }, token.box, step.box, ...(firsts.length > 1 ? [layer.box] : [])), text, grid, spelled, draw);
};
