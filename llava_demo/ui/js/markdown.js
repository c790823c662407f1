// Answers as Markdown. Gradio shows plain text; this replaces the text of each answer by its rendered form.
import { boxesUnder } from "./boxes.js";
import { $$, watch } from "./dom.js";
import MarkdownIt from "./vendor/markdown-it.esm.min.mjs";

const ANSWERS = "#conversation [data-testid=bot]:not(:has(.thought-group)) .message-content > span";
const FORMULA = /\$\$.+?\$\$|\\\[.+?\\\]|\\\(.+?\\\)|\$(?! )(?=[^$\n]*[\\^_{])[^$\n]+\$/sy;
const CLOSING = { "$$": "$$", "\\[": "\\]" };

const markdown = new MarkdownIt({ html: false, linkify: false, breaks: true });
markdown.validateLink = (address) => /^(https?:|mailto:)/i.test(address); // no relative link, which would look like one of the page's
markdown.inline.ruler.before("escape", "formula", formula);
markdown.block.ruler.before("code", "formula", formulaBlock, { alt: ["paragraph"] });
const rules = markdown.renderer.rules;
rules.link_open = (tokens, at, options, _, renderer) => {
  tokens[at].attrJoin("target", "_blank");
  tokens[at].attrJoin("rel", "noreferrer nofollow");
  return renderer.renderToken(tokens, at, options);
};
rules.image = (tokens, at) => { // a picture would be loaded from another host
  const { escapeHtml } = markdown.utils;
  const [address, words] = [tokens[at].attrGet("src"), tokens[at].content || "picture"].map(escapeHtml);
  return `<a href="${address}" target="_blank" rel="noreferrer nofollow">${words}</a>`;
};
rules.heading_open = (tokens, at) => `<h${below(tokens[at].tag)}>`;
rules.heading_close = (tokens, at) => `</h${below(tokens[at].tag)}>\n`;
rules.formula = (tokens, at) => `<p>${markdown.utils.escapeHtml(tokens[at].content).replace(/\n/g, "<br>\n")}</p>\n`;
rules.table_open = () => '<div class="table" role="region" aria-label="Table" tabindex="0"><table>\n';
rules.table_close = () => "</table></div>\n";
const fence = rules.fence;
rules.fence = (...given) => fence(...given).replace("<pre>", '<pre tabindex="0">'); // the keyboard scrolls it

/** A heading of an answer stands below the page's own. */
const below = (tag) => Math.min(6, Number(tag[1]) + 2);

/** LaTeX between its marks is plain text, without emphasis and escapes. */
function formula(state, silent) {
  FORMULA.lastIndex = state.pos;
  const [found] = FORMULA.exec(state.src) ?? [];
  if (!found) return false;
  if (!silent) state.push("text", "", 0).content = found;
  state.pos += found.length;
  return true;
}

/** The same over several lines. */
function formulaBlock(state, from, end, silent) {
  const lineAt = (line) => state.src.slice(state.bMarks[line] + state.tShift[line], state.eMarks[line]).trimEnd();
  const closing = CLOSING[lineAt(from).slice(0, 2)];
  if (!closing) return false;
  let last = from;
  for (let rest = lineAt(from).slice(2); !rest.endsWith(closing); rest = lineAt(last)) {
    last += 1;
    if (rest.includes(closing) || last === end) return false;
  }
  if (silent) return true;
  state.push("formula", "p", 0).content = Array.from({ length: last - from + 1 }, (_, at) => lineAt(from + at)).join("\n");
  state.line = last + 1;
  return true;
}

/** @type {WeakMap<Element, string>} the Markdown of each answer */
const sources = new WeakMap();

/** What is copied of an answer on the page. @param {string} text - its Markdown */
export function plainTextOf(text) {
  const answer = $$("#conversation .answer").find((shown) => sources.get(shown) === text);
  return answer ? plainText(answer).trim() : text;
}

/**
 * @param {Node} node
 * @returns {string} its text, with list marks, and tabs in tables
 */
function plainText(node) {
  if (node.nodeType === Node.TEXT_NODE) { // line breaks of the text are <br>; those here only lay out the HTML
    return node.parentElement?.closest("pre") ? node.data : node.data.replaceAll("\n", "");
  }
  const inside = [...node.childNodes].map(plainText).join("");
  const ordinal = () => (node.parentElement.start ?? 1) + [...node.parentElement.children].indexOf(node);
  switch (node.nodeName) {
    case "BR": case "HR": return "\n";
    case "LI": return `${node.parentElement.nodeName === "OL" ? `${ordinal()}.` : "-"} ${inside.trim().replace(/\n+/g, "\n  ")}\n`;
    case "TD": case "TH": return node.nextElementSibling ? `${inside}\t` : inside;
    case "TR": return `${inside.replace(/\n/g, "")}\n`;
    case "UL": case "OL": return `${node.parentElement?.nodeName === "LI" ? "\n" : ""}${inside.trim()}\n\n`;
    case "P": case "PRE": case "BLOCKQUOTE": case "TABLE": return `${inside.trim()}\n\n`;
    case "H3": case "H4": case "H5": case "H6": return `${inside}\n\n`;
    case "FIGURE": return "";
    default: return inside;
  }
}

/** @param {HTMLElement} host - Gradio's, which holds the text */
function show(host) {
  const texts = [...host.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE);
  if (!texts.length) {
    const before = host.querySelector(".answer:not(:has(figure))");
    if (before) boxesUnder(before); // Gradio draws a picture after the answer below it
    return;
  }
  const text = texts.map((node) => node.data).join("");
  for (const node of texts) node.remove(); // Gradio adds a new one when the answer grows
  let shown = host.querySelector(".answer");
  if (!shown) {
    shown = document.createElement("div");
    shown.className = "answer";
    host.append(shown);
  }
  const rendered = document.createElement("template");
  rendered.innerHTML = markdown.render(text);
  replaceWhatChanged(shown, rendered.content);
  sources.set(shown, text);
  boxesUnder(shown);
}

/**
 * Unchanged blocks stay, so that a selection in them stays too.
 *
 * @param {HTMLElement} shown
 * @param {DocumentFragment} fresh
 */
function replaceWhatChanged(shown, fresh) {
  const [before, after] = [[...shown.children].filter((block) => block.tagName !== "FIGURE"), [...fresh.children]];
  const same = after.findIndex((block, index) => before[index]?.outerHTML !== block.outerHTML);
  const from = same < 0 ? after.length : same;
  for (const block of before.slice(from)) block.remove();
  shown.querySelector("figure") ? shown.querySelector("figure").before(...after.slice(from)) : shown.append(...after.slice(from));
}

/** A selection is copied as text, not as the page's HTML. */
function copySelections() {
  document.addEventListener("copy", (event) => {
    const selection = getSelection();
    if (selection.isCollapsed || !selection.anchorNode?.parentElement?.closest(".answer")) return;
    const fragment = document.createElement("div");
    fragment.append(selection.getRangeAt(0).cloneContents());
    event.clipboardData.setData("text/plain", plainText(fragment).trim());
    event.preventDefault();
  });
}

export function start() {
  copySelections();
  watch("#conversation", () => $$(ANSWERS).forEach(show));
}
