// What the page does in the browser beyond Gradio: keys, the two switches of the masthead, how busy the engine is.
() => {
  const $ = (selector) => document.querySelector(selector);
  const isStreaming = () => $("#box .stop-button") !== null;

  // --- keys: Esc stops; while an answer streams Enter must not send a second question beside it
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !$("dialog[open]")) $("#box .stop-button")?.click();
    const isSending = event.key === "Enter" && !event.shiftKey && event.target.closest?.("#box textarea");
    if (isSending && isStreaming()) {
      event.preventDefault();
      event.stopImmediatePropagation();
    }
  }, { capture: true });

  // --- dark and light: the system's choice until somebody presses the switch
  const KEY = "ask-a-picture-theme";
  const isDark = () => document.body.classList.contains("dark");
  const setDark = (dark) => {
    document.body.classList.toggle("dark", dark);
    const name = dark ? "Light colours" : "Dark colours";
    $("#theme-switch")?.setAttribute("aria-label", name);
    $("#theme-switch")?.setAttribute("title", name);
  };
  const kept = localStorage.getItem(KEY);
  setDark(kept ? kept === "dark" : isDark());
  $("#theme-switch")?.addEventListener("click", () => {
    setDark(!isDark());
    localStorage.setItem(KEY, isDark() ? "dark" : "light");
  });

  // --- the panel with the settings: open where there is room for it beside the conversation
  const sidebar = $("#panel") ?? $(".sidebar");
  const isOpen = () => sidebar.classList.contains("open");
  const tell = () => $("#panel-switch")?.setAttribute("aria-expanded", String(isOpen()));
  const toggle = () => { sidebar.querySelector(".toggle-button").click(); setTimeout(tell, 50); };
  $("#panel-switch")?.addEventListener("click", toggle);
  if (innerWidth >= 1180 && !isOpen()) toggle();

  // --- the empty page begins at its top; Gradio scrolls every conversation to its end
  const toTop = () => {
    if ($("#conversation .placeholder-content")) $("#conversation .bubble-wrap").scrollTop = 0;
  };
  $("#conversation").addEventListener("load", toTop, { capture: true });
  for (const ms of [0, 100, 400]) setTimeout(toTop, ms);

  // --- Copy: the Chatbot holds its texts as HTML (see conversation.shown); what is copied is the text
  const write = navigator.clipboard?.writeText.bind(navigator.clipboard);
  if (write) {
    navigator.clipboard.writeText = (html) => {
      const decoder = document.createElement("textarea");
      decoder.innerHTML = html.replaceAll("<", "&lt;");
      return write(decoder.value);
    };
  }

  // --- "Use in code": the server writes the dialog anew, here it is opened, copied from and closed
  const code = $("#code");
  let way = null;
  const choose = (name) => {
    const ways = [...code.querySelectorAll("input")];
    const chosen = ways.find((input) => input.value === name) ?? ways[0];
    if (!chosen) return;
    chosen.checked = true;
    for (const section of code.querySelectorAll("section")) section.hidden = section.dataset.way !== chosen.value;
    const copy = code.querySelector(".copy");
    copy.hidden = !code.querySelector("section:not([hidden]) pre");
    copy.textContent = "Copy";
  };
  $("#code-switch")?.addEventListener("click", () => $("#write-code").click());
  document.addEventListener("code-written", () => {
    choose(way);
    code.querySelector("dialog").showModal();
  });
  code.addEventListener("change", (event) => choose(way = event.target.value));
  code.addEventListener("click", async ({ target }) => {
    if (target.matches("dialog") || target.closest(".close")) code.querySelector("dialog").close();
    if (!target.matches(".copy")) return;
    const pre = code.querySelector("section:not([hidden]) pre");
    getSelection().selectAllChildren(pre);
    await (write ? write(pre.textContent) : document.execCommand("copy")); // only https and this machine have `write`
    getSelection().empty();
    target.textContent = "Copied";
  });

  // --- names for what Gradio leaves without one: uploaded pictures, the message box, its button
  const name = () => {
    for (const img of document.querySelectorAll('#conversation .user-row img[alt=""]')) {
      img.alt = `Your picture ${decodeURIComponent(img.src.split("/").pop())}`;
    }
    $("#box textarea")?.setAttribute("aria-label", "Your question");
    $("#box .upload-button")?.setAttribute("aria-label", "Add pictures");
  };
  new MutationObserver(name).observe($("#conversation"), { childList: true, subtree: true });
  name();

  // --- how busy the engine is, for the status line
  let was = null;
  const show = ({ status, running, waiting, cached_tokens: cached, stage }) => {
    $(".masthead .lamp").dataset.state = status === "ready" && running ? "busy" : status;
    if (was === "loading" && status === "ready") showWhatAnswers();
    was = status;
    const words = status !== "ready" ? [stage ?? status] : [
      running && `${running} answering`,
      waiting && `${waiting} in line`,
      cached && `${cached.toLocaleString()} tokens cached`,
    ];
    $(".masthead .load").textContent = words.filter(Boolean).join(", ");
  };
  const root = (window.gradio_config?.root ?? "").replace(/\/$/, "");
  const showWhatAnswers = async () => { // now that it is loaded; until then it was what was planned
    const { components } = await (await fetch(`${root}/config`)).json();
    const written = (id) => components.find(({ props }) => props.elem_id === id).props.value;
    const masthead = document.createElement("template");
    masthead.innerHTML = written("masthead");
    $(".masthead .served").textContent = masthead.content.querySelector(".served").textContent;
    $("#about .about").outerHTML = written("about");
  };
  const look = async () => {
    if (document.visibilityState !== "visible") return;
    try {
      show(await (await fetch(`${root}/health/live`)).json());
    } catch {
      show({ status: "unreachable", running: 0, waiting: 0 });
    }
  };
  look();
  setInterval(look, 3000);
}
