"""The page in Chromium, on a real server: what a person does, and what goes wrong meanwhile."""

import csv
import io
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from browsing import CHROMIUM_FLAGS, Server, axe_source, chromium_path, violations
from conftest import write_pictures
from PIL import Image

pytest.importorskip("fastapi", reason="the page's server needs fastapi (extra app)")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = sync_api.expect

PICTURES = 60
SCRIPT = "<script>hacked=1;<!--&amp;.png"
IMAGE = "<img src=x onerror=hacked=1>.png"
DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}
MILLISECONDS = 20_000
SCREENSHOTS = os.environ.get("AIR_JAX_SCREENSHOTS")  # a folder: screenshots are written there
SCREENSHOTS_OF = os.environ.get("AIR_JAX_SCREENSHOTS_OF")  # an index to take them of
SCREENSHOTS_QUERY = os.environ.get("AIR_JAX_SCREENSHOTS_QUERY", "1/0")  # part of a path in it


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, trained_run: Path) -> Path:
    """An index of random pictures, some with names that would be markup."""
    from air_jax.index import build
    from air_jax.index.index_writer import Options

    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder, PICTURES)
    for name in (SCRIPT, IMAGE):
        shutil.copy(folder / "0/000.png", folder / name)
    out = tmp_path_factory.mktemp("indexes") / "pictures"
    build.index_images(folder, trained_run, out, Options())
    return out


@pytest.fixture(scope="module")
def server(index: Path) -> Iterator[Server]:
    running = Server(index, "--upload_megabytes=1")
    yield running
    running.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator["sync_api.Browser"]:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=chromium_path(), args=list(CHROMIUM_FLAGS)
        )
        yield started
        started.close()


class Watch:
    """What a page says on its console. A request that fails is an error unless it is expected."""

    def __init__(self, page: "sync_api.Page"):
        self.failing = False
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self._hear)

    def _hear(self, message: "sync_api.ConsoleMessage") -> None:
        expected = self.failing and message.text.startswith("Failed to load resource")
        if message.type == "error" and not expected:
            self.errors.append(message.text)


@pytest.fixture
def open_page(
    browser: "sync_api.Browser", server: Server
) -> Iterator[Callable[..., "sync_api.Page"]]:
    """Opens the page; at the end, nothing may have been wrong on its console."""
    contexts, watches = [], []

    def open_one(address: str = server.address, **context: object) -> "sync_api.Page":
        contexts.append(browser.new_context(**{"viewport": DESKTOP, **context}))
        page = contexts[-1].new_page()
        page.set_default_timeout(MILLISECONDS)
        page.watch = Watch(page)
        watches.append(page.watch)
        page.goto(address)
        expect(page.locator("#browse .tile img").first).to_be_visible()
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert [error for watch in watches for error in watch.errors] == []


