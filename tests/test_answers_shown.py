"""Answers in a real Chromium: rendered as Markdown, safe whatever they say, with the boxes that they name."""

import base64
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from browsers import Tab
from pictures import png
from playwright.sync_api import expect
from servers import Server
from test_browser_turns import untaken

from llava_demo.ui.saved import FORMAT

Open = Callable[..., Tab]

MARKDOWN = """A **red** roof and `brown`:

1. One
2. Two
   - nested

| Thing | Colour |
|---|---|
| roof | *red* |

```
if a <b> && c:
```

Then $$a_1 * b_2 * c$$ and \\(x*y*z\\)."""

HOSTILE = [
    "<script>document.title = 'taken'</script>",
    "<img src=x onerror=\"document.title = 'taken'\">",
    "![picture](http://elsewhere.example/x.png)",
    "[![a](http://elsewhere.example/x.png)](http://elsewhere.example/)",
    "[link](javascript:document.title='taken')",
    "[link](data:text/html,<script>document.title='taken'</script>)",
    "[local](/gradio_api/logout)",
    "<svg onload=\"document.title='taken'\"><a href=\"javascript:document.title='taken'\">x</a></svg>",
    "`<img src=x onerror=\"document.title='taken'\">`",
    "<http://elsewhere.example/x>",
    "[ref]: http://elsewhere.example/x.png\n![ref]",
    "|<b onclick=\"document.title='taken'\">|\n|-|\n|<iframe src=http://elsewhere.example>|",
]


