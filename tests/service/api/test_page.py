"""The page in a real browser: pictures in, answers and views out, and what every refusal looks like."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import io
import json
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect

from model.labels import CLASS_NAMES
from service.api.page import HERE
from service.runtime.served import ServedModel
from service.settings import Settings
from tests.support.browser import PATIENCE_MS, PATIENCE_S, Site, Watched, chromium, opened, site, until
from tests.support.doubles import FakeEngine, loader, picture, served
from tests.support.wire import png_header

WIDE = (96, 48)
"""A picture whose outer quarters the centre crop cuts off."""

expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def shared() -> Iterator[Site]:
    with site(loader(FakeEngine())) as found:
        yield found


@pytest.fixture
def watched(browser: Browser, shared: Site) -> Iterator[Watched]:
    """A page of the shared app; nothing that it does may end in a complaint or leave the service."""
    with opened(browser, shared) as found:
        yield found
        assert (found.complaints, found.foreign) == ([], [])


@pytest.fixture
def page(watched: Watched) -> Page:
    return watched.page


def choose(page: Page, data: bytes, name: str = "picture.png", media_type: str = "image/png") -> None:
    page.set_input_files("#file", {"name": name, "mimeType": media_type, "buffer": data})


def shown(page: Page) -> None:
    """Waits until the chosen view is drawn."""
    expect(page.locator("#controls")).to_be_visible()
    expect(page.locator("#frame")).to_have_attribute("aria-busy", "false")


def labels(page: Page) -> list[str]:
    return page.locator("#predictions .label").all_inner_texts()


def pixels(page: Page, image_id: str) -> np.ndarray:
    """RGB of an image element at its natural size."""
    url = page.evaluate(
        """async (id) => { const image = document.getElementById(id); await image.decode();
        const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
        canvas.getContext("2d").drawImage(image, 0, 0);
        const bytes = new Uint8Array(await (await canvas.convertToBlob()).arrayBuffer());
        return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join("")) }""",
        image_id,
    )
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url))).convert("RGB")).astype(int)


def drawings(page: Page) -> list[str]:
    """Queries of the drawings that the page asks for from now on."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/heatmap" in request.url else None)
    return asked


def test_a_chosen_picture_gets_five_labels_with_bars_its_stage_times_and_its_overlay(page: Page) -> None:
    choose(page, picture(8, WIDE))
    shown(page)
    assert len(labels(page)) == 5
    assert labels(page)[0] == CLASS_NAMES[8] == "bicycle"
    first = page.locator("#predictions li").first
    assert first.inner_text().split() == ["bicycle", "vehicles", "1", "2.7", "%"]
    assert page.evaluate("document.querySelector('.fill').style.width") == "2.67%"
    assert page.locator("#stages dt").all_inner_texts() == ["read", "decode", "queue", "copy", "engine", "encode"]
    assert all(text.endswith(" ms") for text in page.locator("#stages dd").all_inner_texts())
    expect(page.locator("#around")).to_contain_text("Drawing this view took")
    expect(page.locator("#spoken")).to_have_text("Most probable: bicycle, 3 %")
    assert pixels(page, "base").shape == pixels(page, "heat").shape == (96, 192, 3)


def test_an_uncertain_answer_is_called_so_in_words_and_to_a_screen_reader(browser: Browser) -> None:
    with site(loader(FakeEngine(), certain_from=0.5)) as doubtful, opened(browser, doubtful) as watched:
        page = watched.page
        choose(page, picture(8))
        shown(page)
        expect(page.locator("#answer-title")).to_have_text("Most probable uncertain")
        expect(page.locator("#warnings li")).to_have_text(
            "The answer is uncertain: its best probability, 0.026724, is below 0.5; the picture may show none of the "
            "100 classes."
        )
        expect(page.locator("#spoken")).to_have_text("Uncertain. Most probable: bicycle, 3 %")
        assert _violations(page) == []
        assert watched.complaints == []


def test_an_answer_that_is_not_doubted_says_nothing_of_it(page: Page) -> None:
    choose(page, picture(8))
    shown(page)
    expect(page.locator("#certainty")).to_be_hidden()
    expect(page.locator("#warnings")).to_be_hidden()


def test_the_model_card_says_name_accuracy_and_token_counts(page: Page) -> None:
    facts = page.locator("#facts")
    for told in ("double", "50.0 % top-1, 75.0 % top-5", "6 → 5 → 4", "merged in 2 of 4 blocks", "fake on cpu, fp32"):
        expect(facts).to_contain_text(told)
    expect(page.locator("#state")).to_have_text("Ready")


