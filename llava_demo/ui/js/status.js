// How busy the engine is, for the masthead.
import { $, root } from "./dom.js";

const EVERY_MS = 3000;
let answering = "";

/** @param {{status: string, running: number, waiting: number, model?: string, engine?: string, stage?: string}} status */
function show({ status, running, waiting, model, engine, stage }) {
  $(".masthead .lamp").dataset.state = status === "ready" && running ? "busy" : status;
  const others = waiting - ($("#conversation .loading-spinner") ? 1 : 0); // without the question of this page
  const words = status !== "ready" ? [stage || status] : [running && `${running} answering`, others > 0 && `${others} waiting`];
  $(".masthead .load").textContent = words.filter(Boolean).join(", ");
  if (model === undefined) return; // the server cannot be reached
  const answers = JSON.stringify([model, engine, status === "ready"]);
  if (answering && answers !== answering) $("#answers-changed").click(); // it is loaded now, or its server is up
  answering = answers;
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