@pytest.fixture
def page(open_page: Callable[..., "sync_api.Page"]) -> "sync_api.Page":
    return open_page()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A file to upload."""
    path = tmp_path / "mine.png"
    pixels = np.random.default_rng(7).integers(0, 256, (30, 40, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def token_of(page: "sync_api.Page") -> str:
    return re.search(r"#/session/(.+)$", page.url)[1]


def wait_for_round(page: "sync_api.Page", number: int) -> None:
    current = page.locator("#rounds [aria-current]")
    expect(current).to_contain_text(f"Round {number}" if number else "Start")
    expect(page.locator("#results")).to_have_attribute("aria-busy", "false")


def start_random(page: "sync_api.Page") -> None:
    page.locator("#random").click()
    wait_for_round(page, 0)
    expect(page.locator("#results .tile img").first).to_be_visible()


def tile(page: "sync_api.Page", number: int) -> "sync_api.Locator":
    return page.locator(f'#results .tile[data-index="{number}"]')


def image_of(page: "sync_api.Page", number: int) -> int:
    return int(tile(page, number).get_attribute("data-image"))


def saved(page: "sync_api.Page") -> None:
    expect(page.locator("#saved")).to_have_text("Saved")


def marks_at(server: Server, page: "sync_api.Page") -> dict[int, bool]:
    """The marks the server has."""
    session = server.get(f"sessions/{token_of(page)}")
    return {mark["image"]: mark["relevant"] for mark in session["marks"]}


def test_a_search_from_an_upload_to_its_export(
    page: "sync_api.Page", server: Server, picture: Path
) -> None:
    with page.expect_file_chooser() as chooser:
        page.locator("#choose").click()
    chooser.value.set_files(picture)
    wait_for_round(page, 0)
    expect(page.locator("#query img")).to_have_attribute("alt", "uploaded example")

    by_mouse, by_key, against = (image_of(page, number) for number in (0, 1, 2))
    tile(page, 0).locator('[data-action="relevant"]').click()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("r")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("x")
    expect(tile(page, 2).locator('[data-action="irrelevant"]')).to_have_attribute(
        "aria-pressed", "true"
    )
    expect(page.locator("#toggle-tray")).to_have_text("2 relevant 1 irrelevant")
    saved(page)
    assert marks_at(server, page) == {by_mouse: True, by_key: True, against: False}

    page.keyboard.press("Enter")
    wait_for_round(page, 1)
    assert by_mouse not in [image_of(page, number) for number in range(3)]
    page.keyboard.press("r")
    third = image_of(page, 0)
    page.locator("#next").click()
    wait_for_round(page, 2)

    page.keyboard.press("u")
    wait_for_round(page, 1)
    assert marks_at(server, page)[third] is True
    page.locator("#next").click()
    wait_for_round(page, 2)
    results = [image_of(page, number) for number in range(5)]

    rounds = page.locator("#rounds")
    rounds.get_by_role("button", name="Start").click()
    wait_for_round(page, 0)
    expect(page.locator("#rounds .later")).to_have_count(2)
    assert third not in marks_at(server, page)
    rounds.get_by_role("button", name="Round 2").click()
    wait_for_round(page, 2)

    page.reload()
    wait_for_round(page, 2)
    assert [image_of(page, number) for number in range(5)] == results

    files = {}
    for kind in ("json", "csv", "model"):
        page.locator("#export summary").click()
        with page.expect_download() as download:
            page.locator(f"#export-{kind}").click()
        files[kind] = Path(download.value.path()).read_bytes()
        page.keyboard.press("Escape")
    session = json.loads(files["json"])["session"]
    marks = {by_mouse: True, by_key: True, against: False, third: True}
    assert {image: relevant for image, relevant, _ in session["marks"]} == marks
    assert len(session["rounds"]) == 3
    assert session["rounds"][2]["images"][:5] == results
    rows = list(csv.DictReader(io.StringIO(files["csv"].decode())))
    assert [int(row["image"]) for row in rows[:5]] == results
    assert len(np.load(io.BytesIO(files["model"])).files) > 0


def test_the_same_key_again_takes_the_mark_back(page: "sync_api.Page", server: Server) -> None:
    start_random(page)
    first = tile(page, 0)
    page.keyboard.press("r")
    expect(first).to_have_attribute("data-mark", "relevant")
    page.keyboard.press("x")
    expect(first).to_have_attribute("data-mark", "irrelevant")
    page.keyboard.press("x")
    expect(first).to_have_attribute("data-mark", "")
    saved(page)
    assert marks_at(server, page) == {}
    page.keyboard.press("u")
    expect(first).to_have_attribute("data-mark", "irrelevant")


def test_enter_after_a_click_on_a_mark_goes_on(page: "sync_api.Page", server: Server) -> None:
    start_random(page)
    marked = image_of(page, 3)
    tile(page, 3).locator('[data-action="irrelevant"]').click()
    page.keyboard.press("Enter")
    wait_for_round(page, 1)
    assert marks_at(server, page) == {marked: False}


def test_a_round_that_could_not_learn_says_why(page: "sync_api.Page", server: Server) -> None:
    start_random(page)
    page.locator("#learner").select_option("svc")
    tile(page, 0).locator('[data-action="relevant"]').click()
    page.locator("#next").click()
    wait_for_round(page, 1)
    made = server.get(f"sessions/{token_of(page)}")["round"]
    assert (made["learner"], made["learnt"]) == ("svc", False)
    expect(page.locator("#explain")).to_contain_text("Only relevant images were marked")


def test_judged_and_uncertain_images_are_shown_if_wanted(
    page: "sync_api.Page", server: Server
) -> None:
    start_random(page)
    judged = {image_of(page, number) for number in range(2)}
    page.keyboard.press("r")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("x")
    page.locator("#show").select_option("uncertain")
    page.locator("#count").select_option("120")  # more than there are
    for hide in (True, False):
        page.locator("#hide-judged").set_checked(hide)
        page.locator("#next").click()
        wait_for_round(page, 1 if hide else 2)
        made = server.get(f"sessions/{token_of(page)}")["round"]
        assert (made["show"], made["hide_judged"]) == ("uncertain", hide)
        shown = {one["image"] for one in made["results"]}
        assert shown & judged == (set() if hide else judged)
        page.keyboard.press("End")
        expect(tile(page, len(shown) - 1)).to_be_visible()


def test_keys_do_nothing_while_one_types(page: "sync_api.Page", server: Server) -> None:
    start_random(page)
    address = page.url
    page.keyboard.press("/")
    page.keyboard.type("rxnuc?s")
    expect(page.locator("#find")).to_have_value("rxnuc?s")
    page.locator("#name").fill("run")
    page.keyboard.press("Enter")
    expect(page).to_have_title(re.compile("^run – "))
    assert page.url == address
    assert marks_at(server, page) == {}


def test_a_random_start_needs_a_mark(page: "sync_api.Page") -> None:
    start_random(page)
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("Mark at least one image")
    page.keyboard.press("Escape")
    expect(page.get_by_role("alert")).to_have_count(0)


def test_the_preview_moves_and_marks(page: "sync_api.Page") -> None:
    start_random(page)
    tile(page, 0).locator(".picture").click()
    preview = page.locator("#preview")
    expect(preview.locator("img")).to_be_visible()
    expect(preview.locator("dl")).to_contain_text("40 × 30")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("r")
    expect(preview.locator('[data-action="relevant"]')).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Escape")
    expect(tile(page, 1)).to_have_attribute("data-mark", "relevant")
    expect(tile(page, 1).locator(".picture")).to_be_focused()


def test_collected_images_are_searched_together(page: "sync_api.Page", server: Server) -> None:
    for _ in range(3):
        page.keyboard.press("c")
        page.keyboard.press("ArrowRight")
    page.get_by_role("button", name="Search with these 3").click()
    wait_for_round(page, 0)
    expect(page.locator("#query img")).to_have_count(3)
    shown = server.get(f"sessions/{token_of(page)}")["query"]["images"]
    first = server.get("images?offset=0&count=3")["images"]
    assert [item["image"] for item in shown] == [item["image"] for item in first]


def test_finding_by_path(page: "sync_api.Page") -> None:
    page.keyboard.press("/")
    page.keyboard.type("1/004")
    found = page.locator("#found button")
    expect(found).to_have_count(1)
    expect(found).to_contain_text("1/004.png")
    page.keyboard.press("Enter")
    wait_for_round(page, 0)
    expect(page.locator("#query img")).to_have_attribute("alt", "1/004.png")


def test_names_are_shown_as_text(page: "sync_api.Page") -> None:
    for name in (SCRIPT, IMAGE):
        page.locator("#find").fill(name)
        expect(page.locator("#found button")).to_have_count(1)
        expect(page.locator("#found button")).to_contain_text(name)
        page.locator("#found button").click()
        expect(page.locator("#query img")).to_have_attribute("alt", name)
        expect(page.locator("#name")).to_have_value(name)
        page.keyboard.press("o")
        expect(page.locator("#preview")).to_be_visible()
        page.keyboard.press("Escape")
        page.locator(".home").click()
        expect(page.locator("#sessions strong").first).to_have_text(name)
    assert page.evaluate("typeof hacked") == "undefined"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("broken.png", b"\x89PNG\r\n\x1a\n but no more", "cannot be read as an image"),
        ("large.png", bytes(1_500_000), "too large"),
    ],
)
def test_a_bad_upload_is_said(page: "sync_api.Page", name: str, content: bytes, said: str) -> None:
    page.watch.failing = True
    file = {"name": name, "mimeType": "image/png", "buffer": content}
    page.locator("#file").set_input_files(file)
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text(name)
    expect(alert).to_contain_text(said)
    alert.get_by_role("button", name="Dismiss").click()
    expect(alert).to_have_count(0)
    expect(page.locator("#start")).to_be_visible()


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_a_file_in_a_session_is_one_more_example(
    page: "sync_api.Page", server: Server, picture: Path, way: str
) -> None:
    start_random(page)
    brought = page.evaluate_handle(
        """async ([bytes, name]) => {
            const brought = new DataTransfer();
            brought.items.add(new File([new Uint8Array(bytes)], name, {type: "image/png"}));
            return brought;
        }""",
        [list(picture.read_bytes()), picture.name],
    )
    named = {"drop": "dataTransfer", "paste": "clipboardData"}[way]
    page.evaluate(
        """([way, named, brought]) => {
            const kind = way === "drop" ? DragEvent : ClipboardEvent;
            document.body.dispatchEvent(new kind(way, {[named]: brought, bubbles: true}));
        }""",
        [way, named, brought],
    )
    expect(page.locator("#query img")).to_have_count(1)
    assert len(server.get(f"sessions/{token_of(page)}")["query"]["uploads"]) == 1
    page.keyboard.press("Enter")
    wait_for_round(page, 1)


def test_back_and_forward_change_the_view(page: "sync_api.Page") -> None:
    page.locator("#browse .tile .picture").nth(2).click()
    wait_for_round(page, 0)
    first = page.url
    tile(page, 1).locator('[data-action="search"]').click()
    expect(page).not_to_have_url(first)
    wait_for_round(page, 0)
    page.go_back()
    expect(page).to_have_url(first)
    page.go_back()
    expect(page.locator("#start")).to_be_visible()
    page.go_forward()
    wait_for_round(page, 0)


def test_sessions_are_renamed_and_deleted(page: "sync_api.Page", server: Server) -> None:
    start_random(page)
    token = token_of(page)
    page.locator(".home").click()
    entry = page.locator("#sessions li").filter(has=page.locator(f'a[href$="{token}"]'))
    entry.get_by_role("button", name="Rename").click()
    page.keyboard.type("red bicycles")
    page.keyboard.press("Enter")
    expect(entry).to_contain_text("red bicycles")
    entry.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Keep it").click()
    expect(entry).to_have_count(1)
    entry.get_by_role("button", name="Delete").click()
    page.locator("#confirm-yes").click()
    expect(entry).to_have_count(0)
    assert token not in [one["session"] for one in server.get("sessions")["sessions"]]


def test_a_mark_that_is_refused_is_taken_back_and_said(page: "sync_api.Page") -> None:
    page.watch.failing = True
    start_random(page)
    refusal = json.dumps({"error": "the disk is <b>full</b>"})
    page.route("**/marks", lambda route: route.fulfill(status=400, body=refusal))
    page.keyboard.press("r")
    expect(page.get_by_role("alert")).to_contain_text("the disk is <b>full</b>")
    expect(tile(page, 0)).to_have_attribute("data-mark", "")


def test_a_mark_on_its_way_survives_a_reload(page: "sync_api.Page", server: Server) -> None:
    page.watch.failing = True
    page.on("dialog", lambda dialog: dialog.accept())
    start_random(page)
    marked = image_of(page, 0)
    page.route("**/marks", lambda route: route.abort())
    page.keyboard.press("r")
    expect(page.locator("#lost")).to_contain_text("1 mark not saved yet")
    page.unroute("**/marks")
    page.reload()
    wait_for_round(page, 0)
    saved(page)
    expect(tile(page, 0)).to_have_attribute("data-mark", "relevant")
    assert marks_at(server, page) == {marked: True}


def test_nothing_marked_is_lost_when_the_server_is_killed(
    page: "sync_api.Page", server: Server
) -> None:
    page.watch.failing = True
    start_random(page)
    images = [image_of(page, number) for number in range(4)]
    page.keyboard.press("r")
    saved(page)
    server.kill()
    for key in ("r", "x"):
        page.keyboard.press("ArrowRight")
        page.keyboard.press(key)
    expect(page.locator("#lost")).to_contain_text("2 marks not saved yet")
    expect(tile(page, 2)).to_have_attribute("data-mark", "irrelevant")
    server.start()
    saved(page)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("r")
    # Without waiting for the acknowledgement: what was not saved goes to the next one.
    server.kill()
    server.start()
    saved(page)
    expected = {images[0]: True, images[1]: True, images[2]: False, images[3]: True}
    assert marks_at(server, page) == expected
    page.reload()
    expect(tile(page, 3)).to_have_attribute("data-mark", "relevant")


def test_an_index_made_anew_is_shown_without_a_new_start(
    open_page: Callable[..., "sync_api.Page"], trained_run: Path, tmp_path: Path
) -> None:
    from air_jax.index import build
    from air_jax.index.index_writer import Options

    folder, out = tmp_path / "pictures", tmp_path / "index"
    write_pictures(folder, 12)
    build.index_images(folder, trained_run, out, Options())
    server = Server(out)
    page = open_page(server.address)
    expect(page.locator("#browse-title")).to_have_text("All 12 images")
    start_random(page)
    page.keyboard.press("r")
    saved(page)
    shutil.copy(folder / "0/000.png", folder / "new.png")
    build.index_images(folder, trained_run, out, Options())
    while server.get("index")["size"] == 12:
        time.sleep(0.1)
    page.keyboard.press("Enter")
    wait_for_round(page, 1)
    page.locator(".home").click()
    expect(page.locator("#browse-title")).to_have_text("All 13 images")
    expect(page.locator('#browse .tile[data-index="12"] img')).to_have_attribute("alt", "new.png")
    page.watch.failing = True  # thumbnails may be on their way
    server.kill()


def test_the_page_works_below_a_path(
    open_page: Callable[..., "sync_api.Page"], index: Path
) -> None:
    server = Server(index, "--public-url=http://localhost/my/photos")
    page = open_page(f"{server.address}my/photos")
    assert page.url == f"{server.address}my/photos/"
    start_random(page)
    page.keyboard.press("r")
    saved(page)
    page.keyboard.press("Enter")
    wait_for_round(page, 1)
    expect(page.locator("#results .tile img").first).to_be_visible()
    page.locator("#export summary").click()
    with page.expect_download():
        page.locator("#export-json").click()
    page.keyboard.press("Escape")
    page.keyboard.press("o")
    expect(page.locator("#preview img")).to_have_js_property("complete", True)
    assert "/my/photos/api/" in page.locator("#preview img").evaluate("image => image.src")
    page.watch.failing = True  # thumbnails may be on their way
    server.kill()


@pytest.fixture(scope="module")
def shown_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """The server screenshots are taken of."""
    if not SCREENSHOTS_OF:
        yield request.getfixturevalue("server")
        return
    running = Server(Path(SCREENSHOTS_OF))
    yield running
    running.kill()


@pytest.mark.parametrize(
    ("size", "scheme"),
    [
        pytest.param(DESKTOP, "light", id="desktop-light"),
        pytest.param(PHONE, "dark", id="phone-dark"),
        pytest.param(DESKTOP, "dark", id="desktop-dark", marks=pytest.mark.long),
        pytest.param(PHONE, "light", id="phone-light", marks=pytest.mark.long),
    ],
)
def test_every_view_is_accessible_and_fits(
    open_page: Callable[..., "sync_api.Page"],
    shown_server: Server,
    size: dict[str, int],
    scheme: str,
) -> None:
    source = axe_source()
    page = open_page(shown_server.address, viewport=size, color_scheme=scheme, bypass_csp=True)
    kind = ("desktop" if size == DESKTOP else "phone") + ("" if scheme == "light" else "-dark")
    seen = []

    def look(view: str) -> None:
        page.watch.failing = True  # thumbnails may be on their way
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"], view
        assert violations(page, source) == [], view
        seen.append(view)
        if SCREENSHOTS:
            page.mouse.move(0, 0)
            folder = Path(SCREENSHOTS)
            folder.mkdir(parents=True, exist_ok=True)
            # 256 colours are enough to see a page by, and half the size.
            taken = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            taken = taken.quantize(palette=taken.quantize(256), dither=Image.Dither.FLOYDSTEINBERG)
            taken.save(folder / f"{view}-{kind}.png", optimize=True)

    def judge(count: int) -> None:
        """Mark the first results as a person would who looks for the query's folder."""
        wanted = page.locator("#query img").get_attribute("alt").split("/")[0]
        for number in range(count):
            label = tile(page, number).locator("img").get_attribute("alt")
            tile(page, number).locator(".picture").focus()
            page.keyboard.press("r" if label.split("/")[0] == wanted else "x")
        saved(page)

    look("start")
    page.keyboard.press("c")
    look("collected")
    page.keyboard.press("c")
    page.keyboard.press("?")
    look("help")
    page.keyboard.press("Escape")
    page.locator("#find").fill(SCREENSHOTS_QUERY)
    expect(page.locator("#found button").first).to_be_visible()
    look("find")
    page.locator("#found button").first.click()
    wait_for_round(page, 0)
    look("search")
    judge(12)
    page.evaluate("scrollTo(0, 0)")
    page.locator("#toggle-tray").click()
    look("marks")
    page.locator("#next").click()
    wait_for_round(page, 1)
    judge(12)
    page.keyboard.press("Enter")
    wait_for_round(page, 2)
    page.keyboard.press("Escape")
    look("round-2")
    page.get_by_role("button", name="Round 1").click()
    wait_for_round(page, 1)
    page.locator("#export summary").click()
    look("stepped-back")
    page.keyboard.press("Escape")
    page.locator("#results .tile .picture").first.click()
    look("preview")
    page.keyboard.press("Escape")
    page.watch.failing = True
    page.locator("#file").set_input_files(
        {"name": "broken.png", "mimeType": "image/png", "buffer": b"no image"}
    )
    expect(page.get_by_role("alert")).to_be_visible()
    look("error")
    assert len(seen) == 10