def test_the_model_card_of_the_plain_model_says_that_nothing_merges_and_its_own_accuracy_first(
    browser: Browser,
) -> None:
    def load(settings: Settings) -> ServedModel:
        model = served(FakeEngine())
        scores = {"top1": 0.5, "top5": 0.75, "plain_top1": 0.625, "plain_top5": 0.875}
        manifest, config = model.manifest.replace(scores=scores), model.config.replace(keep_rate=1.0)
        return dataclasses.replace(model, manifest=manifest, config=config, schedule=(6, 6, 6, 6))

    with site(load, keep_rate=1.0) as plain, opened(browser, plain) as watched:
        facts = watched.page.locator("#facts dd")
        expect(facts.nth(1)).to_have_text("62.5 % top-1, 87.5 % top-550.0 % top-1 with merging")
        expect(facts.nth(2)).to_have_text("6patch tokens, nothing merges")
        expect(facts.nth(2).locator(".merges")).to_have_count(0)


def test_a_click_on_a_sample_classifies_it(page: Page) -> None:
    page.click("[data-sample='coffee.jpg']")
    shown(page)
    expect(page.locator("[data-sample='coffee.jpg']")).to_have_attribute("aria-pressed", "true")
    assert str(page.get_attribute("#base", "alt")).startswith("coffee.jpg: ")
    choose(page, picture(9))
    expect(page.locator("#predictions .label").first).to_have_text(CLASS_NAMES[9])
    expect(page.locator("[data-sample='coffee.jpg']")).to_have_attribute("aria-pressed", "false")


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_a_picture_may_be_dropped_anywhere_or_pasted(page: Page, way: str) -> None:
    page.evaluate(
        """([way, data]) => {
        const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], "given.png", { type: "image/png" }));
        const options = { bubbles: true, cancelable: true };
        if (way === "paste") {
          document.body.dispatchEvent(new ClipboardEvent("paste", { ...options, clipboardData: transfer }));
          return;
        }
        for (const type of ["dragenter", "dragover", "drop"]) {
          document.querySelector("h1").dispatchEvent(new DragEvent(type, { ...options, dataTransfer: transfer }));
        }
      }""",
        [way, base64.b64encode(picture(11)).decode()],
    )
    expect(page.locator("#predictions .label").first).to_have_text(CLASS_NAMES[11])
    assert "dragging" not in (page.get_attribute("body", "class") or "")


def test_the_slider_changes_the_overlay_without_a_request_to_what_the_service_would_draw(
    page: Page, shared: Site
) -> None:
    choose(page, picture(90, WIDE))
    shown(page)
    asked = drawings(page)
    page.locator("#opacity").fill("30")
    assert page.evaluate("getComputedStyle(document.getElementById('heat')).opacity") == "0.3"
    expect(page.locator("#opacity-value")).to_have_text("30 %")
    assert asked == []
    blended = 0.7 * pixels(page, "base") + 0.3 * pixels(page, "heat")
    line = page.inner_text("#curl").splitlines()[1]
    url = line.split("'")[1]
    assert "opacity=0.3" in url
    drawn = np.asarray(Image.open(io.BytesIO(httpx.get(url).content)).convert("RGB")).astype(int)
    assert np.abs(blended - drawn).mean() < 4, "the two layers are lossy"


def test_the_colormap_colours_overlay_and_score_and_the_scale_beside_them(page: Page) -> None:
    choose(page, picture(90, WIDE))
    shown(page)
    page.select_option("#colormap", "gray")
    expect(page.locator("#ramp")).to_have_attribute("data-map", "gray")
    shown(page)
    heat = pixels(page, "heat")
    assert np.ptp(heat, axis=2).max() < 12, "a grey heatmap"
    page.click("label[for=view-score]")
    shown(page)
    expect(page.locator("#heat")).to_be_hidden()
    assert np.ptp(pixels(page, "base"), axis=2).max() == 0


def test_the_switch_draws_the_other_score_and_says_which_one_protects_the_tokens(page: Page, shared: Site) -> None:
    choose(page, picture(90, WIDE))
    shown(page)
    lfgm = pixels(page, "heat")
    expect(page.locator("#caption")).to_contain_text("mean of its channels (LFGM): what is detailed is protected")
    asked = drawings(page)
    page.click("label[for=score-energy]")
    expect(page.locator("#caption")).to_contain_text("all of its channels. The model does not merge by this score.")
    shown(page)
    assert (pixels(page, "heat") != lfgm).any()
    assert [url.split("score=")[1].split("&")[0] for url in asked] == ["energy"], "the picture below stays"
    url = page.inner_text("#curl").splitlines()[1].split("'")[1]
    assert "score=energy" in url
    assert httpx.get(url).headers["content-type"] == "image/png"
    page.click("label[for=view-score]")
    shown(page)
    energy = pixels(page, "base")
    page.click("label[for=score-lfgm]")
    expect(page.locator("#caption")).to_have_text(
        "How much high-frequency detail each patch has in the mean of its channels (LFGM), one square per patch of the "
        "centre crop."
    )
    shown(page)
    assert (pixels(page, "base") != energy).any()
    page.click("label[for=view-merged]")
    expect(page.locator("#score-lfgm")).to_be_hidden()


