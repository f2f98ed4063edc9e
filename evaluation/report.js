const slider = document.getElementById("time");
const frames = [...document.querySelectorAll("#frames > [data-when]")];

function show() {
  frames.forEach((frame, i) => { frame.hidden = i !== slider.valueAsNumber; });
  slider.setAttribute("aria-valuetext", frames[slider.valueAsNumber].dataset.when);
}

if (slider) {
  slider.addEventListener("input", show);
  show();
}
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
