// Versions of a conversation: Retry and Edit start a new version at some entry, and the earlier ones stay.
import { keyOf } from "./entries.js";

/**
 * @typedef {import("./entries.js").Entry} Entry
 * @typedef {{entries: Entry[], versions: Branching[]}} Tail - the conversation from a branching on
 * @typedef {{at: number, shown: number, tails: (Tail | null)[]}} Branching - null stands for the tail on the page
 * @typedef {{entries: Entry[], versions: Branching[]}} Branched
 */

/** An entry without the paths of its files: a file that was uploaded again has another one. @param {Entry} entry */
const meaning = ({ role, content, metadata }) =>
  JSON.stringify([role, metadata?.title, content.map(({ text, file }) => (file ? keyOf(file) : text))]);

/** @param {Entry[]} one @param {Entry[]} other */
const areAlike = (one, other) => one.length === other.length && one.every((entry, at) => meaning(entry) === meaning(other[at]));

/**
 * Start a version at the first entry that differs.
 *
 * @param {Branched} conversation - changed in place
 * @param {Entry[]} entries - of the new version
 */
export function begin(conversation, entries) {
  const { entries: before, versions } = conversation;
  const at = before.findIndex((entry, index) => !entries[index] || meaning(entry) !== meaning(entries[index]));
  if (at < 0) return;
  const tail = { entries: before.slice(at), versions: versions.filter((branching) => branching.at > at) };
  const branching = versions.find((other) => other.at === at) ?? { at, shown: 0, tails: [null] };
  branching.tails[branching.shown] = tail;
  branching.shown = branching.tails.push(null) - 1;
  conversation.versions = [...versions.filter((other) => other.at < at), branching];
}

/**
 * Drop a version whose question was refused, and branchings at entries that no longer exist.
 *
 * @param {Branched} conversation - changed in place
 */
export function settle(conversation) {
  conversation.versions = conversation.versions.filter(({ at }) => at < conversation.entries.length);
  for (const branching of [...conversation.versions]) {
    const now = conversation.entries.slice(branching.at);
    const same = branching.tails.findIndex((tail) => tail && areAlike(tail.entries, now));
    if (same < 0) continue;
    conversation.versions.push(...branching.tails[same].versions);
    branching.tails[same] = null;
    branching.tails.splice(branching.shown, 1);
    branching.shown = branching.tails.indexOf(null);
  }
  conversation.versions = conversation.versions.filter(({ tails }) => tails.length > 1);
}

/**
 * The conversation with another of its versions shown.
 *
 * @template {Branched} Conversation
 * @param {Conversation} conversation
 * @param {number} at - of the branching
 * @param {number} by - how many versions further
 * @returns {Conversation}
 */
export function turned(conversation, at, by) {
  const copy = structuredClone(conversation);
  const branching = copy.versions.find((other) => other.at === at);
  const tail = branching.tails[branching.shown + by];
  branching.tails[branching.shown] = {
    entries: copy.entries.slice(at), versions: copy.versions.filter((other) => other.at > at),
  };
  branching.shown += by;
  branching.tails[branching.shown] = null;
  copy.entries = [...copy.entries.slice(0, at), ...tail.entries];
  copy.versions = [...copy.versions.filter((other) => other.at <= at), ...tail.versions];
  return copy;
}
