// A picture at window size, zoomed and moved by mouse, fingers and keys; as it is, and as the model sees it.
import { overlay } from "./boxes.js";
import { $, $$, addToPage, make } from "./dom.js";
import { askAbout } from "./server.js";

const MOST_ZOOM = 8;
const STEP = 1.25;
const SHOWN = "#conversation .user-row img, #conversation .boxes img, #box .thumbnail-item img";

/** @type {{images: HTMLImageElement[], index: number, tab: "photo" | "seen"}} */
const showing = { images: [], index: 0, tab: "photo" };
/** Enlarged `zoom` times, and moved by (x, y) pixels from the middle. */
const view = { zoom: 1, x: 0, y: 0 };
/** @type {Map<number, PointerEvent>} */
const fingers = new Map();

const dialog = make("dialog", { className: "lightbox", ariaLabel: "Picture" });
dialog.innerHTML = `
<header>
<div role="tablist" aria-label="Which picture">
<button type="button" role="tab" id="tab-photo" data-tab="photo" aria-controls="stage">The photo</button>
<button type="button" role="tab" id="tab-seen" data-tab="seen" aria-controls="stage">What the model sees</button>
</div>
<p class="name" aria-live="polite"></p>
<button type="button" class="close" aria-label="Close"><svg viewBox="0 0 24 24" aria-hidden="true"><path d="m6 6 12 12M18 6 6 18"/></svg></button>
</header>
<div class="stage" id="stage" role="tabpanel" tabindex="0"><div class="held"></div></div>
<footer>
<button type="button" class="previous" aria-label="Previous picture">‹</button>
<p class="words"></p>
<button type="button" class="out" aria-label="Smaller">−</button><output class="zoom"></output>
<button type="button" class="in" aria-label="Larger">+</button>
<button type="button" class="next" aria-label="Next picture">›</button>
</footer>`;

/** @param {string} selector */
const part = (selector) => dialog.querySelector(selector);

/** @param {HTMLImageElement} img */
function open(img) {
  showing.images = img.closest("#box") ? $$("#box .thumbnail-item img") : $$(SHOWN).filter((other) => !other.closest("#box"));
  dialog.showModal();
  show(showing.images.indexOf(img), "photo");
  part(".stage").focus();
}

/**
 * @param {number} index
 * @param {"photo" | "seen"} tab
 */
async function show(index, tab) {
  Object.assign(showing, { index, tab });
  place(1, 0, 0);
  const img = showing.images[index];
  part(".name").textContent = img.alt.replace(/^Your picture /, "");
  for (const button of $$("[role=tab]", dialog)) {
    button.setAttribute("aria-selected", String(button.dataset.tab === tab));
    button.tabIndex = button.dataset.tab === tab ? 0 : -1;
  }
  part(".stage").setAttribute("aria-labelledby", `tab-${tab}`);
  for (const name of [".previous", ".next"]) part(name).hidden = showing.images.length < 2;
  part(".words").textContent = tab === "photo" ? "" : "Asking the server …";
  const held = part(".held");
  held.replaceChildren();
  const [picture, words] = tab === "photo" ? photoOf(img) : await squareOf(img);
  if (showing.index !== index || showing.tab !== tab) return; // another one was chosen meanwhile
  held.replaceChildren(...picture);
  part(".words").textContent = words;
}

/** @param {HTMLImageElement} img */
function photoOf(img) {
  const copy = make("img", { src: img.src, alt: img.alt });
  const boxes = img.closest(".boxes")?.dataset.boxes;
  copy.decode().then(() => {
    if (copy.isConnected && boxes) copy.after(...overlay(copy, JSON.parse(boxes)));
    if (copy.isConnected) part(".words").textContent = `${copy.naturalWidth} by ${copy.naturalHeight} pixels`;
  }, () => { part(".words").textContent = "The picture is no longer there."; });
  return [[copy], ""];
}

/** @param {HTMLImageElement} img */
async function squareOf(img) {
  const path = decodeURIComponent(img.src.split("/file=")[1]);
  const { refusal, square, patches, words } = await askAbout("seen", path);
  if (refusal) return [[], refusal];
  const grid = make("div", { className: "square" }, make("img", { src: square, alt: `${img.alt}, as the model sees it` }));
  grid.style.setProperty("--patches", String(patches));
  return [[grid], words];
}

/**
 * @param {number} zoom
 * @param {number} x
 * @param {number} y
 */
