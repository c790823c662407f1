// The network between this page and its server. Gradio 6.31 answers a lost connection by refusing every further event
// and reloading the page, whose conversation lives in it alone. So its requests go through here, where a connection
// that is lost becomes what Gradio can live with: an event that failed, and a stream that was closed.
import { root } from "./dom.js";

/** @typedef {{msg: string, event_id?: string | null, success?: boolean, output?: object}} Message - on the stream of a page's events */
/** @typedef {{send: (body?: BodyInit) => Promise<Response>, abort: () => void, options?: RequestInit}} Asked - a request of Gradio's */

const UNREACHABLE = "The server cannot be reached.";
const LOST = "The connection to the server was lost.";
// A network may swallow everything and close nothing; nobody is told of it.
const SILENT_MS = 20_000; // the page's own events send something every half second, Gradio a heartbeat every 15
const TAKEN_MS = 20_000; // an event is taken at once, and done later
const TICK_MS = 20;
const DONE_MS = 60_000; // a picture may be fetched from the web for it

/** @type {Set<string>} events that the server answers on the stream */
const underWay = new Set();
/** @type {Set<string>} events that it never took; they fail on the stream, where Gradio waits for them */
const untaken = new Set();
/** @type {ReadableStreamDefaultController | null} */
let stream = null;
/** @type {Set<string>} events that the page has ended; Gradio 6.31 shows what comes of them until the server knows */
const cancelled = new Set();
/** @type {((id: string) => void) | null} tells the server that the event is over which it is about to take */
let giveUp = null;
let cancelling = 0; // requests under way
let trouble = UNREACHABLE;
let hasFailed = false;
let count = 0;

/** Why an event failed, in words; "" where it was cancelled, which Gradio 6.31 takes for a failure too. */
export function takeFailure() {
  const words = hasFailed ? trouble : "";
  hasFailed = false;
  return words;
}

/** @template T @param {Promise<T>} promised @param {number} ms @param {string} words @returns {Promise<T>} */
function within(promised, ms, words) {
  let timer = 0;
  const late = new Promise((_, reject) => { timer = setTimeout(() => reject(new Error(words)), ms); });
  return Promise.race([promised, late]).finally(() => clearTimeout(timer));
}

/** Given up, it is aborted: a browser sends it again once the network is back. @param {Asked} asked @param {number} ms */
const answerTo = (asked, ms) => within(asked.send(), ms, UNREACHABLE).catch((error) => {
  asked.abort();
  throw error;
});

/** @param {object} message */
const lineOf = (message) => new TextEncoder().encode(`data: ${JSON.stringify(message)}\n\n`);

/** @param {string} id */
const failureOf = (id) => lineOf({
  msg: "process_completed", event_id: id, success: false, output: { error: trouble, visible: false }, // no toast
});

/** Of an event that was cancelled: it changes nothing. @param {string} id */
const endOf = (id) => lineOf({ msg: "process_completed", event_id: id, success: true, output: { data: [] } });

/** @param {Set<string>} ids @param {ReadableStreamDefaultController} controller */
function fail(ids, controller) {
  hasFailed ||= ids.size > 0;
  for (const id of ids) controller.enqueue(failureOf(id));
  ids.clear();
}

/** @param {{output?: {error?: unknown}}} message - of the server, about an event that failed */
function noteFailure({ output }) {
  hasFailed = true;
  trouble = typeof output?.error === "string" ? output.error : "The server could not do it.";
}

/** @param {Response} answer - that refuses an event */
async function wordsOf(answer) {
  const { detail, error } = await answer.json().catch(() => ({}));
  return [detail, error].find((words) => typeof words === "string") ?? `The server refused it (${answer.status}).`;
}

