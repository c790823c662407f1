// The conversation of this tab is saved in the browser after each change, and restored after a reload, a crash or a
// restart of the server. Pictures that the server no longer has are uploaded again.
import { untilCancelled } from "./connection.js";
import { $, isStreaming, say } from "./dom.js";
import { ended, filesOf, keyOf, picturesOf } from "./entries.js";
import { upload } from "./server.js";
import * as store from "./store.js";
import * as versions from "./versions.js";

/**
 * @typedef {import("./entries.js").FileData} FileData
 * @typedef {import("./entries.js").Entry} Entry
 * @typedef {import("./entries.js").Draft} Draft
 * @typedef {import("./entries.js").Conversation} Conversation
 */

const SAVE_AFTER_MS = 300;
const PATIENCE_MS = 5000; // a network that drops all packets reports nothing
const RELEASED_WITHIN_MS = 2000; // a reloaded page releases its lock a little later
const THUMBNAIL_PX = 96;
const TAB = "ask-a-picture-tab"; // in sessionStorage: the conversation of this tab

/** @returns {Conversation} */
const fresh = () => ({
  id: `${Date.now()}-${Math.random().toString(36).slice(2)}`, title: "", updated: 0, thumbnail: "", entries: [],
  draft: { text: "", files: [] }, versions: [],
});

let current = fresh();
let saving = 0;
let isChanged = false; // since it was shown
let isReady = false; // nothing is saved before the kept conversation was restored
/** @type {Conversation | null} */
let before = null; // the conversation before the page was emptied
/** @type {{chat: Entry[], box: Draft, isFirst: boolean} | null} */
let toShow = null;
let asking = ""; // the event that asked for the answer: "send", "retry", ...
let held = ""; // the conversation that is open here
let release = () => {};

/** The draft that a link puts into the message box; null once something else is on the page. */
function linked() {
  const query = new URLSearchParams(location.search);
  const [text, image] = [query.get("prompt"), query.get("image")];
  return text || image ? { text: text ?? "", files: image ? 1 : 0 } : null;
}

/** Whether a draft is just the link's question, which a reload brings back. @param {Draft} draft */
const isOfLink = ({ text, files }) => text === linked()?.text && files.length <= linked().files;

/** From now on a reload shows the conversation, not the link's question. */
function forgetLink() {
  if (!linked()) return;
  const address = new URL(location.href);
  for (const name of ["prompt", "image"]) address.searchParams.delete(name);
  history.replaceState(history.state, "", address);
}

/** @returns {Conversation} the conversation of this tab; not to be changed */
export const shown = () => current;

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
  if (!first || conversation.thumbnail) return;
  const blob = await store.get("pictures", keyOf(first));
  conversation.thumbnail = blob ? await thumbnailOf(blob).catch(() => "") : ""; // not every browser shows HEIC
  const thumbnail = conversation.thumbnail;
  await store.change("conversations", conversation.id, (now) => now && { ...now, thumbnail });
  document.dispatchEvent(new Event("conversation-kept"));
}

/** Save the conversation of this tab now; its pictures follow. */
export async function save() {
  clearTimeout(saving);
  saving = 0;
  const conversation = current;
  if (!isChanged) return;
  if (!conversation.entries.length && !conversation.draft.text && !conversation.draft.files.length) {
    await store.remove("conversations", conversation.id);
    return;
  }
  remember(conversation.id);
  await store.put("conversations", conversation.id, structuredClone(conversation));
  keepPictures(conversation).catch(() => {}); // no network, or no storage: the next change tries again
  document.dispatchEvent(new Event("conversation-kept"));
}

function saveSoon() {
  isChanged = true;
  forgetLink();
  current.updated = Date.now();
  saving ||= setTimeout(() => save().catch(() => document.dispatchEvent(new Event("conversation-unkept"))), SAVE_AFTER_MS);
}

/** @param {FileData} file @returns {Promise<FileData>} */
async function onServer(file) {
  const answer = await fetch(file.url, { method: "HEAD", signal: AbortSignal.timeout(PATIENCE_MS) }).catch(() => null);
  if (!answer || answer.ok) return file; // without a network the event that needs it will fail
  const blob = await store.get("pictures", keyOf(file));
  if (!blob) return file;
  const again = new File([blob], file.orig_name ?? keyOf(file).split("/")[1], { type: blob.type });
  return upload(again, () => {}).catch(() => file);
}

