// The list of kept conversations: open, rename and delete them.
import { $, addToPage, isComposing, make } from "./dom.js";
import { titleOf } from "./entries.js";
import { newChat, open, rename, save, shown } from "./keeping.js";
import { remove } from "./removing.js";
import * as store from "./store.js";

/** @typedef {import("./entries.js").Conversation} Conversation */

const UNKEPT = "This browser keeps nothing for this page (a private window, or a frame of another site): what is here lasts until it is closed.";
const KEPT = "Kept in this browser only. The server keeps no conversation, and pictures for a week at most.";

/** @param {string} name @param {string} words @param {() => void} act */
const button = (name, words, act) => make("button", { type: "button", className: name, onclick: act }, words);

/** @param {Conversation} conversation */
async function show(conversation) {
  await save().catch(() => {}); // the browser's storage is full
  const kept = await store.get("conversations", conversation.id);
  if (!kept) return write(); // another tab has deleted it
  $("#drawer").close();
  await open(kept);
  $("#box textarea")?.focus();
}

/** Replace the name by a field. @param {HTMLElement} item @param {Conversation} conversation */
function edit(item, conversation) {
  const field = make("input", { type: "text", value: titleOf(conversation), ariaLabel: "Name of the conversation" });
  let hasEnded = false;
  const end = async (isKept) => {
    if (hasEnded) return;
    hasEnded = true;
    const title = field.value.trim();
    if (isKept && conversation.id === shown().id) rename(title);
    if (isKept) await store.change("conversations", conversation.id, (now) => now && { ...now, title });
    field.remove();
    await write();
    $(`#drawer li[data-id="${conversation.id}"] .rename`)?.focus();
  };
  field.addEventListener("blur", () => end(true));
  field.addEventListener("keydown", (event) => {
    if (isComposing(event) || !["Enter", "Escape"].includes(event.key)) return;
    event.preventDefault(); // Escape does not close the list as well
    event.stopPropagation();
    end(event.key === "Enter");
  });
  item.querySelector(".open").replaceWith(field);
  field.select();
}

/** @param {Conversation} conversation */
function row(conversation) {
  const title = titleOf(conversation);
  const opening = button("open", "", () => show(conversation));
  if (conversation.id === shown().id) opening.setAttribute("aria-current", "true");
  const picture = conversation.thumbnail ? make("img", { src: conversation.thumbnail, alt: "" }) : "";
  const date = new Date(conversation.updated).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
  opening.append(picture, make("span", { dir: "auto" }, title, make("time", {}, date)));
  const renaming = button("rename", "Rename", () => edit(item, conversation));
  renaming.ariaLabel = `Rename ${title}`;
  const deleting = button("delete", "Delete", async () => {
    const undo = await remove([conversation]);
    await write();
    undo.focus();
  });
  deleting.ariaLabel = `Delete ${title}`;
  const item = make("li", {}, opening, renaming, deleting);
  item.dataset.id = conversation.id;
  return item;
}

async function write() {
  if ($("#drawer li input")) return; // a name is being written
  const kept = (await store.all("conversations")).sort((a, b) => b.updated - a.updated);
  $("#drawer ul").replaceChildren(...kept.map(row));
  $("#drawer .delete-all").hidden = kept.length === 0;
  $("#drawer .kept").textContent = (await store.isKept()) ? KEPT : UNKEPT;
}

/** One line above the message box, hidden while another one is shown there. @param {string} words */
function sayUnkept(words) {
  $("#unkept")?.remove();
  $("#progress").prepend(make("p", { id: "unkept", title: words }, words));
}

async function deleteAll() {
  const undo = await remove(await store.all("conversations"));
  await write();
  undo.focus();
}

export function start() {
  const drawer = make("dialog", { id: "drawer", ariaLabel: "Conversations" });
  drawer.innerHTML = `<header><h2>Conversations</h2><button type="button" class="close" aria-label="Close">×</button></header>
<button type="button" class="new">New chat</button><ul></ul>
<footer><p class="kept"></p><button type="button" class="delete-all">Delete all</button></footer>`;
  addToPage(drawer);
  store.isKept().then((is) => is || sayUnkept("Kept until this page is closed: the browser stores nothing here."));
  document.addEventListener("conversation-unkept", () => sayUnkept("Not kept any more: this browser's storage is full."));
  $("#chats-switch").addEventListener("click", async () => {
    await save().catch(() => {}); // the browser's storage is full
    await write();
    drawer.showModal();
  });
  document.addEventListener("conversation-kept", () => drawer.open && write());
  drawer.addEventListener("click", async ({ target, detail }) => {
    const isBeside = target === drawer && detail < 2; // a double click on the switch ends there
    if (isBeside || target.matches(".close")) drawer.close();
    if (target.matches(".new")) {
      drawer.close();
      await newChat();
    }
    if (target.matches(".delete-all")) await deleteAll();
  });
}
