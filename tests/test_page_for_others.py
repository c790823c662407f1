"""What the page tells those who come from elsewhere: programmers who read the API's documentation."""

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
