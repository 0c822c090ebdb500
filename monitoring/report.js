"use strict";
const part = document.getElementById("evidently");
const place = part.querySelector("iframe");
part.addEventListener("toggle", () => {
  if (part.open && !place.src) place.src = place.dataset.src;
});
