"""The explorer in a real headless Chromium: type, see, drop, filter, fold, select, export; keyboard, phone, XSS."""

import base64
import csv
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from web_world import EVIL, NAMES, make_index, picture, served

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH to look at the page with")
LATIN = "pictures/003.jpg"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("browser")
    index, encoder = make_index(root, 50, {2: {"text": EVIL, "label": "blue", "id": f"{EVIL}.jpg"}})
    with served(root, index, encoder) as where:
        yield where


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    sync = pytest.importorskip("playwright.sync_api")
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Complaints(list):
    """What the page said to the console, and which addresses it asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []


def opened(chromium: Any, address: str, path: str = "/", **options: Any) -> tuple[Any, Complaints]:
    context = chromium.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
    page, complaints = context.new_page(), Complaints()
    page.set_default_timeout(30_000)
    page.on(
        "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.asked.append(request.url))
    page.goto(address + path)
    page.wait_for_selector("body.ready")
    return page, complaints


@pytest.fixture
def page(chromium: Any, address: str) -> Iterator[Any]:
    page, complaints = opened(chromium, address)
    yield page
    assert not [one for one in complaints if "400 (Bad Request)" not in one], complaints
    strangers = [url for url in complaints.asked if not url.startswith((address, "blob:" + address))]
    assert not strangers, "the page asks nobody else"
    page.context.close()


def captions(page: Any) -> list[str]:
    return page.locator(".tile .words").all_text_contents()


def until(page: Any, true: str) -> None:
    """Playwright's own waiting evaluates strings in the page, which its policy does not let happen."""
    for _ in range(600):
        if page.evaluate(true):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never came: {true}")


def settled(page: Any) -> None:
    until(page, "!document.body.classList.contains('waiting')")


def search(page: Any, text: str) -> None:
    with page.expect_response("**/api/search"):
        page.fill("#text", text)
    settled(page)


def plain(page: Any) -> None:
    """Neither folded nor safe."""
    for name in ("fold", "safe"):
        with page.expect_response("**/api/search"):
            page.locator(f"#{name}").uncheck()
    settled(page)


def test_type_and_see(page: Any):
    plain(page)
    search(page, "a red thing")
    first = captions(page)[:20]
    assert all("red" in one for one in first), first
    page.wait_for_selector(".frame.there img")
    drawn = page.eval_on_selector(".frame.there img", "(img) => img.naturalWidth")
    assert drawn in (48, 64)
    assert "q=a+red+thing" in page.url
    with page.expect_response("**/api/search"):
        page.keyboard.press("Enter")
    settled(page)
    search(page, "a blue thing")
    assert "blue" in captions(page)[0] or "onerror" in captions(page)[0]
    page.go_back()
    until(page, "document.querySelector('.tile .words').textContent.includes('red')")
    assert page.input_value("#text") == "a red thing"


def drop(page: Any, data: bytes, name: str = "mine.jpg", kind: str = "image/jpeg") -> None:
    page.evaluate(
        """([data, name, type]) => {
            const transfer = new DataTransfer();
            if (data) transfer.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], name, {type}));
            else transfer.setData("text/uri-list", "http://127.0.0.1:22/cat.jpg");
            for (const what of ["dragenter", "dragover", "drop"])
                document.body.dispatchEvent(
                    new DragEvent(what, {dataTransfer: transfer, bubbles: true, cancelable: true}));
        }""",
        [base64.b64encode(data).decode(), name, kind],
    )


def test_drop_a_picture_and_add_words(page: Any):
    plain(page)
    with page.expect_response("**/api/search"):
        drop(page, picture((225, 220, 50)))
    settled(page)
    assert all("yellow" in one for one in captions(page)[:10])
    assert page.locator(".asked img").count() == 1 and not page.locator("#drop").is_visible()
    search(page, "red")
    names = " ".join(captions(page)[:30])
    assert "red" in names or "yellow" in names
    with page.expect_response("**/api/search"):
        page.locator(".asked").click()
    settled(page)
    assert page.locator(".asked").count() == 0 and "red" in captions(page)[0]


def test_what_is_no_picture_is_said_and_an_address_is_not_fetched(chromium: Any, address: str):
    page, complaints = opened(chromium, address)
    drop(page, b"hello", "note.txt", "text/plain")
    page.wait_for_selector(".toast >> text=no picture")
    drop(page, b"")
    page.wait_for_selector(".toast >> text=nothing is fetched")
    drop(page, b"\xff\xd8\xff broken")
    page.wait_for_selector(".toast >> text=/not a picture|corrupt/")
    page.fill("#text", "http://169.254.169.254/x.jpg")
    page.wait_for_selector(".toast >> text=fetches nothing")
    assert not [url for url in complaints.asked if not url.startswith(address)]
    page.context.close()


