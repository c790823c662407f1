// The menu "Share" of the masthead: a link, a file of the conversation, and opening such a file.
import { $, make } from "./dom.js";

const isOpen = () => $("#share-menu").classList.contains("open");

/** @param {boolean} is */
function show(is) {
  $("#share-menu").classList.toggle("open", is);
  $("#share-switch").setAttribute("aria-expanded", String(is));
}

/** @type {WeakSet<File>} */
const checked = new WeakSet();

/**
 * Gradio would upload whatever was chosen, and show the server's refusal as it came: a file that is neither a ZIP nor
 * JSON is refused here.
 *
 * @param {Event} event
 */
async function checkChosen(event) {
  const chooser = /** @type {HTMLInputElement} */ (event.target);
  const file = chooser.files?.[0];
  if (chooser.type !== "file" || !file || checked.has(file)) return;
  event.stopImmediatePropagation();
  $("#not-opened")?.remove();
  const beginning = await file.slice(0, 64).text().catch(() => "");
  if (/^(PK|\s*\{)/.test(beginning)) {
    checked.add(file);
    chooser.dispatchEvent(new Event("change", { bubbles: true }));
  } else {
    chooser.value = "";
    const words = `${file.name} is no saved conversation. Open takes the file that Save writes.`;
    $("#share-buttons").after(make("p", { id: "not-opened", role: "alert" }, words));
  }
}

export function start() {
  const [menu, button] = [$("#share-menu"), $("#share-switch")];
  button.addEventListener("click", () => {
    show(!isOpen());
    if (isOpen()) $("#make-link").focus();
  });
  menu.addEventListener("change", checkChosen, { capture: true });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !isOpen()) return;
    event.stopImmediatePropagation(); // it does not stop an answer as well
    show(false);
    button.focus();
  }, { capture: true });
  const leave = ({ target }) => menu.contains(target) || button.contains(target) || show(false);
  for (const type of ["pointerdown", "focusin"]) document.addEventListener(type, leave);
}