function place(zoom, x, y) {
  const { clientWidth: width, clientHeight: height } = part(".stage");
  view.zoom = Math.min(MOST_ZOOM, Math.max(1, zoom));
  const most = (length) => (length * (view.zoom - 1)) / 2; // then the edges of the picture and the stage meet
  const within = (at, limit) => Math.min(limit, Math.max(-limit, at));
  [view.x, view.y] = [within(x, most(width)), within(y, most(height))];
  part(".held").style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.zoom})`;
  part(".zoom").textContent = `${Math.round(view.zoom * 100)} %`;
}

/**
 * Enlarge around a point.
 *
 * @param {number} factor
 * @param {{clientX: number, clientY: number}} [point] - by default the middle
 */
function zoomBy(factor, point) {
  const { left, top, width, height } = part(".stage").getBoundingClientRect();
  const [x, y] = point ? [point.clientX - left - width / 2, point.clientY - top - height / 2] : [0, 0];
  const real = Math.min(MOST_ZOOM, Math.max(1, view.zoom * factor)) / view.zoom;
  place(view.zoom * factor, x - (x - view.x) * real, y - (y - view.y) * real);
}

const step = (by) => show((showing.index + by + showing.images.length) % showing.images.length, showing.tab);

/** @type {Record<string, (event: KeyboardEvent) => void>} */
const KEYS = {
  "+": () => zoomBy(STEP),
  "=": () => zoomBy(STEP),
  "-": () => zoomBy(1 / STEP),
  "0": () => place(1, 0, 0),
  ArrowLeft: () => (view.zoom > 1 ? place(view.zoom, view.x + 60, view.y) : step(-1)),
  ArrowRight: () => (view.zoom > 1 ? place(view.zoom, view.x - 60, view.y) : step(1)),
  ArrowUp: () => place(view.zoom, view.x, view.y + 60),
  ArrowDown: () => place(view.zoom, view.x, view.y - 60),
};

function takeKeys(event) {
  if (event.target.matches("[role=tab]") && event.key.startsWith("Arrow")) {
    show(showing.index, showing.tab === "photo" ? "seen" : "photo");
    part(`#tab-${showing.tab}`).focus();
  } else if (KEYS[event.key] && !event.ctrlKey && !event.metaKey) {
    KEYS[event.key](event);
  } else {
    return;
  }
  event.preventDefault();
}

/** One finger moves, two enlarge. */
function takePointers() {
  const stage = part(".stage");
  stage.addEventListener("pointerdown", (event) => {
    stage.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, event);
  });
  stage.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) return;
    const other = [...fingers.values()].find((finger) => finger.pointerId !== event.pointerId);
    fingers.set(event.pointerId, event);
    if (!other) return place(view.zoom, view.x + event.clientX - before.clientX, view.y + event.clientY - before.clientY);
    const apart = (finger) => Math.hypot(finger.clientX - other.clientX, finger.clientY - other.clientY);
    const middle = { clientX: (event.clientX + other.clientX) / 2, clientY: (event.clientY + other.clientY) / 2 };
    zoomBy(apart(event) / Math.max(1, apart(before)), middle);
  });
  for (const type of ["pointerup", "pointercancel"]) stage.addEventListener(type, (event) => fingers.delete(event.pointerId));
  stage.addEventListener("dblclick", (event) => (view.zoom > 1 ? place(1, 0, 0) : zoomBy(2.5, event)));
  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoomBy(Math.exp(-event.deltaY / 400), event);
  }, { passive: false });
}

function takeClicks({ target }) {
  const tab = target.closest("[role=tab]")?.dataset.tab;
  if (tab) show(showing.index, tab);
  else if (target.closest(".close")) dialog.close();
  else if (target.closest(".previous")) step(-1);
  else if (target.closest(".next")) step(1);
  else if (target.closest(".in")) zoomBy(STEP);
  else if (target.closest(".out")) zoomBy(1 / STEP);
}

/** Gradio's own button around a picture does nothing; on a thumbnail a tap would remove it. */
function openPictures() {
  const shownBy = (target) => {
    if (target.closest(".delete-button")) return null;
    const img = target.closest("button, .thumbnail-item, .boxes")?.querySelector("img") ?? target;
    return img.matches?.(SHOWN) ? img : null;
  };
  const openThat = (event) => {
    const img = shownBy(event.target);
    if (!img || (event.type === "keydown" && event.key !== "Enter" && event.key !== " ")) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    open(img);
  };
  document.addEventListener("click", openThat, { capture: true });
  document.addEventListener("keydown", openThat, { capture: true });
}

export function start() {
  addToPage(dialog);
  dialog.addEventListener("keydown", takeKeys);
  dialog.addEventListener("click", takeClicks);
  takePointers();
  openPictures();
}