def test_filter(page: Any):
    plain(page)
    with page.expect_response("**/api/search"):
        page.locator(".word", has_text="green").locator("input").check()
    settled(page)
    assert all("green" in one for one in captions(page)) and "50 of 200" in page.inner_text("#status")
    assert page.locator(".chip").all_inner_texts() == ["Class: green"]
    with page.expect_response("**/api/search"):
        page.get_by_label("Width, at least").focus()
        page.keyboard.press("ArrowRight")
    settled(page)
    assert int(page.inner_text("#status").split()[0]) < 50 and page.locator(".chip").count() == 2
    address = page.url
    page.reload()
    page.wait_for_selector(".chip >> nth=1")
    assert page.url == address
    with page.expect_response("**/api/search"):
        page.locator("#reset").click()
    settled(page)
    assert page.locator(".chip").count() == 0
    page.fill("#where", "width >")
    until(page, "document.getElementById('where-error').textContent.includes('does not read')")
    with page.expect_response("**/api/search"):
        page.fill("#where", "aesthetic = 3 and label = 'red'")
    settled(page)
    assert page.inner_text("#where-error") == "" and 0 < int(page.inner_text("#status").split()[0]) < 50


def test_fold_and_safe_mode(page: Any):
    search(page, "a green thing")
    assert page.locator(".more").count() > 0 and "160 of 200" in page.inner_text("#status")
    folded = page.locator(".tile").count()
    page.locator(".tile", has=page.locator(".more")).first.click()
    assert page.locator("#folded-strip button").count() > 0
    page.keyboard.press("Escape")
    with page.expect_response("**/api/search"):
        page.locator("#fold").uncheck()
    settled(page)
    assert page.locator(".more").count() == 0 and page.locator(".tile").count() > folded
    with page.expect_response("**/api/search"):
        page.locator("#safe").uncheck()
    settled(page)
    assert page.inner_text("#status").startswith("200 pictures")


def test_it_scrolls_on_until_there_is_no_more(page: Any):
    plain(page)
    search(page, "thing")
    for _ in range(20):
        page.mouse.wheel(0, 4000)
        page.wait_for_timeout(60)
        if page.locator(".tile").count() == 200:
            break
    assert page.locator(".tile").count() == 200
    assert len(set(page.eval_on_selector_all(".tile", "(all) => all.map((t) => t.dataset.i)"))) == 200


def test_select_and_export(page: Any, tmp_path: Path):
    plain(page)
    search(page, "a red thing")
    tiles = page.locator(".tile")
    tiles.nth(0).hover()
    tiles.nth(0).locator(".pick").click()
    tiles.nth(2).click(modifiers=["Control"])
    tiles.nth(4).click(modifiers=["Shift"])
    assert page.inner_text("#selected-count") == "4 selected"
    chosen = [captions(page)[i] for i in (0, 2, 3, 4)]
    search(page, "a blue thing")
    assert page.inner_text("#selected-count") == "4 selected", "over several searches"
    page.locator("#selection-export").click()
    page.locator("input[value=csv]").check()
    with page.expect_download() as download:
        page.locator("#export-go").click()
    download.value.save_as(tmp_path / "subset.csv")
    with open(tmp_path / "subset.csv", newline="", encoding="utf-8") as file:
        assert [row["text"] for row in csv.DictReader(file)] == chosen
    page.locator("input[value=webdataset]").check()
    page.locator("input[value=found]").check()
    page.fill("#export-most", "5")
    with page.expect_download() as download:
        page.locator("#export-go").click()
    download.value.save_as(tmp_path / "subset.zip")
    assert "00000.tar" in zipfile.ZipFile(tmp_path / "subset.zip").namelist()
    assert "5 rows" in page.inner_text("#export-status")


