// Figures, tables that sort, lines to copy. Without this script all texts and tables stand.
const all = (selector, of = document) => [...of.querySelectorAll(selector)];

// The drawing code is packed: unpacked once, then every figure is drawn from its own data.
async function draw() {
  const holders = all("div.figure");
  if (!holders.length) return;
  try {
    const packed = document.getElementById("drawing-code").textContent;
    const bytes = Uint8Array.from(atob(packed), letter => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const code = document.createElement("script");
    code.textContent = await new Response(stream).text();
    document.head.append(code);
    // A finger that draws a frame to zoom would not get past a figure.
    const coarse = matchMedia("(pointer: coarse)").matches ? {dragmode: false} : {};
    for (const holder of holders) {
      const {data, layout} = JSON.parse(holder.querySelector("script").textContent);
      const shown = {responsive: true, displaylogo: false};
      await Plotly.newPlot(holder, data, {...layout, ...coarse}, shown);
      await fitted(holder, layout);
    }
    addEventListener("resize", () => drawn().forEach(figure => fitted(figure, figure.own)));
  } catch (error) {
    for (const holder of holders)
      if (!holder.classList.contains("js-plotly-plot")) {
        holder.className = "note";
        holder.removeAttribute("style");
        holder.textContent = `This figure could not be drawn (${error.message}); it needs a browser `
          + "of 2023 or later. What it shows stands in tables as well.";
      }
  }
}

// On a phone with smaller letters; a legend below a figure gets the room that it takes.
async function fitted(figure, layout) {
  figure.own = layout;
  const narrow = figure.clientWidth < 520;
  await Plotly.relayout(figure, {"font.size": narrow ? 11 : layout.font.size,
    "margin.l": narrow ? Math.min(layout.margin.l, 54) : layout.margin.l,
    "margin.r": narrow ? Math.min(layout.margin.r, 10) : layout.margin.r});
  const legend = figure.querySelector(".legend");
  if (!legend || layout.legend?.yref !== "container" || layout.legend.y !== 0) return;
  await Plotly.relayout(figure, {"margin.b": legend.getBBox().height + 62});
}

// Plotly draws for the width of the screen: on paper figures take that of a page, and go back.
const drawn = () => all(".js-plotly-plot");
addEventListener("beforeprint", () => drawn().forEach(
  figure => Plotly.relayout(figure, {autosize: false, width: 680})));
addEventListener("afterprint", () => drawn().forEach(
  figure => Plotly.relayout(figure, {autosize: true, width: null})));

// By the numbers of a column, or its words; what is empty comes last, whichever way.
function sort(table, column, descending) {
  const numbers = table.tHead.rows[0].cells[column].classList.contains("n");
  const key = row => {
    const text = row.cells[column].textContent.trim();
    return numbers ? parseFloat(text.replaceAll(",", "")) : text.toLowerCase();
  };
  const empty = value => value === "" || Number.isNaN(value);
  const rows = [...table.tBodies[0].rows].map(row => [key(row), row]);
  rows.sort(([a], [b]) => {
    if (empty(a) || empty(b)) return empty(a) - empty(b);
    const order = numbers ? a - b : a.localeCompare(b, "en", {numeric: true});
    return descending ? -order : order;
  });
  table.tBodies[0].append(...rows.map(([, row]) => row));
}

for (const table of all("table.sortable"))
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const descending = head.ariaSort === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.ariaSort = descending ? "descending" : "ascending";
      sort(table, column, descending);
    });
  });

for (const code of all("code.copy")) {
  const button = document.createElement("button");
  button.className = "copy";
  button.textContent = "copy";
  button.setAttribute("aria-label", `copy ${code.textContent}`);
  code.after(button);
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "copied";
      setTimeout(() => { button.textContent = "copy"; }, 2000);
    } catch {  // not allowed: the line is marked, for the keys that copy
      getSelection().selectAllChildren(code);
    }
  });
}

// A table that is wider than the screen says so, and scrolls by keys as well.
function hint() {
  for (const wide of all(".wide")) {
    const beyond = wide.scrollWidth > wide.clientWidth + 1;
    const told = wide.previousElementSibling?.classList.contains("hint");
    if (beyond && !told) {
      const line = document.createElement("p");
      line.className = "hint";
      line.textContent = "wider than the screen: scroll it sideways \u2192";
      wide.before(line);
      wide.tabIndex = 0;
    } else if (!beyond && told) {
      wide.previousElementSibling.remove();
      wide.removeAttribute("tabindex");
    }
  }
}
addEventListener("resize", hint);
hint();
draw();
