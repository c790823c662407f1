// Adding pictures: dropped or pasted anywhere, or chosen. Each is prepared, uploaded and checked at once.
import { rememberSize } from "./conversation.js";
import { $, $$, isComposing, make, say, watch } from "./dom.js";
import { prepared } from "./formats.js";
import { askAbout, changeBox, Unreachable, upload } from "./server.js";

const MEGABYTE = 2 ** 20;

let onTheirWay = 0;
let isRestored = false; // the kept conversation is on the page
let isSendingNext = false; // Enter was pressed before all pictures were there

/**
 * Add files to the message box: the pictures among them as thumbnails, the others as refusals that name them.
 *
 * @param {Iterable<File>} files
 */
export async function add(files) {
  forgetRefused();
  for (const arriving of [...files].map(uploadedOrRefused)) { // uploaded at once, and added in the given order
    const added = await arriving;
    if (added) changeBox(({ text, files: before }) => ({ text, files: [...before, added] }));
  }
  sendNext();
}

function forgetRefused() {
  for (const item of $$("#refused li:not(:has(.again))")) item.remove(); // those with "Try again" stay
}

function sendNext() {
  if (!isSendingNext || onTheirWay || !isRestored) return;
  isSendingNext = false;
  say("");
  if (!$("#refused li")) setTimeout(() => $("#box .submit-button")?.click()); // once the box shows the pictures
}

/**
 * @param {File} file
 * @returns {Promise<import("./server.js").FileData | null>} null: refused, or removed while it was uploaded
 */
async function uploadedOrRefused(file) {
  const item = shownOnItsWay(file);
  onTheirWay += 1;
  try {
    const added = await uploaded(file, item);
    return item.isConnected ? added : null;
  } catch (error) {
    if (item.isConnected) refuse(file, error);
    return null;
  } finally {
    onTheirWay -= 1;
    item.remove();
  }
}

/**
 * @param {File} file
 * @param {HTMLElement} item - shows the progress
 * @returns {Promise<import("./server.js").FileData>}
 * @throws {Error} with words for people
 */
async function uploaded(file, item) {
  const most = Number($("#refused").dataset.maxMegabytes);
  if (!file.size) throw new Error("This is an empty file, or a folder.");
  let small = await prepared(file, most * MEGABYTE);
  const has = Math.ceil((small.size / MEGABYTE) * 10) / 10;
  if (has > most) throw new Error(`The picture has ${has} MB; at most ${most} MB are taken.`);
  let added = await upload(small, (part) => showProgress(item, part));
  const { refusal, isUnreachable, jpeg } = await askAbout("check", added.path);
  if (isUnreachable) throw new Unreachable();
  if (refusal) throw new Error(refusal);
  if (jpeg) { // a HEIC or TIFF as a format that every browser shows
    const blob = await (await fetch(jpeg)).blob();
    small = new File([blob], small.name.replace(/\.[^.]*$/, ".jpg"), { type: blob.type });
    added = await upload(small, () => {});
  }
  await rememberSize(added.path, small);
  return added;
}

/**
 * @param {File} file
 * @returns {HTMLElement}
 */
function shownOnItsWay(file) {
  const address = URL.createObjectURL(file);
  const forget = () => URL.revokeObjectURL(address);
  const preview = make("img", { src: address, alt: "", onload: forget, onerror: () => { forget(); preview.remove(); } });
  const progress = make("progress", { max: 1, value: 0, ariaLabel: `Uploading ${file.name}` });
  const item = make("li", {}, preview, make("b", {}, file.name), progress, make("span", {}, "0 %"));
  item.append(removeButton(file.name, item));
  $("#on-their-way").append(item);
  return item;
}

/**
 * @param {HTMLElement} item
 * @param {number} part
 */
function showProgress(item, part) {
  item.querySelector("progress").value = part;
  item.querySelector("span").textContent = part < 1 ? `${Math.round(part * 100)} %` : "Checking";
}

/**
 * Say above the message box why a file was not added, until that is removed or another file is added. A pasted picture
 * exists nowhere else: one that could not be uploaded stays, and is tried again by a click, by the next question, and once
 * the server is back.
 *
 * @param {File} file
 * @param {Error} error
 */
