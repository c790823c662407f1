// "Use in code": the server renders the dialog each time; this opens it, copies from it and closes it.
import { $, $$ } from "./dom.js";

let chosenName = "";

/** @param {string} name */
function choose(name) {
  const inputs = $$("#code input");
  const chosen = inputs.find((input) => input.value === name) ?? inputs[0];
  if (!chosen) return;
  chosen.checked = true;
  for (const section of $$("#code section")) section.hidden = section.dataset.way !== chosen.value;
  const copy = $("#code .copy");
  copy.hidden = !$("#code section:not([hidden]) pre");
  copy.textContent = "Copy";
}

/** @param {HTMLElement} button */
async function copy(button) {
  const pre = $("#code section:not([hidden]) pre");
  getSelection().selectAllChildren(pre);
  // Only https and localhost have a clipboard. conversation.js decodes what `writeText` gets, but this is plain text.
  await (navigator.clipboard ? Clipboard.prototype.writeText.call(navigator.clipboard, pre.textContent)
    : document.execCommand("copy"));
  getSelection().empty();
  button.textContent = "Copied";
}

export function start() {
  const code = $("#code");
  $("#code-switch").addEventListener("click", () => $("#write-code").click());
  document.addEventListener("code-written", () => {
    choose(chosenName);
    code.querySelector("dialog").showModal();
  });
  code.addEventListener("change", (event) => choose(chosenName = event.target.value));
  code.addEventListener("click", ({ target }) => {
    if (target.matches("dialog") || target.closest(".close")) code.querySelector("dialog").close();
    if (target.matches(".copy")) copy(target);
  });
}