/** An event is to begin. @param {Asked} asked */
async function begin(asked) {
  hasFailed = false;
  giveUp = null;
  const answer = await answerTo(asked, TAKEN_MS).catch(() => null);
  if (answer?.ok) {
    const { event_id } = await answer.clone().json();
    (giveUp ? cancelled : underWay).add(event_id);
    giveUp?.(event_id);
    return answer;
  }
  trouble = answer ? await wordsOf(answer) : UNREACHABLE;
  const event_id = `untaken-${++count}`;
  untaken.add(event_id);
  if (stream) fail(untaken, stream);
  return Response.json({ event_id });
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
    const { done, value } = await within(reader.read(), SILENT_MS, LOST);
    if (done) throw new Error(LOST);
    const lines = (text + decoder.decode(value, { stream: true })).split("\n\n");
    text = lines.pop();
    for (const line of lines.filter((line) => line.startsWith("data:"))) {
      const message = /** @type {Message} */ (JSON.parse(line.slice("data:".length)));
      if (message.msg === "unexpected_error") throw new Error(LOST); // the server ends, or has forgotten this page
      const hasEnded = message.msg === "process_completed";
      if (hasEnded) underWay.delete(message.event_id);
      if (!cancelled.has(message.event_id)) {
        if (message.success === false) noteFailure(message);
        controller.enqueue(lineOf(message));
      } else if (hasEnded) {
        cancelled.delete(message.event_id);
        controller.enqueue(endOf(message.event_id));
      }
      if (message.msg === "close_stream") return;
    }
  }
}

/** The stream of the events of this page. @param {Asked} asked */
async function open(asked) {
  const answer = underWay.size ? await answerTo(asked, TAKEN_MS).catch(() => null) : null; // nothing else will come on it
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
    for (const id of cancelled) controller.enqueue(endOf(id));
    cancelled.clear();
    controller.enqueue(lineOf({ msg: "close_stream" }));
    controller.close();
  } catch { /* Gradio reads it no more */ }
}

/** @param {Asked} asked */
const answered = (asked) => answerTo(asked, DONE_MS)
  .catch(() => Response.json({ error: UNREACHABLE, detail: UNREACHABLE }, { status: 503 }));

const wait = (/** @type {number} */ ms) => new Promise((go) => setTimeout(go, ms));

/** Resolves once Gradio has read and drawn what the stream brought. */
async function untilDrawn() {
  for (let tries = 0; stream && stream.desiredSize < 1 && tries < 100; tries++) await wait(20);
  await wait(100);
}

/** Nothing waits for the server to hear that an event is over. @param {Asked} asked */
async function cancel({ send, options }) {
  const body = JSON.parse(String(options.body));
  const tell = (/** @type {string} */ event_id) => send(JSON.stringify({ ...body, event_id })).catch(() => {}); // or when the stream is closed
  if (underWay.delete(body.event_id)) cancelled.add(body.event_id);
  if (body.event_id) tell(body.event_id);
  else giveUp ??= tell; // the server has not named it yet
  cancelling += 1;
  await untilDrawn();
  setTimeout(() => { cancelling -= 1; }, 2 * TICK_MS); // the next one follows at once
  return Response.json({ success: true });
}

/** Resolves once Gradio 6.31 has cancelled all: it does so one after the other, and what began meanwhile with them. */
export async function untilCancelled() {
  while (cancelling) await wait(TICK_MS);
}

/** Gradio's requests go through here from now on; call it before the first of them. */
export function install() {
  const fetch = window.fetch.bind(window);
  const hows = [["queue/join", begin], ["queue/data", open], ["run/", answered], ["cancel", cancel], ["reset", cancel]];
  window.fetch = (asked, options) => {
    const address = String(asked instanceof Request ? asked.url : asked);
    const api = `${root()}${window.gradio_config?.api_prefix ?? "/gradio_api"}/`;
    const [, how] = hows.find(([path]) => address.startsWith(api + path)) ?? [];
    if (!how) return fetch(asked, options);
    const request = new AbortController();
    options?.signal?.addEventListener("abort", () => request.abort());
    const send = (body = options?.body) => fetch(asked, { ...options, body, signal: request.signal });
    return how({ send, abort: () => request.abort(), options });
  };
}
