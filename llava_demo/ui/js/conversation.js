// The conversation: its scrolling, what Copy copies, the names of its pictures, and their reserved room.
import { $, $$, watch } from "./dom.js";
import { plainTextOf } from "./markdown.js";

const isEmpty = () => $("#conversation .placeholder-content") !== null;

/** Gradio scrolls every conversation to its end; the empty page stays at its top. */
function keepTheEmptyPageAtItsTop() {
  const toTop = () => {
    if (isEmpty()) $("#conversation .bubble-wrap").scrollTop = 0;
  };
  $("#conversation").addEventListener("load", toTop, { capture: true });
  for (const ms of [0, 100, 400]) setTimeout(toTop, ms);
}

/** Gradio 6.31 scrolls to the end with each update of an answer, unless the reader is over 100 pixels away from it. */
function stayWhereTheReaderScrolled() {
  const wrap = $("#conversation .bubble-wrap");
  let isHeld = false;
  const hold = () => { isHeld ||= wrap.scrollTop > 0; };
  wrap.scrollTo = (...to) => isHeld || isEmpty() || Element.prototype.scrollTo.apply(wrap, to);
  // A picture that loads late pushes the answer below it out of sight.
  const toEnd = () => { if (!isHeld && !isEmpty()) wrap.scrollTop = wrap.scrollHeight; };
  wrap.addEventListener("load", toEnd, { capture: true });
  new ResizeObserver(toEnd).observe(wrap); // the box grows, or a phone's keyboard opens
  wrap.addEventListener("wheel", ({ deltaY }) => deltaY < 0 && hold(), { passive: true });
  wrap.addEventListener("touchmove", hold, { passive: true });
  wrap.addEventListener("pointerdown", ({ target }) => target === wrap && hold()); // the scroll bar
  wrap.addEventListener("keydown", ({ key }) => ["ArrowUp", "PageUp", "Home"].includes(key) && hold());
  wrap.addEventListener("scroll", () => { isHeld &&= wrap.scrollHeight - wrap.clientHeight - wrap.scrollTop > 8; });
  document.addEventListener("asking", () => { isHeld = false; });
  $("#conversation").addEventListener("click", ({ target }) => {
    if (target.closest(".scroll-down-button-container")) isHeld = false;
  }, { capture: true });
}

/** The Chatbot holds its texts as HTML (see `shown` in conversation.py); Copy copies the plain text. */
function copyTexts() {
  const write = navigator.clipboard?.writeText.bind(navigator.clipboard);
  if (!write) return;
  navigator.clipboard.writeText = (html) => {
    const decoder = document.createElement("textarea");
    decoder.innerHTML = html.replaceAll("<", "&lt;");
    return write(plainTextOf(decoder.value));
  };
}

/** The buttons of an answer are below its numbers, and Gradio's Copy would copy those. */
function copyAnswers() {
  const COPY = 'button[aria-label="Copy message"]';
  $("#conversation").addEventListener("click", (event) => {
    const button = event.target.closest(COPY);
    let buttons = button?.closest(".message-buttons");
    if (!buttons?.previousElementSibling.querySelector(".thought-group")) return;
    event.stopImmediatePropagation();
    while (buttons?.previousElementSibling?.querySelector(".thought-group")) {
      buttons = buttons.previousElementSibling.previousElementSibling;
    }
    buttons?.querySelector(COPY)?.click();
    button.classList.add("is-copied");
    setTimeout(() => button.classList.remove("is-copied"), 2000);
  }, { capture: true });
}

/** @type {Map<string, {width: number, height: number}>} of pictures that were on the page, by the server's path */
const sizes = new Map();
/** @type {string[]} the paths of the last sent pictures */
let sent = [];

/** @param {HTMLImageElement} img */
const pathOf = (img) => decodeURIComponent(img.src.split("/file=").pop());

function rememberShown({ target: img }) {
  if (img.naturalWidth) sizes.set(pathOf(img), { width: img.naturalWidth, height: img.naturalHeight });
}

/**
 * Read the size of an upload from its bytes: it may be sent before its thumbnail has come back from the server.
 *
 * @param {string} path the server's
 * @param {Blob} picture
 */
export async function rememberSize(path, picture) {
  const bitmap = await createImageBitmap(picture).catch(() => null); // what this browser cannot show has no room either
  if (bitmap) sizes.set(path, { width: bitmap.width, height: bitmap.height });
  bitmap?.close();
}

/** Gradio 6.31 draws the first picture of a page after its turn, and the browser loads it even later. */
function reserveRoom() {
  const messages = $$('#conversation .user-row .component:not([style*="--ratio"])');
  const empty = messages.filter((message) => !message.querySelector("img"));
  for (const message of messages) {
    const img = message.querySelector("img");
    const size = sizes.get(img ? pathOf(img) : sent.at(empty.indexOf(message) - empty.length));
    if (size) message.style.cssText = `--width: ${size.width}px; --ratio: ${size.width / size.height}`;
  }
}

function name() {
  for (const img of $$('#conversation .user-row img[alt=""]')) img.alt = `Your picture ${pathOf(img).split("/").pop()}`;
}

export function start() {
  keepTheEmptyPageAtItsTop();
  stayWhereTheReaderScrolled();
  copyTexts();
  copyAnswers();
  document.addEventListener("load", rememberShown, { capture: true });
  document.addEventListener("asking", ({ detail: { what, inputs } }) => {
    if (what === "send") sent = inputs[0].files.map(({ path }) => path);
  });
  watch("#conversation", () => { name(); reserveRoom(); });
}
