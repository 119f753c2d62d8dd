// How far hidden states lie from the original's: a column per layer, a row per slice.

function heatColour(share) {
  const percentage = (part) => `${(100 * part).toFixed(1)}%`;
  return share < 0.5
    ? `color-mix(in oklab, var(--heat-1) ${percentage(2 * share)}, var(--heat-0))`
    : `color-mix(in oklab, var(--heat-2) ${percentage(2 * share - 1)}, var(--heat-1))`;
}

// rows: of { slice, relative, cosine }.
function heatmap(holder, rows, title) {
  const layers = Math.max(...rows.map((each) => each.relative.length));
  const largest = Math.max(...rows.flatMap((each) => each.relative), 1e-12);
  const plot = make("div", { class: "plot" });
  const ramp = make("ul", { class: "legend" }, make("li", {}, "0", make("span", { class: "ramp" }), figure(largest)), make("li", {}, "relative error of the hidden states"));
  holder.replaceChildren(plot, ramp);
  drawn(plot, (width) => {
    const longest = Math.max(...rows.map((each) => each.slice.length));
    const left = Math.min(170, longest * 7 + 14), cell = (width - left - 2) / layers, tall = Math.min(30, Math.max(20, cell));
    const root = canvas(plot, width, rows.length * tall + 42, `${title}: relative error by layer and slice. Arrow keys go from cell to cell.`);
    const marks = [];
    rows.forEach((row, number) => {
      const top = number * tall + 2;
      const short = row.slice.length > 22 ? `${row.slice.slice(0, 21)}…` : row.slice;
      root.append(make("text", { x: left - 8, y: top + tall / 2 + 4, "text-anchor": "end", "aria-hidden": "true" }, short));
      row.relative.forEach((value, layer) => {
        const rect = make("rect", { x: left + layer * cell, y: top, width: Math.max(cell - 1.5, 1), height: tall - 1.5, rx: 2 });
        rect.style.fill = heatColour(value / largest);
        describe(rect, `${row.slice}, layer ${layer}`, [`relative error ${figure(value)}`, `cosine ${row.cosine[layer].toFixed(5)}`]);
        marks.push(rect);
      });
    });
    root.append(...marks);
    const every = Math.ceil(26 / cell);
    for (let layer = 0; layer < layers; layer += every) {
      root.append(make("text", { class: "quiet", x: left + (layer + 0.5) * cell, y: rows.length * tall + 18, "text-anchor": "middle", "aria-hidden": "true" }, String(layer)));
    }
    root.append(make("text", { class: "quiet", x: width - 2, y: rows.length * tall + 36, "text-anchor": "end", "aria-hidden": "true" }, "decoder layer"));
    reachable(marks, rows.every((each) => each.relative.length === layers) ? layers : 0);
  });
}

function layerRows(rows) {
  const layers = Math.max(...rows.map((each) => each.relative.length));
  return Array.from({ length: layers }, (_, layer) => [
    [`layer ${layer}`, layer],
    ...rows.map((each) => (layer < each.relative.length ? [figure(each.relative[layer]), each.relative[layer]] : ["—", null])),
  ]);
}
