// The entries of the Chatbot and of kept conversations (see conversation.py), their texts and files.

/**
 * @typedef {{path: string, url: string, orig_name: string, mime_type?: string}} FileData
 * @typedef {{type?: string, text?: string, file?: FileData, alt_text?: string | null}} Part
 * @typedef {{role: string, content: Part[], metadata?: {title?: string, status?: string, id?: number}}} Entry
 * @typedef {{text: string, files: FileData[]}} Draft
 * @typedef {{id: string, title: string, updated: number, thumbnail: string, entries: Entry[], draft: Draft,
 *   isAnswering?: boolean, versions: import("./versions.js").Branching[]}} Conversation
 */

const LEFT_OUT = "Left out"; // marks a picture that the model no longer reads, for conversation.py

/** @param {Part} part - a text of the Chatbot, which is HTML */
export function textOf(part) {
  const decoder = document.createElement("textarea");
  decoder.innerHTML = (part.text ?? "").replaceAll("<", "&lt;");
  return decoder.value;
}

/** @param {Entry} entry */
export const isNote = ({ metadata }) => Boolean(metadata?.title);

/** @param {Entry[]} entries @returns {Part[]} the user's texts and pictures */
const partsOf = (entries) => entries.flatMap(({ role, content }) => (role === "user" ? content : []));

/** @param {Entry[]} entries @returns {Part[]} */
export const picturesOf = (entries) => partsOf(entries).filter((part) => part.file);

/** @param {Part} part */
export const isLeftOut = (part) => part.alt_text === LEFT_OUT;

/** @param {Part} part @param {boolean} is */
export const leaveOut = (part, is) => { part.alt_text = is ? LEFT_OUT : null; };

/** @param {Conversation} conversation @returns {FileData[]} of all versions */
export function filesOf({ entries, draft, versions = [] }) {
  const tails = versions.flatMap((branching) => branching.tails).filter(Boolean);
  const others = tails.flatMap((tail) => filesOf({ ...tail, draft: { text: "", files: [] } }));
  return [...picturesOf(entries).map((part) => part.file), ...draft.files, ...others];
}

/** A picture's key: the hash of its bytes, and its name. @param {FileData} file */
export const keyOf = (file) => file.path.split("/").slice(-2).join("/");

/** @param {Conversation} conversation */
export const titleOf = ({ title, entries, draft }) =>
  title || (textOf(partsOf(entries).find((part) => part.text) ?? {}).trim() || draft.text.trim()).slice(0, 80) || "A picture";

/**
 * The entries, with a note after an incomplete answer.
 *
 * @param {Pick<Conversation, "entries" | "isAnswering">} conversation
 * @param {string} [title] - of the note; by default the page was left while it was answered
 * @returns {Entry[]}
 */
export function ended({ entries, isAnswering }, title = "Interrupted") {
  const said = entries.filter(({ metadata }) => metadata?.status !== "pending");
  const hasEnded = said.length === entries.length && (!isAnswering || !said.length || isNote(said.at(-1)));
  if (hasEnded) return said;
  const metadata = { title, status: "done" };
  return [...said, { role: "assistant", content: [{ type: "text", text: "" }], metadata }];
}

/** The conversation without its last turn, and that turn's question. @param {Entry[]} entries @returns {{rest: Entry[], question: Draft}} */
export function undone(entries) {
  let from = entries.findLastIndex(({ role }) => role === "user");
  const to = from + 1;
  while (entries[from - 1]?.role === "user") from -= 1;
  const asked = entries.slice(Math.max(0, from), to);
  const texts = partsOf(asked).filter((part) => !part.file).map(textOf);
  return { rest: entries.slice(0, Math.max(0, from)), question: { text: texts.join("\n"), files: picturesOf(asked).map(({ file }) => file) } };
}
