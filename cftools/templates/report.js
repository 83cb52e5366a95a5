"use strict";
// The slider chooses which edit is shown; all pictures are in the page already.
const slider = document.getElementById("edit");
const shown = document.getElementById("shown");
const stage = document.getElementById("stage");
const labels = [...document.querySelectorAll("details[data-edit] > summary")].map((each) => each.textContent);

function show(index) {
  for (const each of document.querySelectorAll("[data-edit]")) {
    each.classList.toggle("current", Number(each.dataset.edit) === index);
  }
  shown.textContent = labels[index];
  slider.setAttribute("aria-valuetext", labels[index]);
}
if (slider) slider.addEventListener("input", () => show(Number(slider.value)));

for (const name of ["mask", "template"]) {
  const box = document.getElementById(name);
  if (box) box.addEventListener("change", () => stage.classList.toggle(`with-${name}`, box.checked));
}

// Holding shows the scan in place of its edit: what changed then jumps to the eye.
const compare = document.getElementById("compare");
const hold = (held) => () => stage.classList.toggle("comparing", held);
compare.addEventListener("pointerdown", hold(true));
for (const end of ["pointerup", "pointerleave", "pointercancel", "blur"]) compare.addEventListener(end, hold(false));
compare.addEventListener("contextmenu", (event) => event.preventDefault());
document.addEventListener("keydown", (event) => {
  const plain = !event.ctrlKey && !event.metaKey && !event.altKey;
  if (plain && (event.key === "b" || event.key === "B")) hold(true)();
  if (event.target === compare && (event.key === " " || event.key === "Enter")) hold(true)();
  if (event.key === "Escape") enlarge(null);
});
document.addEventListener("keyup", hold(false));

const grid = document.getElementById("grid");
function enlarge(panel) {
  grid.classList.toggle("enlarged", panel !== null);
  for (const each of grid.querySelectorAll(".panel")) each.setAttribute("aria-pressed", String(each === panel));
}
for (const panel of grid.querySelectorAll(".panel")) {
  panel.addEventListener("click", () => enlarge(panel.getAttribute("aria-pressed") === "true" ? null : panel));
}