def shown(tab: Tab, answer: str, question: str = "What is this?", picture: bytes | None = None) -> None:
    """Open a saved conversation in which the model answered that."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": question}]
    if picture is not None:
        url = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
        parts.append({"type": "image_url", "image_url": {"url": url}})
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]
    body = {"format": FORMAT, "model": "tiny", "sampling": {}, "messages": messages}
    chooser = tab.page.locator("input[type=file][accept*='.zip']").first
    file = {"name": "talk.json", "mimeType": "application/json", "buffer": json.dumps(body).encode()}
    chooser.set_input_files(file)  # type: ignore[arg-type]
    expect(tab.answers.locator(".answer")).to_have_count(1)


# --- Markdown


def test_markdown_is_rendered_and_latex_stays_text(tiny: Server, open_tab: Open) -> None:
    tab = open_tab(tiny.url)
    shown(tab, MARKDOWN, question="Is **this** <b>text</b> $$x$$?")
    answer = tab.conversation.locator(".answer")
    expect(answer.locator("strong")).to_have_text("red")
    expect(answer.locator("ol > li")).to_have_count(2)
    expect(answer.locator("ol ul li")).to_have_text("nested")
    expect(answer.locator("td")).to_have_text(["roof", "red"])
    expect(answer.locator("pre")).to_have_text("if a <b> && c:\n")
    expect(answer).to_contain_text("Then $$a_1 * b_2 * c$$ and \\(x*y*z\\).")
    expect(tab.conversation.locator("[data-testid=user]")).to_have_text("Is **this** <b>text</b> $$x$$?")


def test_an_answer_is_copied_as_plain_text(tiny: Server, open_tab: Open) -> None:
    tab = open_tab(tiny.url, permissions=["clipboard-read", "clipboard-write"])
    shown(tab, MARKDOWN)
    tab.conversation.locator(".answer").hover()
    tab.button("Copy message").last.click()
    copied = tab.page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("A red roof and brown:\n\n1. One\n2. Two\n  - nested\n\nThing\tColour\nroof\tred\n")
    assert "if a <b> && c:" in copied
    tab.page.evaluate("getSelection().selectAllChildren(document.querySelector('.answer strong'))")
    tab.page.keyboard.press("ControlOrMeta+c")
    types = tab.page.evaluate("navigator.clipboard.read().then(items => items[0].types)")
    assert types == ["text/plain"]
    assert tab.page.evaluate("navigator.clipboard.readText()") == "red"


@pytest.mark.parametrize("as_question", [False, True], ids=["in an answer", "in a question"])
def test_nothing_that_is_said_runs_or_leaves_the_page(tiny: Server, open_tab: Open, as_question: bool) -> None:
    """`open_tab` fails the test for each request to another host, and each error on the console."""
    tab = open_tab(tiny.url)
    said = "\n\n".join(HOSTILE)
    shown(tab, *(("Yes.", said) if as_question else (said,)))
    assert tab.page.title() == "Ask a picture"
    message = tab.conversation.locator("[data-testid=user]" if as_question else ".answer")
    allowed = "script, img, svg, iframe, [onerror], [onload], [onclick], a:not([href^='http'])"
    expect(message.locator(allowed)).to_have_count(0)
    for link in message.locator("a").all():
        expect(link).to_have_attribute("target", "_blank")
        expect(link).to_have_attribute("rel", "noreferrer nofollow")
    expect(message).to_contain_text("<script>document.title = 'taken'</script>")


# --- boxes

WIDE, TALL = (1600, 900), (600, 1600)


@pytest.mark.parametrize(
    ("size", "coordinates", "by_hand"),
    [
        # pad: the square is 1,600 x 1,600, the photo begins 350 pixels below its top
        (WIDE, "[0.25, 0.30, 0.60, 0.70]", (400, 130, 960, 770)),
        (WIDE, "[0.12, 0.10, 0.55, 0.80]", (192, 0, 880, 900)),  # beyond the photo: its edge
        # the square is 1,600 x 1,600, the photo begins 500 pixels right of its left side
        (TALL, "[0.40, 0.25, 0.60, 0.75]", (140, 400, 460, 1200)),
        (TALL, "[0, .5, 1, 1]", (0, 800, 600, 1600)),
    ],
)
def test_a_box_is_drawn_where_it_lies_on_the_photo(
    tiny: Server, open_tab: Open, size: tuple[int, int], coordinates: str, by_hand: tuple[int, ...]
) -> None:
    tab = open_tab(tiny.url)
    shown(tab, f"The red roof is at {coordinates}.", picture=png("gray", size))
    box = tab.conversation.locator(".boxes .box")
    expect(box).to_have_text("The red roof")
    drawn = box.evaluate(
        """box => { const photo = box.parentElement.querySelector("img");
            const [a, b, scale] = [box.getBoundingClientRect(), photo.getBoundingClientRect(), photo.naturalWidth];
            return [a.left - b.left, a.top - b.top, a.right - b.left, a.bottom - b.top]
                .map(at => at * scale / b.width); }"""
    )
    assert all(abs(at - wanted) <= 1 for at, wanted in zip(drawn, by_hand, strict=True)), drawn


def test_several_boxes_have_their_words_and_light_up_with_them(tiny: Server, open_tab: Open) -> None:
    tab = open_tab(tiny.url)
    shown(
        tab,
        "The cat sits on [0.1, 0.3, 0.4, 0.6] and **a dog** is at [0.5, 0.3, 0.9, 0.6]. "
        "Not [2, 3, 4, 5] or [0.9, 0, 0.1, 1].",
        picture=png("gray", WIDE),
    )
    boxes = tab.conversation.locator(".boxes .box")
    expect(boxes).to_have_text(["The cat sits", "a dog"])
    marks = tab.conversation.locator(".coordinates")
    expect(marks).to_have_count(2)
    marks.nth(1).hover()
    expect(boxes.nth(1)).to_contain_class("lit")
    expect(boxes.nth(0)).not_to_contain_class("lit")
    boxes.nth(0).hover()
    expect(marks.nth(0)).to_contain_class("lit")
    tab.conversation.locator(".boxes img").click(position={"x": 5, "y": 5})
    expect(tab.page.locator(".lightbox .box")).to_have_text(["The cat sits", "a dog"])


def test_a_lone_box_is_named_by_its_question_and_without_a_picture_there_is_none(tiny: Server, open_tab: Open) -> None:
    tab = open_tab(tiny.url)
    asked = "Please provide the bounding box coordinate of the region this sentence describes: the blue boat"
    shown(tab, "[0.10, 0.30, 0.50, 0.60]", question=asked, picture=png("gray", WIDE))
    expect(tab.conversation.locator(".boxes .box")).to_have_text("the blue boat")
    shown(tab, "It is at [0.10, 0.30, 0.50, 0.60]")
    expect(tab.answers).to_have_text("It is at [0.10, 0.30, 0.50, 0.60]")
    expect(tab.conversation.locator(".boxes")).to_have_count(0)


def test_boxes_of_every_way_to_make_a_square_lie_right(tiny: Server, open_tab: Open) -> None:
    tab = open_tab(tiny.url)
    on_photo = """async ([corners, mode]) => {
        const [main] = [...document.scripts].filter(script => script.src.endsWith("/main.js"));
        const { onPhoto } = await import(main.src.replace("main.js", "boxes.js"));
        return onPhoto(corners, 1600, 900, mode); }"""
    half = [0.25, 0.25, 0.75, 0.75]
    assert tab.page.evaluate(on_photo, [half, "pad"]) == [400, 50, 1200, 850]
    assert tab.page.evaluate(on_photo, [half, "crop"]) == [575, 225, 1025, 675]
    assert tab.page.evaluate(on_photo, [half, "resize"]) == [400, 225, 1200, 675]


# --- while an answer is written

SHIFTS = """() => {
    window.shifted = 0;
    const isShown = ({ node }) => node?.parentElement?.closest("#conversation");
    new PerformanceObserver(list => {
        for (const { value, sources } of list.getEntries()) if (sources.some(isShown)) window.shifted += value;
    }).observe({ type: "layout-shift" });
}"""


def test_a_picture_and_a_growing_answer_move_nothing_and_its_speed_is_told(tiny: Server, open_tab: Open) -> None:
    tab = open_tab(tiny.url)
    tab.set("max_tokens", 60)
    # On a slow network a picture is sent before its thumbnail has come back.
    tab.page.route("**/gradio_api/file=**", lambda _: None)
    tab.add({"name": "wide.png", "mimeType": "image/png", "buffer": png("gray", WIDE)})
    tab.page.evaluate(SHIFTS)
    with tiny.slow(0.05):
        tab.ask("Tell me a story. " * 30)
        expect(tab.page.locator("#progress")).to_contain_text(re.compile(r"Writing · \d+ tokens/s"))
        tab.page.unroute("**/gradio_api/file=**")  # and they go on
        tab.wait_for_end()
    expect(tab.notes.last).to_contain_text("60 tokens")
    assert tab.page.evaluate("window.shifted") < 0.01


def test_on_a_slow_network_nothing_moves_when_the_question_is_taken(tiny: Server, open_tab: Open) -> None:
    """The box shrinks at the press of the key; later than half a second after it, browsers count that as a fault."""
    tab = open_tab(tiny.url)
    tab.set("max_tokens", 5)
    tab.ask("Tell me a story.")
    tab.wait_for_end()
    tab.add({"name": "wide.png", "mimeType": "image/png", "buffer": png("gray", WIDE)})
    tab.question.fill("Tell me another one. " * 20)
    tab.page.wait_for_function("document.querySelector('#box textarea').clientHeight > 60")
    tab.page.evaluate("""async () => {
        for (const _ of [1, 2]) await new Promise(requestAnimationFrame);
        window.surprises = [];
        new PerformanceObserver(list => {
            const late = list.getEntries().filter(({ hadRecentInput }) => !hadRecentInput);
            window.surprises.push(...late.map(({ value }) => value));
        }).observe({ type: "layout-shift" });
    }""")
    with untaken(tab) as wait:
        tab.question.press("Enter")
        wait()
        tab.page.wait_for_timeout(700)
    expect(tab.answers).to_have_count(2)
    tab.wait_for_end()
    assert sum(tab.page.evaluate("window.surprises")) < 0.01


def test_a_reader_that_scrolled_up_stays_there_and_comes_back_to_the_end(tiny: Server, open_tab: Open) -> None:
    tab = open_tab(tiny.url, viewport={"width": 900, "height": 420})
    wrap = tab.page.locator("#conversation .bubble-wrap")
    end = "wrap => wrap.scrollHeight - wrap.clientHeight - wrap.scrollTop"
    with tiny.slow():
        tab.ask("Tell me a long story.\n\n" * 8)
        expect(tab.answers.last).to_have_text(re.compile(r"\S"))
        wrap.hover()
        tab.page.mouse.wheel(0, -60)  # less than what Gradio takes for reading on
        tab.page.wait_for_function("() => document.querySelector('#conversation .bubble-wrap').scrollTop > 0")
        tab.page.wait_for_timeout(300)
        there, words = wrap.evaluate("wrap => wrap.scrollTop"), tab.answers.last.inner_text()
        expect(tab.answers.last).not_to_have_text(words)
        assert wrap.evaluate("wrap => wrap.scrollTop") == there
        tab.page.mouse.wheel(0, 10_000)
        tab.page.wait_for_function(f"() => ({end})(document.querySelector('#conversation .bubble-wrap')) < 60")
        tab.stop.click()
    tab.wait_for_end()
