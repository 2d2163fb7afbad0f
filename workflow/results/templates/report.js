// Sort a table by the clicked column: numbers by value, text by locale, empty cells always last.
function sortKey(row, column) {
  const cell = row.cells[column];
  const raw = cell.dataset.sort ?? cell.textContent.trim();
  return raw === "" || Number.isNaN(Number(raw)) ? raw : Number(raw);
}

function compare(a, b, sign) {
  if (a === "" || b === "") return (a === "") - (b === "");
  if (typeof a === "number" && typeof b === "number") return sign * (a - b);
  return sign * String(a).localeCompare(String(b), "en", { numeric: true });
}

for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th");
    const table = head.closest("table");
    const first = head.dataset.first ?? "ascending";
    const other = first === "ascending" ? "descending" : "ascending";
    const order = head.getAttribute("aria-sort") === first ? other : first;
    for (const sorted of table.querySelectorAll("[aria-sort]")) sorted.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order);
    const rows = [...table.tBodies[0].rows].map((row) => [sortKey(row, head.cellIndex), row]);
    rows.sort(([a], [b]) => compare(a, b, order === "ascending" ? 1 : -1));
    table.tBodies[0].append(...rows.map(([, row]) => row));
  });
}

// Show the runs that hold every word typed.
const input = document.getElementById("filter");
const rows = [...document.querySelectorAll("#runs-table tbody tr")];
input.addEventListener("input", () => {
  const words = input.value.toLowerCase().split(/\s+/);
  for (const row of rows) row.hidden = !words.every((w) => row.textContent.toLowerCase().includes(w));
  const count = rows.filter((row) => !row.hidden).length;
  document.getElementById("shown").textContent = `${count} of ${rows.length} runs`;
});