/** Show a kept conversation; a copy of it if another tab has it open. @param {Conversation} kept @param {number} [patience_ms] */
export async function open(kept, patience_ms = 0) {
  const copy = { versions: [], ...structuredClone(kept), entries: ended(structuredClone(kept)) };
  if (!(await hold(kept.id, patience_ms))) copy.id = fresh().id;
  await put(copy);
  remember(kept.id); // a copy is saved when it is changed
}

/** @param {string} title - of the conversation of this tab */
export function rename(title) {
  current.title = title;
}

/** Change the conversation of this tab. @param {(conversation: Conversation) => Conversation} change */
export async function alter(change) {
  await put(change(structuredClone(current)));
  saveSoon();
}

/** @param {Conversation} conversation */
async function put(conversation) {
  say("One moment…");
  await uploadAgain(conversation.entries, conversation.draft);
  say("");
  become(conversation);
}

/** @param {Conversation} conversation */
function become(conversation) {
  const isOther = conversation.id !== current.id;
  if (isOther) isChanged = false;
  current = conversation;
  hold(conversation.id);
  remember(conversation.id);
  toShow = { chat: conversation.entries, box: conversation.draft, isFirst: !isReady };
  $("#show-kept").click();
  document.dispatchEvent(new Event("conversation-kept"));
  document.dispatchEvent(new CustomEvent("conversation-shown", { detail: { isOther } }));
}

/** Start an empty conversation; the present one stays in the list. @param {Draft} [draft] - moves to the new one */
export async function newChat(draft) {
  if (draft) current.draft = fresh().draft;
  await save().catch(() => {}); // the browser's storage is full
  become(draft ? { ...fresh(), draft } : fresh());
  if (draft) saveSoon();
  $("#box textarea")?.focus();
}

/** The conversation that a reload of this tab shows. @param {string} id */
function remember(id) {
  try {
    sessionStorage.setItem(TAB, id);
  } catch { /* blocked */ }
}

/**
 * Lock a conversation against other tabs of this browser while it is open here.
 *
 * @param {string} id
 * @param {number} [patience_ms] - how long to wait for another tab that has it
 * @returns {Promise<boolean>} false: the other tab still has it
 */
async function hold(id, patience_ms = 0) {
  if (id === held) return true;
  release();
  held = id;
  const how = patience_ms ? { signal: AbortSignal.timeout(patience_ms) } : { ifAvailable: true };
  return new Promise((resolve) => {
    const holding = navigator.locks?.request(`ask-a-picture-${id}`, how, (lock) => {
      resolve(lock !== null);
      return lock && held === id ? new Promise((done) => { release = done; }) : null;
    });
    if (holding) holding.catch(({ name }) => resolve(name !== "TimeoutError")); // else locks are blocked
    else resolve(true); // not https
  });
}

/** @param {Conversation[]} kept @returns {Promise<Conversation | undefined>} */
async function lastOne(kept) {
  let mine = null;
  try {
    mine = sessionStorage.getItem(TAB);
  } catch { /* blocked */ }
  const locks = await navigator.locks?.query().catch(() => null); // blocked
  const taken = new Set((locks?.held ?? []).map(({ name }) => name));
  const isFree = ({ id }) => !taken.has(`ask-a-picture-${id}`);
  return mine ? kept.find(({ id }) => id === mine) : kept.sort((a, b) => b.updated - a.updated).find(isFree);
}

/** Empty the page except for the message box. @returns {Conversation | null} the conversation that was on it */
export function empty() {
  const left = current.entries.length ? structuredClone(current) : before;
  before = null;
  current = { ...fresh(), draft: current.draft };
  hold(current.id);
  remember(current.id);
  saveSoon();
  return left && { ...left, entries: ended(left) };
}

/** Show a removed conversation again, unless a new one has begun. @param {Conversation} conversation */
export function putBack(conversation) {
  const { entries, draft } = current;
  if (entries.length) return;
  become(draft.text || draft.files.length ? { ...conversation, draft } : conversation);
  saveSoon();
}

