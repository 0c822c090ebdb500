"use strict";
const faces = [...document.querySelectorAll("fieldset")];
const input = (face) => face.querySelector("[type=number]");
const answered = () => faces.filter((face) => !input(face).disabled && input(face).value && input(face).checkValidity());
const cell = (text) => `"${String(text).replaceAll('"', '""')}"`;

function count() {
  for (const face of faces) input(face).disabled = face.querySelector("[type=checkbox]").checked;
  document.querySelector("#count").textContent = `${answered().length} of ${faces.length} answered`;
}

function save() {
  const rows = answered().map((face) => {
    const told = face.dataset;
    return [JSON.parse(told.path), told.face, input(face).value, told.asked].map(cell).join(",");
  });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([["path,face,age,asked", ...rows, ""].join("\r\n")], {type: "text/csv"}));
  link.download = "labels.csv";
  link.click();
}

document.addEventListener("input", count);
document.querySelector("#save").addEventListener("click", save);
document.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.target.type !== "number") return;
  event.preventDefault();
  const next = faces[faces.indexOf(event.target.closest("fieldset")) + 1];
  (next ? input(next) : document.querySelector("#save")).focus();
});
count();
