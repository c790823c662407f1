// Small choices that the browser remembers. Without storage (a frame in another site) they last as long as the page.

/** @type {Map<string, string>} */
const unkept = new Map();
const PREFIX = "ask-a-picture-";

/**
 * @param {string} name
 * @returns {string | null}
 */
export function preference(name) {
  try {
    return localStorage.getItem(PREFIX + name);
  } catch { // where cookies are blocked, reading the name `localStorage` raises
    return unkept.get(name) ?? null;
  }
}

/**
 * @param {string} name
 * @param {string} value
 */
export function prefer(name, value) {
  try {
    localStorage.setItem(PREFIX + name, value);
  } catch { // blocked, or full
    unkept.set(name, value);
  }
}