function refuse(file, error) {
  const item = make("li", {}, make("b", {}, file.name), make("span", { className: "why" }, error.message));
  if (error instanceof Unreachable) item.append(make("button", { type: "button", className: "again", onclick: () => tryAgain(item, file) }, "Try again"));
  item.append(removeButton(file.name, item));
  $("#refused").append(item);
}

/** @param {HTMLElement} item @param {File} file */
function tryAgain(item, file) {
  const hadFocus = item.contains(document.activeElement);
  item.remove();
  add([file]);
  if (hadFocus) $("#box textarea").focus();
}

function tryAllAgain() {
  for (const button of $$("#refused .again")) button.click();
}

/**
 * @param {string} name
 * @param {HTMLElement} item
 */
function removeButton(name, item) {
  return make("button", { type: "button", className: "remove", ariaLabel: `Remove ${name}`, onclick: () => item.remove() });
}

function takeDrops() {
  const isOfFiles = ({ dataTransfer }) => dataTransfer?.types.includes("Files");
  const show = (is) => document.body.classList.toggle("is-dragging", is);
  const take = (event) => {
    if (!isOfFiles(event)) return;
    event.preventDefault();
    event.stopImmediatePropagation(); // before Gradio, which goes by file names
    if (event.type === "drop") add(event.dataTransfer.files);
    show(event.type === "dragenter" || event.type === "dragover");
  };
  for (const type of ["dragenter", "dragover", "drop"]) window.addEventListener(type, take, { capture: true });
  window.addEventListener("dragleave", (event) => show(event.relatedTarget !== null), { capture: true });
}

/** Office programs copy a picture of the text beside the text; that is a paste of text. */
function takePastes() {
  document.addEventListener("paste", (event) => {
    const { files, types } = event.clipboardData;
    if (!files.length || (types.includes("text/plain") && types.includes("text/html"))) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    add(files);
  }, { capture: true });
}

function takeChoices() {
  document.addEventListener("change", (event) => {
    const input = event.target;
    if (!input.matches("#box input[type=file]")) return;
    event.stopImmediatePropagation();
    const files = [...input.files];
    input.value = ""; // so that the same file can be chosen again
    add(files);
  }, { capture: true });
  document.addEventListener("click", ({ target }) => {
    if (target.closest(".choose")) $("#box input[type=file]").click();
  });
}

/** A question that is sent during an upload, or before a kept conversation is shown, waits for it. */
function sendWhenAllIsThere() {
  const hold = (event) => {
    const again = $$("#refused .again");
    if (isRestored && !onTheirWay && !again.length) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    isSendingNext = true;
    say("Sent as soon as all is there…");
    tryAllAgain();
  };
  document.addEventListener("keydown", (event) => {
    const asks = event.key === "Enter" && !event.shiftKey && !isComposing(event);
    if (asks && event.target.closest("#box textarea")) hold(event);
  }, { capture: true });
  document.addEventListener("click", (event) => {
    if (event.target.closest("#box .submit-button")) hold(event);
  }, { capture: true });
  document.addEventListener("conversation-restored", () => {
    isRestored = true;
    sendNext();
  });
}

/** @param {HTMLImageElement} img */
const nameOf = (img) => decodeURIComponent(new URL(img.src).pathname.split("/").pop());

function nameThumbnails() {
  for (const item of document.querySelectorAll("#box .thumbnail-item")) {
    const img = item.querySelector("img");
    if (!img) continue;
    img.alt = nameOf(img);
    item.querySelector(".delete-button").setAttribute("aria-label", `Remove ${img.alt}`);
  }
}

/** A question that was refused because of a picture may be sent without it. */
function forgetRefusals() {
  $("#box").addEventListener("click", ({ target }) => {
    if (target.closest(".delete-button")) setTimeout(() => changeBox((message) => message));
  });
}

export function start() {
  takeDrops();
  takePastes();
  takeChoices();
  sendWhenAllIsThere();
  forgetRefusals();
  document.addEventListener("asking", ({ detail }) => { if (detail.what === "send") forgetRefused(); });
  document.addEventListener("server-back", tryAllAgain);
  document.addEventListener("conversation-shown", ({ detail }) => { if (detail?.isOther) forgetRefused(); });
  watch("#box", nameThumbnails);
}
