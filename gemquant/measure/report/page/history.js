// A baseline's figures, update by update. Long histories are drawn by the lowest and highest of each
// stretch, so that no excursion is lost; the table holds every update.

const HISTORY_METRICS = [
  { name: "KL mean, nats per token", key: 1, form: figure },
  { name: "NLL increase, nats per token", key: 2, form: figure },
  { name: "top-1 same", key: 3, form: percent },
  { name: "size", key: 4, form: bytes },
];

function thinned(points, key, most) {
  if (points.length <= most) return points;
  const kept = [], stretch = points.length / (most / 2);
  for (let n = 0; n < most / 2; n += 1) {
    const part = points.slice(Math.floor(n * stretch), Math.floor((n + 1) * stretch));
    let low = part[0], high = part[0];
    for (const each of part) {
      if (each[key] < low[key]) low = each;
      if (each[key] > high[key]) high = each;
    }
    kept.push(...(low === high ? [low] : low[0] < high[0] ? [low, high] : [high, low]));
  }
  const last = points[points.length - 1];
  if (kept[kept.length - 1] !== last) kept.push(last);
  return kept;
}

// series: of { name, points: [update, kl, nll, top1, size] }; coloured: the names drawn in colour.
function historyPlot(holder, { series, entries, metric, level, coloured }) {
  drawn(holder, (width) => {
    const height = Math.min(420, Math.max(280, width * 0.36));
    const frame = { left: 72, right: width - 16, top: 36, bottom: height - 48 };
    const root = canvas(holder, width, height, `${metric.name}, level ${level}, over ${entries.length} updates. Arrow keys go from one to the next.`);
    const lines = series.map((each) => ({ ...each, shown: thinned(each.points, metric.key, 600), colour: coloured.indexOf(each.name) }));
    let low = Infinity, high = -Infinity;
    for (const each of lines) for (const point of each.shown) { low = Math.min(low, point[metric.key]); high = Math.max(high, point[metric.key]); }
    const room = (high - low) * 0.1 || Math.abs(high) * 0.1 || 1;
    const x = linear(1, Math.max(entries.length, 2), frame.left + 6, frame.right - 6);
    x.ticks = x.ticks.filter(Number.isInteger);
    const y = linear(low - room, high + room, frame.bottom, frame.top);
    const form = metric.form === figure ? tickForm : metric.form;
    axes(root, frame, { x, y, xLabel: "update of the baseline", yLabel: metric.name, yForm: form, xForm: (tick) => tick.toLocaleString("en") });
    const marks = [];
    for (const each of lines.sort((a, b) => a.colour - b.colour)) {
      const path = each.shown.map((point) => `${x(point[0] + 1).toFixed(1)},${y(point[metric.key]).toFixed(1)}`).join(" ");
      const kind = each.colour < 0 ? "background" : `series-${each.colour}`;
      const line = make("polyline", { points: path, class: `line ${kind}`, fill: "none", "aria-hidden": "true" });
      line.style.fill = "none";
      if (each.colour > 0) line.setAttribute("stroke-dasharray", ["", "7 3", "2 3", "9 3 2 3", "4 4", "12 4", "1 4", "6 2 1 2"][each.colour]);
      root.append(line);
      if (each.colour >= 0) marks.push(...each.shown.map((point) => dot(each, point, metric, entries, x, y)));
    }
    root.append(...marks);
    reachable(marks);
  });
}

function dot(series, point, metric, entries, x, y) {
  const [commit, reason] = entries[point[0]];
  const radius = series.shown.length > 120 ? 1.5 : 4;
  const group = make("g", {}, make("path", { d: shape(series.colour, radius), class: `series-${series.colour}`, transform: `translate(${x(point[0] + 1)},${y(point[metric.key])})` }));
  describe(group, series.name, [`${metric.name}: ${metric.form(point[metric.key])}`, `update ${point[0] + 1}${commit ? `, commit ${commit}` : ""}`, reason]);
  return group;
}
