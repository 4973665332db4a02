"use strict";
// Without this script the page still shows everything: all planes, and the last step's pictures.
const byId = (id) => document.getElementById(id);
const { steps, sheets } = JSON.parse(byId("data").textContent);

for (const chip of document.querySelectorAll("button.chip")) {
  chip.addEventListener("click", () => {
    const faded = document.body.classList.toggle("mute-" + chip.dataset.run);
    chip.setAttribute("aria-pressed", String(!faded));
  });
}

const axes = byId("axes");
if (axes) {
  const planes = byId("planes");
  const choose = () =>
    [...planes.children].forEach((group, index) => group.classList.toggle("now", index === Number(axes.value)));
  planes.classList.add("chosen");
  axes.addEventListener("change", choose);
  choose();
}

// The slider sticks below the legend, which has as many lines as its runs need.
const legend = document.querySelector(".legend");
new ResizeObserver(() =>
  document.documentElement.style.setProperty("--legend", legend.offsetHeight + "px")
).observe(legend);

for (const [id, byStep] of Object.entries(sheets)) {
  const picture = byId(id);
  byStep[picture.dataset.last] = picture.src;
}
// The pictures at a step: each run's last evaluation up to it, or its first.
const atStep = (known, step) => known.reduce((found, each) => (each <= step ? each : found), known[0]);
const showStep = (step) => {
  for (const [id, byStep] of Object.entries(sheets)) {
    const picture = byId(id);
    const shown = atStep(Object.keys(byStep).map(Number).sort((a, b) => a - b), step);
    picture.src = byStep[shown];
    picture.closest("figure").querySelector(".at").textContent = "step " + shown.toLocaleString("en");
  }
};
const slider = byId("step");
if (slider) {
  const move = () => {
    const step = steps[Number(slider.value)];
    byId("step-shown").textContent = step.toLocaleString("en");
    slider.setAttribute("aria-valuetext", "step " + step);
    showStep(step);
  };
  slider.addEventListener("input", move);
  slider.value = String(steps.length - 1); // a reload would keep an older place
}

const dialog = byId("large");
let row = [], place = 0;
const enlarge = (index) => {
  place = (index + row.length) % row.length;
  const figure = row[place];
  const picture = figure.querySelector("img");
  byId("large-picture").src = picture.src;
  byId("large-picture").alt = picture.alt;
  const labels = [...figure.querySelectorAll("figcaption span")].map((part) => part.textContent);
  const prompt = figure.closest(".prompt").querySelector("h3").textContent;
  byId("large-caption").textContent = labels.join(", ") + ": " + prompt;
};
for (const button of document.querySelectorAll(".sheet")) {
  button.addEventListener("click", () => {
    row = [...button.closest(".sheets").children];
    enlarge(row.indexOf(button.closest("figure")));
    dialog.showModal();
  });
}
byId("previous").addEventListener("click", () => enlarge(place - 1));
byId("next").addEventListener("click", () => enlarge(place + 1));
byId("close").addEventListener("click", () => dialog.close());
dialog.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") enlarge(place - 1);
  if (event.key === "ArrowRight") enlarge(place + 1);
});
dialog.addEventListener("click", (event) => {
  if (event.target === dialog) dialog.close(); // beside the picture
});
