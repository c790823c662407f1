// The conversation of this tab is kept in the browser after each change, and put back after a reload, a crash or a
// restart of the server. Pictures that the server has no more are uploaded again.
import { $ } from "./dom.js";
import { upload } from "./server.js";
import * as store from "./store.js";

/**
 * @typedef {{path: string, url: string, orig_name: string, mime_type?: string}} FileData
 * @typedef {{role: string, content: any[], metadata?: {title?: string, status?: string}}} Entry
 * @typedef {{id: string, title: string, updated: number, thumbnail: string, entries: Entry[],
 *   draft: {text: string, files: FileData[]}}} Conversation
 */

const SAVE_AFTER_MS = 300;
const THUMBNAIL_PX = 96;
const TAB = "ask-a-picture-tab"; // in sessionStorage: the conversation of this tab

/** @returns {Conversation} */
const fresh = () => ({
  id: `${Date.now()}-${Math.random().toString(36).slice(2)}`, title: "", updated: 0, thumbnail: "", entries: [],
  draft: { text: "", files: [] },
});

let current = fresh();
let saving = 0;
let isReady = false; // nothing is saved before what was kept has been put back
/** @type {Entry[]} */
let before = []; // the last entries that were not none
/** @type {{chat: Entry[], box: Conversation["draft"]} | null} */
let toShow = null;
let release = () => {};

/** @param {{text?: string}} part - a text of the Chatbot, which is HTML */
function textOf(part) {
  const decoder = document.createElement("textarea");
  decoder.innerHTML = (part.text ?? "").replaceAll("<", "&lt;");
  return decoder.value;
}

/** @param {Entry[]} entries */
const partsOf = (entries) => entries.flatMap(({ role, content }) => (role === "user" ? content : []));

/** @param {Conversation} conversation @returns {FileData[]} */
export const filesOf = ({ entries, draft }) =>
  [...partsOf(entries).filter((part) => part.file).map((part) => part.file), ...draft.files];

/** A picture's key: the hash of its bytes, and its name. @param {FileData} file */
export const keyOf = (file) => file.path.split("/").slice(-2).join("/");

/** @param {Conversation} conversation */
export const titleOf = ({ title, entries }) =>
  title || textOf(partsOf(entries).find((part) => part.text) ?? {}).trim().slice(0, 80) || "A picture";

export const currentId = () => current.id;

/** @param {Blob} blob */
async function thumbnailOf(blob) {
  const bitmap = await createImageBitmap(blob);
  const scale = THUMBNAIL_PX / Math.min(bitmap.width, bitmap.height);
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = THUMBNAIL_PX;
  const [width, height] = [bitmap.width * scale, bitmap.height * scale];
  canvas.getContext("2d").drawImage(bitmap, (THUMBNAIL_PX - width) / 2, (THUMBNAIL_PX - height) / 2, width, height);
  return canvas.toDataURL("image/jpeg", 0.8);
}

/** @param {Conversation} conversation */
async function keepPictures(conversation) {
  const kept = new Set(await store.keys("pictures"));
  for (const file of filesOf(conversation)) {
    if (kept.has(keyOf(file))) continue;
    const answer = await fetch(file.url);
    if (answer.ok) await store.put("pictures", keyOf(file), await answer.blob());
  }
  const [first] = filesOf(conversation);
  if (first && !conversation.thumbnail) {
    const blob = await store.get("pictures", keyOf(first));
    conversation.thumbnail = blob ? await thumbnailOf(blob).catch(() => "") : ""; // not every browser shows HEIC
  }
}

/** Save what this tab shows, now. */
export async function save() {
  clearTimeout(saving);
  saving = 0;
  const conversation = current;
  if (!conversation.entries.length && !conversation.draft.text && !conversation.draft.files.length) {
    await store.remove("conversations", conversation.id);
    return;
  }
  await store.put("conversations", conversation.id, structuredClone(conversation)); // the words first: it may be late
  await keepPictures(conversation).catch(() => {}); // no network: they are fetched at the next change
  await store.put("conversations", conversation.id, structuredClone(conversation));
  document.dispatchEvent(new Event("conversation-kept"));
}

function saveSoon() {
  current.updated = Date.now();
  saving ||= setTimeout(() => save().catch(() => {}), SAVE_AFTER_MS); // the browser's room is full: the page goes on
}

