// How busy the engine is, for the masthead.
import { $, root } from "./dom.js";

const EVERY_MS = 3000;
let before = "";

/** @param {{status: string, running: number, waiting: number, cached_tokens?: number, stage?: string}} status */
function show({ status, running, waiting, cached_tokens: cached, stage }) {
  $(".masthead .lamp").dataset.state = status === "ready" && running ? "busy" : status;
  if (before === "loading" && status === "ready") showWhatAnswers();
  before = status;
  const words = status !== "ready" ? [stage ?? status] : [
    running && `${running} answering`,
    waiting && `${waiting} waiting`,
    cached && `${cached.toLocaleString()} tokens cached`,
  ];
  $(".masthead .load").textContent = words.filter(Boolean).join(", ");
}

/** The model is loaded now; until then the page showed what was planned. */
async function showWhatAnswers() {
  const { components } = await (await fetch(`${root()}/config`)).json();
  const written = (id) => components.find(({ props }) => props.elem_id === id).props.value;
  const masthead = document.createElement("template");
  masthead.innerHTML = written("masthead");
  $(".masthead").dataset.imageMode = masthead.content.querySelector(".masthead").dataset.imageMode;
  $(".masthead .served").textContent = masthead.content.querySelector(".served").textContent;
  $("#about .about").outerHTML = written("about");
}

async function look() {
  if (document.visibilityState !== "visible") return;
  try {
    show(await (await fetch(`${root()}/health/live`)).json());
  } catch {
    show({ status: "unreachable", running: 0, waiting: 0 });
  }
}

export function start() {
  look();
  setInterval(look, EVERY_MS);
}
