// The panel with the settings: the masthead's switch opens and closes it.
import { $ } from "./dom.js";
import { prefer, preference } from "./preferences.js";

const WIDE_PX = 1180; // from here on there is room for it beside the conversation

const isOpen = () => $("#panel").classList.contains("open");

function toggle() {
  $("#panel .toggle-button").click();
  setTimeout(() => {
    $("#panel-switch").setAttribute("aria-expanded", String(isOpen()));
    prefer("panel", isOpen() ? "open" : "closed");
  }, 50);
}

export function start() {
  $("#panel-switch").addEventListener("click", toggle);
  if (preference("panel") !== "closed" && innerWidth >= WIDE_PX && !isOpen()) toggle();
}
