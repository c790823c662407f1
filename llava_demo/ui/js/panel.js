// The panel with the settings: the masthead's switch opens and closes it.
import { $ } from "./dom.js";

const WIDE_PX = 1180; // from here on there is room for it beside the conversation

const isOpen = () => $("#panel").classList.contains("open");

function toggle() {
  $("#panel .toggle-button").click();
  setTimeout(() => $("#panel-switch").setAttribute("aria-expanded", String(isOpen())), 50);
}

export function start() {
  $("#panel-switch").addEventListener("click", toggle);
  if (innerWidth >= WIDE_PX && !isOpen()) toggle();
}
