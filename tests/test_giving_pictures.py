"""Pictures given to the page in a real Chromium: dropped, pasted, chosen, taken, refused, looked at."""

import base64
import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from browsers import Tab
from pictures import encoded, png
from playwright.sync_api import Locator, Route, expect
from servers import Server
from test_images import HEIC

EXAMPLES = Path(__file__).parents[1] / "examples"
CIRCLE_AND_SQUARE = EXAMPLES / "circle-and-square.png"
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
IS_SHOWN = "img => img.complete && img.naturalWidth > 0"

Open = Callable[..., Tab]


def file(name: str, data: bytes, mime_type: str = "") -> dict[str, Any]:
    return {"name": name, "mimeType": mime_type, "buffer": data}


def transfer_of(tab: Tab, files: dict[str, bytes], texts: dict[str, str] | None = None) -> Any:
    """What the browser hands over in a drop or a paste."""
    return tab.page.evaluate_handle(
        """([files, texts]) => {
            const transfer = new DataTransfer();
            for (const [name, data] of Object.entries(files)) {
                const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0));
                transfer.items.add(new File([bytes], name, {type: "image/png"}));
            }
            for (const [type, text] of Object.entries(texts)) transfer.setData(type, text);
            return transfer; }""",
        [{name: base64.b64encode(data).decode() for name, data in files.items()}, texts or {}],
    )


def paste(target: Locator, clipboard: Any) -> None:
    target.evaluate(
        """(target, clipboardData) => target.dispatchEvent(
            new ClipboardEvent("paste", {clipboardData, bubbles: true, cancelable: true}))""",
        clipboard,
    )


def size_of(img: Locator) -> list[int]:
    img.evaluate("img => img.decode()")
    size: list[int] = img.evaluate("img => [img.naturalWidth, img.naturalHeight]")
    return size


# --- the ways in


def test_pictures_are_taken_wherever_they_are_dropped(tiny: Server, open_tab: Open) -> None:
    tab = open_tab(tiny.url)
    overlay = "getComputedStyle(document.body, '::after').content"
    dragged = {"dataTransfer": transfer_of(tab, {"red.png": png("red"), "blue.png": png("blue")})}
    tab.page.locator(".masthead").dispatch_event("dragenter", dragged)
    assert tab.page.evaluate(overlay) == '"Drop the picture anywhere"'
    tab.page.locator("#conversation h1").dispatch_event("drop", dragged)
    expect(tab.thumbnails).to_have_count(2)
    assert tab.page.evaluate(overlay) == "none"
    for thumbnail, name in zip(tab.thumbnails.all(), ["red.png", "blue.png"], strict=True):
        expect(thumbnail.locator("img")).to_have_attribute("alt", name)  # in the order in which they were given
    tab.page.locator("#box .full-container").dispatch_event(
        "drop", {"dataTransfer": transfer_of(tab, {"green.png": png("green")})}
    )
    expect(tab.thumbnails).to_have_count(3)


def test_pictures_are_pasted_wherever_the_focus_is_and_text_stays_text(tiny: Server, open_tab: Open) -> None:
    tab = open_tab(tiny.url)
    picture = {"image.png": png("red")}
    tab.page.get_by_role("button", name="Settings").focus()
    paste(tab.page.locator("body"), transfer_of(tab, picture))
    expect(tab.thumbnails).to_have_count(1)
    paste(tab.question, transfer_of(tab, picture))
    expect(tab.thumbnails).to_have_count(2)
    from_a_text_program = {"text/plain": "Hello", "text/html": "<p>Hello</p>"}
    paste(tab.question, transfer_of(tab, picture, from_a_text_program))
    tab.question.fill("a")  # whatever a paste would have started is under way now
    expect(tab.page.locator("#on-their-way li")).to_have_count(0)
    expect(tab.thumbnails).to_have_count(2)


def test_the_empty_page_has_a_button_that_chooses_and_one_for_the_camera(tiny: Server, open_tab: Open) -> None:
    tab = open_tab(tiny.url, permissions=["camera"])
    with tab.page.expect_file_chooser() as chooser:
        tab.page.get_by_role("button", name="Choose a picture").click()
    chooser.value.set_files(str(CIRCLE_AND_SQUARE))
    expect(tab.thumbnails).to_have_count(1)
    tab.page.get_by_role("button", name="Camera").click()
    video = tab.page.locator("#camera video")
    tab.page.wait_for_function("document.querySelector('#camera video').videoWidth > 0")
    tab.page.get_by_role("button", name="Take the picture").click()
    expect(video).to_be_hidden()
    expect(tab.thumbnails).to_have_count(2)
    assert video.evaluate("video => video.srcObject") is None  # the camera's light is off
    assert size_of(tab.thumbnails.last.locator("img"))[0] > 100


