// The panel with the settings: the masthead's switch opens and closes it.
import { $, isComposing } from "./dom.js";
import { prefer, preference } from "./preferences.js";

const WIDE_PX = 1180; // at least as wide, the window has room for it beside the conversation
const NARROW_PX = 520;

const isOpen = () => $("#panel").classList.contains("open");

const toggle = () => $("#panel .toggle-button").click();

/** The panel takes width from the masthead, and Gradio 6.31 drops @container from styles. */
function fitMasthead() {
  const masthead = $("#masthead");
  const fit = () => masthead.classList.toggle("is-narrow", masthead.clientWidth < NARROW_PX);
  new ResizeObserver(fit).observe(masthead);
}

export function start() {
  fitMasthead();
  $("#panel-switch").addEventListener("click", toggle);
  addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || isComposing(event) || !isOpen() || innerWidth >= WIDE_PX || $("dialog[open]")) return;
    event.stopImmediatePropagation(); // it lies over the page, and an answer below it goes on
    toggle();
    $("#panel-switch").focus();
  }, { capture: true });
  if (preference("panel") === "open" && innerWidth >= WIDE_PX) toggle();
  new MutationObserver(() => {
    $("#panel-switch").setAttribute("aria-expanded", String(isOpen()));
    prefer("panel", isOpen() ? "open" : "closed");
  }).observe($("#panel"), { attributeFilter: ["class"] });
}
