// What a turn has beside Gradio's buttons: its versions, Continue for an incomplete answer, and an editor with keys.
import { $, $$, isComposing, isSending, isStreaming, make, watch } from "./dom.js";
import { isNote } from "./entries.js";
import { alter, shown } from "./keeping.js";
import { changeBox } from "./server.js";
import { turned } from "./versions.js";

const UNFINISHED = /cut at max tokens|^Stopped$|^Interrupted$|^The answer broke off$/;

/** @param {HTMLElement} row @param {string} name @param {HTMLElement | null} wanted - replaces the present one */
function keep(row, name, wanted) {
  const old = row.querySelector(`:scope > .${name}`);
  if (old?.dataset.is === wanted?.dataset.is) return;
  old?.remove();
  if (wanted) row.append(wanted);
}

/** @param {import("./versions.js").Branching} branching */
function switcher({ at, shown: index, tails }) {
  const step = (by, words, sign) => make("button", {
    type: "button", ariaLabel: words, textContent: sign, disabled: !(index + by in tails),
    onclick: () => isStreaming() || alter((conversation) => turned(conversation, at, by)),
  });
  const place = make("span", {}, `${index + 1}/${tails.length}`);
  const made = make("div", { className: "versions", role: "group", ariaLabel: "Versions" },
    step(-1, "Earlier version", "‹"), place, step(1, "Later version", "›"));
  made.dataset.is = `${at} ${place.textContent}`;
  return made;
}

function resumer() {
  const made = make("button", { type: "button", className: "resume", onclick: () => $("#resume-answer").click() }, "Continue");
  made.dataset.is = "resume";
  return made;
}

/** Whether the last answer has text and is incomplete. */
function isUnfinished() {
  const { entries } = shown();
  const answer = entries.findLastIndex((entry) => !isNote(entry));
  const notes = entries.slice(answer + 1).map(({ metadata }) => metadata.title);
  return !isStreaming() && entries[answer]?.role === "assistant" && notes.some((title) => UNFINISHED.test(title));
}

function addToRows() {
  const { versions } = shown();
  const rows = $$("#conversation .message-row");
  rows.forEach((row, index) => {
    const branching = versions.find(({ at }) => at === index);
    keep(row, "versions", branching ? switcher(branching) : null);
    keep(row, "resume", index === rows.length - 1 && isUnfinished() ? resumer() : null);
  });
  for (const words of $$("#conversation .replaces")) if (!words.parentElement.querySelector("textarea")) words.remove();
  $$("#conversation .edit-textarea").forEach(explain);
}

/** Say what an edited question replaces. @param {HTMLElement} editor */
function explain(editor) {
  const message = editor.closest(".message");
  if (message.querySelector(".replaces")) return;
  const row = editor.closest(".message-row");
  const later = shown().entries.slice($$("#conversation .message-row").indexOf(row) + 1);
  const count = later.filter(({ role }, at) => role === "user" && later[at - 1]?.role !== "user").length;
  const turns = count ? ` and ${count} later turn${count > 1 ? "s" : ""}` : "";
  const words = `Enter asks again and replaces the answer${turns}; the earlier version stays. Esc cancels.`;
  editor.setAttribute("aria-label", "Your question, to be changed");
  message.append(make("p", { className: "replaces" }, words));
  editor.focus();
}

/** @param {HTMLElement} editor @param {string} name - of Gradio's button */
const press = (editor, name) =>
  editor.closest(".message-row").nextElementSibling?.querySelector(`button[aria-label="${name}"]`)?.click();

function takeKeys() {
  document.addEventListener("keydown", (event) => {
    if (isComposing(event)) return;
    const editor = event.target.closest?.("#conversation .edit-textarea");
    if (editor && event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      press(editor, "Submit");
    }
    if (editor && event.key === "Escape") press(editor, "Cancel");
    const isEmptyBox = event.target.matches?.("#box textarea") && !event.target.value;
    if (event.key === "ArrowUp" && isEmptyBox && !isStreaming() && !isSending()) {
      const edit = $$('#conversation .message-buttons button[aria-label="Edit"]').at(-1);
      if (!edit) return;
      event.preventDefault();
      edit.click();
    }
  }, { capture: true });
}

/** Cancel removes the refusal of an edited question too. */
function forgetRefusals() {
  $("#conversation").addEventListener("click", ({ target }) => {
    if (target.closest('button[aria-label="Cancel"]')) changeBox((message) => message);
  });
}

export function start() {
  takeKeys();
  forgetRefusals();
  watch("#conversation", addToRows);
  watch("#box", addToRows);
  document.addEventListener("conversation-shown", addToRows);
}
