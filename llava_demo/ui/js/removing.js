// Deleted conversations can be brought back for ten seconds; then their pictures are deleted too.
import { $, addToPage, make } from "./dom.js";
import { filesOf, keyOf } from "./entries.js";
import { empty, newChat, putBack, shown } from "./keeping.js";
import * as store from "./store.js";

/** @typedef {import("./entries.js").Conversation} Conversation */

const UNDO_MS = 10_000;

/** Delete pictures that no conversation has. */
async function sweep() {
  const used = new Set([shown(), ...(await store.all("conversations"))].flatMap(filesOf).map(keyOf));
  for (const key of await store.keys("pictures")) if (!used.has(key)) await store.remove("pictures", key);
}

/** @param {Conversation[]} removed @param {boolean} wasShown - the first of them */
async function bringBack(removed, wasShown) {
  for (const conversation of removed) await store.put("conversations", conversation.id, conversation);
  if (wasShown) putBack(removed[0]);
  document.dispatchEvent(new Event("conversation-kept"));
}

/** @param {string} words @param {() => void} undo @param {() => void} end - called if Undo was not pressed */
function offerUndo(words, undo, end) {
  const button = make("button", { type: "button" }, "Undo");
  const toast = make("p", { id: "removed", role: "status" }, `${words} · `, button);
  $("#removed")?.remove();
  ($("#drawer[open]") ? $("#drawer").append(toast) : addToPage(toast));
  const close = () => {
    if (toast.matches(":hover, :focus-within")) return setTimeout(close, UNDO_MS);
    toast.remove();
    end();
  };
  const gone = setTimeout(close, UNDO_MS);
  button.addEventListener("click", () => {
    clearTimeout(gone);
    toast.remove();
    undo();
  });
  return button;
}

/**
 * Delete conversations from the list, and the shown one from the page too.
 *
 * @param {Conversation[]} conversations
 * @returns {Promise<HTMLElement>} the button that brings them back
 */
export async function remove(conversations) {
  const isOnPage = ({ id }) => id === shown().id;
  const removed = conversations.filter(isOnPage).concat(conversations.filter((other) => !isOnPage(other)));
  const wasShown = removed.some(isOnPage);
  if (wasShown) await newChat();
  for (const { id } of removed) await store.remove("conversations", id);
  return offerUndo(removed.length > 1 ? "All deleted" : "Deleted", () => bringBack(removed, wasShown), sweep);
}

export function start() {
  document.addEventListener("conversation-cleared", async () => {
    const cleared = empty();
    if (!cleared) return;
    offerUndo("Cleared", () => bringBack([cleared], true), sweep);
    $("#box textarea")?.focus();
    await store.remove("conversations", cleared.id);
  });
  $("#drawer").addEventListener("close", () => { if ($("#removed")) addToPage($("#removed")); });
}