def test_a_page_that_may_not_use_the_camera_says_so(tiny: Server, open_tab: Open) -> None:
    tab = open_tab(tiny.url)
    forbid = "async () => { throw new DOMException('no', 'NotAllowedError') }"
    tab.page.evaluate(f"() => {{ navigator.mediaDevices.getUserMedia = {forbid} }}")
    tab.page.get_by_role("button", name="Camera").click()
    expect(tab.page.locator("#camera").get_by_role("alert")).to_contain_text("does not allow")
    expect(tab.page.locator("#camera .take")).to_be_hidden()
    tab.page.get_by_role("button", name="Cancel").click()
    expect(tab.page.locator("#camera")).to_be_hidden()


# --- what becomes of a file


def test_bytes_decide_what_a_picture_is_whatever_its_name(tiny: Server, open_tab: Open) -> None:
    jpeg = encoded(PIL.Image.new("RGB", (40, 30), "green"), "JPEG")
    tab = open_tab(tiny.url)
    tab.add(
        file("photo", jpeg),
        file("DSC_1.jpg_large", jpeg),
        file("scan.jfif", jpeg),
        file("notes.txt", jpeg, "text/plain"),
        file("wrong.png", encoded(PIL.Image.new("RGB", (40, 30)), "WEBP"), "image/png"),
    )
    expect(tab.thumbnails).to_have_count(5)
    for img in tab.thumbnails.locator("img").all():
        assert size_of(img) == [40, 30]
    names = [img.get_attribute("alt") for img in tab.thumbnails.locator("img").all()]
    assert names == ["photo.jpg", "DSC_1.jpg", "scan.jpg", "notes.jpg", "wrong.webp"]
    tab.set("max_tokens", 4)
    tab.ask("What are these?")
    tab.wait_for_end()
    expect(tab.pictures).to_have_count(5)
    expect(tab.notes.last).to_contain_text("4 tokens")


@pytest.mark.parametrize(
    ("name", "data", "size"),
    [
        ("IMG_0001.HEIC", HEIC, [32, 16]),
        ("scan.tif", encoded(PIL.Image.new("RGB", (60, 20), "red"), "TIFF"), [60, 20]),
        ("wide.tiff", encoded(PIL.Image.new("L", (3000, 30), "gray"), "TIFF"), [2048, 20]),
    ],
    ids=["HEIC", "TIFF", "a wide TIFF"],
)
def test_what_browsers_cannot_show_is_shown_as_a_jpeg(
    tiny: Server, open_tab: Open, name: str, data: bytes, size: list[int]
) -> None:
    tab = open_tab(tiny.url)
    tab.add(file(name, data))
    img = tab.thumbnails.locator("img")
    assert size_of(img) == size
    stem = name.split(".")[0]
    expect(img).to_have_attribute("alt", f"{stem}.jpg")
    tab.set("max_tokens", 4)
    tab.ask("What is this?")
    tab.wait_for_end()
    assert size_of(tab.pictures.first) == size


def test_a_large_photo_is_made_small_in_the_browser_and_stays_upright(tiny: Server, open_tab: Open) -> None:
    photo = PIL.Image.radial_gradient("L").resize((4000, 3000)).convert("RGB")
    photo.paste("blue", (0, 0, 2000, 3000))  # the left half as it lies, the upper half as it is to be seen
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turn it right by 90 degrees
    data = encoded(photo, "JPEG", exif=exif, quality=100)
    tab = open_tab(tiny.url)
    tab.add(file("IMG_2.JPG", data, "image/jpeg"))
    img = tab.thumbnails.locator("img")
    assert size_of(img) == [1536, 2048]
    sent = tab.page.request.get(str(img.get_attribute("src"))).body()
    assert len(sent) < len(data) / 2
    uploaded = PIL.Image.open(io.BytesIO(sent)).convert("RGB")
    red, _, blue = uploaded.getpixel((768, 500))  # type: ignore[misc]
    assert blue > 150 > red
    assert uploaded.getexif().get(0x0112, 1) == 1


# --- on its way, and refused


@contextmanager
def held_uploads(tab: Tab) -> Iterator[Callable[[], None]]:
    """Uploads wait until the function that is given here is called."""
    waiting: list[Route] = []
    is_held = True
    tab.page.route("**/gradio_api/upload", lambda route: waiting.append(route) if is_held else route.continue_())

    def let_go() -> None:
        nonlocal is_held
        is_held = False
        for route in waiting:
            route.continue_()

    yield let_go


