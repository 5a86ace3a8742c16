// What all modules share: elements, controls, colours, the summary read aloud, mounting.
// Plain browser JavaScript, no library, no request. Python puts this text before a module's own.
const LIVE = {}; // kind -> (root, data, ready) => nothing; each module adds itself

const COLORS = {
  blue: "#0173b2", orange: "#de8f05", green: "#029e73", red: "#d55e00", pink: "#cc78bc",
  brown: "#ca9161", rose: "#fbafe4", grey: "#949494", yellow: "#ece133", sky: "#56b4e9",
};
const METHODS = { // in the order of every figure, as in specmoe/lab/figures/base.py
  on_demand: COLORS.grey, overlapped: COLORS.green, cached: COLORS.orange,
  specmoe: COLORS.blue, auto: COLORS.pink, resident: COLORS.brown,
};

// ---- elements ----

/** An element: attributes by name ("on..." are listeners, null is left out), children are text or elements. */
function el(tag, attributes = {}, ...children) {
  const svg = ["svg", "g", "rect", "line", "path", "text", "circle", "defs", "pattern"].includes(tag);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null));
  return made;
}

const theme = (root, name) => getComputedStyle(root).getPropertyValue(`--sm-${name}`).trim() || "#888";
const count = (number, one, many = `${one}s`) => `${number} ${number === 1 ? one : many}`;
const range = (from, to) => Array.from({ length: Math.max(0, to - from) }, (_, i) => from + i);
const clamp = (value, least, most) => Math.max(least, Math.min(most, value));
const sum = (numbers) => numbers.reduce((total, one) => total + one, 0);

/** Three digits that count, never an exponent: "1234", "41.3", "0.052". */
function digits(value) {
  if (!Number.isFinite(value)) return "-";
  if (Math.abs(value) >= 100) return String(Math.round(value));
  return String(Number(value.toPrecision(3)));
}

