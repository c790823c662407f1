// Keys: Escape stops an answer; Enter sends no second question while one is being answered.
import { $, isStreaming } from "./dom.js";

export function start() {
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !$("dialog[open]")) $("#box .stop-button")?.click();
    const isSending = event.key === "Enter" && !event.shiftKey && event.target.closest?.("#box textarea");
    if (isSending && isStreaming()) {
      event.preventDefault();
      event.stopImmediatePropagation();
    }
  }, { capture: true });
}
