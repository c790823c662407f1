// Shows in the masthead how busy the engine is.
import { $, root } from "./dom.js";

const EVERY_MS = 3000;
const PATIENCE_MS = 8000; // a network that drops all packets reports nothing
let answering = "";
let isLost = false; // the server

/** @param {{status: string, running: number, waiting: number, model?: string, engine?: string, stage?: string}} status */
function show({ status, running, waiting, model, engine, stage }) {
  $(".masthead .lamp").dataset.state = status === "ready" && running ? "busy" : status;
  const others = waiting - ($("#conversation .loading-spinner") ? 1 : 0); // without this page's question
  const words = status !== "ready" ? [stage || status] : [running && `${running} answering`, others > 0 && `${others} waiting`];
  $(".masthead .load").textContent = words.filter(Boolean).join(", ");
  const wasLost = isLost;
  isLost = model === undefined;
  if (isLost) return;
  if (wasLost) document.dispatchEvent(new CustomEvent("server-back"));
  const answers = JSON.stringify([model, engine, status === "ready"]);
  if (answering && answers !== answering) $("#answers-changed").click(); // the model is loaded now, or a remote server is up
  answering = answers;
}

async function look() {
  if (document.visibilityState !== "visible") return;
  try {
    show(await (await fetch(`${root()}/health/live`, { signal: AbortSignal.timeout(PATIENCE_MS) })).json());
  } catch {
    show({ status: "unreachable", running: 0, waiting: 0 });
  }
}

/** One request at a time: a browser has few connections to a server. */
async function keepLooking() {
  await look();
  setTimeout(keepLooking, EVERY_MS);
}

export function start() {
  keepLooking();
  for (const change of ["online", "offline"]) addEventListener(change, look);
}
