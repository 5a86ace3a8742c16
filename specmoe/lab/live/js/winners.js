// Which method is fastest over balance and batch, and by how much (simulated). Choose a cell to see all
// methods there. Data: specmoe/lab/live/data.py:winners.
LIVE.winners = (root, data, { ready, say, timed }) => {
  const draw = timed(show), map = el("div", { class: "sm-scroll" }), beside = el("div");
  const menus = Object.fromEntries(data.settings.map(({ name, words, values, said, start }) =>
    [name, menu(words, values.map((value, i) => [said[i], value]), start, draw)]));
  const balance = slider("balance (FLOP per byte)", data.balances, data.balances[data.balances.length >> 1], draw, digits);
  const batch = slider("batch (rows)", data.batches, data.batches[0], draw);
  const all = records(data);
  const DARK = ["specmoe", "overlapped"]; // their cells have white words

  function cells() {
    return all.filter((cell) => Object.entries(menus).every(([name, control]) => cell[name] === control.value));
  }

  function show() {
    const here = cells(), left = 52, wide = clamp((Math.min(root.clientWidth, 760) - left - 8) / data.balances.length, 56, 120), high = 38;
    const foot = data.batches.length * high, drawn = [];
    here.forEach((cell) => {
      const x = left + data.balances.indexOf(cell.balance) * wide, y = foot - (data.batches.indexOf(cell.batch) + 1) * high;
      drawn.push(el("g", { onclick: () => { balance.value = cell.balance; batch.value = cell.batch; draw(); }, style: "cursor:pointer" },
        el("rect", { x: x + 1, y: y + 1, width: wide - 2, height: high - 2, fill: METHODS[cell.winner] }),
        el("text", { x: x + wide / 2, y: y + high / 2 + 4, "text-anchor": "middle", style: `fill:${DARK.includes(cell.winner) ? "#fff" : "#000"}` },
          cell.margin === null ? "–" : `${cell.margin.toFixed(2)}×`)));
    });
    data.batches.forEach((one, i) => drawn.push(el("text", { x: left - 8, y: foot - i * high - high / 2 + 4, "text-anchor": "end" }, String(one))));
    data.balances.forEach((one, i) => drawn.push(el("text", { x: left + (i + 0.5) * wide, y: foot + 16, "text-anchor": "middle" }, one >= 1000 ? `${digits(one / 1000)}k` : digits(one))));
    drawn.push(el("text", { x: left, y: foot + 34 }, "FLOP computed while the link moves one byte"),
      el("rect", { x: left + data.balances.indexOf(balance.value) * wide, y: foot - (data.batches.indexOf(batch.value) + 1) * high, width: wide, height: high, class: "sm-chosen" }));
    fill(map, el("p", { class: "sm-note" }, "rows: batch; columns: balance; number: lead over the next method (simulated)"),
      el("svg", { width: left + wide * data.balances.length + 4, height: foot + 40, role: "img", "aria-label": spoken(here) }, ...drawn),
      legend(...[...new Set(all.map((cell) => cell.winner))].map((name) => [METHODS[name], name])));
    showCell(here.find((cell) => cell.balance === balance.value && cell.batch === batch.value));
  }

  function spoken(here) {
    const wins = Object.entries(here.reduce((found, { winner }) => ({ ...found, [winner]: (found[winner] || 0) + 1 }), {}));
    return `map of the fastest method: ${wins.map(([name, n]) => `${name} in ${count(n, "cell")}`).join(", ")}`;
  }

  function showCell(cell) {
    if (!cell) { fill(beside); say("No run was recorded here."); return; }
    const speeds = Object.keys(METHODS).filter((name) => cell[name] > 0).sort((a, b) => cell[b] - cell[a]);
    fill(beside, speeds.length ? table(`batch ${cell.batch}, balance ${digits(cell.balance)}`, ["method", "tokens per second (simulated)"],
      speeds.map((name) => [name, digits(cell[name])])) : null);
    say(`At batch ${cell.batch} and ${digits(cell.balance)} FLOP per byte ${cell.winner} is fastest${cell.margin === null ? "" : `, ${cell.margin.toFixed(2)} times the next`} (simulated).`);
  }

  ready(el("div", { class: "sm-controls" }, ...Object.values(menus).map((one) => one.box), balance.box, batch.box), map, beside, draw);
};