def test_what_the_centre_crop_cuts_off_is_shaded_in_the_original(page: Page) -> None:
    choose(page, picture(200, WIDE))
    page.click("label[for=view-original]")
    shown(page)
    found = pixels(page, "base")
    assert abs(found[48, 96] - 200).max() <= 3
    assert abs(found[48, 10] - 120).max() <= 3
    expect(page.locator("#caption")).to_contain_text("cut off by the centre crop")
    expect(page.locator("#heat")).to_be_hidden()


def test_merged_tokens_are_shown_after_each_merging_block(page: Page) -> None:
    choose(page, picture(90, WIDE))
    shown(page)
    asked = drawings(page)
    page.click("label[for=view-merged]")
    expect(page.locator("#block-value")).to_have_text("2 of 2: 5 → 4 tokens")
    shown(page)
    last = pixels(page, "base")
    page.locator("#block").fill("0")
    expect(page.locator("#block-value")).to_have_text("1 of 2: 6 → 5 tokens")
    expect(page.locator("#block")).to_have_attribute("aria-valuetext", "1 of 2: 6 to 5 tokens")
    shown(page)
    assert (pixels(page, "base") != last).any()
    assert [url.split("layer=")[1].split("&")[0] for url in asked] == ["3", "1"]
    page.locator("#block").fill("1")
    shown(page)
    assert (pixels(page, "base") == last).all()
    assert len(asked) == 2, "a drawing is asked for once"


@pytest.mark.parametrize(
    ("data", "name", "status", "title", "told"),
    [
        (png_header(20000, 20000), "bomb.png", 413, "The picture is too large", "found 20000 x 20000"),
        (b"only words", "notes.txt", 415, "Not an accepted picture format", "Expected a picture as JPEG"),
        (picture(7, (64, 64))[:90], "half.png", 422, "The picture cannot be decoded", "Expected"),
    ],
    ids=["too large", "no picture", "damaged"],
)
def test_a_refused_file_is_explained_in_words_and_the_answer_before_it_stays(
    watched: Watched, data: bytes, name: str, status: int, title: str, told: str
) -> None:
    page = watched.page
    choose(page, picture(7))
    shown(page)
    choose(page, data, name)
    problem = page.locator("#problem")
    expect(problem.locator("h2")).to_have_text(title)
    for words in (told, name, f"Status {status}", "request "):
        expect(problem).to_contain_text(words)
    assert problem.locator("button").count() == 0
    assert problem.get_attribute("role") == "alert"
    assert labels(page)[0] == CLASS_NAMES[7]
    watched.refused(status)
    choose(page, picture(9))
    expect(problem).to_be_hidden()


def test_a_file_with_too_many_bytes_is_not_even_sent(page: Page, shared: Site) -> None:
    expect(page.locator("#state")).to_have_text("Ready")
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url))
    choose(page, bytes(shared.service.settings.max_upload_bytes + 1), "huge.jpg")
    expect(page.locator("#problem")).to_contain_text("Expected at most 10,485,760 bytes, found 10,485,761")
    assert sent == []


def test_a_full_queue_is_explained_and_the_picture_goes_again_when_the_service_wants_it(browser: Browser) -> None:
    engine = FakeEngine()
    with site(loader(engine), max_queue_size=2, max_batch_size=1) as busy, opened(browser, busy) as watched:
        expect(watched.page.locator("#state")).to_have_text("Ready")
        engine.hold()
        others = [threading.Thread(target=_classify, args=(busy.url,)) for _ in range(3)]
        others[0].start()
        assert engine.entered.acquire(timeout=PATIENCE_S)  # the warm-up does not count: it does not run
        for other in others[1:]:
            other.start()
        until(lambda: busy.service.batcher.queued == 2)
        choose(watched.page, picture(12))
        problem = watched.page.locator("#problem")
        expect(problem.locator("h2")).to_have_text("Too many images are waiting")
        expect(problem).to_contain_text("The service asks to come back in")
        watched.refused(429)
        engine.release()
        for other in others:
            other.join(PATIENCE_S)
        expect(watched.page.locator("#again")).to_have_text("Try again")
        watched.page.click("#again")
        expect(watched.page.locator("#predictions .label").first).to_have_text(CLASS_NAMES[12])
        expect(problem).to_be_hidden()
        assert watched.complaints == []


