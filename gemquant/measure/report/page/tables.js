// Tables that sort by their heads, and that are paged and filtered where they are long. The rows are
// those of the page itself or, for long tables, of the data next to it, so that few are ever in the page.

const PAGE = 20;

function cellsOf(row) {
  return [...row.cells].map((cell) => [cell.textContent, cell.dataset.key === undefined ? null : Number(cell.dataset.key)]);
}

function enhance(holder) {
  const table = holder.querySelector("table");
  const body = table.tBodies[0];
  const island = holder.querySelector("script");
  const all = island ? JSON.parse(island.textContent) : [...body.rows].map(cellsOf);
  const heads = [...table.tHead.rows[0].cells];
  const state = { rows: all, first: 0, column: null, sign: 1 };
  const status = make("span", { role: "status" });
  const [back, on] = ["Previous", "Next"].map((name) => make("button", { type: "button" }, name));

  function show() {
    body.replaceChildren(...state.rows.slice(state.first, state.first + PAGE).map(rowOf));
    const last = Math.min(state.first + PAGE, state.rows.length);
    const count = state.rows.length.toLocaleString("en");
    status.textContent = state.rows.length ? `${(state.first + 1).toLocaleString("en")} to ${last.toLocaleString("en")} of ${count}` : "No row has that in it";
    back.disabled = state.first === 0;
    on.disabled = last >= state.rows.length;
  }
  function rowOf(cells) {
    return make("tr", {}, ...cells.map(([text], index) => {
      const numeric = heads[index].classList.contains("number") ? "number" : text.length > 40 ? "long" : null;
      return index ? make("td", { class: numeric }, text) : make("th", { scope: "row", class: numeric }, text);
    }));
  }
  function order() {
    if (state.column === null) return;
    const at = state.column;
    // Cells without a figure stay last, whichever way is up.
    state.rows = [...state.rows].sort(({ [at]: a }, { [at]: b }) => {
      if (a[1] !== null && b[1] !== null) return state.sign * (a[1] - b[1]);
      if (a[1] !== null || b[1] !== null) return a[1] === null ? 1 : -1;
      return state.sign * (a[0] < b[0] ? -1 : a[0] > b[0] ? 1 : 0);
    });
  }

  heads.forEach((head, index) => {
    const button = make("button", { type: "button" }, ...head.childNodes);
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      state.sign = state.column === index ? -state.sign : 1;
      state.column = index;
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", state.sign > 0 ? "ascending" : "descending");
      state.first = 0;
      order();
      show();
    });
  });
  if (all.length <= PAGE) return;
  const filter = make("input", { type: "search", placeholder: "Find in this table", "aria-label": `Find in: ${table.caption.textContent}` });
  filter.addEventListener("input", () => {
    const wanted = filter.value.toLowerCase();
    state.rows = wanted ? all.filter((row) => row.some(([text]) => text.toLowerCase().includes(wanted))) : all;
    state.first = 0;
    order();
    show();
  });
  back.addEventListener("click", () => { state.first -= PAGE; show(); });
  on.addEventListener("click", () => { state.first += PAGE; show(); });
  holder.append(make("div", { class: "pager" }, filter, back, on, status));
  show();
}

// A table made here: what a plot shows, as figures. columns: [name, numeric]; rows: [[text, key]].
function tabulate(holder, caption, columns, rows) {
  const head = make("tr", {}, ...columns.map(([name, numeric]) => make("th", { scope: "col", class: numeric ? "number" : null }, name)));
  const table = make("table", {}, make("caption", {}, caption), make("thead", {}, head), make("tbody"));
  const island = make("script", { type: "application/json" });
  island.textContent = JSON.stringify(rows);
  const scroll = make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption }, table);
  holder.replaceChildren(scroll, island);
  for (const cells of rows.slice(0, PAGE)) {
    table.tBodies[0].append(make("tr", {}, ...cells.map(([text, key], index) => {
      const attributes = { class: columns[index][1] ? "number" : null, scope: index ? null : "row" };
      return make(index ? "td" : "th", attributes, text);
    })));
  }
  enhance(holder);
}
