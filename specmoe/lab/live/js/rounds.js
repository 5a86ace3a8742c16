// Step through a recorded round: draft, verify, accept, on the text itself, with the experts moving
// between slow and fast memory. Data: specmoe/lab/live/traces.py:rounds.
LIVE.rounds = (root, data, { ready, say, timed }) => {
  const ACTS = ["draft", "verify", "accept"];
  const KINDS = {
    accepted: "accepted: drafted, and the full model agrees",
    recovered: "recovered: the full model's own, at the first rejection",
    bonus: "bonus: the full model's own, after all were accepted",
    plain: "the full model's own, nothing was drafted",
  };
  const WINDOW = 4; // layers side by side
  const DRAFT = data.draft ?? "resident experts only";
  const draw = timed(show);
  const prompts = data.prompts.map((prompt, i) => [String(prompt.number), i]);
  const prompt = menu("prompt", prompts, data.start.prompt, () => { offer(); draw(); });
  const round = slider("round", [0], 0, draw, (i) => `${i + 1} of ${rounds().length}`);
  const act = radios("reveal", [["1 draft", 0], ["2 verify", 1], ["3 accept", 2]], data.start.act, draw);
  const firsts = range(0, Math.max(1, data.layers.length - WINDOW + 1));
  const layer = slider("layers", firsts, 0, draw, (i) => data.layers.slice(i, i + WINDOW).join(", "));
  const back = button("Back", () => go(-1)), next = button("Next step", () => go(1));
  const text = el("div"), memory = el("div", { class: "sm-memory" }), marks = el("div");
  let shown = null;

  function rounds() { return data.prompts[prompt.value].rounds; }
  function offer(wanted = 0) { round.offer(range(0, rounds().length), Math.min(wanted, rounds().length - 1)); }
  function go(by) { // through the acts, then on to the next round
    const at = clamp(round.value * 3 + act.value + by, 0, rounds().length * 3 - 1);
    round.value = Math.floor(at / 3);
    act.value = at % 3;
    draw();
  }

  function show() {
    const block = rounds()[round.value], reads = data.memory[block.round], now = act.value;
    back.disabled = round.value === 0 && now === 0;
    next.disabled = round.value === rounds().length - 1 && now === 2;
    showText(block, now);
    showMemory(reads, now, shown === `${prompt.value} ${round.value} ${now - 1}`);
    shown = `${prompt.value} ${round.value} ${now}`;
    say(told(block, reads, now));
  }

  function showText(block, now) {
    const before = data.prompts[prompt.value].words.slice(0, block.start);
    const from = Math.max(0, before.length - 40), soFar = (from ? "… " : "") + before.slice(from).join("");
    const drafted = block.drafted.map((w, i) => word(w, now === 0 ? "sm-unknown" : i < block.accepted ? "sm-accepted" : "sm-rejected",
      now === 0 ? "" : i < block.accepted ? "accepted" : "rejected"));
    const committed = block.committed.map((w, i) => word(w, `sm-${block.kinds[i]}`, block.kinds[i]));
    fill(text,
      el("p", { class: "sm-note" }, "text so far"), el("p", { class: "sm-text" }, soFar),
      el("h4", {}, now === 0 ? `1 draft: ${DRAFT}` : `2 verify: the full model reads ${count(block.drafted.length + 1, "position")} at once`),
      el("p", {}, ...(drafted.length ? drafted : ["nothing was drafted"])),
      el("h4", {}, "3 accept"),
      el("p", {}, ...(now === 2 ? committed : [word("?", "sm-unknown", "not yet revealed")])));
    const kinds = now === 2 ? [...new Set(block.kinds)].map((kind) => [`sm-${kind}`, KINDS[kind]]) : [];
    const ahead = Object.values(data.memory).some((one) => one.reads.some(([, , early]) => early));
    fill(marks, legend(...kinds, ["sm-here", "in fast memory"], ["sm-hit", "needed, and there"],
      ["sm-read", "needed, read now"], ...(ahead ? [["sm-ahead", "* read before the router asked (prefetch)"]] : []),
      ["sm-gone", "leaves fast memory"]));
  }

  function word(words, look, said) {
    return el("span", { class: `sm-word ${look}` }, words, said ? el("span", { class: "sm-said" }, ` ${said}`) : null);
  }

  function showMemory(reads, now, moves) {
    const head = ["sm-corner", "sm-corner", "sm-corner"].map((look, i) =>
      el("span", { class: `sm-name ${look}` }, ["", `fast memory${data.batch > 1 ? " (all prompts in flight)" : ""}`, "slow memory: every expert"][i]));
    const rows = data.layers.slice(layer.value, layer.value + WINDOW).map((name) => layerRow(name, reads, now));
    fill(memory, ...head, ...rows.flat());
    if (moves && !window.matchMedia("(prefers-reduced-motion: reduce)").matches) fly(now);
  }

  /** One layer's label, its experts in fast memory, and all of them in slow memory. */
  function layerRow(name, reads, now) {
    const of = (list) => list.filter(([l]) => l === name);
    const read = new Map(of(reads.reads).map(([, e, early]) => [e, early])), needed = new Map(of(reads.needed).map(([, e, n]) => [e, n]));
    const before = new Set(reads.before[name]), after = new Set(reads.after[name]);
    const during = new Set([...before, ...(now >= 1 ? [...read.keys(), ...needed.keys()] : [...read].filter(([, early]) => early).map(([e]) => e))]);
    const fast = [...(now === 2 ? new Set([...after, ...during]) : during)].sort((a, b) => a - b);
    const look = (e) => now === 2 && !after.has(e) ? "sm-gone" : read.get(e) ? "sm-ahead"
      : now >= 1 && read.has(e) ? "sm-read" : now >= 1 && needed.has(e) ? "sm-hit" : "sm-here";
    const said = { "sm-gone": "leaves", "sm-ahead": "read ahead", "sm-read": "read", "sm-hit": "needed, there", "sm-here": "" };
    const chip = (e) => el("span", { class: `sm-expert ${look(e)}`, "data-expert": `${name}/${e}`,
      title: needed.has(e) && now ? `expert ${e}: ${said[look(e)]}, for ${count(needed.get(e), "token")}` : `expert ${e} ${said[look(e)]}` },
      String(e), read.get(e) ? "*" : null);
    const slow = range(0, data.experts).map((e) => el("span", { class: `sm-expert ${during.has(e) && read.has(e) ? "sm-taken" : ""}`, "data-slow": `${name}/${e}` }, String(e)));
    const spoken = fast.map((e) => `${e} ${said[look(e)]}`.trim()).join(", ") || "empty";
    return [el("span", { class: "sm-name" }, `layer ${name}`),
      el("div", { class: "sm-experts sm-fast", role: "img", "aria-label": `layer ${name}, fast memory: ${spoken}` }, ...fast.map(chip)),
      el("div", { class: "sm-experts", role: "img", "aria-label": `layer ${name}, slow memory: all ${data.experts} experts` }, ...slow)];
  }

  /** What was just read flies from slow to fast memory. */
  function fly(now) {
    if (now !== 1) return;
    const places = new Map([...memory.querySelectorAll("[data-slow]")].map((one) => [one.dataset.slow, one.getBoundingClientRect()]));
    for (const chip of memory.querySelectorAll(".sm-read, .sm-ahead")) {
      const from = places.get(chip.dataset.expert), to = chip.getBoundingClientRect();
      const away = `translate(${from.x - to.x}px, ${from.y - to.y}px)`;
      chip.animate([{ transform: away, zIndex: 2, position: "relative" }, { transform: "none" }], { duration: 450, easing: "ease-in-out" });
    }
  }

  function told(block, reads, now) {
    const ahead = reads.reads.filter(([, , early]) => early).length, asked = reads.reads.length - ahead;
    const where = `Prompt ${data.prompts[prompt.value].number}, round ${round.value + 1} of ${rounds().length}. `;
    const early = ahead ? `${count(ahead, "expert")} read ahead of the router. ` : "";
    if (now === 0) return `${where}Draft: ${count(block.drafted.length, "token")}, ${DRAFT}. ${early || "Nothing is read."}`;
    const blocks = data.batch > 1 ? "for all prompts in flight" : `for all ${count(block.drafted.length + 1, "position")}`;
    const twice = reads.reads.length > new Set(reads.reads.map(([l, e]) => `${l}/${e}`)).size;
    if (now === 1) return `${where}Verify: the full model agrees with ${block.accepted} of ${block.drafted.length}. It reads ${count(asked, "expert")}, ${twice ? "some of them twice" : "each once"}, ${blocks} (${bytes(reads.reads.length * data.record_bytes)} in this round). ${early}`;
    const own = block.kinds[block.kinds.length - 1];
    return `${where}Accept: ${count(block.committed.length, "new token")}, the last one ${own === "accepted" ? "accepted" : `the full model's own (${own})`}. ${bytes(reads.reads.length * data.record_bytes / reads.committed)} read per new token${data.batch > 1 ? ", all prompts counted" : ""}.`;
  }

  offer(data.start.round);
  ready(
    el("div", { class: "sm-controls" }, prompt.box, round.box, act.box, back, next, ...(firsts.length > 1 ? [layer.box] : [])),
    text, memory, marks, draw);
};
