"""The page's own HTML: the masthead, the empty conversation, what the model sees, and what is served."""

import re
from html import escape
from pathlib import PurePath

import PIL.Image

from llava_demo.engines import EngineInfo
from llava_demo.model import FOR_PHOTOS
from llava_demo.ui.pictures import jpeg_url, patches_of
from llava_demo.ui.uploads import KEEP_UPLOADS_S

# A picture as the model reads it, in patches; the last one is the tail of a speech bubble.
MARK = """<svg class="mark" viewBox="0 0 32 32" aria-hidden="true" focusable="false">
<g fill="currentColor"><rect x="1" y="1" width="9" height="9" rx="2"/><rect x="11.5" y="1" width="9" height="9" rx="2"/>
<rect class="lit" x="22" y="1" width="9" height="9" rx="2"/><rect x="1" y="11.5" width="9" height="9" rx="2"/>
<rect x="11.5" y="11.5" width="9" height="9" rx="2"/><rect x="22" y="11.5" width="9" height="9" rx="2"/>
<path d="M3 22h5a2 2 0 0 1 2 2c0 4-3.4 6.6-7.6 7a1.3 1.3 0 0 1-1.4-1.3V24a2 2 0 0 1 2-2z"/></g></svg>"""

_MOON_AND_SUN = """<svg class="moon" viewBox="0 0 24 24" aria-hidden="true">
<path d="M20 14.6A8 8 0 0 1 9.4 4 8 8 0 1 0 20 14.6z"/></svg>
<svg class="sun" viewBox="0 0 24 24" aria-hidden="true"><circle cx="12" cy="12" r="4.2"/>
<path
d="M12 3v1.6m0 14.8V21M3 12h1.6m14.8 0H21M5.6 5.6l1.2 1.2m10.4 10.4 1.2 1.2m0-12.8-1.2 1.2M6.8 17.2l-1.2 1.2"/></svg>"""
_CHATS = '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M5 6.5h14M5 12h14M5 17.5h9"/></svg>'
_CODE = '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M8.5 7 3.5 12l5 5m7-10 5 5-5 5"/></svg>'
_SHARE = '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M12 15V4m-4 4 4-4 4 4M6 12v7h12v-7"/></svg>'
_KNOBS = """<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M4 7h9m5 0h2M4 17h2m5 0h9"/>
<circle cx="15.5" cy="7" r="2.3"/><circle cx="8.5" cy="17" r="2.3"/></svg>"""


def model_name(info: EngineInfo) -> str:
    """The model's name for people: "Miniature LLaVA", "LLaVA-1.5-7B", or the last part of another Hub id."""
    if info.is_miniature:
        return "Miniature LLaVA"
    billions = re.fullmatch(r"llava-hf/llava-1\.5-(\d+)b-hf", info.model)
    return f"LLaVA-1.5-{billions[1]}B" if billions else PurePath(info.model).name


WORDMARK = (
    f"""<a class="wordmark" href="." aria-label="Ask a picture, start anew">{MARK}<span>Ask a picture</span></a>"""
)


def served_html(info: EngineInfo) -> str:
    """What answers; js/status.js adds how busy it is."""
    served = " · ".join((info.device, info.precision, f"{info.engine} engine"))
    mode = info.image_mode or ""
    squares = "elsewhere" if info.engine == "remote" and info.image_side is None else "here"
    holds = (
        f'data-context="{info.context_tokens}" data-images="{info.max_images}" data-image-tokens="{info.image_tokens}"'
    )
    return f"""<b>{escape(model_name(info))}</b>
<span class="served" data-image-mode="{mode}" data-squares="{squares}" {holds}>{escape(served)}</span>"""


LAMP = '<i class="lamp" data-state="ready"></i>'
LOAD = '<span class="load" role="status" aria-live="off"></span>'

# js/main.js enables them once their listeners are there.
SWITCHES = f"""<div class="switches">
<button disabled id="new-chat">New chat</button>
<button disabled id="chats-switch" aria-label="Conversations" title="Conversations">{_CHATS}</button>
<button disabled id="share-switch" aria-label="Share" title="Share" aria-expanded="false">{_SHARE}</button>
<button disabled id="code-switch" aria-label="Use in code" title="Use in code">{_CODE}</button>
<button disabled id="theme-switch" aria-label="Dark colours" title="Dark or light">{_MOON_AND_SUN}</button>
<button disabled id="panel-switch" aria-label="Settings" title="Settings" aria-expanded="false">{_KNOBS}</button>
</div>"""