def test_the_keyboard_is_enough(page: Any):
    page.keyboard.press("/")
    page.keyboard.type("a yellow thing")
    with page.expect_response("**/api/search"):
        page.keyboard.press("Enter")
    settled(page)
    page.keyboard.press("ArrowDown")
    at = "document.activeElement.dataset.i"
    assert page.evaluate(at) == "0"
    page.keyboard.press("ArrowRight")
    assert page.evaluate(at) == "1"
    page.keyboard.press("ArrowDown")
    below = int(page.evaluate(at))
    top = "(i) => document.querySelector(`.tile[data-i='${i}']`).getBoundingClientRect().top"
    assert below > 1 and page.evaluate(top, below) > page.evaluate(top, 1)
    page.keyboard.press("ArrowUp")
    page.keyboard.press("x")
    assert page.inner_text("#selected-count") == "1 selected"
    page.keyboard.press("Enter")
    assert page.locator("#detail[open]").count() == 1
    first = page.inner_text("#detail-caption")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#detail-caption") != first
    page.keyboard.press("Escape")
    assert page.locator("#detail[open]").count() == 0
    with page.expect_response("**/api/search"):
        page.keyboard.press("m")
    settled(page)
    assert "like=" in page.url and page.locator(".asked").count() == 1
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert page.locator("#help[open]").count() == 1
    page.keyboard.press("Escape")
    page.keyboard.press("f")
    assert not page.locator("#filters").is_visible()
    page.keyboard.press("e")
    assert page.locator("#export[open]").count() == 1


