// The browser remembers the settings of the panel that differ from the server's defaults.
import { $ } from "./dom.js";
import { prefer, preference } from "./preferences.js";

/** @type {unknown[] | null} the server's values, in the order of the controls; null until they are known */
let usual = null;
const isLink = () => /[?&]\w+=/.test(location.search); // it has settings of its own

/** @returns {Record<string, unknown>} by the name of their control */
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
    // The others stay: the visitor may have changed one already.
    detail.values = detail.names.map((name) => known[name] ?? { __type__: "update" });
  });
  document.addEventListener("settings-changed", ({ detail: { names, values } }) => {
    if (!usual) return;
    const chosen = names.map((name, at) => [name, values[at]]).filter(([, value], at) => value !== usual[at]);
    prefer("settings", JSON.stringify(Object.fromEntries(chosen)));
  });
  if (!isLink()) $("#restore-settings").click();
}