def welcome_html(info: EngineInfo) -> str:
    """The empty conversation, above the example cards."""
    return f"""<div class="welcome">
<h1>Show a picture, ask about it</h1>
<div class="give"><p class="lead"><strong>Drop a picture anywhere</strong>, paste it, or</p>
<p class="ways"><button type="button" class="choose">Choose a picture</button>
<button type="button" class="camera">Camera</button></p></div>
{_miniature_notice() if info.is_miniature else ""}</div>"""


def about_html(info: EngineInfo) -> str:
    """What is served and why, credits, and privacy."""
    facts = {
        "Model": info.model,
        "Device": info.device,
        "Precision": info.precision,
        "Engine": info.engine,
        "Attention": info.attention,
        "Context": f"{info.context_tokens:,} tokens",
        "A picture": f"{info.image_tokens:,} tokens, at most {info.max_images} in a conversation",
    }
    rows = "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in info.reasons)
    return f"""<section class="about"><h2>What answers here</h2><dl>{rows}</dl>
{f"<ul>{reasons}</ul>" if reasons else ""}
<p><a href="v1/docs" target="_blank">The APIs of this server</a></p>
<p>LLaVA-1.5 by Liu, Li, Li and Lee, 2023
(<a href="https://arxiv.org/abs/2310.03744" target="_blank" rel="noreferrer">paper</a>).
It can be wrong, and sure of it. The 7B and 13B weights are under the Llama 2 Community License.</p>
<p class="privacy">Your conversation is kept in your browser, not on this server. Uploaded pictures lie on the server
and are deleted after {KEEP_UPLOADS_S // 86_400} days; questions and answers are not logged.</p></section>"""


def seen_html(squares: list[PIL.Image.Image], image_tokens: int) -> str:
    """The squares that the vision tower reads, with its patches drawn over them; a hint if there is none yet."""
    if not squares:
        return """<section class="seen"><h2>What the model sees</h2>
<p class="hint">With your next question, its pictures appear here as the squares that the model reads.</p></section>"""
    patches = patches_of(image_tokens)
    figures = "".join(
        f'<div class="square" style="--patches:{patches or 1}">'
        f'<img src="{jpeg_url(square)}" alt="Picture {number} as the model sees it"></div>'
        for number, square in enumerate(squares, 1)
    )
    side = squares[-1].width
    grid = f", read in {patches} by {patches} patches" if patches else ""
    return f"""<section class="seen"><h2>What the model sees</h2><div class="squares">{figures}</div>
<p class="hint">{side} by {side} pixels{grid}: {image_tokens:,} tokens a picture.</p></section>"""


def progress_html(tokens_per_s: float) -> str:
    """The speed of the answer that is being written; 0 while it is not known."""
    return f"<p>Writing{f' · {tokens_per_s:.0f} tokens/s' if tokens_per_s else ''}</p>"


LEAVE_OUT = '<button type="button" data-choice="leave-out">Leave out the oldest picture</button>'
NEW_CHAT = '<button type="button" data-choice="new-chat">New chat</button>'


def refusal_html(words: str, choices: str = "", was_taken: bool = False) -> str:
    """Why a question was refused; js/context.js handles `choices`, the buttons of a full conversation.

    `was_taken`: the message box was emptied before, and js/asking.js fills it again.
    """
    taken = " data-was-taken" if was_taken else ""
    buttons = f'<span class="choices">{choices}</span>' if choices else ""
    return f'<p role="alert"{taken}>{escape(words)}{buttons}</p>'


def _miniature_notice() -> str:
    _, _, for_photos = FOR_PHOTOS.partition(". ")
    advice = re.sub(r"--model \S+", r"<code>python app.py \g<0></code>", escape(for_photos))
    return f"""<aside class="notice"><p><strong>The built-in miniature is answering.</strong>
It knows plain drawings: one to three circles, squares, triangles or stars, or one large digit, in red, green, blue,
yellow, orange, purple or black on white, gray or black. Shown anything else it says so.</p>
<details><summary>Ask about photos</summary><p>{advice}</p></details></aside>"""
