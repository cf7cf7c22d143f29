"""The page as a person uses it: in Chromium, wide and narrow, light and dark.

With CH06_SCREENSHOTS set to a folder, each test leaves its picture there to be looked at.
"""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("gradio", reason="needs requirements-extra.txt")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs requirements-extra.txt")

from trial_page import find_chromium, served  # noqa: E402

expect = sync_api.expect
expect.set_options(timeout=60_000)  # a busy machine is no failure

CHROMIUM = find_chromium()
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here; on Debian: apt-get install chromium"
)
LOOKS = [(width, theme) for width in (1280, 390) for theme in ("light", "dark")]
in_every_look = pytest.mark.parametrize("page", LOOKS, indirect=True)
TABS = ("One message", "Many messages", "How good is it?", "About")
SPAM = "cash now free urgent 1"  # a message of the training
HOSTILE = (
    "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script> "
    "${document.title='taken'} {{this}} \x07 \u202eolleh مرحبا 👩‍👩‍👧 <b>claim</b> prize"
)


@pytest.fixture(scope="module")
def spread(folder, tmp_path_factory) -> Path:
    """The trained classifier with saved test predictions that are spread evenly, so that every
    threshold counts differently."""
    spread = tmp_path_factory.mktemp("browser") / "classifier"
    shutil.copytree(folder, spread)
    metrics = json.loads((spread / "metrics.json").read_text(encoding="utf-8"))
    scores = np.linspace(0.015, 0.985, metrics["test"]["num_examples"])
    metrics["test_predictions"]["probabilities"] = np.stack([1 - scores, scores], axis=1).tolist()
    (spread / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    return spread


@pytest.fixture(scope="module")
def address(spread):
    with served(spread) as url:
        yield url


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address, request):
    """A page that must ask no other host for anything, log no error, and not scroll sideways."""
    width, theme = getattr(request, "param", LOOKS[0])
    page = browser.new_page(viewport={"width": width, "height": 850})
    page.set_default_timeout(60_000)
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("websocket", lambda socket: asked.append(socket.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    page.goto(f"{address}?__theme={theme}")
    expect(page.get_by_role("button", name="Classify", exact=True)).to_be_visible()
    yield page
    if pictures := os.environ.get("CH06_SCREENSHOTS"):
        name = re.sub(r"\[.*", "", request.node.name)
        page.screenshot(path=Path(pictures) / f"{name}-{width}-{theme}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    own = (address, "data:", "blob:", address.replace("http:", "ws:"))
    assert [url for url in asked if not url.startswith(own)] == []
    assert errors == []
    page.close()


def choose_tab(page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def classify(page, text: str) -> None:
    page.get_by_label("Message", exact=False).first.fill(text)
    page.get_by_role("button", name="Classify", exact=True).click()


def upload(page, path: Path, content: bytes | pd.DataFrame) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content.to_csv(path, index=False)
    page.locator("#upload input[type=file]").set_input_files(path)


@in_every_look
def test_one_message(page):
    classify(page, SPAM)
    expect(page.locator("#decision h2")).to_have_text("spam")
    expect(page.locator("#words")).to_contain_text("What each word adds to 'spam'")
    expect(page.locator("#words .highlighted").filter(has_text="+").first).to_be_visible()
    expect(page.get_by_text("spam without it")).to_be_visible()
    slider = page.get_by_label("number input for Threshold", exact=False).first
    slider.fill("0.99")
    slider.press("Enter")
    expect(page.locator("#decision")).to_contain_text("threshold of 0.99")
    expect(page.locator("#decision h2")).to_have_text("ham")
    page.get_by_role("button", name="Attention map").click()
    page.get_by_role("button", name="Draw the attention map").click()
    expect(page.locator("#attention tbody tr").first).to_be_visible()
    expect(page.locator("#attention tbody td").first).to_have_text("100")


def test_an_example_can_be_clicked(page):
    page.get_by_text("Sorry, stuck in a meeting").click()
    expect(page.locator("#decision h2")).to_have_text("ham")
    assert page.get_by_label("Message", exact=False).first.input_value().startswith("Sorry")


@in_every_look
def test_many_messages(page, tmp_path):
    texts = [SPAM, HOSTILE, "home mum dinner tonight 0"] * 80
    choose_tab(page, "Many messages")
    download = page.get_by_role("button", name="Download all rows")
    expect(download).to_be_disabled()
    upload(page, tmp_path / "some.csv", pd.DataFrame({"note": "=1+1", "text": texts}))
    expect(page.locator("#status")).to_contain_text("240 rows")
    expect(page.locator("#column input")).to_have_value("text")
    page.get_by_role("button", name="Classify the file").click()
    expect(page.locator("#status")).to_contain_text("240 messages: ")
    expect(page.locator("#table")).to_contain_text("<script>")
    expect(page.locator("#table")).to_contain_text("⟨U+202E⟩olleh")
    expect(download).to_be_enabled()
    with page.expect_download() as waiting:
        download.click()
    result = pd.read_csv(waiting.value.path(), dtype=str)
    assert len(result) == 240
    assert result["note"].unique().tolist() == ["'=1+1"]
    assert result["predicted_label"][0] == "spam"
    assert page.title() == "Fine-tuned GPT"


@in_every_look
def test_how_good_is_it(page, spread):
    metrics = json.loads((spread / "metrics.json").read_text(encoding="utf-8"))
    is_spam = np.array(metrics["test_predictions"]["labels"]) == 1
    scores = np.array(metrics["test_predictions"]["probabilities"])[:, 1]
    choose_tab(page, "How good is it?")
    expect(page.get_by_text("95% interval of that share")).to_be_visible()
    expect(page.get_by_role("heading", name="Confusion matrix")).to_be_visible()
    expect(page.locator("canvas, svg.marks").first).to_be_visible()
    threshold = page.locator("#test-threshold input[type=number]")
    tiles = page.locator("#missed-and-lost .tiles > div")
    for value in (0.8, 0.2):
        threshold.fill(str(value))
        threshold.press("Enter")
        num_missed = (is_spam & (scores < value)).sum()
        num_lost = (~is_spam & (scores >= value)).sum()
        expect(tiles.nth(0)).to_have_text(f"{num_missed}missed, of {is_spam.sum()} spam")
        expect(tiles.nth(1)).to_have_text(f"{num_lost}lost, of {(~is_spam).sum()} others")
    expect(page.get_by_text("Expected calibration error")).to_be_visible()


@in_every_look
def test_about(page):
    choose_tab(page, "About")
    expect(page.locator(".facts")).to_contain_text("Trained onmessages.csv")


def test_text_is_data(page):
    classify(page, HOSTILE)
    expect(page.locator("#words")).to_contain_text("onerror")
    page.get_by_role("button", name="Attention map").click()
    page.get_by_role("button", name="Draw the attention map").click()
    expect(page.locator("#attention td").first).to_be_attached()
    assert page.title() == "Fine-tuned GPT"
    markup = "#words img, #words script, #words b, #attention img, #attention script"
    assert page.locator(markup).count() == 0
    assert "{{this}}" in page.locator("#words").inner_text()
    assert "⟨U+202E⟩olleh" in page.locator("#words").inner_text()


def test_a_very_long_message_is_answered_and_its_rest_named(page):
    classify(page, "claim a prize " * 7_200)
    expect(page.locator("#words .highlighted").last).to_contain_text("not read")


def test_an_empty_box_gets_a_sentence_and_the_page_goes_on(page):
    page.get_by_role("button", name="Classify", exact=True).click()
    expect(page.get_by_text("There is no message yet")).to_be_visible()
    classify(page, SPAM)
    expect(page.locator("#decision h2")).to_have_text("spam")


def test_a_long_job_can_be_stopped_and_another_file_classified(page, tmp_path):
    choose_tab(page, "Many messages")
    upload(page, tmp_path / "long.txt", f"{SPAM}\n".encode() * 100_000)
    expect(page.locator("#status")).to_contain_text("100,000 rows")
    page.get_by_role("button", name="Classify the file").click()
    expect(page.locator("#status")).to_contain_text("of 100,000 messages classified")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#status")).to_contain_text("Stopped.")
    page.get_by_role("button", name="Clear").first.click()
    upload(page, tmp_path / "short.txt", SPAM.encode())
    expect(page.locator("#status")).to_contain_text("1 rows")
    page.get_by_role("button", name="Classify the file").click()
    expect(page.locator("#status")).to_contain_text("1 messages: 1 spam")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"text\nca\xf1on\n", "not UTF-8"),
        (b"<img src=/y.png>,<img src=/y.png>\n1,2\n", "'<img src=/y.png>'"),
    ],
    ids=["encoding", "markup"],
)
def test_a_file_that_cannot_be_used_is_refused_in_a_sentence(page, tmp_path, content, sentence):
    choose_tab(page, "Many messages")
    upload(page, tmp_path / "wrong.csv", content)
    expect(page.get_by_text(sentence).first).to_be_visible()


def test_the_page_works_by_keyboard(page):
    page.get_by_label("Message", exact=False).first.focus()
    page.keyboard.type(SPAM)
    page.keyboard.press("Shift+Enter")
    expect(page.locator("#decision h2")).to_have_text("spam")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.innerText") == "Classify"
    page.get_by_role("tab", name="One message").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    chosen = [page.get_by_role("tab", name=name).get_attribute("aria-selected") for name in TABS]
    assert "true" in chosen[1:]


def test_every_control_has_a_name(page):
    for tab in TABS:
        choose_tab(page, tab)
        for control in page.locator("input:visible, textarea:visible, button:visible").all():
            name = control.evaluate(
                "e => e.ariaLabel || e.innerText || e.title || e.placeholder || "
                "[...(e.labels || [])].map(l => l.innerText).join('')"
            )
            assert name.strip(), control.evaluate("e => e.outerHTML")
