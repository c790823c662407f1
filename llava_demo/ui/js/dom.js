// Helpers for the document that all modules of the page use.

/**
 * @param {string} selector
 * @returns {HTMLElement | null}
 */
export const $ = (selector) => document.querySelector(selector);

/**
 * @param {string} selector
 * @param {ParentNode} [within]
 * @returns {HTMLElement[]}
 */
export const $$ = (selector, within = document) => [...within.querySelectorAll(selector)];

/** The server's URL without a slash at its end; a proxy may serve it below a path. */
export const root = () => (window.gradio_config?.root ?? "").replace(/\/$/, "");

/** Whether an input method takes the key for itself: Enter ends a composition, Escape drops it. @param {KeyboardEvent} event */
export const isComposing = ({ isComposing, keyCode }) => isComposing || keyCode === 229; // 229: Safari's last key of one

/** Whether an answer is being written. */
export const isStreaming = () => $("#box .stop-button") !== null;

/** Whether a question was sent that the server has not taken yet. */
export const isSending = () => document.body.classList.contains("is-sending");

/** One line above the message box while the page waits for the server. @param {string} words - "" takes it away */
export function say(words) {
  if ($("#doing")?.textContent === words) return;
  $("#doing")?.remove();
  if (words) $("#progress").prepend(make("p", { id: "doing", role: "status" }, words));
}

/**
 * Call `react` now, and after each change below the element.
 *
 * @param {string} selector
 * @param {() => void} react
 */
export function watch(selector, react) {
  new MutationObserver(react).observe($(selector), { childList: true, subtree: true });
  react();
}

/**
 * The result of `find`, now or after a change of the page; null after two seconds.
 *
 * @template T
 * @param {() => T} find
 * @returns {Promise<T | null>}
 */
export function until(find) {
  return new Promise((resolve) => {
    const found = find();
    if (found) return resolve(found);
    const end = (result) => {
      observer.disconnect();
      clearTimeout(timer);
      resolve(result);
    };
    const observer = new MutationObserver(() => { const later = find(); if (later) end(later); });
    const timer = setTimeout(() => end(null), 2000);
    observer.observe(document.body, { childList: true, subtree: true });
  });
}

/**
 * A new element with these properties and children.
 *
 * @param {string} tag
 * @param {Record<string, unknown>} properties
 * @param {...(Node | string)} children
 */
export function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** Add an element where Gradio 6.31 applies our rules in @media. @param {HTMLElement} element */
export const addToPage = (element) => ($(".gradio-container .contain") ?? $(".gradio-container")).append(element);
