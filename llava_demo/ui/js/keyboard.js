// A phone's keyboard covers the lower part of the window; the page takes the part above it.
import { $ } from "./dom.js";

const LEAST_PX = 100; // less is a bar of the browser

export function start() {
  $("meta[name=viewport]").content += ", interactive-widget=resizes-content"; // Chrome and Firefox then do it
  const viewport = window.visualViewport;
  viewport?.addEventListener("resize", () => { // Safari
    const isCovered = viewport.scale === 1 && innerHeight - viewport.height > LEAST_PX;
    document.documentElement.style.minHeight = isCovered ? `${viewport.height}px` : "100%"; // as Gradio has it
    if (isCovered) scrollTo(0, 0); // it was moved to show the message box
  });
}
