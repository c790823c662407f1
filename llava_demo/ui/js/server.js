// Uploads, questions to the server about them (pictures.py answers), and changes of the message box by scripts.
import { $, isSending, root } from "./dom.js";

/**
 * @typedef {{refusal?: string, isUnreachable?: boolean, jpeg?: string, square?: string, patches?: number, words?: string}} Answer
 * @typedef {{path: string, url: string, orig_name: string, size: number, mime_type: string, meta: object}} FileData
 * @typedef {{text: string, files: FileData[]}} Message
 * @typedef {{id: number, ask: "check" | "seen", path: string}} Question
 */

const PATIENCE_MS = 60_000; // a network may drop an event without an error
const STALLED_MS = 30_000; // without progress of an upload
const UNREACHABLE = { refusal: "The server cannot be reached.", isUnreachable: true };

/** There was no answer; the same may be asked again. */
export class Unreachable extends Error {
  constructor() {
    super(UNREACHABLE.refusal);
  }
}

/** @type {Map<number, (answer: Answer) => void>} */
const answerTo = new Map();
/** @type {Question[]} */
let waiting = [];
/** @type {Question[]} */
let asked = [];
let lastId = 0;
let giveUp = 0;

/** One batch of questions at a time, since Gradio has one value for the answers. */
function askWhatWaits() {
  if (asked.length || !waiting.length) return;
  [asked, waiting] = [waiting, []];
  giveUp = setTimeout(() => takeAnswers([]), PATIENCE_MS);
  $("#ask-about-pictures").click();
}

/** @param {(Answer & {id: number})[]} answers */
function takeAnswers(answers) {
  clearTimeout(giveUp);
  for (const { id } of asked.splice(0)) {
    answerTo.get(id)(answers?.find((answer) => answer.id === id) ?? UNREACHABLE);
    answerTo.delete(id);
  }
  askWhatWaits();
}

/**
 * Ask the server about an uploaded picture: whether it is valid, or how the model sees it.
 *
 * @param {Question["ask"]} ask
 * @param {string} path - of the upload, as the server named it
 * @returns {Promise<Answer>}
 */
export function askAbout(ask, path) {
  return new Promise((resolve) => {
    waiting.push({ id: ++lastId, ask, path });
    answerTo.set(lastId, resolve);
    askWhatWaits();
  });
}

/**
 * @param {File} file
 * @param {(part: number) => void} onProgress - from 0 to 1
 * @returns {Promise<FileData>}
 * @throws {Error} with words for people; `Unreachable` where there was no answer
 */
export function upload(file, onProgress) {
  const { api_prefix: prefix = "/gradio_api" } = window.gradio_config;
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest(); // `fetch` reports no progress
    let stalled = 0;
    const waitOn = () => {
      clearTimeout(stalled);
      stalled = setTimeout(() => request.abort(), STALLED_MS);
    };
    request.upload.addEventListener("progress", ({ loaded, total }) => {
      waitOn();
      onProgress(loaded / total);
    });
    for (const end of ["error", "abort"]) request.addEventListener(end, () => reject(new Unreachable()));
    request.addEventListener("loadend", () => clearTimeout(stalled));
    request.addEventListener("load", () => {
      if (request.status === 413) return reject(new Error("The file is too large."));
      if (request.status !== 200) return reject(new Error(jsonIn(request)?.error ?? `The server refused the file (${request.status}).`));
      const [path] = jsonIn(request) ?? [];
      if (!path) return reject(new Unreachable()); // a hotel's Wi-Fi, in place of our server
      const url = `${root()}${prefix}/file=${path}`;
      resolve({ path, url, orig_name: file.name, size: file.size, mime_type: file.type, meta: { _type: "gradio.FileData" } });
    });
    const body = new FormData();
    body.append("files", file, file.name);
    request.open("POST", `${root()}${prefix}/upload`);
    request.send(body);
    waitOn();
  });
}

/** What was answered, if it is JSON. @param {XMLHttpRequest} request */
function jsonIn(request) {
  try {
    return JSON.parse(request.responseText);
  } catch {
    return null;
  }
}

/** @type {((message: Message) => Message)[]} */
const changes = [];
let isChanging = false;

/**
 * Change the message box. Gradio holds its value, so the change is made by a Gradio event.
 *
 * @param {(message: Message) => Message} change
 */
export function changeBox(change) {
  changes.push(change);
  makeChanges();
}

/** One event at a time: each starts with the result of the one before. While a question is sent, changes wait. */
export function makeChanges() {
  if (isChanging || isSending() || !changes.length) return;
  isChanging = true;
  $("#change-box").click();
}

export function start() {
  document.addEventListener("picture-questions", ({ detail }) => { detail.questions = asked; });
  document.addEventListener("picture-answers", ({ detail }) => takeAnswers(detail));
  document.addEventListener("box-changing", ({ detail }) => {
    for (const change of changes.splice(0)) detail.message = change(detail.message);
    document.dispatchEvent(new CustomEvent("draft-changed", { detail: detail.message })); // Gradio reports only changed texts
  });
  document.addEventListener("box-changed", () => {
    isChanging = false;
    makeChanges();
  });
}
