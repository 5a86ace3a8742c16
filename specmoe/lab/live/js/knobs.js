// Every method at one choice of settings: bytes per token, tokens per round, speed. The axes hold for
// all choices, so a picture may be compared with the last. Data: specmoe/lab/live/data.py:knobs.
LIVE.knobs = (root, data, { ready, say, timed }) => {
  const draw = timed(show), charts = el("div", { class: "sm-charts" });
  const controls = Object.fromEntries(data.settings.map(({ name, words, values, said, start }) => {
    const says = (value) => said[values.indexOf(value)];
    return [name, typeof values[0] === "string"
      ? menu(words, values.map((value) => [says(value), value]), start, draw) : slider(words, values, start, draw, says)];
  }));
  const all = records(data);
  let before = null; // speeds of the last choice, drawn as a thin mark

  /** The first row of each method here; a setting that a method does not have matches any. */
  function chosen() {
    const found = new Map();
    for (const row of all) {
      const fits = Object.entries(controls).every(([name, control]) => row[name] === null || row[name] === control.value);
      if (fits && !found.has(row.method)) found.set(row.method, row);
    }
    return Object.keys(METHODS).filter((method) => found.has(method)).map((method) => found.get(method));
  }

  function show() {
    const rows = chosen();
    fill(charts, ...data.measures.map((measure) => chart(measure, rows)));
    before = Object.fromEntries(rows.map((row) => [row.method, row]));
    const fastest = rows.reduce((best, row) => (row.tokens_per_second > (best?.tokens_per_second ?? -1) ? row : best), null);
    const told = data.settings.map(({ name, values, said }) => said[values.indexOf(controls[name].value)]).join(", ");
    say(fastest ? `${told}: ${fastest.method} is fastest, ${digits(fastest.tokens_per_second)} tokens per second (${data.kind}), reading ${bytes(fastest.fetched_bytes_per_token)} per token.`
      : `${told}: no run was recorded at this choice.`);
  }

  /** Bars on an axis from `least` to `most` of all rows: straight, or in equal factors where they differ much. */
  function chart({ name, title, least, most, log }, rows) {
    const left = 84, right = 74, wide = Math.max(230, Math.min(420, (root.clientWidth - 40) / (root.clientWidth > 900 ? 3 : 1))), high = 26;
    const words = name === "fetched_bytes_per_token" ? bytes : digits, span = wide - left - right;
    const base = words === bytes ? 2 : 10, power = (value) => Math.log(value) / Math.log(base);
    const low = Math.floor(power(least)), every = Math.ceil((Math.ceil(power(most)) - low) / 3), top = low + 3 * every;
    const at = (value) => left + span * clamp(log ? (power(Math.max(value, least)) - low) / (top - low) : value / most, 0, 1);
    const step = roundStep(most / 2), ticks = log ? range(0, 4).map((i) => base ** (low + i * every)) : [0, step, 2 * step].filter((tick) => tick <= most);
    const foot = rows.length * high + 6, drawn = [];
    ticks.forEach((tick) => drawn.push(el("line", { x1: at(tick), x2: at(tick), y1: 0, y2: foot, class: "sm-rule" }),
      el("text", { x: at(tick), y: foot + 15, "text-anchor": "middle" }, words(tick))));
    rows.forEach((row, i) => {
      const value = row[name], y = i * high + 4, old = before?.[row.method]?.[name];
      drawn.push(el("text", { x: left - 6, y: y + 13, "text-anchor": "end" }, row.method));
      if (value === null) return;
      const end = at(value), none = log && value < least;
      if (!none) drawn.push(el("rect", { x: left, y, width: Math.max(1, end - left), height: high - 9, fill: METHODS[row.method] }));
      if (old > 0 && old !== value) drawn.push(el("line", { x1: at(old), x2: at(old), y1: y - 3, y2: y + high - 6, class: "sm-was" }));
      drawn.push(el("text", { x: end + 5, y: y + 13, class: "sm-over" }, words(value)));
    });
    const said = rows.map((row) => `${row.method} ${row[name] === null ? "-" : words(row[name])}`).join(", ");
    return el("figure", { class: "sm-chart", style: `width:${wide}px` }, el("figcaption", {}, title + (log ? `; each line is ${base ** every} times the last` : "")),
      el("svg", { width: wide, height: foot + 20, role: "img", "aria-label": `${title}: ${said}` }, ...drawn));
  }

  ready(el("div", { class: "sm-controls" }, ...Object.values(controls).map((one) => one.box)), charts,
    el("p", { class: "sm-note" }, "Thin line: where the bar ended before the last move. The axes are the same for every choice."), draw);
};

/** The roundest step that is no longer: 1, 2 or 5 times a power of ten. */
function roundStep(most) {
  const power = 10 ** Math.floor(Math.log10(most));
  return [5, 2, 1].find((each) => each * power <= most) * power;
}
