// The network between this page and its server. Gradio 6.31 answers a lost connection by refusing every further event
// and reloading the page, whose conversation lives in it alone. So its requests go through here, where a connection
// that is lost becomes what Gradio can live with: an event that failed, and a stream that was closed.
import { $, isStreaming, root } from "./dom.js";

/** @typedef {{msg: string, event_id?: string | null}} Message - on the stream of a page's events */

const UNREACHABLE = "The server cannot be reached.";
const LOST = "The connection to the server was lost.";
const SILENT_MS = 60_000; // Gradio sends a heartbeat every 15 seconds while an event is under way

/** @type {Set<string>} events that the server answers on the stream */
const underWay = new Set();
/** @type {Set<string>} events that it never took; they fail on the stream, where Gradio waits for them */
const untaken = new Set();
/** @type {ReadableStreamDefaultController | null} */
let stream = null;
let trouble = UNREACHABLE;
let count = 0;

/** @param {object} message */
const lineOf = (message) => new TextEncoder().encode(`data: ${JSON.stringify(message)}\n\n`);

/** @param {string} id */
const failureOf = (id) => lineOf({
  msg: "process_completed", event_id: id, success: false, output: { error: trouble, visible: false }, // no toast
});

/** @param {Set<string>} ids @param {ReadableStreamDefaultController} controller */
function fail(ids, controller) {
  for (const id of ids) controller.enqueue(failureOf(id));
  ids.clear();
}

/** @param {Response} answer - that refuses an event */
async function wordsOf(answer) {
  const { detail, error } = await answer.json().catch(() => ({}));
  return [detail, error].find((words) => typeof words === "string") ?? `The server refused it (${answer.status}).`;
}

/** An event is to begin. @param {() => Promise<Response>} ask */
async function begin(ask) {
  const answer = await ask().catch(() => null);
  if (answer?.ok) {
    underWay.add((await answer.clone().json()).event_id);
    return answer;
  }
  trouble = answer ? await wordsOf(answer) : UNREACHABLE;
  const event_id = `untaken-${++count}`;
  untaken.add(event_id);
  if (stream) fail(untaken, stream);
  return Response.json({ event_id });
}

/** @param {ReadableStreamDefaultReader<Uint8Array>} reader */
function readSoon(reader) {
  let timer = 0;
  const silence = new Promise((_, reject) => { timer = setTimeout(() => reject(new Error(LOST)), SILENT_MS); });
  return Promise.race([reader.read(), silence]).finally(() => clearTimeout(timer));
}

/**
 * Hand the server's messages on until it closes the stream.
 *
 * @param {ReadableStreamDefaultReader<Uint8Array>} reader
 * @param {ReadableStreamDefaultController} controller
 */
async function handOn(reader, controller) {
  const decoder = new TextDecoder();
  for (let text = ""; ;) {
    const { done, value } = await readSoon(reader);
    if (done) throw new Error(LOST);
    const lines = (text + decoder.decode(value, { stream: true })).split("\n\n");
    text = lines.pop();
    for (const line of lines.filter((line) => line.startsWith("data:"))) {
      const message = /** @type {Message} */ (JSON.parse(line.slice("data:".length)));
      if (message.msg === "unexpected_error") throw new Error(LOST); // the server ends, or has forgotten this page
      controller.enqueue(lineOf(message));
      if (message.msg === "process_completed") underWay.delete(message.event_id);
      if (message.msg === "close_stream") return;
    }
  }
}

/** The stream of the events of this page. @param {() => Promise<Response>} ask */
async function open(ask) {
  const answer = underWay.size ? await ask().catch(() => null) : null; // nothing else will come on it
  const reader = answer?.ok ? answer.body.getReader() : null;
  const body = new ReadableStream({
    async start(controller) {
      stream = controller;
      fail(untaken, controller);
      try {
        if (reader) await handOn(reader, controller);
        else throw new Error(UNREACHABLE);
      } catch {
        trouble = underWay.size ? LOST : trouble;
        reader?.cancel().catch(() => {}); // it may be what broke
        end(controller);
      }
      if (stream === controller) stream = null;
    },
    cancel: () => { stream = null; },
  });
  return new Response(body, { headers: { "content-type": "text/event-stream" } });
}

/** @param {ReadableStreamDefaultController} controller */
function end(controller) {
  try {
    fail(underWay, controller);
    controller.enqueue(lineOf({ msg: "close_stream" }));
    controller.close();
  } catch { /* Gradio reads it no more */ }
}

/** @param {() => Promise<Response>} ask */
const answered = (ask) => ask().catch(() => Response.json({ error: UNREACHABLE, detail: UNREACHABLE }, { status: 503 }));

/** Gradio's requests go through here from now on; call it before the first of them. */
export function install() {
  const fetch = window.fetch.bind(window);
  const hows = [["queue/join", begin], ["queue/data", open], ["run/", answered], ["cancel", answered]];
  window.fetch = (asked, options) => {
    const address = String(asked instanceof Request ? asked.url : asked);
    const api = `${root()}${window.gradio_config?.api_prefix ?? "/gradio_api"}/`;
    const [, how] = hows.find(([path]) => address.startsWith(api + path)) ?? [];
    return how ? how(() => fetch(asked, options)) : fetch(asked, options);
  };
}

/** What an event that failed leaves on the page: the question, and why it has no answer or no whole one. */
export function start() {
  document.addEventListener("answer-failed", ({ detail }) => {
    const said = detail.chat.filter(({ metadata }) => metadata?.status !== "pending");
    const words = document.createElement("p");
    words.textContent = isStreaming() ? trouble : `${trouble} Nothing was sent, and nothing is lost: try again.`;
    words.role = "alert";
    if (!isStreaming()) {
      detail.refusal = words.outerHTML;
      return;
    }
    const title = said.at(-1)?.role === "assistant" ? "The answer broke off" : "No answer";
    const content = [{ type: "text", text: words.innerHTML }];
    detail.chat = [...said, { role: "assistant", content, metadata: { title } }];
    $("#box textarea")?.focus();
  });
}
