// What was lost on each slice, with its interval. Every panel begins at zero; longer is worse.

const METRICS = [
  { name: "KL divergence, mean, nats per token", key: "kl_mean", form: figure },
  { name: "KL divergence, 99.9th percentile", key: "kl_p999", form: figure },
  { name: "NLL increase, nats per token", key: "nll_increase", form: figure },
  { name: "Tokens whose first choice changed", key: "changed", form: percent },
];

// shown: one or two of { label, slices }.
function bars(holder, shown) {
  const slices = [...new Set(shown.flatMap((each) => each.slices.map((one) => one.slice)))];
  holder.replaceChildren(...METRICS.map((metric) => {
    const plot = make("div", { class: "plot" });
    const panel = make("div", {}, make("h4", {}, metric.name), plot);
    requestAnimationFrame(() => drawn(plot, (width) => panelOf(plot, width, metric, slices, shown)));
    return panel;
  }));
}

function panelOf(holder, width, metric, slices, shown) {
  const thick = shown.length > 1 ? 12 : 16, step = shown.length * (thick + 2) + 12;
  const longest = Math.max(...slices.map((each) => each.length));
  const frame = { left: Math.min(170, longest * 7 + 14), right: width - 74, top: 6, bottom: 6 + slices.length * step };
  const root = canvas(holder, width, frame.bottom + 26, `${metric.name}, by slice`);
  const figures = shown.flatMap((each) => each.slices.flatMap((one) => one[metric.key]));
  const x = linear(Math.min(0, ...figures), Math.max(...figures, 1e-12), frame.left, frame.right);
  const axis = make("g", { class: "axis", "aria-hidden": "true" });
  let last = -99;
  for (const tick of x.ticks) {
    axis.append(make("line", { x1: x(tick), x2: x(tick), y1: frame.top, y2: frame.bottom }));
    if (x(tick) - last < 52) continue;
    last = x(tick);
    axis.append(make("text", { x: x(tick), y: frame.bottom + 18, "text-anchor": "middle" }, metric.form === percent ? `${+(100 * tick).toPrecision(3)} %` : tickForm(tick)));
  }
  axis.append(make("line", { class: "base", x1: x(0), x2: x(0), y1: frame.top, y2: frame.bottom }));
  root.append(axis);
  const marks = [];
  slices.forEach((slice, row) => {
    const top = frame.top + row * step + 6;
    const middle = top + (shown.length * (thick + 2)) / 2;
    const short = slice.length > 22 ? `${slice.slice(0, 21)}…` : slice;
    root.append(make("text", { x: frame.left - 8, y: middle + 3, "text-anchor": "end", "aria-hidden": "true" }, short));
    shown.forEach((artifact, which) => {
      const one = artifact.slices.find((each) => each.slice === slice);
      if (one) marks.push(barOf(one, artifact.label, metric, x, top + which * (thick + 2), thick, which, frame));
    });
  });
  root.append(...marks);
  reachable(marks);
}

function barOf(one, label, metric, x, top, thick, which, frame) {
  const [value, low, high] = one[metric.key], middle = top + thick / 2;
  const left = Math.min(x(0), x(value)), wide = Math.abs(x(value) - x(0));
  const group = make("g", {},
    make("rect", { class: `bar series-${which}`, x: left, y: top, width: Math.max(wide, 1), height: thick, rx: 2 }),
    low === high ? "" : make("path", { class: "whisker", d: `M${x(low)},${middle}H${x(high)}M${x(low)},${middle - 4}V${middle + 4}M${x(high)},${middle - 4}V${middle + 4}` }));
  group.append(make("text", { class: "quiet", x: Math.min(Math.max(x(high), x(value)) + 7, frame.right + 6), y: middle + 4, stroke: "none" }, metric.form(value)));
  describe(group, `${label}, ${one.slice}`, [`${metric.name}: ${metric.form(value)}`, low === high ? "one window: no interval" : `95 % interval ${metric.form(low)} to ${metric.form(high)}`]);
  return group;
}
