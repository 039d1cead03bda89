// Charts whose marks speak; tables that sort; what a reader switches off leaves both.
(() => {
  "use strict";
  const hidden = new Set(); // places of the architectures that the reader has switched off

  // What a mark says stands beside the pointer.
  const box = document.body.appendChild(document.createElement("div"));
  box.id = "said";

  function say(event) {
    box.textContent = event.target.closest("[data-text]")?.dataset.text ?? "";
    if (!box.textContent) return;
    const left = Math.min(event.clientX + 12, innerWidth - box.offsetWidth - 8);
    const below = event.clientY + 16 + box.offsetHeight < innerHeight;
    box.style.left = `${Math.max(left, 8)}px`;
    box.style.top = `${below ? event.clientY + 16 : event.clientY - box.offsetHeight - 12}px`;
  }
  for (const name of ["pointermove", "pointerdown"]) document.documentElement.addEventListener(name, say);

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

  for (const choice of document.querySelectorAll(".architectures input")) {
    choice.addEventListener("change", () => {
      if (choice.checked) hidden.delete(choice.value); else hidden.add(choice.value);
      document.querySelectorAll("table").forEach(filter);
      for (const mark of document.querySelectorAll(".chart [data-place]"))
        mark.classList.toggle("off", hidden.has(mark.dataset.place));
    });
  }
})();