def _classify(url: str) -> None:
    httpx.post(f"{url}classify", content=picture(1), headers={"Content-Type": "image/png"}, timeout=PATIENCE_S)


def test_a_model_that_still_loads_is_waited_for(browser: Browser) -> None:
    loaded = threading.Event()

    def load(settings: Settings) -> ServedModel:
        assert loaded.wait(PATIENCE_S)
        return served(FakeEngine())

    with site(load, wait=False) as slow:
        try:
            with opened(browser, slow) as watched:
                expect(watched.page.locator("#state")).to_have_text("The model is loading")
                choose(watched.page, picture(7))
                expect(watched.page.locator("#problem h2")).to_have_text("The service is not ready")
                loaded.set()
                expect(watched.page.locator("#state")).to_have_text("Ready")
                expect(watched.page.locator("#facts")).to_contain_text("double")
                watched.page.click("#again")
                expect(watched.page.locator("#predictions .label").first).to_have_text(CLASS_NAMES[7])
                watched.refused(503)
                assert watched.complaints == []
        finally:
            loaded.set()


def test_a_service_that_cannot_be_reached_is_said_so_and_may_be_tried_again(watched: Watched) -> None:
    page = watched.page
    page.route("**/classify", lambda route: route.abort())
    choose(page, picture(7))
    expect(page.locator("#problem")).to_contain_text("The service cannot be reached")
    page.unroute("**/classify")
    page.click("#again")
    expect(page.locator("#predictions .label").first).to_have_text(CLASS_NAMES[7])
    assert [text for text in watched.complaints if "net::ERR_FAILED" in text] == watched.complaints
    watched.complaints.clear()


def test_a_key_is_asked_for_once_sent_with_everything_and_never_shown(browser: Browser, shared: Site) -> None:
    body = {"type": "urn:freqmerge:problem:unauthorized", "title": "An API key is needed", "request_id": "0"}
    body |= {"detail": "expected an API key, found none", "status": "401"}
    sent: list[str] = []

    def guard(route: Route) -> None:
        given = route.request.headers.get("authorization")
        if given == "Bearer open-sesame":
            sent.append(route.request.url.removeprefix(shared.url).split("?")[0])
            route.continue_()
        else:
            headers = {"content-type": "application/problem+json"}
            route.fulfill(status=401, headers=headers, body=json.dumps(body))

    with opened(browser, shared, "docs") as watched:
        page = watched.page
        for guarded in ("model", "classify", "heatmap*"):
            page.route(f"**/{guarded}", guard)
        page.goto(shared.url)
        expect(page.locator("#state")).to_have_text("An API key is needed")
        expect(page.locator("#key")).to_be_focused()
        page.keyboard.type("open-sesame")
        page.keyboard.press("Enter")
        expect(page.locator("#facts")).to_contain_text("double")
        expect(page.locator("#key-form")).to_be_hidden()
        choose(page, picture(7))
        shown(page)
        assert set(sent) == {"model", "classify", "heatmap"}
        assert '-H "Authorization: Bearer $API_KEY"' in page.inner_text("#curl")
        assert "open-sesame" not in page.content()
        page.reload()
        expect(page.locator("#facts")).to_contain_text("double")
        watched.refused(401)
        assert watched.complaints == []


def test_views_are_drawn_where_no_picture_is_kept_and_after_it_was_forgotten(browser: Browser, shared: Site) -> None:
    with site(loader(FakeEngine()), store_max_images=0) as forgetful, opened(browser, forgetful) as watched:
        choose(watched.page, picture(7))
        shown(watched.page)
        assert "--data-binary @picture.png" in watched.page.inner_text("#curl").splitlines()[1]
        assert watched.complaints == []
    with opened(browser, shared) as watched:
        choose(watched.page, picture(7))
        shown(watched.page)
        with ThreadPoolExecutor(1) as other:  # this thread has the event loop of the browser
            other.submit(asyncio.run, shared.service.store.close()).result()
        watched.page.click("label[for=view-merged]")
        shown(watched.page)
        expect(watched.page.locator("#problem")).to_be_hidden()
        watched.refused(404)


