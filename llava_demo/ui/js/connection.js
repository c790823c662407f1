// The network between this page and its server. When Gradio 6.31 loses a connection it refuses all further events and
// reloads the page, which would lose what is on it. So its requests go through here, where a lost connection becomes a
// failed event and a closed stream, which Gradio handles.
import { root } from "./dom.js";

/** @typedef {{msg: string, event_id?: string | null, success?: boolean, output?: object}} Message - on the stream of a page's events */
/** @typedef {{send: (body?: BodyInit) => Promise<Response>, abort: () => void, options?: RequestInit}} Asked - a request of Gradio's */

const UNREACHABLE = "The server cannot be reached.";
const LOST = "The connection to the server was lost.";
// A network may drop all packets and close nothing; there is no error then.
const SILENT_MS = 20_000; // the page's own events send something every half second, Gradio a heartbeat every 15
const TAKEN_MS = 20_000; // the server takes an event at once, and does it later
const TICK_MS = 20;
const DONE_MS = 60_000; // it may fetch a picture from the web

/** @type {Set<string>} events that the server answers on the stream */
const underWay = new Set();
/** @type {Set<string>} events that it did not take; they fail on the stream, where Gradio waits for them */
const untaken = new Set();
/** @type {ReadableStreamDefaultController | null} */
let stream = null;
/** @type {Set<string>} events that the page cancelled; Gradio 6.31 shows their updates until the server ends them */
const cancelled = new Set();
/** @type {((id: string) => void) | null} cancels the event that the server is about to take */
let giveUp = null;
let cancelling = 0; // requests in flight
let trouble = UNREACHABLE;
let hasFailed = false;
let count = 0;

/** Why an event failed; "" if it was cancelled, which Gradio 6.31 reports as a failure too. */
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

/** A request that takes too long is aborted, or a browser sends it again once the network is back. @param {Asked} asked @param {number} ms */
const answerTo = (asked, ms) => within(asked.send(), ms, UNREACHABLE).catch((error) => {
  asked.abort();
  throw error;
});

/**
 * The same with its whole body, since a connection may break after the head. The page of a hotel's Wi-Fi, in place of
 * our server's JSON, is no answer.
 *
 * @param {Asked} asked
 * @param {number} ms
 */
async function wholeAnswerTo(asked, ms) {
  const send = async () => {
    const answer = await asked.send();
    if (answer.ok && !answer.headers.get("content-type")?.includes("json")) throw new Error(UNREACHABLE);
    return new Response(await answer.blob(), answer);
  };
  return answerTo({ ...asked, send }, ms);
}

/** @param {object} message */
const lineOf = (message) => new TextEncoder().encode(`data: ${JSON.stringify(message)}\n\n`);

/** @param {string} id */
const failureOf = (id) => lineOf({
  msg: "process_completed", event_id: id, success: false, output: { error: trouble, visible: false }, // no toast
});

/** The end of a cancelled event, without changes. @param {string} id */
const endOf = (id) => lineOf({ msg: "process_completed", event_id: id, success: true, output: { data: [] } });

/** @param {Set<string>} ids @param {ReadableStreamDefaultController} controller */
function fail(ids, controller) {
  hasFailed ||= ids.size > 0;
  for (const id of ids) controller.enqueue(failureOf(id));
  ids.clear();
}

/** @param {{output?: {error?: unknown}}} message - the server's, about a failed event */
function noteFailure({ output }) {
  hasFailed = true;
  trouble = typeof output?.error === "string" ? output.error : "The server could not do it.";
}

/** @param {Response} answer - that refuses an event */
async function wordsOf(answer) {
  const { detail, error } = await answer.json().catch(() => ({}));
  return [detail, error].find((words) => typeof words === "string") ?? `The server refused it (${answer.status}).`;
}

/** Start an event. @param {Asked} asked */
async function begin(asked) {
  hasFailed = false;
  giveUp = null;
  const answer = await wholeAnswerTo(asked, TAKEN_MS).catch(() => null);
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
 * Pass on the server's messages until it closes the stream.
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
      if (message.msg === "unexpected_error") throw new Error(LOST); // the server ends, or has dropped this session
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

/** Open the stream of this page's events. @param {Asked} asked */
async function open(asked) {
  const answer = underWay.size ? await answerTo(asked, TAKEN_MS).catch(() => null) : null; // nothing else would come on it
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
  } catch { /* Gradio no longer reads it */ }
}

/** @param {Asked} asked */
const answered = (asked) => wholeAnswerTo(asked, DONE_MS)
  .catch(() => Response.json({ error: UNREACHABLE, detail: UNREACHABLE }, { status: 503 }));

const wait = (/** @type {number} */ ms) => new Promise((go) => setTimeout(go, ms));

/** Resolves once Gradio has read and drawn what the stream brought. */
async function untilDrawn() {
  for (let tries = 0; stream && stream.desiredSize < 1 && tries < 100; tries++) await wait(20);
  await wait(100);
}

/** Cancel an event without waiting for the server. @param {Asked} asked */
async function cancel({ send, options }) {
  const body = JSON.parse(String(options.body));
  const tell = (/** @type {string} */ event_id) => send(JSON.stringify({ ...body, event_id })).catch(() => {}); // the server also notices the closed stream
  if (underWay.delete(body.event_id)) cancelled.add(body.event_id);
  if (body.event_id) tell(body.event_id);
  else giveUp ??= tell; // the server has not named it yet
  cancelling += 1;
  await untilDrawn();
  setTimeout(() => { cancelling -= 1; }, 2 * TICK_MS); // the next one follows at once
  return Response.json({ success: true });
}

/** Resolves once Gradio 6.31 has cancelled all events: one after the other, and new ones too if they have started. */
export async function untilCancelled() {
  while (cancelling) await wait(TICK_MS);
}

/** Send Gradio's requests through here; call it before the first one. */
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
