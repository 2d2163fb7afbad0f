// Methods stand in families. The boxes say which families are shown, and whether tables with a row
// for each method keep the families apart.
const boxes = [...document.querySelectorAll('#families [name="family"]')];
const families = boxes.map((box) => box.value);
const grouped = document.getElementById("grouped");
const input = document.getElementById("filter");
const runs = [...document.querySelectorAll("#runs-table tbody tr")];

// Hide the rows of the families that are not chosen, the headings of families where there are no
// groups, and the runs that lack a word that was typed.
function filter() {
  const chosen = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
  const isHeading = (row) => row.classList.contains("family");
  for (const row of document.querySelectorAll("tr[data-family]")) {
    row.hidden = !chosen.has(row.dataset.family) || (isHeading(row) && !grouped.checked);
  }
  const words = input.value.toLowerCase().split(/\s+/);
  for (const row of runs) {
    const text = `${row.textContent} ${row.dataset.family}`.toLowerCase();
    row.hidden ||= !words.every((word) => text.includes(word));
  }
  const count = runs.filter((row) => !row.hidden).length;
  document.getElementById("shown").textContent = `${count} of ${runs.length} runs`;
}

// Sort a table by its chosen column: numbers by value, text by locale, empty cells always last.
// Before one is chosen the rows stand as the page was written, which is by family.
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

function sort(table) {
  const head = table.querySelector("[aria-sort]");
  if (!head) return;
  const sign = head.getAttribute("aria-sort") === "ascending" ? 1 : -1;
  const rows = [...table.tBodies[0].rows];
  const headings = rows.filter((row) => row.classList.contains("family"));
  const others = rows.filter((row) => !headings.includes(row));
  const keys = new Map(others.map((row) => [row, sortKey(row, head.cellIndex)]));
  others.sort((a, b) => compare(keys.get(a), keys.get(b), sign));
  if (headings.length && grouped.checked) {
    const place = (row) => 2 * families.indexOf(row.dataset.family) + !headings.includes(row);
    others.push(...headings);
    others.sort((a, b) => place(a) - place(b)); // stable: each family keeps the order of the column
  } else {
    others.unshift(...headings); // they are hidden
  }
  table.tBodies[0].append(...others);
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
    sort(table);
  });
}

function choose(checked) {
  for (const box of boxes) box.checked = checked;
  filter();
}

for (const box of boxes) box.addEventListener("change", filter);
document.getElementById("all-families").addEventListener("click", () => choose(true));
document.getElementById("no-family").addEventListener("click", () => choose(false));
grouped.addEventListener("change", () => {
  for (const table of document.querySelectorAll("table")) sort(table);
  filter();
});
input.addEventListener("input", filter);
