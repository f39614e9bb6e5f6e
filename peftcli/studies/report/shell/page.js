"use strict";
// Sorting and filtering of tables, and remembering the theme. Without it the page is whole, in the order it was written.

function sortable(table) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  rows.forEach((row, index) => { row.dataset.first = index; });
  for (const button of table.querySelectorAll("thead button")) {
    button.disabled = false;
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const before = head.getAttribute("aria-sort");
      const down = before ? before === "ascending" : head.dataset.first === "descending";
      for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const column = head.cellIndex;
      const value = (row) => row.cells[column].dataset.value;
      rows.sort((one, other) => {
        const [a, b] = [value(one), value(other)];
        if (a === undefined || b === undefined) return (a === undefined) - (b === undefined) || one.dataset.first - other.dataset.first;
        const numbers = head.classList.contains("n");
        const order = numbers ? Number(a) - Number(b) : a.localeCompare(b, undefined, { numeric: true });
        return (down ? -order : order) || one.dataset.first - other.dataset.first;
      });
      body.append(...rows);
    });
  }
}

function filterable(tools) {
  const field = tools.querySelector("input");
  const status = tools.querySelector("[role=status]");
  const rows = [...document.getElementById(field.getAttribute("aria-controls")).tBodies[0].rows];
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const apply = () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, index) => {
      row.hidden = !words.every((word) => texts[index].includes(word));
      shown += row.hidden ? 0 : 1;
    });
    status.textContent = shown + " of " + rows.length + " rows shown";
  };
  field.addEventListener("input", apply);
  field.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { field.value = ""; apply(); }
  });
  tools.hidden = false;
  apply();
}

function remembered(key, value) {
  try {
    if (value === undefined) return localStorage.getItem(key);
    localStorage.setItem(key, value);
  } catch { /* a browser may refuse it for files */ }
  return null;
}

document.querySelectorAll("table.sortable").forEach(sortable);
document.querySelectorAll(".tools").forEach(filterable);
const theme = document.getElementById("theme-" + remembered("peft-theme"));
if (theme) theme.checked = true;
document.querySelectorAll(".theme input").forEach((input) => {
  input.addEventListener("change", () => remembered("peft-theme", input.value));
});
