// Sliders over pictures that lie on one another; see slider_html in page.py.
for (const slider of document.querySelectorAll(".slider")) {
  const stage = slider.querySelector(".stage");
  const range = stage.querySelector("input");
  const pictures = [...stage.querySelectorAll("img")];
  const names = { left: stage.querySelector(".side.left"), right: stage.querySelector(".side.right") };

  const move = () => {
    stage.style.setProperty("--at", `${range.value}%`);
    range.setAttribute("aria-valuetext", `${range.value} % ${names.left.textContent}, the rest ${names.right.textContent}`);
  };
  const choose = (left, right) => {
    for (const picture of pictures) delete picture.dataset.side;
    pictures[left].dataset.side = "left";
    pictures[right].dataset.side = "right";
    names.left.textContent = pictures[left].dataset.name;
    names.right.textContent = pictures[right].dataset.name;
    move();
  };

  range.addEventListener("input", move);
  for (const radio of slider.querySelectorAll(".choice input")) {
    radio.addEventListener("change", () => choose(...radio.value.split(" ").map(Number)));
  }
  move();
}