def test_the_page_can_be_used_with_the_keyboard_alone(page: Page) -> None:
    expect(page.locator("#state")).to_have_text("Ready")
    page.on("filechooser", lambda chooser: None)  # no dialog from here on

    def tab_to(condition: str) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate(f"((element) => {condition})(document.activeElement)"):
                return
        raise AssertionError(f"no Tab leads to {condition}")

    tab_to("element.id === 'file'")
    assert page.evaluate("getComputedStyle(document.querySelector('label[for=file]')).outlineStyle") == "solid"
    with page.expect_file_chooser():
        page.keyboard.press("Space")
    tab_to("element.dataset.sample === 'rocket.jpg'")
    page.keyboard.press("Enter")
    shown(page)
    page.keyboard.press("Home")
    page.evaluate("document.activeElement.blur()")
    tab_to("element.name === 'view'")
    tab_to("element.name === 'score'")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#score-energy")).to_be_checked()
    page.evaluate("document.activeElement.blur()")
    tab_to("element.name === 'view'")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#view-merged")).to_be_checked()
    tab_to("element.id === 'block'")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#block-value")).to_have_text("1 of 2: 6 → 5 tokens")
    shown(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_accessibility_rule_is_broken_with_and_without_an_answer(
    browser: Browser, shared: Site, scheme: Any
) -> None:
    with opened(browser, shared, color_scheme=scheme) as watched:
        expect(watched.page.locator("#facts")).to_contain_text("double")
        assert _violations(watched.page) == []
        choose(watched.page, picture(7, WIDE))
        shown(watched.page)
        choose(watched.page, b"words")
        expect(watched.page.locator("#problem")).to_be_visible()
        assert _violations(watched.page) == []
        paper = watched.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert (sum(map(int, paper[4:-1].split(","))) < 200) == (scheme == "dark")


def _violations(page: Page) -> list[str]:
    found = Axe().run(page).response["violations"]
    return [f"{rule['id']}: {node['html']}" for rule in found for node in rule["nodes"]]


def test_a_phone_has_a_camera_button_and_nothing_to_scroll_sideways(browser: Browser, shared: Site) -> None:
    phone = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
    with opened(browser, shared, **phone) as watched:
        choose(watched.page, picture(7, WIDE))
        shown(watched.page)
        expect(watched.page.locator("label[for=photo]")).to_be_visible()
        assert watched.page.get_attribute("#photo", "capture") == "environment"
        assert watched.page.evaluate("document.documentElement.scrollWidth") == 360


def test_the_command_lines_do_what_the_page_did(browser: Browser, shared: Site, tmp_path: Path) -> None:
    name = "it's a cup.jpg"
    (tmp_path / name).write_bytes((HERE / "samples" / "coffee.jpg").read_bytes())
    with opened(browser, shared) as watched:
        watched.page.set_input_files("#file", tmp_path / name)
        shown(watched.page)
        lines = watched.page.inner_text("#curl").splitlines()
        assert len(lines) == 2
        answer, drawing = (
            subprocess.run(["sh", "-c", f"{line} --silent --fail"], cwd=tmp_path, capture_output=True, check=True)
            for line in lines
        )
        predictions = json.loads(answer.stdout)["predictions"]
        assert [found["label"].replace("_", " ") for found in predictions] == labels(watched.page)
        assert drawing.stdout == b""
        with Image.open(tmp_path / "heatmap.png") as found:
            assert (found.format, found.size) == ("PNG", (600, 400))


def test_the_command_lines_can_be_copied(browser: Browser, shared: Site) -> None:
    with opened(browser, shared, permissions=["clipboard-read", "clipboard-write"]) as watched:
        choose(watched.page, picture(7))
        shown(watched.page)
        watched.page.click("#copy")
        expect(watched.page.locator("#copy")).to_have_text("Copied")
        assert watched.page.evaluate("navigator.clipboard.readText()") == watched.page.inner_text("#curl")


def test_page_and_documentation_work_behind_a_proxy_that_adds_a_prefix(browser: Browser) -> None:
    with site(loader(FakeEngine()), prefix="/vision/v1") as hidden:
        with opened(browser, hidden) as watched:
            watched.page.click("[data-sample='rocket.jpg']")
            shown(watched.page)
            assert f"{hidden.url}classify" in watched.page.inner_text("#curl")
            assert (watched.complaints, watched.foreign) == ([], [])
        with opened(browser, hidden, "docs") as watched:
            watched.page.click("#operations-status-model .opblock-summary-control")
            watched.page.click("#operations-status-model button.execute")
            expect(watched.page.locator(".live-responses-table tbody .response-col_status").first).to_contain_text(
                "200"
            )
            expect(watched.page.locator(".request-url pre")).to_have_text(f"{hidden.url}model")
            assert (watched.complaints, watched.foreign) == ([], [])
