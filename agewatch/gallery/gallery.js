"use strict";
const began = performance.now();
const {sheets, side, across, models, compare, rows} = JSON.parse(document.getElementById("data").textContent);
const list = document.getElementById("faces");
const [PATH, FACE, STATUS, MODEL, CELL, WHY, AGE, LOW, HIGH, OTHER, OTHER_LOW, OTHER_HIGH] = Array(12).keys();
const years = (value) => Math.round(value);
const add = (parent, tag, name, text) => {
  const element = document.createElement(tag);
  element.className = name;
  if (text !== undefined) element.textContent = text;
  return parent.appendChild(element);
};

/* The face's square of its sheet, or in words why there is none. */
function picture(item, row, alt) {
  if (row[CELL] < 0 || row[WHY] !== null) {
    add(item, "div", "none", row[CELL] < 0 ? row[STATUS].replaceAll("_", " ") : "gone, or can't be drawn");
    return;
  }
  const face = add(item, "div", "face");
  const place = row[CELL] % (across * across);
  face.setAttribute("role", "img");
  face.setAttribute("aria-label", alt);
  face.style.backgroundImage = `url("${sheets}/${Math.floor(row[CELL] / (across * across))}.jpg")`;
  face.style.backgroundSize = `${across * side}px`;
  face.style.backgroundPosition = `${-side * (place % across)}px ${-side * Math.floor(place / across)}px`;
}

function ages(item, row) {
  const line = add(item, "p", "age");
  add(line, "b", "", String(years(row[AGE])));
  line.append(` (${years(row[LOW])} to ${years(row[HIGH])})`);
  if (compare) {
    const other = add(item, "p", "age");
    add(other, "b", "", String(years(row[OTHER])));
    other.append(` (${years(row[OTHER_LOW])} to ${years(row[OTHER_HIGH])})`);
    const by = row[OTHER] - row[AGE];
    add(item, "p", "low", `${Math.abs(by).toFixed(1)} years ${by < 0 ? "younger" : "older"} by the second model`);
  }
}

function card(row) {
  const item = document.createElement("li");
  const cut = row[PATH].lastIndexOf("/");
  const isFace = row[STATUS] === "ok";
  const name = row[PATH].slice(cut + 1);
  picture(item, row, isFace ? `Face ${row[FACE] + 1} of ${name}` : `${name}, in which no face was found`);
  if (isFace) ages(item, row);
  else if (row[STATUS] === "no_face") add(item, "p", "", "no face found");
  if (row[WHY] !== null) add(item, "p", "why", row[WHY]);
  add(add(item, "p", "name"), "bdi", "", name);
  if (cut > 0) add(add(item, "p", "path"), "bdi", "", row[PATH].slice(0, cut));
  if (models.length > 1 && !compare) add(item, "p", "path", models[row[MODEL]]);
  return item;
}

const cards = rows.map(card);

const field = (id) => document.getElementById(id)?.value ?? "";
let asked, waiting;
function filter() {
  clearTimeout(waiting);
  const now = ["path", "from", "to", "status", "model"].map(field).join("\n");
  if (now === asked) return;
  asked = now;
  const path = field("path").toLowerCase(), status = field("status"), model = field("model");
  const from = field("from") === "" ? -Infinity : Number(field("from"));
  const to = field("to") === "" ? Infinity : Number(field("to"));
  const anyAge = from === -Infinity && to === Infinity;
  const fits = (row) => (status === "" || row[STATUS] === status) && (model === "" || row[MODEL] === Number(model))
    && (anyAge || (row[AGE] !== null && years(row[AGE]) >= from && years(row[AGE]) <= to))
    && (path === "" || row[PATH].toLowerCase().includes(path));
  // Laid anew, not hidden: of thousands whose content is skipped, hiding costs a browser seconds.
  const shown = cards.filter((card, place) => fits(rows[place]));
  list.replaceChildren(...shown);
  document.getElementById("count").textContent = `${shown.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} shown`;
}
const form = document.querySelector("form");
form.addEventListener("change", filter);
form.addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(filter, 250);  // ten thousand faces take a second to lay anew: not at each letter
});
form.addEventListener("reset", () => setTimeout(filter));
form.addEventListener("submit", (event) => event.preventDefault());
filter();
performance.measure("built", {start: began, end: performance.now()});
