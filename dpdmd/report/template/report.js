"use strict";
// Without this script the page still shows all plots, and the images of the last step.
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

// The slider sticks below the legend, whose height depends on the number of runs.
const legend = document.querySelector(".legend");
new ResizeObserver(() =>
  document.documentElement.style.setProperty("--legend", legend.offsetHeight + "px")
).observe(legend);

for (const [id, byStep] of Object.entries(sheets)) {
  const image = byId(id);
  byStep[image.dataset.last] = image.src;
}
// The images at a step: those of each run's last evaluation up to this step, else of its first evaluation.
const atStep = (known, step) => known.reduce((found, each) => (each <= step ? each : found), known[0]);
const showStep = (step) => {
  for (const [id, byStep] of Object.entries(sheets)) {
    const image = byId(id);
    const shown = atStep(Object.keys(byStep).map(Number).sort((a, b) => a - b), step);
    image.src = byStep[shown];
    image.closest("figure").querySelector(".at").textContent = "step " + shown.toLocaleString("en");
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
  slider.value = String(steps.length - 1); // a reload would keep an older position
}

const dialog = byId("large");
let row = [], place = 0;
const enlarge = (index) => {
  place = (index + row.length) % row.length;
  const figure = row[place];
  const image = figure.querySelector("img");
  byId("large-image").src = image.src;
  byId("large-image").alt = image.alt;
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
  if (event.target === dialog) dialog.close(); // beside the image
});
