// A phone's keyboard covers the lower part of the window; the page then uses the part above it.
import { $ } from "./dom.js";

const LEAST_PX = 100; // less is a bar of the browser, not a keyboard

export function start() {
  $("meta[name=viewport]").content += ", interactive-widget=resizes-content"; // enough for Chrome and Firefox
  const viewport = window.visualViewport;
  viewport?.addEventListener("resize", () => { // Safari
    const isCovered = viewport.scale === 1 && innerHeight - viewport.height > LEAST_PX;
    document.documentElement.style.minHeight = isCovered ? `${viewport.height}px` : "100%"; // as Gradio has it
    if (isCovered) scrollTo(0, 0); // Safari scrolled to the message box
  });
}
