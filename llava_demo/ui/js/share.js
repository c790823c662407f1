// The menu "Share" of the masthead: a link, a file of the conversation, and opening such a file.
import { $ } from "./dom.js";

const isOpen = () => $("#share-menu").classList.contains("open");

/** @param {boolean} is */
function show(is) {
  $("#share-menu").classList.toggle("open", is);
  $("#share-switch").setAttribute("aria-expanded", String(is));
}

export function start() {
  const [menu, button] = [$("#share-menu"), $("#share-switch")];
  button.addEventListener("click", () => {
    show(!isOpen());
    if (isOpen()) $("#make-link").focus();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !isOpen()) return;
    event.stopImmediatePropagation(); // it does not stop an answer as well
    show(false);
    button.focus();
  }, { capture: true });
  const leave = ({ target }) => menu.contains(target) || button.contains(target) || show(false);
  for (const type of ["pointerdown", "focusin"]) document.addEventListener(type, leave);
}
