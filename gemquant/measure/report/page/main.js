// Binds data, controls and plots; each comparison is a section of its own.

const data = JSON.parse(document.getElementById("data").textContent);

const option = (value, text) => make("option", { value }, text);
function fill(select, options) {
  select.replaceChildren(...options.map(([value, text]) => option(value, text)));
}

// first: the artifact shown at first, one that did not pass where there is any.
function comparison(section, { artifacts, tradeoffs, first }) {
  const find = (name) => section.querySelector(`[data-part="${name}"]`);
  const levels = [...new Set(artifacts.flatMap((each) => each.levels.map((one) => one.level)))];
  const [level, slice, artifact, other] = ["level", "slice", "artifact", "other"].map(find);
  fill(level, levels.map((each) => [each, each]));
  fill(artifact, artifacts.map((each, index) => [index, each.label]));
  fill(other, [["", "nothing else"], ...artifacts.map((each, index) => [index, each.label])]);

  function slices() {
    fill(slice, tradeoffs.filter((each) => each.level === level.value).map((each) => [each.slice ?? "", each.slice ?? "all slices together"]));
  }
  function trade() {
    const chosen = tradeoffs.find((each) => each.level === level.value && (each.slice ?? "") === slice.value);
    find("trade").hidden = !chosen;
    if (!chosen) return;
    find("trade-title").textContent = `Level ${chosen.level}, ${chosen.slice ?? "all slices together"}.`;
    const choose = (index) => { artifact.value = index; trade(); one(); find("one").scrollIntoView({ block: "start" }); artifact.focus({ preventScroll: true }); };
    find("legend").replaceChildren(...scatter(find("scatter"), { artifacts, tradeoff: chosen, chosen: Number(artifact.value), choose }));
    tabulate(find("scatter-table"), `Size and mean divergence, level ${chosen.level}, ${chosen.slice ?? "all slices together"}`,
      [["artifact", false], ["size", true], ["KL mean", true], ["on the front", false]],
      chosen.points.map(([index, size, kl, front]) => [[artifacts[index].label, null], [bytes(size), size], [figure(kl), kl], [front ? "yes" : "no", null]]));
  }
  function one() {
    const shown = [artifact, other].filter((each) => each.value !== "").map((each) => artifacts[each.value])
      .map(({ label, levels: measured }) => ({ label, measured: measured.find((each) => each.level === level.value) }))
      .filter((each) => each.measured && each.measured.slices.length);
    find("one-title").textContent = `${artifacts[artifact.value].label}, level ${level.value}`;
    find("not-run").textContent = shown.length ? "" : absent(artifacts[artifact.value], level.value);
    find("bars-part").hidden = !shown.length;
    if (shown.length) sliceBars(shown);
    for (const kind of ["accumulated", "own"]) {
      const rows = shown.length ? shown[0].measured[kind] : [];
      find(`${kind}-part`).hidden = !rows.length;
      if (!rows.length) continue;
      heatmap(find(kind), rows, find(`${kind}-title`).textContent);
      tabulate(find(`${kind}-table`), `${find(`${kind}-title`).textContent}: relative, ${shown[0].label}, level ${level.value}`,
        [["layer", false], ...rows.map((each) => [each.slice, true])], layerRows(rows));
    }
  }
  function absent(of, name) {
    const measured = of.levels.find((each) => each.level === name);
    return `Level ${name} was not measured${measured && measured.not_run ? `: ${measured.not_run}` : ""}.`;
  }
  function sliceBars(shown) {
    const pairs = shown.map(({ label, measured }) => ({ label, slices: measured.slices }));
    bars(find("bars"), pairs);
    find("bars-legend").replaceChildren(...(pairs.length < 2 ? [] : pairs).map((each, which) => make("li", {},
      make("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, make("rect", { class: `bar series-${which}`, x: 1, y: 4, width: 14, height: 9, rx: 2 })), each.label)));
    const spread = (each, form) => [each[1] === each[2] ? form(each[0]) : `${form(each[0])} (${form(each[1])} to ${form(each[2])})`, each[0]];
    tabulate(find("bars-table"), `What was lost by slice, level ${level.value}; 95 % intervals`,
      [["slice", false], ["artifact", false], ["tokens", true], ...METRICS.map((each) => [each.name, true])],
      pairs.flatMap((each) => each.slices.map((row) => [[row.slice, null], [each.label, null], [row.tokens.toLocaleString("en"), row.tokens],
        ...METRICS.map((metric) => spread(row[metric.key], metric.form))])));
  }
  level.addEventListener("change", () => { slices(); trade(); one(); });
  slice.addEventListener("change", trade);
  artifact.addEventListener("change", () => { trade(); one(); });
  other.addEventListener("change", one);
  artifact.value = first;
  slices();
  trade();
  one();
}

function history(section, { entries, levels }) {
  const [level, metric, artifact] = ["level", "metric", "artifact"].map((name) => section.querySelector(`[data-part="${name}"]`));
  fill(level, Object.keys(levels).map((each) => [each, each]));
  fill(metric, HISTORY_METRICS.map((each, index) => [index, each.name]));
  const few = 8;
  function offer() {
    const names = levels[level.value].map((each) => each.name);
    fill(artifact, [["", names.length > few ? `the first ${few}` : "all"], ...names.map((each, index) => [index, each])]);
  }
  function draw() {
    const series = levels[level.value];
    const coloured = artifact.value === "" ? series.slice(0, few).map((each) => each.name) : [series[artifact.value].name];
    section.querySelector('[data-part="title"]').textContent = `Level ${level.value}.`;
    historyPlot(section.querySelector(".plot"), { series, entries, coloured, metric: HISTORY_METRICS[metric.value], level: level.value });
    section.querySelector(".legend").replaceChildren(...coloured.map((name, kind) => make("li", {},
      make("svg", { viewBox: "-8 -8 16 16", "aria-hidden": "true" }, make("path", { d: shape(kind), class: `series-${kind}` })), name)));
  }
  level.addEventListener("change", () => { offer(); draw(); });
  metric.addEventListener("change", draw);
  artifact.addEventListener("change", draw);
  offer();
  draw();
}

document.querySelectorAll(".needs-script").forEach((each) => { each.hidden = false; });
document.querySelectorAll(".table[data-long]").forEach(enhance);
data.comparisons.forEach((each, index) => comparison(document.getElementById(`comparison-${index}`), each));
if (data.history) history(document.getElementById("history"), data.history);
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((each) => { each.open = true; }));
document.documentElement.dataset.ready = "yes";
