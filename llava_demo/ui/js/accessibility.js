// Fixes for Gradio 6.31: screen readers, the keyboard, and text from right to left.
import { $, $$, isStreaming, watch } from "./dom.js";

const TEXTS = "#box textarea, #conversation .message-content > span, #conversation .answer > *";
const MISPLACED = "#conversation .examples[role=list], #box [role=listitem], #conversation .thought-group [role=button]";

const NAMES = { "#box textarea": "Your question", "#box .upload-button": "Add a picture" };

/** Remove roles from lists with buttons as children, items without a list, and buttons without an action. */
function takeFalseRolesAway() {
  for (const element of $$(MISPLACED)) {
    element.removeAttribute("role");
    element.removeAttribute("tabindex");
    if (element.matches(".thumbnail-wrapper")) element.removeAttribute("aria-label");
  }
}

/** Each text has its own direction. */
function layOutTexts() {
  for (const text of $$(TEXTS)) if (text.dir !== "auto") text.dir = "auto";
}

/** Gradio re-creates parts of the message box, without a name or with another one. */
function nameTheBox() {
  for (const [selector, name] of Object.entries(NAMES)) $(selector)?.setAttribute("aria-label", name);
}

/** Screen readers read a complete answer, not each word. */
function readOutWhole() {
  $("#conversation [role=log]")?.setAttribute("aria-busy", String(isStreaming()));
}

/** Gradio names the browser's language; the page's words are English. */
function keepLanguage() {
  const html = document.documentElement;
  const keep = () => { if (html.lang !== "en") html.lang = "en"; };
  new MutationObserver(keep).observe(html, { attributeFilter: ["lang"] });
  keep();
}

/** Gradio removes a pressed button with its turn, and the focus falls to the body: move it to the box, where there is a mouse. */
function keepFocus() {
  const isLost = document.activeElement === document.body;
  if (isLost && matchMedia("(hover: hover)").matches) $("#box textarea")?.focus({ preventScroll: true });
}

/** A closed panel is invisible, so the Tab key skips it. */
function leaveOutClosedPanel() {
  const panel = $("#panel");
  const content = panel.querySelector(".sidebar-content");
  const keep = () => { content.inert = !panel.classList.contains("open"); };
  new MutationObserver(keep).observe(panel, { attributeFilter: ["class"] });
  keep();
}

export function start() {
  keepLanguage();
  leaveOutClosedPanel();
  for (const event of ["answer-ended", "answer-stopped", "shown"]) {
    document.addEventListener(event, () => setTimeout(keepFocus, 100)); // Gradio draws the turns first
  }
  for (const place of ["#conversation", "#box"]) {
    watch(place, () => {
      takeFalseRolesAway();
      layOutTexts();
      nameTheBox();
      readOutWhole();
    });
  }
}
