"use strict";
// What all plots share: elements, numbers, axes, the tooltip, and one tab stop per plot.

const SVG = "http://www.w3.org/2000/svg";

function make(tag, attributes = {}, ...children) {
  const svg = /^(svg|g|path|line|rect|circle|polyline|text)$/.test(tag);
  const element = svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// ---------------------------------------------------------------- numbers

// A figure has four digits, the last ones too where they are zero; a tick of an axis only those it needs.
function figure(value, least = 4) {
  if (value === 0) return "0";
  if (Math.abs(value) < 1e-4) return value.toExponential(2);
  return value.toLocaleString("en", { minimumSignificantDigits: least, maximumSignificantDigits: 4 });
}
const tickForm = (value) => figure(value, 1);
const percent = (value) => `${(100 * value).toFixed(2)} %`;

function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (value >= 999.5 && unit < units.length - 1) { value /= 1000; unit += 1; }
  return `${value.toLocaleString("en", { maximumSignificantDigits: 3 })} ${units[unit]}`;
}

// ---------------------------------------------------------------- scales

function linear(low, high, from, to) {
  const span = high - low || 1;
  const scale = (value) => from + ((value - low) / span) * (to - from);
  const rough = span / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough);
  scale.ticks = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n += 1) scale.ticks.push(n * step);
  return scale;
}

function logarithmic(low, high, from, to) {
  const [a, b] = [Math.log10(low), Math.log10(high)];
  const scale = (value) => from + ((Math.log10(Math.max(value, low)) - a) / (b - a || 1)) * (to - from);
  const steps = b - a > 2.5 ? [1] : b - a > 1 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 7, 8];
  scale.ticks = [];
  for (let power = Math.floor(a); power <= b; power += 1) {
    for (const step of steps) {
      const tick = step * 10 ** power;
      if (tick >= low * 0.9999 && tick <= high * 1.0001) scale.ticks.push(tick);
    }
  }
  return scale;
}

// A scale for positive figures: logarithmic where they differ by much. None are below its floor;
// zero and what rounding made negative lie on it.
function spanning(values, from, to) {
  const positive = values.filter((each) => each > 0);
  const low = Math.min(...positive), high = Math.max(...positive);
  if (positive.length === 0) return linear(0, 1, from, to);
  if (positive.length === values.length && high / low < 3) {
    const room = (high - low) * 0.12 || high * 0.2;
    return linear(Math.max(0, low - room), high + room, from, to);
  }
  const floor = positive.length < values.length ? low / 3 : low / 1.25;
  return logarithmic(floor, high * 1.25, from, to);
}

// ---------------------------------------------------------------- axes

function axes(root, frame, { x, y, xLabel, yLabel, xForm = tickForm, yForm = tickForm }) {
  const group = make("g", { class: "axis", "aria-hidden": "true" });
  const seen = [];
  for (const tick of x.ticks) {
    const at = x(tick);
    if (seen.some((other) => Math.abs(other - at) < 56)) continue;
    seen.push(at);
    group.append(
      make("line", { x1: at, x2: at, y1: frame.top, y2: frame.bottom }),
      make("text", { x: at, y: frame.bottom + 18, "text-anchor": "middle" }, xForm(tick)),
    );
  }
  for (const tick of y.ticks) {
    const at = y(tick);
    group.append(
      make("line", { x1: frame.left, x2: frame.right, y1: at, y2: at }),
      make("text", { x: frame.left - 8, y: at + 4, "text-anchor": "end" }, yForm(tick)),
    );
  }
  group.append(
    make("line", { class: "base", x1: frame.left, x2: frame.right, y1: frame.bottom, y2: frame.bottom }),
    make("text", { x: frame.right, y: frame.bottom + 38, "text-anchor": "end" }, xLabel),
    make("text", { x: frame.left, y: frame.top - 12 }, yLabel),
  );
  root.append(group);
}

// ---------------------------------------------------------------- marks that can be reached

const tooltip = {
  show(element, title, lines) {
    const box = document.getElementById("tooltip");
    box.replaceChildren(make("b", {}, title), ...lines.map((line) => make("div", {}, line)));
    box.hidden = false;
    const at = element.getBoundingClientRect(), size = box.getBoundingClientRect();
    const above = at.top - size.height - 8;
    const left = Math.min(Math.max(8, at.left + at.width / 2 - size.width / 2), innerWidth - size.width - 8);
    box.style.left = `${left}px`;
    box.style.top = `${above > 8 ? above : at.bottom + 8}px`;
  },
  hide() { document.getElementById("tooltip").hidden = true; },
};
addEventListener("keydown", (event) => { if (event.key === "Escape") tooltip.hide(); });
addEventListener("scroll", () => tooltip.hide(), { passive: true, capture: true });

// Give a mark its words, for eyes and for screen readers; `choose` makes it a button.
function describe(element, title, lines, choose = null) {
  element.setAttribute("role", choose ? "button" : "img");
  element.setAttribute("aria-label", `${title}: ${lines.join("; ")}`);
  element.setAttribute("tabindex", "-1");
  const show = () => tooltip.show(element, title, lines);
  element.addEventListener("pointerenter", show);
  element.addEventListener("focus", show);
  element.addEventListener("pointerleave", tooltip.hide);
  element.addEventListener("blur", tooltip.hide);
  if (!choose) return;
  element.addEventListener("click", choose);
  element.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(); }
  });
}

// One tab stop for all marks; arrow keys go from one to the next, Home and End to the ends.
// `perRow`: how many marks a row holds, where up and down move between rows.
function reachable(marks, perRow = 0) {
  if (!marks.length) return;
  marks[0].setAttribute("tabindex", "0");
  marks.forEach((mark, index) => mark.addEventListener("keydown", (event) => {
    const vertical = perRow || 1;
    const to = {
      ArrowRight: index + 1, ArrowLeft: index - 1, ArrowDown: index + vertical, ArrowUp: index - vertical,
      Home: 0, End: marks.length - 1,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    if (!marks[to]) return;
    mark.setAttribute("tabindex", "-1");
    marks[to].setAttribute("tabindex", "0");
    marks[to].focus();
  }));
}

const SHAPES = [
  (r) => `M${-r},0A${r},${r} 0 1 1 ${r},0A${r},${r} 0 1 1 ${-r},0Z`,
  (r) => `M${-r},${-r}H${r}V${r}H${-r}Z`,
  (r) => `M0,${-r * 1.3}L${r * 1.2},${r}H${-r * 1.2}Z`,
  (r) => `M0,${-r * 1.4}L${r * 1.4},0L0,${r * 1.4}L${-r * 1.4},0Z`,
  (r) => `M0,${r * 1.3}L${r * 1.2},${-r}H${-r * 1.2}Z`,
  (r) => `M${-r * 1.3},${-r * 0.5}H${-r * 0.5}V${-r * 1.3}H${r * 0.5}V${-r * 0.5}H${r * 1.3}V${r * 0.5}H${r * 0.5}V${r * 1.3}H${-r * 0.5}V${r * 0.5}H${-r * 1.3}Z`,
];
const shape = (index, radius = 5) => SHAPES[index % SHAPES.length](radius);

function canvas(holder, width, height, label) {
  const root = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": label });
  holder.replaceChildren(root);
  return root;
}

// Draw now, and again when the width changes.
function drawn(holder, draw) {
  let width = 0;
  const again = () => {
    const now = Math.max(300, Math.floor(holder.clientWidth));
    if (now !== width) { width = now; draw(width); }
  };
  new ResizeObserver(() => requestAnimationFrame(again)).observe(holder);
  again();
}
