"""What the page tells those who come from elsewhere: link previews, and readers of the API's documentation."""

import io
import re

import httpx
import PIL.Image
from playwright.sync_api import Browser, expect
from servers import Server


def test_the_api_documentation_shows_every_endpoint_and_asks_no_other_host(tiny: Server, browser: Browser) -> None:
    page, elsewhere, troubles = browser.new_page(), [], []
    page.on(
        "request",
        lambda request: None if request.url.startswith((tiny.url, "data:")) else elsewhere.append(request.url),
    )
    page.on("console", lambda line: troubles.append(line.text) if line.type == "error" else None)
    page.goto(f"{tiny.url}v1/docs")
    expect(page.get_by_role("heading", name="llava_demo")).to_be_visible()
    expect(page.locator(".opblock-summary-path", has_text="/v1/chat/completions")).to_be_visible()
    page.locator(".opblock-summary", has_text="/health/live").click()
    page.get_by_role("button", name="Try it out").click()
    page.get_by_role("button", name="Execute").click()
    expect(page.locator(".live-responses-table .response-col_status").last).to_contain_text("200")
    page.close()
    assert (elsewhere, troubles) == ([], [])


def test_a_link_preview_shows_our_title_words_and_picture_and_nothing_of_gradios(tiny: Server) -> None:
    html = httpx.get(tiny.url).text
    tags = re.findall(r'<meta\s+(?:property|name)="((?:og|twitter):[^"]+)"\s+content="([^"]*)"', html)
    assert len(tags) == len(dict(tags)), "each tag stands once"
    assert dict(tags)["og:title"] == "Ask a picture: LLaVA-1.5"
    assert "picture" in dict(tags)["og:description"]
    assert not any("gradio" in content.lower() for _, content in tags)
    assert html.count("<title>Ask a picture</title>") == 1
    picture = PIL.Image.open(io.BytesIO(httpx.get(dict(tags)["og:image"]).content))
    assert dict(tags)["og:image"].startswith(tiny.url)
    assert picture.size == (1200, 630)


def test_the_page_says_what_is_kept_where_and_for_how_long(tiny: Server) -> None:
    html = httpx.get(tiny.url).text
    assert "kept in your browser" in html
    assert "deleted after 7 days" in html
    assert "Llama 2 Community License" in html