/** Text that was typed before the kept draft was restored stays, after it. @param {Draft} kept @param {Draft | null} typed */
const joined = (kept, typed) =>
  !typed?.text || typed.text === kept.text ? kept : { ...kept, text: [kept.text, typed.text].filter(Boolean).join("\n") };

/** Upload pictures that the server no longer has. @param {Entry[]} entries @param {Draft} [draft] - both changed in place */
async function uploadAgain(entries, draft) {
  const again = picturesOf(entries).map(async (part) => { part.file = await onServer(part.file); });
  if (draft) again.push(Promise.all(draft.files.map(onServer)).then((files) => { draft.files = files; }));
  await Promise.all(again);
}

/** @param {{what: string, inputs: any[], ready: Promise<void> | null}} detail - of an event that asks */
function ask(detail) {
  asking = detail.what;
  detail.inputs = JSON.parse(JSON.stringify(detail.inputs));
  const uploading = uploadAgain(detail.inputs.find(Array.isArray) ?? [], detail.inputs.find((input) => input?.files));
  const { id } = current;
  detail.ready = Promise.all([uploading, untilCancelled()]).then(() => current.id === id || new Promise(() => {})); // never
}

/** Gradio writes an edited question into the Chatbot before it is asked. @param {Entry[]} entries */
const isOnlyEdited = (entries) => !isStreaming() && entries.length === current.entries.length &&
  entries.every(({ role, content }, at) => role === "user" || content[0].text === current.entries[at].content[0].text);

/** Another conversation replaces the present one, which stays in the list. */
function leave() {
  const left = structuredClone(current);
  store.put("conversations", left.id, left).catch(() => {}); // the browser's storage is full
  current = { ...fresh(), draft: left.draft };
  hold(current.id);
  remember(current.id);
}

/** @param {Entry[]} entries */
function change(entries) {
  if (!entries.length) before = structuredClone(current);
  if (asking === "open" && current.entries.length) leave();
  if (["retry", "edit"].includes(asking)) versions.begin(current, entries);
  if (asking === "send" && entries.length > current.entries.length) current.draft = fresh().draft;
  asking = "";
  current.entries = entries;
  current.isAnswering = isStreaming();
  versions.settle(current);
  saveSoon();
  document.dispatchEvent(new Event("conversation-shown"));
}

export async function start() {
  document.addEventListener("showing", ({ detail }) => {
    if (!toShow) return;
    const { chat, box, isFirst } = toShow;
    Object.assign(detail, { chat, box: isFirst ? joined(box, detail.box) : box });
    toShow = null;
  });
  document.addEventListener("asking", ({ detail }) => ask(detail));
  document.addEventListener("answer-ended", ({ detail: { refusal } }) => { if (refusal) asking = ""; });
  document.addEventListener("answer-failed", () => { asking = ""; });
  document.addEventListener("conversation-changed", ({ detail }) => {
    const entries = JSON.parse(JSON.stringify(detail ?? []));
    const isNew = JSON.stringify(entries) !== JSON.stringify(current.entries);
    if (isReady && isNew && !isOnlyEdited(entries)) change(entries);
  });
  document.addEventListener("draft-changed", ({ detail }) => {
    const draft = JSON.parse(JSON.stringify(detail ?? { text: "", files: [] }));
    if (!isReady || JSON.stringify(draft) === JSON.stringify(current.draft)) return;
    if (asking === "send" && !draft.text && !draft.files.length) return; // kept until the conversation has the question
    current.draft = draft;
    if (!isOfLink(draft)) saveSoon();
  });
  addEventListener("pagehide", () => saving && save());
  $("#new-chat").addEventListener("click", () => newChat());

  const last = linked() ? undefined : await store.all("conversations").then(lastOne).catch(() => undefined); // it is broken
  const restored = () => document.dispatchEvent(new Event("conversation-restored"));
  if (last) document.addEventListener("shown", restored, { once: true });
  if (last) await open(last, RELEASED_WITHIN_MS);
  else hold(current.id);
  isReady = true;
  if (!last) restored();
}