/** "1.5 MiB" */
function bytes(value) {
  const [unit, name] = [[2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"], [1, "B"]].find(([u]) => value >= u) || [1, "B"];
  return `${digits(value / unit)} ${name}`;
}

// ---- controls: native inputs, so keyboard and screen reader work as everywhere ----

/** One of `values`, dragged. `words(value)` is shown and read aloud. `changed()` runs while it moves. */
function slider(name, values, value, changed, words = String) {
  const output = el("output", { class: "sm-value" });
  const input = el("input", { type: "range", min: 0, step: 1, "aria-label": name });
  const control = {
    box: el("label", { class: "sm-slider" }, el("span", { class: "sm-name" }, name), input, output),
    get value() { return control.values[Number(input.value)]; },
    set value(wanted) { control.offer(control.values, wanted); },
    offer(offered, wanted) { // other values to choose from
      control.values = offered;
      input.max = Math.max(0, offered.length - 1);
      input.disabled = offered.length < 2;
      input.value = Math.max(0, offered.indexOf(wanted));
      say();
    },
  };
  function say() {
    output.textContent = words(control.value);
    input.setAttribute("aria-valuetext", words(control.value));
  }
  input.addEventListener("input", () => { say(); changed(); });
  control.offer(values, value);
  return control;
}

/** One of `options`, [words, value] pairs, from a list. */
function menu(name, options, value, changed) {
  const select = el("select", { "aria-label": name, disabled: options.length < 2 });
  const control = {
    box: el("label", { class: "sm-menu" }, el("span", { class: "sm-name" }, name), select),
    get value() { return options[select.selectedIndex][1]; },
    set value(wanted) { select.selectedIndex = Math.max(0, options.findIndex(([, one]) => one === wanted)); },
  };
  select.append(...options.map(([words]) => el("option", {}, String(words))));
  select.addEventListener("change", changed);
  control.value = value;
  return control;
}

/** A few options side by side: radio buttons, which the arrow keys move through. */
let groups = 0;
function radios(name, options, value, changed) {
  const group = `sm-${Math.random().toString(36).slice(2)}-${(groups += 1)}`;
  const inputs = options.map(([, one]) => el("input", { type: "radio", name: group, checked: one === value, onchange: changed }));
  const labels = options.map(([words], i) => el("label", {}, inputs[i], el("span", {}, words)));
  return {
    box: el("fieldset", { class: "sm-radios" }, el("legend", { class: "sm-name" }, name), ...labels),
    get value() { return options[inputs.findIndex((input) => input.checked)][1]; },
    set value(wanted) { inputs[options.findIndex(([, one]) => one === wanted)].checked = true; },
  };
}

function check(name, value, changed) {
  const input = el("input", { type: "checkbox", checked: value, onchange: changed });
  return { box: el("label", { class: "sm-check" }, input, el("span", {}, name)), get value() { return input.checked; } };
}

function button(words, act, attributes = {}) {
  return el("button", { type: "button", onclick: act, ...attributes }, words);
}

/** Replace what is in `box`; whoever had the focus by data-key gets it back. */
function fill(box, ...children) {
  const key = box.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  box.replaceChildren(...children.flat().filter((child) => child !== null));
  if (key) [...box.querySelectorAll("[data-key]")].find((one) => one.dataset.key === key)?.focus();
}

/** Coloured boxes and what they mean. `marks`: [style class or colour, words]. */
function legend(...marks) {
  return el("ul", { class: "sm-legend" }, ...marks.map(([look, words]) => {
    const swatch = look.startsWith("#") ? { class: "sm-swatch", style: `background:${look}` } : { class: `sm-swatch ${look}` };
    return el("li", {}, el("span", { ...swatch, "aria-hidden": "true" }), words);
  }));
}

/** A table of cells; the first column names the rows. */
function table(caption, head, rows) {
  return el("table", {}, el("caption", {}, caption),
    el("thead", {}, el("tr", {}, ...head.map((words) => el("th", { scope: "col" }, words)))),
    el("tbody", {}, ...rows.map(([name, ...cells]) =>
      el("tr", {}, el("th", { scope: "row" }, name), ...cells.map((cell) => el("td", {}, cell instanceof Node ? cell : String(cell)))))));
}

/** A canvas as wide as its place and `height` CSS pixels high, sharp on any screen; draw in CSS pixels. */
function canvas(about) {
  const made = el("canvas", { role: "img", "aria-label": about });
  return {
    box: made,
    begin(height) {
      const width = Math.max(200, made.parentElement.clientWidth), scale = window.devicePixelRatio || 1;
      made.style.height = `${height}px`;
      made.width = Math.round(width * scale);
      made.height = Math.round(height * scale);
      const pen = made.getContext("2d");
      pen.scale(scale, scale);
      pen.font = "12px system-ui, sans-serif";
      return { pen, width };
    },
  };
}

/** Numbers that repeat from one seed on every machine (mulberry32). */
function dice(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}

/** Rows that travel as lists, as objects again. */
const records = ({ columns, rows }) => rows.map((row) => Object.fromEntries(columns.map((name, i) => [name, row[i]])));

// ---- mounting ----

/** Put a module into `root`. A module gets `ready(draw)` to call with its drawing function, and `say(words)`. */
function mount(kind, root, data, about) {
  root.replaceChildren();
  root.classList.add("sm-live");
  root.setAttribute("role", "group");
  root.setAttribute("aria-label", about);
  const summary = el("p", { class: "sm-summary", "aria-live": "polite" });
  let redraw = () => {};
  const tools = {
    say(words) { if (summary.textContent !== words) summary.textContent = words; },
    timed(draw) { // the last drawing's milliseconds stand in data-ms, where a test reads them
      return () => {
        const began = performance.now();
        draw();
        root.dataset.ms = (performance.now() - began).toFixed(1);
      };
    },
    ready(...parts) {
      redraw = parts.pop();
      root.append(...parts, summary);
      redraw();
    },
  };
  try {
    LIVE[kind](root, data, tools);
  } catch (failure) {
    root.replaceChildren(el("p", { role: "alert" }, `This ${kind} module could not show its data: ${failure.message}`));
    throw failure;
  }
  return watch(root, () => redraw());
}

/** Draw again when the width or the theme changes; returns what ends it. */
function watch(root, redraw) {
  let width = root.clientWidth;
  const sized = new ResizeObserver(() => {
    if (root.clientWidth === width) return;
    width = root.clientWidth;
    redraw();
  });
  const themed = new MutationObserver(redraw), dark = window.matchMedia("(prefers-color-scheme: dark)");
  sized.observe(root);
  themed.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "data-jp-theme-name"] });
  dark.addEventListener("change", redraw);
  return () => { sized.disconnect(); themed.disconnect(); dark.removeEventListener("change", redraw); };
}
