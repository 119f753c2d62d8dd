// Size against divergence. A step line joins the artifacts that no other beats in both.

function scatter(holder, { artifacts, tradeoff, chosen, choose }) {
  const containers = [...new Set(artifacts.map((each) => each.container))];
  const points = tradeoff.points.map(([index, size, kl, front]) => ({ ...artifacts[index], index, size, kl, front }));
  drawn(holder, (width) => {
    const height = Math.min(520, Math.max(340, width * 0.48));
    const frame = { left: 64, right: width - 16, top: 36, bottom: height - 48 };
    const root = canvas(holder, width, height, `Size against divergence, level ${tradeoff.level}, ${tradeoff.slice ?? "all slices"}: ${points.length} artifacts. Arrow keys go from one to the next.`);
    const x = spanning(points.map((each) => each.size), frame.left, frame.right);
    const y = spanning(points.map((each) => each.kl), frame.bottom, frame.top);
    axes(root, frame, { x, y, xLabel: "size of all files", yLabel: "KL divergence from the original, mean, nats per token", xForm: bytes });
    const front = points.filter((each) => each.front);
    if (front.length > 1) {
      const path = front.map((each, n) => (n ? `H${x(each.size)}V${y(each.kl)}` : `M${x(each.size)},${y(each.kl)}`)).join("");
      root.append(make("path", { class: "front", d: path, "aria-hidden": "true" }));
    }
    const marks = points.map((each) => mark(each, x, y));
    root.append(...marks);
    if (points.length <= 400) root.append(...names(front.length > 1 ? front : points, points, x, y, frame));
    reachable(marks);
  });
  function mark(each, x, y) {
    const kind = containers.indexOf(each.container);
    const group = make("g", { transform: `translate(${x(each.size)},${y(each.kl)})`, class: each.index === chosen ? "chosen" : null },
      make("path", { d: shape(kind), class: `mark series-${kind % 8}${each.front ? " on-front" : ""}` }));
    const words = [bytes(each.size), `KL mean ${figure(each.kl)} nats per token`, `${each.quantizer}, ${each.scheme}, ${each.container}`];
    if (each.front) words.push("none here is smaller and closer");
    describe(group, each.label, words, () => choose(each.index));
    return group;
  }
  return containers.map((name, kind) => make("li", {}, make("svg", { viewBox: "-8 -8 16 16", "aria-hidden": "true" },
    make("path", { d: shape(kind), class: `mark on-front series-${kind % 8}` })), name));
}

// Names next to points, as many as fit; hover and focus show the others.
function names(named, points, x, y, frame) {
  const taken = points.map((each) => [x(each.size) - 7, y(each.kl) - 7, x(each.size) + 7, y(each.kl) + 7]);
  const free = (box) => box[0] >= frame.left && box[2] <= frame.right && box[1] >= frame.top - 8
    && taken.every((other) => box[2] < other[0] || box[0] > other[2] || box[3] < other[1] || box[1] > other[3]);
  const placed = [];
  for (const each of named) {
    const text = each.label.length > 30 ? `${each.label.slice(0, 29)}…` : each.label;
    const wide = text.length * 7 + 4, px = x(each.size), py = y(each.kl);
    const places = [[px + 10, py - 14, "start"], [px + 10, py + 4, "start"], [px - 10 - wide, py - 14, "end"], [px - 10 - wide, py + 6, "end"]];
    const place = places.find(([left, top]) => free([left, top, left + wide, top + 15]));
    if (!place) continue;
    const [left, top, anchor] = place;
    taken.push([left, top, left + wide, top + 15]);
    placed.push(make("text", { class: "name", x: anchor === "start" ? left : left + wide, y: top + 12, "text-anchor": anchor, "aria-hidden": "true" }, text));
  }
  return placed;
}