@pytest.fixture
def vectors(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server of vectors without images."""
    from air_jax.index import vector_files
    from air_jax.index.index_writer import Options

    count = request.param
    codes = np.random.default_rng(0).normal(size=(count, 16)).astype(np.float32)
    np.save(tmp_path / "codes.npy", codes)
    rows = "\n".join(f"caption of {number},{number % 7}" for number in range(count))
    (tmp_path / "about.csv").write_text(f"caption,kind\n{rows}\n")
    out = tmp_path / "vectors"
    vector_files.index_vectors(tmp_path / "codes.npy", tmp_path / "about.csv", None, out, Options())
    running = Server(out)
    yield running
    running.kill()


@pytest.mark.parametrize("vectors", [100_000], indirect=True)
@pytest.mark.long
def test_a_hundred_thousand_images_scroll(
    browser: "sync_api.Browser", vectors: Server, record_property: Callable[[str, object], None]
) -> None:
    page = browser.new_page(viewport=DESKTOP)
    watch = Watch(page)
    page.goto(vectors.address)
    words = page.locator("#browse .tile .words")
    expect(words.first).to_contain_text("caption of 0")
    expect(page.locator("#drop")).to_be_hidden()
    frames = page.evaluate(
        """async () => {
            const frames = [];
            let before = performance.now();
            for (let turn = 0; turn < 300; turn += 1) {
                window.scrollBy(0, turn < 200 ? 150 : 20000);
                await new Promise(requestAnimationFrame);
                const now = performance.now();
                frames.push(now - before);
                before = now;
            }
            return frames;
        }"""
    )
    quantiles = {f"p{q}": round(float(np.percentile(frames, q)), 1) for q in (50, 95, 99)}
    record_property("frame_milliseconds", quantiles)
    print(f"milliseconds of a frame while scrolling through 100,000 images: {quantiles}")
    assert np.median(frames) < 100
    assert page.locator("#browse .tile").count() < 300
    page.keyboard.press("End")
    last = page.locator('#browse .tile[data-index="99999"]')
    expect(last).to_contain_text("caption of 99999")
    expect(last.locator(".picture")).to_be_focused()
    page.keyboard.press("Enter")
    wait_for_round(page, 0)
    page.keyboard.press("x")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("r")
    page.keyboard.press("Enter")
    wait_for_round(page, 1)
    assert watch.errors == []
    page.close()
