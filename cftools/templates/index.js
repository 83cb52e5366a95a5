"use strict";
// A click on a column's head sorts by it; a second one turns the order.
const table = document.getElementById("rows");
const body = table.tBodies[0];
for (const head of table.querySelectorAll("th[data-kind]")) {
  head.querySelector("button").addEventListener("click", () => {
    const order = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    for (const each of table.querySelectorAll("th[aria-sort]")) each.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order);
    const turn = order === "ascending" ? 1 : -1;
    const number = head.dataset.kind === "number";
    const value = (row) => {
      const cell = row.cells[head.cellIndex];
      return number ? Number(cell.dataset.value) : cell.textContent.trim();
    };
    const compare = (a, b) => (number ? a - b : a.localeCompare(b, undefined, { numeric: true }));
    body.append(...[...body.rows].sort((a, b) => turn * compare(value(a), value(b))));
  });
}