def test_more_like_this_by_the_mouse(page: Any):
    plain(page)
    tile = page.locator(".tile", has_text="green").first
    tile.hover()
    with page.expect_response("**/api/search"):
        tile.locator(".like").click()
    settled(page)
    assert all("green" in one for one in captions(page)[:10])


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Captions that say another colour than the picture has; the last four have none."""
    root = tmp_path_factory.mktemp("captions")
    said = {i: {"text": f"{NAMES[(i + 1) % 4]} number {i}" if i < 36 else None} for i in range(40)}
    index, encoder = make_index(root, 10, said, captions=True)
    with served(root, index, encoder) as where:
        yield where


def switch(page: Any, to: str) -> None:
    with page.expect_response("**/api/search"):
        page.locator("#spaces button", has_text=to).click()
    settled(page)


def test_the_switch_between_pictures_captions_and_words(chromium: Any, captioned: str, tmp_path: Path):
    page, complaints = opened(chromium, captioned)
    plain(page)
    assert page.locator("#spaces button").all_inner_texts() == ["Pictures", "Captions", "Words"]
    search(page, "a red thing")
    assert all("green" in one for one in captions(page)[:6]), "what the picture shows"
    switch(page, "Captions")
    assert all("red" in one for one in captions(page)[:9]), "what its caption says"
    assert page.locator(".tile").count() == 36 and "in=captions" in page.url
    page.reload()
    page.wait_for_selector("body.ready")
    assert page.locator("#spaces [aria-checked=true]").inner_text() == "Captions" and "red" in captions(page)[0]
    tile = page.locator(".tile").first
    tile.hover()
    with page.expect_response("**/api/search"):
        tile.locator(".like").click()
    settled(page)
    assert "in=captions" in page.url and "like=" in page.url and page.locator(".tile").count() == 36
    assert all("yellow" in one for one in captions(page)[:5]), "captions that say what the picture shows"
    page.locator("#export-button").click()
    assert page.locator("#option-least").is_visible()
    page.locator("input[value=csv]").check()
    page.fill("#export-most", "7")
    with page.expect_download() as download:
        page.locator("#export-go").click()
    download.value.save_as(tmp_path / "subset.csv")
    with open(tmp_path / "subset.csv", newline="", encoding="utf-8") as file:
        assert [row["text"] for row in csv.DictReader(file)] == captions(page)[:7]
    page.keyboard.press("Escape")
    switch(page, "Words")
    search(page, "17")
    assert captions(page) == ["blue number 17"]
    with page.expect_response("**/api/search"):
        page.fill("#where", "text is null")
    settled(page)
    switch(page, "Captions")
    assert "None of these pictures has a caption" in page.inner_text("#empty")
    page.context.close()
    assert not complaints
    phone = {"viewport": {"width": 360, "height": 780}, "has_touch": True, "is_mobile": True}
    page, _ = opened(chromium, captioned, "/?in=captions&q=red", **phone)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360, "nothing to scroll sideways"
    assert page.locator("#export-button").bounding_box()["x"] < 330
    page.context.close()


def test_a_script_in_a_caption_is_words(page: Any):
    plain(page)
    tile = page.locator(".tile", has_text="onerror")
    assert tile.locator(".words").inner_text() == EVIL and tile.locator("script").count() == 0
    tile.click()
    assert page.inner_text("#detail-caption") == EVIL
    assert page.locator("#detail-facts dd").first.inner_text() == f"{EVIL}.jpg"
    page.keyboard.press("x")
    page.keyboard.press("m")
    settled(page)
    with page.expect_response("**/api/search"):
        page.fill("#text", EVIL)
    settled(page)
    assert page.evaluate("window.hacked") is None


def test_a_script_in_the_address_is_words(chromium: Any, address: str):
    from urllib.parse import quote

    filters = '{"label": {"among": ["<img src=x onerror=window.hacked=1>"]}, "__proto__": {"least": 1}, "x": 3}'
    page, _ = opened(chromium, address, f"/?q={quote(EVIL)}&like={quote(EVIL)}&filters={quote(filters)}&where=<b>x</b>")
    assert page.input_value("#text") == EVIL
    assert "onerror" in page.locator(".chip").first.inner_text()
    assert page.evaluate("window.hacked") is None
    page.context.close()


def test_the_policy_stops_what_would_get_through(chromium: Any, address: str):
    """The last wall: markup that is let in by a mistake of ours does nothing."""
    page, _ = opened(chromium, address)
    assert (
        page.evaluate(
            "(evil) => { try { document.body.innerHTML = evil; return 'in'; } catch (error) { return error.name; } }",
            EVIL,
        )
        == "TypeError"
    )
    page.evaluate(
        """() => { const script = document.createElement("script"); script.append("window.hacked = 1");
                   document.body.append(script); const image = document.createElement("img");
                   try { image.setAttribute("onerror", "window.hacked = 1"); } catch {}
                   image.src = "/nothing"; document.body.append(image); }"""
    )
    page.wait_for_timeout(200)
    assert page.evaluate("window.hacked") is None
    page.context.close()


def test_no_other_page_frames_or_reads_it(chromium: Any, address: str, tmp_path: Path):
    hostile = tmp_path / "hostile.html"
    hostile.write_text(
        f"""<iframe id=f src="{address}/"></iframe><img id=i src="{address}/thumb?id={LATIN}">
        <script>
        fetch("{address}/api/about").then((a) => a.text()).then((t) => window.read = t).catch(() => window.read = "");
        fetch("{address}/api/search", {{method: "POST", mode: "no-cors", body: "{{}}"}})</script>"""
    )
    context = chromium.new_context()
    page = context.new_page()
    page.goto(hostile.as_uri())
    until(page, "window.read !== undefined")
    page.wait_for_timeout(300)
    assert page.evaluate("window.read") == "" and page.evaluate("document.getElementById('i').naturalWidth") == 0
    assert not any(frame.query_selector("#search") for frame in page.frames[1:])
    context.close()


def test_on_a_phone(chromium: Any, address: str):
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
    page, complaints = opened(chromium, address, **phone)
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 390, "nothing to scroll sideways"
    assert not page.locator("#filters").is_visible()
    page.locator("#filters-button").tap()
    assert page.locator("#filters").is_visible()
    with page.expect_response("**/api/search"):
        page.locator(".word", has_text="blue").tap()
    settled(page)
    page.locator("#filters-close").tap()
    assert not page.locator("#filters").is_visible()
    assert all("blue" in one or "onerror" in one for one in captions(page))
    for box in (page.locator("#file"), page.locator("#filters-button"), page.locator("#export-button")):
        area = box.bounding_box()
        assert area["width"] >= 32 and area["height"] >= 32, "wide enough for a finger"
    page.locator(".tile").nth(1).tap()
    assert page.locator("#detail[open]").count() == 1
    assert page.evaluate("document.getElementById('detail').offsetWidth") == 390, "the whole screen"
    page.locator("#detail [data-close]").tap()
    page.eval_on_selector(
        ".tile",
        """(tile) => tile.dispatchEvent(new PointerEvent("pointerdown", {pointerType: "touch", bubbles: true}))""",
    )
    page.wait_for_selector("#selection:not([hidden])")
    assert page.inner_text("#selected-count") == "1 selected" and not complaints
    page.context.close()


def test_dark_and_light(chromium: Any, address: str):
    def ink(page: Any) -> int:
        shade = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        return sum(map(int, re.findall(r"\d+", shade)[:3]))

    page, _ = opened(chromium, address, color_scheme="dark")
    assert ink(page) < 120
    page.locator("#theme").click()
    assert ink(page) > 600, "as chosen, against the system"
    page.reload()
    page.wait_for_selector("body.ready")
    assert ink(page) > 600, "and it is remembered"
    page.locator("#theme").click()
    assert ink(page) < 120
    page.context.close()


def test_the_pages_of_the_api(chromium: Any, address: str):
    context = chromium.new_context()
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(f"{address}/docs")
    page.locator(".call", has_text="/api/search").first.wait_for()
    assert "a dog on the beach" in page.inner_text("#paths") and not complaints
    context.close()
