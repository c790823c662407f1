// Dark and light: the system's choice until the switch is pressed.
import { $ } from "./dom.js";
import { prefer, preference } from "./preferences.js";

const isDark = () => document.body.classList.contains("dark");

/** @param {boolean} dark */
function setDark(dark) {
  document.body.classList.toggle("dark", dark);
  const name = dark ? "Light colours" : "Dark colours";
  $("#theme-switch").setAttribute("aria-label", name);
  $("#theme-switch").setAttribute("title", name);
}

export function start() {
  const chosen = preference("theme");
  setDark(chosen ? chosen === "dark" : isDark());
  $("#theme-switch").addEventListener("click", () => {
    setDark(!isDark());
    prefer("theme", isDark() ? "dark" : "light");
  });
}
