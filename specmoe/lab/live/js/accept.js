// Accept or reject a drafted token so that the text follows p, the full model: set p and q, decide by
// hand, then let a rule decide a thousand times. Data: words, p and q to begin with.
LIVE.accept = (root, data, { ready, say, timed }) => {
  const RULES = {
    exact: ["accept with min(1, p/q); a rejected token is replaced from the rest of p", (p, q) => Math.min(1, p / q), true],
    always: ["accept every draft", () => 1, true],
    likelier: ["accept only where p is at least q", (p, q) => (p >= q ? 1 : 0), true],
    plain: ["accept with p", (p) => p, true],
    lazy: ["accept with min(1, p/q), but replace from all of p", (p, q) => Math.min(1, p / q), false],
  };
  const draw = timed(show), moved = () => { forget(); draw(); };
  const weights = range(1, 21);
  const sliders = (name, from) => data.words.map((word, i) => slider(`${name} of “${word}”`, weights, from[i], moved, () => percent(shares(from === data.p ? ps : qs)[i])));
  const ps = [], qs = []; // filled below: a slider shows its share of all
  ps.push(...sliders("p", data.p));
  qs.push(...sliders("q", data.q));
  const rule = menu("rule", Object.entries(RULES).map(([name, [words]]) => [words, name]), "exact", moved);
  const chart = el("div"), hand = el("div"), tally = el("div");
  let roll, tried, right, counts, drawn;

  function shares(controls) { const all = controls.map((one) => one.value), total = sum(all); return all.map((one) => one / total); }
  function percent(share) { return `${Math.round(100 * share)} %`; }
  function forget() { [roll, tried, right, counts, drawn] = [dice(7), 0, 0, data.words.map(() => 0), null]; }
  function pick(weights_, u) { // an index with these weights, by the number u in [0, 1)
    let left = u * sum(weights_);
    return Math.max(0, weights_.findIndex((one) => (left -= one) < 0));
  }
  function rest(p, q) { return p.map((one, i) => Math.max(0, one - q[i])); }

  function show() {
    [...ps, ...qs].forEach((one) => one.offer(one.values, one.value)); // every share depends on all
    const p = shares(ps), q = shares(qs), accepted = p.map((one, i) => Math.min(1, one / q[i])), left = rest(p, q), total = sum(left);
    fill(chart, table("what follows from p and q", ["token", "p, full model", "q, draft", "accepted with min(1, p/q)", "rest of p, after a rejection"],
      data.words.map((word, i) => [`“${word}”`, bar(p[i], METHODS.on_demand), bar(q[i], COLORS.sky), bar(accepted[i], COLORS.green), total > 1e-9 ? bar(left[i] / total, COLORS.orange) : "never needed"])));
    showHand(p, q);
    showTally(p);
    const share = sum(p.map((one, i) => Math.min(one, q[i])));
    say(`A draft is accepted ${percent(share)} of the time: the part of p and q that they share. ${drawn === null ? "" : judged(p, q)} ${counts_()}`);
  }

  function bar(share, color) {
    return el("span", { class: "sm-bar" }, el("span", { "aria-hidden": "true", class: "sm-fill", style: `width:${(4.5 * share).toFixed(3)}em;background:${color}` }), percent(share));
  }

  // ---- by hand ----

  function propose() { drawn = { word: pick(shares(qs), roll()), u: roll(), said: null }; draw(); hand.querySelector(".sm-judge button")?.focus(); }
  function judge(accepts) {
    const p = shares(ps), q = shares(qs);
    drawn.said = accepts;
    tried += 1;
    right += accepts === (drawn.u < Math.min(1, p[drawn.word] / q[drawn.word])) ? 1 : 0;
    draw();
    hand.querySelector("button")?.focus();
  }
  function judged(p, q) {
    const { word, u, said } = drawn, limit = Math.min(1, p[word] / q[word]), accepts = u < limit;
    const asked = `The draft proposes “${data.words[word]}”, the coin shows ${u.toFixed(2)}.`;
    if (said === null) return asked;
    const why = `p/q = ${digits(p[word] / q[word])}, so it is accepted when the coin is below ${limit.toFixed(2)}: ${accepts ? "accept" : "reject, and draw from the rest of p"}.`;
    return `${said === accepts ? "Right." : "Not so."} ${why} ${right} of ${tried} right.`;
  }
  function showHand(p, q) {
    const open = drawn && drawn.said === null;
    fill(hand, el("h4", {}, "By hand"), el("p", {}, drawn ? judged(p, q) : "The draft proposes a token and a coin is thrown, a number from 0 to 1. You decide."),
      el("div", { class: "sm-controls sm-judge" }, ...(open
        ? [button("Accept", () => judge(true), { "data-key": "accept" }), button("Reject", () => judge(false), { "data-key": "reject" })]
        : [button(drawn ? "Another draft" : "Draw a draft", propose, { "data-key": "draft" })])));
  }

  // ---- a thousand times ----

  function run(times) {
    const p = shares(ps), q = shares(qs), left = rest(p, q), [, accept, fromRest] = RULES[rule.value];
    for (let i = 0; i < times; i += 1) {
      const word = pick(q, roll());
      const kept = roll() < accept(p[word], q[word]);
      counts[kept ? word : pick(fromRest && sum(left) > 1e-9 ? left : p, roll())] += 1;
    }
    draw();
  }
  function off(p) { const total = sum(counts); return total ? sum(p.map((one, i) => Math.abs(one - counts[i] / total))) / 2 : 0; }
  function counts_() {
    const total = sum(counts);
    return total ? `After ${count(total, "token")} the text is ${percent(off(shares(ps)))} away from p.` : "";
  }
  function showTally(p) {
    const total = sum(counts);
    fill(tally, el("h4", {}, "Let the rule decide"), el("div", { class: "sm-controls" }, rule.box,
      button("1 token", () => run(1), { "data-key": "1" }), button("100 tokens", () => run(100), { "data-key": "100" }),
      button("10,000 tokens", () => run(10000), { "data-key": "10000" }), button("Forget", () => { forget(); draw(); }, { "data-key": "forget" })),
    table(total ? `${count(total, "token")}: ${percent(off(p))} away from p${off(p) > 0.03 && total >= 10000 ? ", which is not chance: this rule is biased" : ""}` : `no token yet; rule: ${RULES[rule.value][0]}`,
      ["token", "p, what should come out", "what came out"], data.words.map((word, i) => [`“${word}”`, bar(p[i], METHODS.on_demand), bar(total ? counts[i] / total : 0, COLORS.pink)])));
  }

  forget();
  ready(el("div", { class: "sm-pair" }, el("div", {}, ...ps.map((one) => one.box)), el("div", {}, ...qs.map((one) => one.box))),
    el("div", { class: "sm-scroll" }, chart), hand, el("div", { class: "sm-scroll" }, tally), draw);
};