def test_a_picture_on_its_way_shows_how_far_it_is_and_a_question_waits_for_it(
    miniature: Server, open_tab: Open
) -> None:
    tab = open_tab(miniature.url)
    tab.set("temperature", 0)
    with held_uploads(tab) as let_go:
        tab.page.locator("#box input[type=file]").set_input_files(str(CIRCLE_AND_SQUARE))
        item = tab.page.locator("#on-their-way li")
        expect(item).to_contain_text("circle-and-square.png")
        expect(item.get_by_role("progressbar")).to_be_visible()
        expect(item).to_contain_text(re.compile(r"\d+ %|Checking"))
        tab.question.fill("What is in this picture?")
        tab.question.press("Enter")
        expect(tab.question).to_have_value("What is in this picture?")
        let_go()
        expect(tab.answers.last).to_contain_text("red circle")
        expect(tab.pictures).to_have_count(1)
        expect(item).to_have_count(0)


def test_a_picture_removed_on_its_way_is_not_added(tiny: Server, open_tab: Open) -> None:
    tab = open_tab(tiny.url)
    with held_uploads(tab) as let_go:
        tab.page.locator("#box input[type=file]").set_input_files([file("red.png", png())])
        tab.page.get_by_role("button", name="Remove red.png").click()
        let_go()
        tab.add(file("blue.png", png("blue")))
        expect(tab.thumbnails).to_have_count(1)
        expect(tab.thumbnails.locator("img")).to_have_attribute("alt", "blue.png")


def test_a_refusal_names_the_file_comes_at_once_and_goes_with_it(tiny: Server, open_tab: Open) -> None:
    tab = open_tab(tiny.url, may_log="status of 400")
    refused = tab.page.locator("#refused li")
    tab.page.locator("#box input[type=file]").set_input_files(
        [file("notes.pdf", b"%PDF-1.4 x", "application/pdf"), file("good.png", png()), file("broken.png", png()[:60])]
    )
    expect(refused).to_have_count(2)
    expect(refused.filter(has_text="notes.pdf")).to_contain_text("This is a PDF; send a JPEG, PNG")
    expect(refused.filter(has_text="broken.png")).to_contain_text("damaged")
    expect(tab.thumbnails).to_have_count(1)
    tab.page.get_by_role("button", name="Remove notes.pdf").click()
    expect(refused).to_have_count(1)
    tab.add(file("blue.png", png("blue")))
    expect(refused).to_have_count(0)
    tab.page.locator("#box input[type=file]").set_input_files([file("empty.png", b"")])
    expect(refused).to_contain_text("empty file")
    expect(tab.cards.first).to_be_visible()  # nothing was sent, and nothing lost
    expect(tab.thumbnails).to_have_count(2)
    tab.ask("What is this?")
    expect(refused).to_have_count(0)
    tab.wait_for_end()
    tab.page.locator("#box input[type=file]").set_input_files([file("empty.png", b"")])
    expect(refused).to_have_count(1)
    tab.page.locator("#new-chat").click()
    expect(refused).to_have_count(0)


def test_a_server_that_cannot_be_reached_is_told_with_the_file(tiny: Server, open_tab: Open) -> None:
    tab = open_tab(tiny.url, may_log="Failed to load resource")
    tab.page.route("**/gradio_api/upload", lambda route: route.abort())
    tab.page.locator("#box input[type=file]").set_input_files([file("red.png", png())])
    expect(tab.page.locator("#refused li")).to_contain_text("red.png")
    expect(tab.page.locator("#refused li")).to_contain_text("cannot be reached")


# --- thumbnails and the lightbox


@pytest.mark.parametrize(("options", "least"), [({}, 24), (PHONE, 44)], ids=["mouse", "touch"])
def test_a_thumbnail_opens_and_only_its_cross_removes_it(
    tiny: Server, open_tab: Open, options: dict[str, Any], least: int
) -> None:
    tab = open_tab(tiny.url, **options)
    tab.add(file("red.png", png("red", (300, 200))))
    cross = tab.page.get_by_role("button", name="Remove red.png")
    box = cross.bounding_box()
    assert box is not None
    assert min(box["width"], box["height"]) >= least
    expect(cross).to_be_visible()
    image = tab.thumbnails.locator("img")
    image.tap(position={"x": 20, "y": 40}) if options else image.click(position={"x": 20, "y": 40})
    expect(tab.page.get_by_role("dialog")).to_be_visible()
    expect(tab.page.get_by_role("dialog")).to_contain_text("300 by 200 pixels")
    tab.page.keyboard.press("Escape")
    expect(tab.thumbnails).to_have_count(1)
    cross.tap() if options else cross.click()
    expect(tab.thumbnails).to_have_count(0)


