// The list of kept conversations: open, rename and delete them.
import { $, addToPage } from "./dom.js";
import { filesOf, keyOf, titleOf } from "./entries.js";
import { newChat, open, save, shown } from "./keeping.js";
import * as store from "./store.js";

const UNKEPT = "This browser keeps nothing for this page (a private window, or a frame of another site): what is here lasts until it is closed.";
const KEPT = "Kept in this browser only. The server keeps no conversation, and pictures for a week at most.";

/** Pictures that no conversation has any more go as well. */
async function sweep() {
  const used = new Set((await store.all("conversations")).flatMap(filesOf).map(keyOf));
  for (const key of await store.keys("pictures")) if (!used.has(key)) await store.remove("pictures", key);
}

/** @param {string[]} ids */
async function forget(ids) {
  for (const id of ids) await store.remove("conversations", id);
  await sweep();
  if (ids.includes(shown().id)) {
    await newChat();
    for (const id of ids) await store.remove("conversations", id); // `newChat` saves what it leaves
  }
  await write();
}

/** @param {string} name @param {string} words @param {() => void} act */
function button(name, words, act) {
  const made = document.createElement("button");
  made.type = "button";
  made.className = name;
  made.textContent = words;
  made.addEventListener("click", act);
  return made;
}

/** @param {import("./entries.js").Conversation} conversation */
function row(conversation) {
  const item = document.createElement("li");
  const title = titleOf(conversation);
  const opening = button("open", "", async () => {
    await save();
    $("#drawer").close();
    await open(await store.get("conversations", conversation.id));
  });
  if (conversation.id === shown().id) opening.setAttribute("aria-current", "true");
  const picture = conversation.thumbnail ? Object.assign(new Image(), { src: conversation.thumbnail, alt: "" }) : "";
  const words = document.createElement("span");
  const date = document.createElement("time");
  date.textContent = new Date(conversation.updated).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
  words.append(title, date);
  opening.append(picture, words);
  const renaming = button("rename", "Rename", async () => {
    const named = prompt("Name of the conversation", title);
    if (named === null) return;
    await store.put("conversations", conversation.id, { ...conversation, title: named.trim() });
    await write();
  });
  renaming.setAttribute("aria-label", `Rename ${title}`);
  const deleting = button("delete", "Delete", () => forget([conversation.id]));
  deleting.setAttribute("aria-label", `Delete ${title}`);
  item.append(opening, renaming, deleting);
  return item;
}

async function write() {
  const kept = (await store.all("conversations")).sort((a, b) => b.updated - a.updated);
  $("#drawer ul").replaceChildren(...kept.map(row));
  $("#drawer .delete-all").hidden = kept.length === 0;
  $("#drawer .kept").textContent = (await store.isKept()) ? KEPT : UNKEPT;
}

/** One line above the message box where it is not, as long as nothing else is said there. */
async function sayWhetherItIsKept() {
  if (await store.isKept()) return;
  const line = document.createElement("p");
  line.id = "unkept";
  line.textContent = "Kept until this page is closed: the browser stores nothing here.";
  $("#progress").prepend(line);
}

export function start() {
  const drawer = document.createElement("dialog");
  drawer.id = "drawer";
  drawer.setAttribute("aria-label", "Conversations");
  drawer.innerHTML = `<header><h2>Conversations</h2><button type="button" class="close" aria-label="Close">×</button></header>
<button type="button" class="new">New chat</button><ul></ul>
<footer><p class="kept"></p><button type="button" class="delete-all">Delete all</button></footer>`;
  addToPage(drawer);
  sayWhetherItIsKept();
  $("#chats-switch").addEventListener("click", async () => {
    await save();
    await write();
    drawer.showModal();
  });
  document.addEventListener("conversation-kept", () => drawer.open && write());
  drawer.addEventListener("click", async ({ target }) => {
    if (target === drawer || target.matches(".close")) drawer.close();
    if (target.matches(".new")) {
      drawer.close();
      await newChat();
    }
    if (target.matches(".delete-all") && confirm("Delete all conversations of this browser?")) {
      await forget(await store.keys("conversations"));
    }
  });
}
