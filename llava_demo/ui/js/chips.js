// Chips: questions about any picture, shown while there is a picture and nothing is typed yet.
import { $, isStreaming, watch } from "./dom.js";

const BLANK = "…";

/** @param {string} text */
function write(text) {
  const box = $("#box textarea");
  box.value = text;
  box.dispatchEvent(new Event("input", { bubbles: true })); // Gradio listens
  box.focus();
  const blank = text.indexOf(BLANK);
  if (blank >= 0) box.setSelectionRange(blank, blank + BLANK.length);
}

/** A complete question is sent; one with a blank waits for its words. */
function choose({ target }) {
  const question = target.closest("button")?.dataset.question;
  if (!question) return;
  write(question);
  if (!question.includes(BLANK)) setTimeout(() => $("#box .submit-button")?.click()); // once Gradio has the text
}

function showWhereTheyFit() {
  const hasPicture = $("#box .thumbnail-item, #conversation .user-row img, #on-their-way li") !== null;
  const isWritten = Boolean($("#box textarea")?.value);
  $("#chips .chips").hidden = !hasPicture || isWritten || isStreaming();
}

export function start() {
  $("#chips").addEventListener("click", choose);
  document.addEventListener("input", showWhereTheyFit);
  for (const place of ["#box", "#conversation", "#giving"]) watch(place, showWhereTheyFit);
}