/** @param {FileData} file @returns {Promise<FileData>} */
async function onServer(file) {
  const answer = await fetch(file.url, { method: "HEAD" }).catch(() => null);
  if (answer?.ok) return file;
  const blob = await store.get("pictures", keyOf(file));
  if (!blob) return file;
  return upload(new File([blob], file.orig_name ?? keyOf(file).split("/")[1], { type: blob.type }), () => {});
}

/** An answer that the page was left in the middle of. @param {Entry[]} entries */
function ended(entries) {
  const said = entries.filter(({ metadata }) => metadata?.status !== "pending");
  const last = said.at(-1);
  if (said.length === entries.length && (!last || last.metadata?.title)) return said;
  return [...said, {
    role: "assistant", content: [{ type: "text", text: "" }], metadata: { title: "Interrupted", status: "done" },
  }];
}

/** Put a kept conversation on the page. @param {Conversation} kept */
export async function open(kept) {
  const conversation = structuredClone(kept);
  for (const part of partsOf(conversation.entries)) if (part.file) part.file = await onServer(part.file);
  conversation.draft.files = await Promise.all(conversation.draft.files.map(onServer));
  conversation.entries = ended(conversation.entries);
  become(conversation);
}

/** @param {Conversation} conversation */
function become(conversation) {
  current = conversation;
  before = conversation.entries;
  hold(conversation.id);
  toShow = { chat: conversation.entries, box: conversation.draft };
  $("#show-kept").click();
  document.dispatchEvent(new Event("conversation-kept"));
}

/** An empty page; what was on it stays in the list. */
export async function newChat() {
  await save();
  become(fresh());
  $("#box textarea")?.focus();
}

/** Other tabs of this browser leave a conversation alone while it is open here. @param {string} id */
function hold(id) {
  try {
    sessionStorage.setItem(TAB, id);
  } catch { /* blocked */ }
  release();
  navigator.locks?.request(`ask-a-picture-${id}`, { ifAvailable: true }, (lock) =>
    lock && new Promise((resolve) => { release = resolve; }));
}

/** @param {Conversation[]} kept @returns {Promise<Conversation | undefined>} */
async function lastOne(kept) {
  let mine = null;
  try {
    mine = sessionStorage.getItem(TAB);
  } catch { /* blocked */ }
  const held = new Set(((await navigator.locks?.query())?.held ?? []).map(({ name }) => name));
  const isFree = ({ id }) => !held.has(`ask-a-picture-${id}`);
  return mine ? kept.find(({ id }) => id === mine) : kept.sort((a, b) => b.updated - a.updated).find(isFree);
}

function offerUndo(conversation) {
  const toast = document.createElement("p");
  toast.id = "cleared";
  toast.setAttribute("role", "status");
  toast.innerHTML = 'Cleared · <button type="button">Undo</button>';
  $("#cleared")?.remove();
  $(".gradio-container").append(toast);
  const gone = setTimeout(() => toast.remove(), 10_000);
  toast.querySelector("button").addEventListener("click", () => {
    clearTimeout(gone);
    toast.remove();
    become(conversation);
    saveSoon();
  });
}

export async function start() {
  document.addEventListener("showing", ({ detail }) => {
    if (toShow) Object.assign(detail, toShow);
    toShow = null;
  });
  document.addEventListener("conversation-changed", ({ detail }) => {
    const entries = JSON.parse(JSON.stringify(detail ?? []));
    if (!isReady || JSON.stringify(entries) === JSON.stringify(current.entries)) return;
    if (current.entries.length) before = current.entries;
    current.entries = entries;
    saveSoon();
  });
  document.addEventListener("draft-changed", ({ detail }) => {
    const draft = JSON.parse(JSON.stringify(detail ?? { text: "", files: [] }));
    if (!isReady || JSON.stringify(draft) === JSON.stringify(current.draft)) return;
    current.draft = draft;
    saveSoon();
  });
  document.addEventListener("conversation-cleared", () => {
    offerUndo({ ...current, entries: ended(before) });
    current = { ...fresh(), draft: current.draft };
    hold(current.id);
    saveSoon();
  });
  addEventListener("pagehide", () => saving && save());
  $("#new-chat").addEventListener("click", newChat);

  const isLink = /[?&](prompt|image)=/.test(location.search); // a link fills an empty page
  const last = isLink ? undefined : await lastOne(await store.all("conversations"));
  if (last) await open(last);
  else hold(current.id);
  isReady = true;
}
