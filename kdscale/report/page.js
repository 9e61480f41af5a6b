"use strict";

// The examples: filter by student, side and text, and sort by a click on a header.
(() => {
  const table = document.getElementById("examples");
  if (!table) return;
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const system = document.getElementById("filter-system");
  const side = document.getElementById("filter-side");
  const text = document.getElementById("filter-text");
  const count = document.getElementById("filter-count");

  function filter() {
    const words = text.value.trim().toLowerCase();
    let shown = 0;
    for (const row of rows) {
      const visible =
        (!system.value || row.dataset.system === system.value) &&
        (!side.value || row.dataset.side === side.value) &&
        (!words || row.querySelector(".query").textContent.toLowerCase().includes(words));
      row.hidden = !visible;
      shown += visible ? 1 : 0;
    }
    table.classList.toggle("one-system", system.value !== "");
    count.textContent = shown === 1 ? "1 query" : `${shown} queries`;
  }

  function sort(header, column, kind) {
    const down = header.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (row) => row.cells[column].dataset.value;
    const order =
      kind === "number"
        ? (a, b) => Number(value(a)) - Number(value(b))
        : (a, b) => value(a).localeCompare(value(b));
    rows.sort((a, b) => (down ? order(b, a) : order(a, b)));
    body.append(...rows);
  }

  [...table.tHead.rows[0].cells].forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => sort(header, column, header.dataset.sort));
  });
  for (const control of [system, side, text]) control.addEventListener("input", filter);
  const form = document.getElementById("filters");
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  filter();
})();

// A link to an artifact opens it.
(() => {
  function open() {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    if (target && target.tagName === "DETAILS") target.open = true;
  }
  addEventListener("hashchange", open);
  open();
})();
