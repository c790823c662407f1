// The page's own scripts: each concern is a module with a `start` that is called once.
import * as accessibility from "./accessibility.js";
import * as asking from "./asking.js";
import * as boxes from "./boxes.js";
import * as camera from "./camera.js";
import * as chips from "./chips.js";
import * as code from "./code.js";
import * as colours from "./colours.js";
import { install } from "./connection.js";
import * as context from "./context.js";
import * as conversation from "./conversation.js";
import { $, $$ } from "./dom.js";
import * as drawer from "./drawer.js";
import * as keeping from "./keeping.js";
import * as keyboard from "./keyboard.js";
import * as keys from "./keys.js";
import * as lightbox from "./lightbox.js";
import * as markdown from "./markdown.js";
import * as panel from "./panel.js";
import * as pictures from "./pictures.js";
import * as removing from "./removing.js";
import * as server from "./server.js";
import * as settings from "./settings.js";
import * as share from "./share.js";
import * as status from "./status.js";
import * as turns from "./turns.js";

const CONCERNS = [
  server, pictures, camera, share, keys, keyboard, colours, panel, conversation, markdown, boxes, lightbox, chips, code, status,
  accessibility, drawer, removing, asking, keeping, settings, context, turns,
];
const PARTS = [".masthead .switches", "#panel .toggle-button", "#share-menu", "#conversation .bubble-wrap", "#box textarea", "#chips div",
  "#giving ul", "#code dialog", "#show-kept", "#restore-settings", "#progress", "#served .served"];

install();

/** Gradio draws the parts one after the other; all concerns start as soon as the last one is there. */
function startOnceDrawn() {
  if (!PARTS.every($)) return;
  drawing.disconnect();
  for (const concern of CONCERNS) concern.start();
  for (const button of $$(".switches button")) button.disabled = false;
}
const drawing = new MutationObserver(startOnceDrawn);
drawing.observe(document.body, { childList: true, subtree: true });
startOnceDrawn(); // on a slow network these scripts come after the last part
