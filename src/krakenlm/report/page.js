// Charts in the colours of the page; tables that sort; what a reader switches off leaves both.
(() => {
  "use strict";
  const AXIS = 45; // pixels that a horizontal axis and its title take
  const PLACES = ["0", "1", "2", "3", "4", "5", "6", "7", "reference"];

  // Colours are the page's own variables, so charts follow its colour scheme, and paper, by themselves.
  function theme() {
    const font = getComputedStyle(document.body).fontFamily;
    const [ink, soft, line] = ["var(--ink)", "var(--soft)", "var(--line)"];
    const label = { labelColor: soft, titleColor: soft, labelFont: font, titleFont: font, titleFontWeight: "normal" };
    return {
      background: null,
      range: { category: PLACES.map((place) => `var(--place-${place})`) },
      view: { stroke: null },
      axis: { ...label, gridColor: line, domainColor: soft, tickColor: soft, labelFontSize: 12, titleFontSize: 12, titlePadding: 8 },
      axisY: { domain: false, ticks: false, labelPadding: 6 },
      rule: { color: soft },
      text: { color: soft, font, fontSize: 12 },
      style: { whisker: { stroke: ink, strokeWidth: 1.5 } },
    };
  }

  const charts = [...document.querySelectorAll(".chart")].map((place) => ({
    place, spec: JSON.parse(place.closest("figure").querySelector(".spec").textContent), view: null,
  }));
  // Room for each before it is drawn, so that nothing moves below a reader's eyes.
  for (const { place, spec } of charts) place.style.minHeight = `${spec.height + AXIS}px`;
  const hidden = new Set(); // places of the architectures that the reader has switched off

  // The specification without what is switched off. A chart with nothing left keeps all of it, and is dimmed.
  function shown(spec) {
    const placed = Object.values(spec.datasets).flat().filter((value) => value.place);
    if (placed.length && placed.every((value) => hidden.has(value.place))) return null;
    const datasets = Object.fromEntries(Object.entries(spec.datasets).map(([name, values]) =>
      [name, values.filter((value) => !hidden.has(value.place))]));
    return { ...spec, datasets };
  }

  // The page can be read and scrolled between two charts.
  const pause = () => new Promise((done) => setTimeout(done));
  let drawing = 0;

  async function draw() {
    const config = theme(), mine = ++drawing;
    delete document.documentElement.dataset.drawn;
    for (const chart of charts) {
      await pause();
      if (mine !== drawing) return; // another one has begun, with other architectures
      const spec = shown(chart.spec);
      chart.place.classList.toggle("dimmed", !spec);
      chart.view?.finalize();
      const result = await window.vegaEmbed(chart.place, spec ?? chart.spec, {
        mode: "vega-lite", renderer: "svg", actions: false, ast: true, defaultStyle: false, config,
        tooltip: { disableDefaultStyle: true },
      });
      chart.view = result.view;
    }
    document.documentElement.dataset.drawn = charts.length;
  }
  draw();

  const SHAPES = {
    0: "M4.5,0A4.5,4.5,0,1,1,-4.5,0A4.5,4.5,0,1,1,4.5,0Z", 1: "M0,-5.5L4.5,0L0,5.5L-4.5,0Z",
    2: "M-4,-4H4V4H-4Z", 3: "M0,-5L5,4H-5Z", 4: "M0,5L5,-4H-5Z",
    5: "M-5,-1.7H-1.7V-5H1.7V-1.7H5V1.7H1.7V5H-1.7V1.7H-5Z", 6: "M5,0L-4,5V-5Z", 7: "M-5,0L4,5V-5Z",
    reference: "M-5,-1H5V1H-5Z",
  };
  for (const path of document.querySelectorAll("path[data-place]")) path.setAttribute("d", SHAPES[path.dataset.place]);

  // Numbers by size, other text by alphabet; what is empty comes last either way.
  function compare(a, b) {
    const [x, y] = [Number(a), Number(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, "en", { numeric: true }) : x - y;
  }

  function sort(table, index, direction) {
    const body = table.tBodies[0];
    const value = (row) => row.cells[index].dataset.value ?? row.cells[index].textContent;
    const rows = [...body.rows].sort((a, b) =>
      !value(a) || !value(b) ? !value(a) - !value(b) : direction * compare(value(a), value(b)));
    body.append(...rows);
  }

  for (const head of document.querySelectorAll("th")) {
    head.firstElementChild.addEventListener("click", () => {
      const ascending = head.getAttribute("aria-sort") !== "ascending";
      for (const other of head.parentElement.cells) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      sort(head.closest("table"), head.cellIndex, ascending ? 1 : -1);
    });
  }

  // A row is shown that has the text looked for, of an architecture that is not switched off.
  function filter(table) {
    const wanted = (document.querySelector(`input[aria-controls="${table.id}"]`)?.value ?? "").trim().toLowerCase();
    let count = 0;
    for (const row of table.tBodies[0].rows) {
      const place = row.querySelector(".dot")?.dataset.place;
      row.hidden = hidden.has(place) || !row.textContent.toLowerCase().includes(wanted);
      count += !row.hidden;
    }
    const status = document.getElementById(`${table.id}-count`);
    if (status) status.textContent = count < table.tBodies[0].rows.length ? `${count} of ${table.tBodies[0].rows.length} rows` : "";
  }

  for (const input of document.querySelectorAll("input[type=search]"))
    input.addEventListener("input", () => filter(document.getElementById(input.getAttribute("aria-controls"))));

  for (const box of document.querySelectorAll(".architectures input")) {
    box.addEventListener("change", () => {
      if (box.checked) hidden.delete(box.value); else hidden.add(box.value);
      document.querySelectorAll("table").forEach(filter);
      draw();
    });
  }
})();
