// Boxes: coordinates in LLaVA's answers, drawn on the photo.
import { $, $$, make } from "./dom.js";

/**
 * @typedef {[left: number, top: number, right: number, bottom: number]} Corners
 * @typedef {{corners: Corners, label: string}} Box - corners in parts of the square that the model sees
 */

const NUMBER = String.raw`\s*(\d?\.\d+|[01])\s*`;
const COORDINATES = new RegExp(String.raw`\[${NUMBER},${NUMBER},${NUMBER},${NUMBER}\]`, "g");
const MOST_WORDS = 6;

/**
 * @param {string} text - an answer
 * @param {string} question - labels the box of an answer that is only coordinates
 * @returns {Box[]}
 */
function boxesIn(text, question) {
  const boxes = [];
  let from = 0;
  for (const match of text.matchAll(COORDINATES)) {
    const corners = /** @type {Corners} */ (match.slice(1).map(Number));
    const label = labelIn(text.slice(from, match.index)) || subjectOf(question);
    from = match.index + match[0].length;
    if (isBox(corners)) boxes.push({ corners, label });
  }
  return boxes;
}

/** @param {Corners} corners */
const isBox = ([left, top, right, bottom]) => left < right && top < bottom && right <= 1 && bottom <= 1;

/** The last words before coordinates: "and the blue square at " is "the blue square". */
function labelIn(words) {
  const clause = words.split(/[.!?:;]\s|\n/).filter((part) => /\p{L}/u.test(part)).pop() ?? "";
  const trimmed = clause.replace(/^[\s,]*(and\s)?/i, "").replace(/(\s(is|are|at|in|on|located|box|coordinates?))*[\s,:(]*$/i, "");
  return trimmed.split(/\s+/).slice(-MOST_WORDS).join(" ");
}

/** The subject of "... the region this sentence describes: the dog" is "the dog". */
const subjectOf = (question) => (question.match(/describes:\s*(.+?)[.?]?$/)?.[1] ?? "").trim();

/**
 * Convert corners from the model's square to the photo.
 *
 * @param {Corners} corners
 * @param {number} width - of the photo, in pixels
 * @param {number} height
 * @param {string} mode - how the photo became a square: "pad" adds borders, "crop" cuts, "resize" squeezes
 * @returns {Corners} in pixels of the photo
 */
export function onPhoto(corners, width, height, mode) {
  const side = { pad: Math.max(width, height), crop: Math.min(width, height) }[mode];
  const along = (part, length) => {
    const at = side ? part * side - Math.trunc((side - length) / 2) : part * length;
    return Math.min(length, Math.max(0, at));
  };
  const [left, top, right, bottom] = corners;
  return [along(left, width), along(top, height), along(right, width), along(bottom, height)];
}

/**
 * The elements of boxes over a photo, placed in percent so that they fit any size.
 *
 * @param {HTMLImageElement} photo
 * @param {Box[]} boxes
 */
export function overlay(photo, boxes) {
  const [width, height] = [photo.naturalWidth, photo.naturalHeight];
  return boxes.map(({ corners, label }, index) => {
    const [left, top, right, bottom] = onPhoto(corners, width, height, imageMode());
    const box = make("div", { className: top < height * 0.08 ? "box is-at-top" : "box" }, make("span", {}, label || `${index + 1}`));
    box.dataset.box = String(index);
    const inPercent = { left: left / width, top: top / height, width: (right - left) / width, height: (bottom - top) / height };
    for (const [side, part] of Object.entries(inPercent)) box.style[side] = `${part * 100}%`;
    return box;
  });
}

/** How pictures become the model's square; "" if unknown, so that boxes cannot be drawn. */
const imageMode = () => $("#served .served").dataset.imageMode ?? "";

/**
 * Draw the boxes of an answer below it, on the last picture before it.
 *
 * @param {HTMLElement} answer
 */
export function boxesUnder(answer) {
  const row = answer.closest(".message-row");
  const { photo, question } = whatCameBefore(row);
  const boxes = imageMode() && photo ? boxesIn(answer.textContent, question) : [];
  const figure = answer.querySelector("figure");
  if (figure?.dataset.boxes === JSON.stringify(boxes)) return markCoordinates(answer);
  figure?.remove();
  if (!boxes.length) return;
  const copy = make("img", { src: photo.src, alt: `${photo.alt}, with ${boxes.length} box${boxes.length > 1 ? "es" : ""}` });
  const drawn = make("figure", { className: "boxes" }, copy);
  drawn.dataset.boxes = JSON.stringify(boxes);
  copy.decode().then(() => drawn.append(...overlay(copy, boxes)), () => drawn.remove()); // deleted, or offline
  answer.append(drawn);
  markCoordinates(answer);
}

/** @param {HTMLElement} row */
function whatCameBefore(row) {
  const before = $$("#conversation .user-row").filter((other) => other.compareDocumentPosition(row) & Node.DOCUMENT_POSITION_FOLLOWING);
  const photo = before.map((other) => other.querySelector("img")).filter(Boolean).pop();
  return { photo, question: before.at(-1)?.textContent.trim() ?? "" };
}

/** Coordinates in the text become elements that highlight their box. */
function markCoordinates(answer) {
  const walker = document.createTreeWalker(answer, NodeFilter.SHOW_TEXT);
  const texts = [];
  while (walker.nextNode()) if (!walker.currentNode.parentElement.closest("figure, .coordinates")) texts.push(walker.currentNode);
  for (const text of texts) {
    for (const match of [...text.data.matchAll(COORDINATES)].reverse()) {
      if (!isBox(match.slice(1).map(Number))) continue;
      const rest = text.splitText(match.index);
      rest.splitText(match[0].length);
      const mark = make("span", { className: "coordinates", tabIndex: 0 });
      rest.replaceWith(mark);
      mark.append(rest);
    }
  }
  $$(".coordinates", answer).forEach((mark, index) => { mark.dataset.box = String(index); });
}

/** Pointing at a box highlights its coordinates, and the other way round. */
function lightUp() {
  const light = (is) => ({ target }) => {
    const pointed = target.closest?.("[data-box]");
    const within = pointed?.closest(".answer, .lightbox");
    if (!within) return;
    for (const other of $$(`[data-box="${pointed.dataset.box}"]`, within)) other.classList.toggle("lit", is);
  };
  for (const type of ["pointerover", "focusin"]) document.addEventListener(type, light(true));
  for (const type of ["pointerout", "focusout"]) document.addEventListener(type, light(false));
}

export function start() {
  lightUp();
}
