// One cell of the simulated grid: which model answers soonest, where its time goes, and what runs when in one layer.
(() => {
  "use strict";
  const source = document.getElementById("simulation-data");
  if (!source) return;
  const { names, places, rows, timelines } = JSON.parse(source.textContent);
  const KEYS = ["hardware", "size", "context", "batch", "tp"];
  const TITLES = { hardware: "machine", size: "size", context: "context", batch: "batch", tp: "ranks" };
  const PART_TITLES = ["norm", "GEMM", "GEMM under an AllReduce", "attention", "LM head", "other", "AllReduce, exposed", "AllReduce, hidden"];
  const SUM = names.part.length;  // in a layer's events: an AllReduce, hidden or not
  const HIDDEN = names.part.indexOf("all_reduce_hidden");
  const [ARCHITECTURE, DEGREE, TTFT, MEMORY, FITS, FIRST] = [5, 6, 7, 8, 9, 10];
  const box = document.getElementById("explorer");
  const out = box.querySelector(".explored");
  const SVG = "http://www.w3.org/2000/svg";

  function element(name, attributes = {}, text = null, parent = null, space = null) {
    const made = space ? document.createElementNS(space, name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== null) made.textContent = text;
    if (parent) parent.append(made);
    return made;
  }

  const digits = (value) => value >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(3)));
  const label = (row) => names.architecture[row[ARCHITECTURE]] + (row[DEGREE] ? ` ${row[DEGREE]}-way` : "");

  const selects = KEYS.map((key, place) => {
    const wrap = element("label", {}, `${TITLES[key]} `, box.querySelector(".choices"));
    const select = element("select", {}, null, wrap);
    names[key].forEach((name, value) => element("option", { value }, name, select));
    select.addEventListener("change", () => show(place));
    return select;
  });

  // Of what was chosen, the cell that is there: what was chosen last stays, the others give way.
  function nearest(kept) {
    const wanted = selects.map((select) => Number(select.value));
    const miss = (row) => wanted.reduce((sum, value, place) =>
      sum + (row[place] === value ? 0 : place === kept ? 100 : 1) + Math.abs(row[place] - value) / 100, 0);
    return rows.reduce((best, row) => miss(row) < miss(best) ? row : best, rows[0]).slice(0, KEYS.length);
  }

  const inCell = (cell) => (row) => cell.every((value, place) => row[place] === value);

  function show(kept) {
    const cell = nearest(kept);
    cell.forEach((value, place) => { selects[place].value = value; });
    const found = rows.filter(inCell(cell)).sort((a, b) => a[TTFT] - b[TTFT]);
    const standard = found.find((row) => names.architecture[row[ARCHITECTURE]] === "standard");
    out.replaceChildren();
    bars(found, standard);
    const layers = timelines.filter(inCell(cell));
    if (layers.length) lanes(layers);
    else if (timelines.length) element("p", { class: "caption" }, "What runs when in one layer stands here for the least batch on as many ranks as a machine has devices.", out);
  }

  function name(row, line) {
    const made = element("span", { class: "name" }, null, line);
    element("i", { class: `dot place-${places[row[ARCHITECTURE]]}` }, null, made);
    made.append(label(row));
  }

  function bars(found, standard) {
    const longest = Math.max(...found.map((row) => row[TTFT]));
    const list = element("div", { class: "rows" }, null, out);
    for (const row of found) {
      const line = element("div", { class: `row${row[FITS] ? "" : " unfit"}` }, null, list);
      name(row, line);
      const bar = element("span", { class: "bar", role: "img" }, null, line);
      const told = [];
      for (let part = 0; part < HIDDEN; part++) {
        const value = row[FIRST + part];
        if (!value) continue;
        told.push(`${PART_TITLES[part]} ${digits(value)} ms`);
        element("i", { class: `part-${part}`, style: `width:${(100 * value / longest).toFixed(2)}%`, title: told.at(-1) }, null, bar);
      }
      told.push(`${PART_TITLES[HIDDEN]} ${digits(row[FIRST + HIDDEN])} ms`);
      bar.setAttribute("aria-label", told.join(", "));
      const ratio = standard ? `, ${(standard[TTFT] / row[TTFT]).toFixed(2)}\u00d7` : "";
      const room = row[FITS] ? "" : "no room: ";
      element("span", { class: "value" }, `${room}${digits(row[TTFT])} ms${ratio}; ${digits(row[MEMORY])} GB a device`, line);
    }
    const legend = element("ul", { class: "legend" }, null, out);
    PART_TITLES.slice(0, HIDDEN).forEach((title, part) => {
      const item = element("li", {}, null, legend);
      element("i", { class: `sample part-${part}` }, null, item);
      item.append(title);
    });
  }

  // What report/timeline.py says of its chart.
  function told(layer) {
    const [whole, sums, hidden] = layer.at(-2).map((value) => digits(value));
    return `${label(layer)}: layer ${whole} \u00b5s, AllReduce ${sums} \u00b5s, of which ${hidden} hidden`;
  }

  function lanes(layers) {
    element("p", { class: "title" }, "One layer from the middle of each model: compute above, AllReduces below", out);
    const end = Math.max(...layers.flatMap((layer) => layer.at(-1).map((event) => event[4])));
    for (const layer of layers) {
      const line = element("div", { class: "row" }, null, out);
      name(layer, line);
      const svg = element("svg", { viewBox: "0 0 1000 40", preserveAspectRatio: "none", role: "img", "aria-label": told(layer) }, null, line, SVG);
      for (const [stream, part, name, start, stop] of layer.at(-1)) {
        const rect = element("rect", {
          x: 1000 * start / end, y: stream ? 22 : 2, width: Math.max(1, 1000 * (stop - start) / end - 1), height: 16,
          class: `part-${part === SUM ? HIDDEN - 1 : part}`,
        }, null, svg, SVG);
        element("title", {}, `${names.event[name]}: ${digits(stop - start)} \u00b5s`, rect, SVG);
      }
      element("span", { class: "value" }, `${digits(layer.at(-2)[0])} \u00b5s`, line);
    }
  }

  box.hidden = false;
  // A cell with a timeline to begin with.
  if (timelines.length) selects.forEach((select, place) => { select.value = timelines[0][place]; });
  show(-1);
})();
