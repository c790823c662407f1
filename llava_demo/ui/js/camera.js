// The camera: on a phone its own app, elsewhere a dialog with the camera's picture and a shutter.
import { $, $$, addToPage, make, watch } from "./dom.js";
import { jpegOf } from "./formats.js";
import { add } from "./pictures.js";

const LARGEST = { width: { ideal: 1920 }, height: { ideal: 1080 } };

/** A phone's own app focuses and flashes better than a page. */
function openPhonesOwn() {
  const input = make("input", { type: "file", accept: "image/*" });
  input.setAttribute("capture", "environment");
  input.addEventListener("change", () => add(input.files));
  input.click();
}

async function openDialog() {
  const dialog = $("#camera");
  const video = dialog.querySelector("video");
  const said = dialog.querySelector("[role=alert]");
  const shutter = dialog.querySelector(".take");
  [said.textContent, shutter.disabled, shutter.hidden] = ["", true, false];
  dialog.showModal();
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: LARGEST });
    if (!dialog.open) stop(); // closed while the browser asked for permission
  } catch (error) {
    shutter.hidden = true;
    const isForbidden = error.name === "NotAllowedError";
    said.textContent = isForbidden ? "The browser does not allow this page to use the camera." : "There is no camera that can be used.";
  }
}

function stop() {
  const video = $("#camera video");
  for (const track of video.srcObject?.getTracks() ?? []) track.stop();
  video.srcObject = null;
}

async function take() {
  const video = $("#camera video");
  if (!video.videoWidth) return;
  const jpeg = await jpegOf(video, video.videoWidth, video.videoHeight);
  $("#camera").close();
  add([new File([jpeg], `camera-${new Date().toISOString().slice(0, 19).replaceAll(":", "-")}.jpg`, { type: jpeg.type })]);
}

export function start() {
  const dialog = make("dialog", { id: "camera", ariaLabel: "Camera" },
    make("video", { autoplay: true, muted: true, playsInline: true, onplaying: () => { dialog.querySelector(".take").disabled = false; } }),
    make("p", { role: "alert" }),
    make("footer", {},
      make("button", { type: "button", className: "cancel", onclick: () => dialog.close() }, "Cancel"),
      make("button", { type: "button", className: "take", onclick: take }, "Take the picture")));
  dialog.addEventListener("close", stop);
  addToPage(dialog);
  document.addEventListener("click", ({ target }) => {
    if (target.closest(".camera")) (matchMedia("(pointer: coarse)").matches ? openPhonesOwn : openDialog)();
  });
  const canTake = navigator.mediaDevices || matchMedia("(pointer: coarse)").matches; // neither without https
  watch("#conversation", () => { for (const button of $$(".camera")) button.hidden = !canTake; });
}
