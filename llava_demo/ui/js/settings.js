// The settings of the panel are remembered in the browser: those that are not as the server has them.
import { $ } from "./dom.js";
import { prefer, preference } from "./preferences.js";

/** @type {unknown[] | null} as the page came, in the order of its controls; null until it is known */
let usual = null;
const isLink = () => /[?&]\w+=/.test(location.search); // it brings its own settings, which are not the visitor's

/** @returns {Record<string, unknown>} by the place of their control */
function remembered() {
  try {
    return JSON.parse(preference("settings") ?? "{}");
  } catch {
    return {};
  }
}

export function start() {
  document.addEventListener("settings-restoring", ({ detail }) => {
    usual = detail.values;
    const known = remembered();
    // The others stay as they are: the visitor may have changed one already.
    detail.values = detail.names.map((name) => known[name] ?? { __type__: "update" });
  });
  document.addEventListener("settings-changed", ({ detail: { names, values } }) => {
    if (!usual) return;
    const chosen = names.map((name, at) => [name, values[at]]).filter(([, value], at) => value !== usual[at]);
    prefer("settings", JSON.stringify(Object.fromEntries(chosen)));
  });
  if (!isLink()) $("#restore-settings").click();
}
