// Keys: Escape stops an answer; Enter sends no second question while one is being answered.
import { $, isComposing, isSending, isStreaming } from "./dom.js";

export function start() {
  document.addEventListener("keydown", (event) => {
    if (isComposing(event)) return;
    if (event.key === "Escape" && !$("dialog[open]")) $("#box .stop-button")?.click();
    const asks = event.key === "Enter" && !event.shiftKey && event.target.closest?.("#box textarea");
    if (asks && (isStreaming() || isSending())) {
      event.preventDefault();
      event.stopImmediatePropagation();
    }
  }, { capture: true });
}
