// How full the conversation is; and pictures can be left out, which then cost no tokens.
import { before, lastRefused, reopen } from "./asking.js";
import { $, $$, isStreaming, make, watch } from "./dom.js";
import { isLeftOut, leaveOut, picturesOf } from "./entries.js";
import { alter, newChat, shown } from "./keeping.js";

const CHARACTERS_A_TOKEN = 4; // about, in English; the server counts exactly
const SHOWN_FROM = 0.5;

/** The limits of the served model. */
function holds() {
  const { context, images, imageTokens } = $("#served .served").dataset;
  return { context: Number(context), images: Number(images), imageTokens: Number(imageTokens) };
}

/** How full it is. @returns {[name: string, has: number, holds: number][]} */
function fullness() {
  const { entries, draft } = shown();
  const { context, images, imageTokens } = holds();
  const pictures = picturesOf(entries).filter((part) => !isLeftOut(part)).length + draft.files.length;
  const counted = entries.findLastIndex(({ metadata }) => Number.isInteger(metadata?.id));
  const uncounted = entries.slice(counted + 1).flatMap(({ content }) => content).map((part) => part.text ?? "");
  const characters = [draft.text, ...uncounted].join("").length;
  const text = (entries[counted]?.metadata.id ?? 0) + Math.ceil(characters / CHARACTERS_A_TOKEN);
  return [["pictures", pictures, images], ["tokens", text + pictures * imageTokens, context]];
}

const meter = make("p", { id: "meter", title: "What the model reads with the next question" });

function showFullness() {
  const full = fullness().filter(([, has, most]) => has / most >= SHOWN_FROM);
  const words = full.map(([name, has, most]) => `${has.toLocaleString("en")} of ${most.toLocaleString("en")} ${name}`);
  if (meter.textContent !== words.join(" · ")) meter.textContent = words.join(" · ");
  meter.classList.toggle("is-over", full.some(([, has, most]) => has > most));
}

/** Send the draft in the message box once the changed conversation is shown. */
function sendWhenShown() {
  document.addEventListener("shown", () => setTimeout(() => $("#box .submit-button")?.click()), { once: true });
}

/** Leave out the oldest picture that the model reads, or else the first one in the message box. */
function leaveOutOldest() {
  const { draft } = shown();
  const { edited } = lastRefused();
  if (edited) document.addEventListener("shown", () => reopen(edited), { once: true });
  else if (draft.text.trim() || draft.files.length) sendWhenShown();
  alter((conversation) => {
    const oldest = picturesOf(conversation.entries).find((part) => !isLeftOut(part));
    if (oldest) leaveOut(oldest, true);
    else conversation.draft.files.shift();
    return conversation;
  });
}

function takeChoices() {
  $("#refusal").addEventListener("click", ({ target }) => {
    const { choice } = target.dataset;
    if (choice === "leave-out") leaveOutOldest();
    const { question } = lastRefused();
    if (choice === "new-chat") newChat(question ? before(question, shown().draft) : shown().draft);
  });
}

/** @type {{id: string, out: Map<number, boolean>}} pictures to leave out, or take back, once the answer has ended */
let wanted = { id: "", out: new Map() };

/** @param {number} index - of the picture's entry */
function isOut(index) {
  const { id, entries } = shown();
  return (wanted.id === id ? wanted.out.get(index) : null) ?? isLeftOut(entries[index].content[0]);
}

/** @param {number} index - of the picture's entry */
function toggle(index) {
  const { id } = shown();
  const is = !isOut(index);
  if (wanted.id !== id) wanted = { id, out: new Map() };
  wanted.out.set(index, is);
  offerToLeaveOut();
  leaveOutWanted();
}

function leaveOutWanted() {
  if (!wanted.out.size || isStreaming()) return;
  const { id, out } = wanted;
  wanted = { id: "", out: new Map() };
  if (id !== shown().id) return;
  alter((conversation) => {
    for (const [index, is] of out) {
      const [part] = conversation.entries[index]?.content ?? [];
      if (part?.file) leaveOut(part, is);
    }
    return conversation;
  });
}

/** Each picture of the conversation has a button that leaves it out or takes it back. */
function offerToLeaveOut() {
  $$("#conversation .message-row").forEach((row, index) => {
    const picture = shown().entries[index]?.content[0];
    const button = row.querySelector(".leave-out");
    if (!picture?.file || !row.querySelector(".image-frame")) return button?.remove();
    const words = isOut(index) ? "Use this picture again" : "Forget this picture";
    row.classList.toggle("is-left-out", isOut(index));
    if (button?.textContent === words && Number(button.dataset.at) === index) return;
    const made = make("button", { type: "button", className: "leave-out", onclick: () => toggle(index) }, words);
    made.title = "A picture that is forgotten stays visible, and the model no longer reads it";
    made.dataset.at = String(index);
    const hadFocus = button === document.activeElement;
    button?.remove();
    row.querySelector(".image-container").append(made);
    if (hadFocus) made.focus();
  });
}

/** Gradio may re-create the message box. */
function keepMeterInBox() {
  const container = $("#box .full-container");
  if (meter.parentElement !== container) container?.append(meter);
}

export function start() {
  watch("#box", keepMeterInBox);
  watch("#box", leaveOutWanted); // the answer has ended
  takeChoices();
  watch("#served", showFullness);
  watch("#conversation", offerToLeaveOut);
  for (const change of ["conversation-shown", "draft-changed"]) {
    document.addEventListener(change, () => { showFullness(); offerToLeaveOut(); });
  }
}
