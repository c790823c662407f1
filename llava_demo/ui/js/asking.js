// A question that is refused, or does not reach the server, returns to where it was written: nothing is lost.
import { takeFailure } from "./connection.js";
import { $, $$, isSending, isStreaming, make, say, until, watch } from "./dom.js";
import { ended, undone } from "./entries.js";
import { shown } from "./keeping.js";
import { changeBox, makeChanges } from "./server.js";

/**
 * @typedef {import("./entries.js").Draft} Draft
 * @typedef {import("./entries.js").Entry} Entry
 * @typedef {{at: number, text: string}} Edited - a question in the conversation's editor
 */

/** @type {{draft?: Draft, edited?: Edited, question?: Draft}} of the last event; `question` if it was not asked in the box */
let asked = {};
/** @type {{edited?: Edited, question?: Draft}} of the last refused question */
let refused = {};
/** @type {Entry[] | null} what Stop, Undo, Clear or another conversation left, until Gradio 6.31 has cancelled the answer */
let left = null;

/** @param {Entry[]} entries - with the changed question, as Gradio writes it into the Chatbot @returns {Edited | undefined} */
function editedIn(entries) {
  const textOf = (entry) => entry?.content[0].text;
  const at = entries.findIndex((entry, index) => entry.role === "user" && textOf(entry) !== textOf(shown().entries[index]));
  return at < 0 ? undefined : { at, text: textOf(entries[at]) };
}

/** The last refused question, if it was not asked in the message box. */
export function lastRefused() {
  const { edited, question } = refused;
  const text = $("#conversation .edit-textarea")?.value; // it may have been changed again
  return edited && text !== undefined ? { edited: { ...edited, text }, question: { ...question, text } } : refused;
}

/** @param {Draft} question @param {Draft} typed - after it */
export const before = (question, typed) => ({
  text: [question.text, typed.text].filter(Boolean).join("\n"), files: [...question.files, ...typed.files],
});

/** Open the editor of a question again. @param {Edited} edited */
export async function reopen({ at, text }) {
  await new Promise((done) => setTimeout(done, 50)); // Gradio draws the earlier conversation first
  const row = await until(() => $$("#conversation .message-row")[at]);
  const edit = await until(() => row?.nextElementSibling?.querySelector('button[aria-label="Edit"]'));
  edit?.click();
  const editor = await until(() => row?.querySelector(".edit-textarea"));
  if (!editor) return changeBox((typed) => before({ text, files: [] }, typed));
  editor.value = text;
  editor.dispatchEvent(new Event("input", { bubbles: true })); // Gradio listens
  editor.focus();
}

/** @param {Draft} box - its new value; Gradio tells of texts alone */
function filled(box) {
  document.dispatchEvent(new CustomEvent("draft-changed", { detail: box }));
  return box;
}

/** @param {{refusal: string, box: Draft, changed: object}} detail - the refusal as HTML, "" where the question was taken */
function putBack(detail) {
  const { draft, edited, question } = asked;
  asked = {};
  if (!detail.refusal) return;
  refused = { edited, question };
  if (draft && detail.refusal.includes("data-was-taken")) detail.changed = filled(before(draft, detail.box)); // else it is still there
  if (edited) reopen(edited);
}

/**
 * A failed event leaves the question, and the reason why its answer is missing or incomplete. Late updates of a cancelled
 * event are replaced by what the page showed before them.
 *
 * @param {{box: Draft, chat: Entry[], refusal: string, updates: object}} detail
 */
function tellFailure(detail) {
  const trouble = takeFailure();
  if (!trouble) {
    if (left) detail.updates = { chat: left, refusal: "" };
    left = null;
    return;
  }
  const words = isStreaming() ? trouble : `${trouble} Nothing was sent, and nothing is lost: try again.`;
  const alert = make("p", { role: "alert" }, words);
  if (!isStreaming()) {
    detail.updates = { chat: shown().entries, refusal: alert.outerHTML }; // without what Gradio has written into it
    putBack({ ...detail, refusal: alert.outerHTML });
    return;
  }
  const said = detail.chat.filter(({ metadata }) => metadata?.status !== "pending");
  const title = said.at(-1)?.role === "assistant" ? "The answer broke off" : "No answer";
  const content = [{ type: "text", text: alert.innerHTML }];
  detail.updates = { chat: [...said, { role: "assistant", content, metadata: { title } }], refusal: "" };
  $("#box textarea")?.focus();
}

/** Until the server has taken the question or failed, nothing can be typed or asked. @param {boolean} is */
function setSending(is) {
  if (is === isSending()) return;
  document.body.classList.toggle("is-sending", is);
  $("#box textarea").readOnly = is;
  say(is ? "Sending…" : "");
  if (!is) setTimeout(makeChanges); // what arrived meanwhile
}

/** On a slow network nothing is asked twice. */
function askOnce() {
  document.addEventListener("click", (event) => {
    if (isSending() && event.target.closest("#box button, #conversation button, #chips button, #refusal button")) {
      event.preventDefault();
      event.stopImmediatePropagation();
    }
  }, { capture: true });
  watch("#box", () => isStreaming() && setSending(false)); // the question was taken
  for (const end of ["answer-failed", "answer-ended", "shown"]) document.addEventListener(end, () => setSending(false));
}

export function start() {
  askOnce();
  document.addEventListener("asking", ({ detail: { what, inputs } }) => {
    left = null;
    setSending(what !== "open");
    refused = {};
    const [first] = JSON.parse(JSON.stringify(inputs));
    const edited = what === "edit" ? editedIn(first) : undefined;
    if (what === "send") asked = { draft: first };
    else asked = { edited, question: first && undone(edited ? first.slice(0, edited.at + 1) : first).question };
  });
  document.addEventListener("answer-failed", ({ detail }) => tellFailure(detail));
  document.addEventListener("answer-stopped", ({ detail }) => {
    left = ended({ entries: detail.chat, isAnswering: detail.chat.at(-1)?.role === "assistant" }, "Stopped");
    detail.chat = left;
  });
  document.addEventListener("undoing", ({ detail }) => {
    const { rest, question } = undone(detail.chat);
    left = rest;
    Object.assign(detail, { chat: rest, box: filled(before(question, detail.box)) });
  });
  document.addEventListener("conversation-cleared", () => { left = []; });
  document.addEventListener("showing", ({ detail }) => {
    queueMicrotask(() => { left = detail.chat; }); // after keeping.js has filled it in
  });
  document.addEventListener("answer-ended", ({ detail }) => putBack(detail));
}