def test_a_picture_of_the_conversation_opens_at_window_size_and_as_the_model_sees_it(
    miniature: Server, open_tab: Open
) -> None:
    tab = open_tab(miniature.url)
    tab.add(CIRCLE_AND_SQUARE, EXAMPLES / "night-star.png")
    tab.set("max_tokens", 3)
    tab.ask("What is this?")
    tab.wait_for_end()
    tab.pictures.first.click()
    dialog = tab.page.get_by_role("dialog")
    photo = dialog.locator(".held img")
    expect(dialog).to_contain_text("960 by 720 pixels")
    assert photo.evaluate("img => img.getBoundingClientRect().height / innerHeight") > 0.8
    tab.page.keyboard.press("ArrowRight")
    expect(dialog).to_contain_text("night-star.png")
    tab.page.keyboard.press("ArrowLeft")
    expect(dialog).to_contain_text("circle-and-square.png")
    dialog.get_by_role("tab", name="What the model sees").click()
    expect(dialog).to_contain_text("96 by 96 pixels, read in 8 by 8 patches: 64 tokens")
    assert size_of(dialog.locator(".square img")) == [96, 96]
    tab.page.keyboard.press("ArrowLeft")  # on the tabs
    expect(dialog.get_by_role("tab", name="The photo")).to_be_focused()
    tab.page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()


def test_each_of_ten_pictures_in_the_box_can_be_reached_on_a_phone(miniature: Server, open_tab: Open) -> None:
    tab = open_tab(miniature.url, **PHONE)
    files = [{"name": f"{k}.png", "mimeType": "image/png", "buffer": png(f"#0000{k}0")} for k in range(10)]
    tab.page.locator("#box input[type=file]").first.set_input_files(files)  # type: ignore[arg-type]
    crosses = tab.page.locator("#box .delete-button")
    expect(crosses).to_have_count(10)
    for k in (9, 5, 0):
        crosses.nth(k).tap()
    expect(crosses).to_have_count(7)


def test_a_picture_is_enlarged_by_keys_wheel_and_two_fingers(miniature: Server, open_tab: Open) -> None:
    tab = open_tab(miniature.url, **PHONE)
    tab.add(CIRCLE_AND_SQUARE)
    tab.thumbnails.locator("img").tap(position={"x": 20, "y": 40})
    zoom = tab.page.locator(".lightbox output")
    expect(zoom).to_have_text("100 %")
    tab.page.keyboard.press("+")
    expect(zoom).to_have_text("125 %")
    tab.page.keyboard.press("0")
    expect(zoom).to_have_text("100 %")
    touch = tab.page.context.new_cdp_session(tab.page)
    for kind, apart in (("touchStart", 40), ("touchMove", 60), ("touchMove", 80)):
        points = [{"x": 195 - apart, "y": 400, "id": 0}, {"x": 195 + apart, "y": 400, "id": 1}]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    expect(zoom).to_have_text(re.compile("(19|20)[0-9] %"))
    tab.page.keyboard.press("Escape")
    tab.thumbnails.locator("img").tap(position={"x": 20, "y": 40})
    expect(zoom).to_have_text("100 %")


def test_the_cards_show_whole_pictures(miniature: Server, open_tab: Open) -> None:
    tab = open_tab(miniature.url)
    for img in tab.cards.locator("img").all():
        assert img.evaluate("img => getComputedStyle(img).objectFit") == "contain"


# --- chips


def test_chips_ask_about_a_picture_that_is_there(miniature: Server, open_tab: Open) -> None:
    tab = open_tab(miniature.url)
    tab.set("temperature", 0)
    chips = tab.page.get_by_role("group", name="Questions to ask")
    expect(chips).to_be_hidden()
    tab.add(CIRCLE_AND_SQUARE)
    expect(chips.get_by_role("button")).to_have_text(
        ["Describe", "Read the text", "Count …", "Where is …", "For a blind reader"]
    )
    chips.get_by_role("button", name="Count").click()
    expect(chips).to_be_hidden()
    tab.page.keyboard.type("circles")  # in the place of the blank
    expect(tab.question).to_have_value("How many circles are there in this picture?")
    tab.question.fill("")
    chips.get_by_role("button", name="Where is").click()
    expect(tab.question).to_have_value(
        "Please provide the bounding box coordinate of the region this sentence describes: …"
    )
    tab.question.fill("")
    chips.get_by_role("button", name="Describe").click()
    expect(tab.answers.last).to_contain_text("red circle")
    tab.wait_for_end()
    expect(tab.pictures).to_have_count(1)
    chips.get_by_role("button", name="For a blind reader").click()  # of the picture in the conversation
    expect(tab.answers).to_have_count(2)
    expect(tab.answers.last).to_contain_text("blue square")
