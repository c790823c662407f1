// Uploads, questions to the server about them (pictures.py answers), and changes of the message box from here.
import { $, isSending, root } from "./dom.js";

/**
 * @typedef {{refusal?: string, isUnreachable?: boolean, jpeg?: string, square?: string, patches?: number, words?: string}} Answer
 * @typedef {{path: string, url: string, orig_name: string, size: number, mime_type: string, meta: object}} FileData
 * @typedef {{text: string, files: FileData[]}} Message
 * @typedef {{id: number, ask: "check" | "seen", path: string}} Question
 */

const PATIENCE_MS = 60_000; // nobody is told of an event that the network swallowed
const STALLED_MS = 30_000; // nothing of an upload has moved
const UNREACHABLE = { refusal: "The server cannot be reached.", isUnreachable: true };

/** The server may be asked the same again. */
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

/** One batch of questions at a time, for Gradio holds one value of answers. */
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
 * What the server says of an uploaded picture: whether it can be sent, or how the model sees it.
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
    const request = new XMLHttpRequest(); // `fetch` tells no progress
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
      if (request.status !== 200) return reject(new Error(wordsOf(request)));
      const [path] = JSON.parse(request.responseText);
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

/**
 * @param {XMLHttpRequest} request - that was refused
 * @returns {string} the server's words
 */
function wordsOf(request) {
  try {
    return JSON.parse(request.responseText).error;
  } catch {
    return `The server refused the file (${request.status}).`;
  }
}

/** @type {((message: Message) => Message)[]} */
const changes = [];
let isChanging = false;

/**
 * Change what is in the message box. Gradio keeps it; so the change is made at once by an event of Gradio's.
 *
 * @param {(message: Message) => Message} change
 */
export function changeBox(change) {
  changes.push(change);
  makeChanges();
}

/** One event after the other: each begins with what the one before it left in the box; a question on its way empties it. */
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
    document.dispatchEvent(new CustomEvent("draft-changed", { detail: detail.message })); // Gradio tells of texts alone
  });
  document.addEventListener("box-changed", () => {
    isChanging = false;
    makeChanges();
  });
}
