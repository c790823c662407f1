// The conversation: where it is scrolled to, what Copy copies, names for what Gradio leaves without one.
import { $, $$, watch } from "./dom.js";
import { plainTextOf } from "./markdown.js";

/** The empty page begins at its top; Gradio scrolls every conversation to its end. */
function keepTheEmptyPageAtItsTop() {
  const toTop = () => {
    if ($("#conversation .placeholder-content")) $("#conversation .bubble-wrap").scrollTop = 0;
  };
  $("#conversation").addEventListener("load", toTop, { capture: true });
  for (const ms of [0, 100, 400]) setTimeout(toTop, ms);
}

/** The Chatbot holds its texts as HTML (see `shown` in conversation.py); what is copied is the text. */
function copyTexts() {
  const write = navigator.clipboard?.writeText.bind(navigator.clipboard);
  if (!write) return;
  navigator.clipboard.writeText = (html) => {
    const decoder = document.createElement("textarea");
    decoder.innerHTML = html.replaceAll("<", "&lt;");
    return write(plainTextOf(decoder.value));
  };
}

function name() {
  for (const img of $$('#conversation .user-row img[alt=""]')) {
    img.alt = `Your picture ${decodeURIComponent(img.src.split("/").pop())}`;
  }
  $("#box textarea")?.setAttribute("aria-label", "Your question");
  $("#box .upload-button")?.setAttribute("aria-label", "Add pictures");
}

export function start() {
  keepTheEmptyPageAtItsTop();
  copyTexts();
  watch("#conversation", name);
}
