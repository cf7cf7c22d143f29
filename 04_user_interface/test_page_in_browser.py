"""The page as a person uses it: in Chromium, wide and narrow, light and dark."""

import json
import random
import re
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

for name in ("gradio", "playwright", "axe_playwright_python"):
    pytest.importorskip(name, reason="needs 04_user_interface/requirements-extra.txt")

from axe_playwright_python.sync_playwright import Axe  # noqa: E402
from opened import Opened  # noqa: E402
from page import LAUNCH, build_page  # noqa: E402
from playwright.sync_api import expect, sync_playwright  # noqa: E402
from thresholds import decide  # noqa: E402

from classifier_folder import save_classifier  # noqa: E402
from message_files import read_messages  # noqa: E402

expect.set_options(timeout=60_000)  # a busy machine is no failure

COMMANDS = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
CHROMIUM = next(filter(None, COMMANDS), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here; on Debian: apt-get install chromium"
)
LOOKS = [(width, theme) for width in (1280, 390) for theme in ("light", "dark")]
in_every_look = pytest.mark.parametrize("page", LOOKS, indirect=True)
TABS = ("One message", "Many messages", "How good is it?", "About")
SPAM = "cash now free urgent 1"  # a message of the training
EXAMPLE = "home mum dinner tonight 0"
HOSTILE = (
    "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script> "
    "${document.title='taken'} {{this}} \x07 \u202eolleh مرحبا 👩‍👩‍👧 <b>claim</b> prize"
)


@pytest.fixture(scope="module")
def spread(folder, tmp_path_factory) -> Path:
    """The trained classifier with an example, and with saved test predictions that are spread
    evenly, so that every threshold counts differently."""
    spread = tmp_path_factory.mktemp("browser") / "classifier"
    shutil.copytree(folder, spread)
    metrics = json.loads((spread / "metrics.json").read_text(encoding="utf-8"))
    scores = np.linspace(0.015, 0.985, metrics["test"]["num_examples"])
    metrics["test_predictions"]["probabilities"] = np.stack([1 - scores, scores], axis=1).tolist()
    metrics["examples"] = [{"text": EXAMPLE, "label": "ham", "answer": "spam"}]
    (spread / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    return spread


@pytest.fixture(scope="module")
def folders(spread, make_tiny, tmp_path_factory) -> dict[str, Path]:
    """That one, and a tiny one of six classes whose pooling is the mean."""
    tiny = make_tiny(("how", "who", "when", "where", "why", "what"), max_length=32)
    tiny.config = replace(tiny.config, pooling="mean")
    save_classifier(tiny, folder := tmp_path_factory.mktemp("tiny"))
    return {"trained": spread, "six": folder}


@pytest.fixture(scope="module")
def addresses(folders, serve) -> dict[str, str]:
    return {kind: serve(folder) for kind, folder in folders.items()}


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, addresses, request):
    """A page that must ask no other host for anything, log no error, and not scroll sideways."""
    width, theme, kind = (*getattr(request, "param", LOOKS[0]), "trained")[:3]
    address = addresses[kind]
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
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    own = (address, "data:", "blob:", address.replace("http:", "ws:"))
    assert [url for url in asked if not url.startswith(own)] == []
    assert errors == []
    page.close()


def choose_tab(page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def settled(page, field):
    """A field of a newly opened tab, once it keeps what is put into it.

    Gradio gives such a field its first value, and a frame later once more: too soon for a person
    to notice, but not for a test.
    """
    field.wait_for(state="attached")
    page.evaluate("""() => new Promise((done) => requestAnimationFrame(() =>
      requestAnimationFrame(() => requestIdleCallback(done))))""")
    return field


def box(page):
    return page.locator("#message textarea")


def classify(page, text: str, answer: str | None = None) -> None:
    box(page).fill(text)
    page.get_by_role("button", name="Classify", exact=True).click()
    if answer:
        expect_answer(page, answer)


def expect_answer(page, answer: str) -> None:
    expect(page.locator("#decision h2")).to_have_text(answer)


def set_threshold(page, value: float) -> None:
    choose_tab(page, "How good is it?")
    field = settled(page, page.locator("#threshold input[type=number]"))
    field.fill(str(value))
    field.press("Enter")


def upload(page, path: Path, content: bytes) -> None:
    path.write_bytes(content)
    settled(page, page.locator("#upload input[type=file]")).set_input_files(path)
    expect(page.locator("#problem")).to_contain_text(path.name)


def check_accessibility(page) -> None:
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
    found = Axe().run(page, options={"runOnly": tags}).response["violations"]
    serious = [v for v in found if v["impact"] in ("serious", "critical")]
    assert [(v["id"], [n["html"][:200] for n in v["nodes"]]) for v in serious] == []


@in_every_look
def test_one_message(page):
    expect(page.locator("#said")).to_have_attribute("aria-live", "polite")  # is read out
    classify(page, SPAM, "spam")
    expect(page.locator("#said")).to_contain_text("spam, 9")
    assert page.locator("#answer").bounding_box()["y"] < 600  # under the button, on a phone, too
    expect(page.locator("#words")).to_contain_text("What each word adds to 'spam'")
    expect(page.locator("#words .highlighted").filter(has_text="+").first).to_be_visible()
    expect(page.get_by_text("spam without it")).to_be_visible()
    page.get_by_text("Show attention").click()
    expect(page.locator("#looked-at")).to_contain_text("read at the last token")
    page.get_by_text("The map of all tokens").click()
    expect(page.locator("#attention td").first).to_be_visible()
    check_accessibility(page)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("page", "kind"),
    [((*LOOKS[0], "trained"), "trained"), ((*LOOKS[3], "six"), "six")],
    indirect=["page"],
)
def test_the_answer_belongs_to_the_text_whatever_is_done_in_whatever_order(
    page, kind, seed, folders
):
    rng, opened = random.Random(f"{kind} {seed}"), Opened(folders[kind])
    words = ["cash", "now", "mum", "home", "prize", "bus", "free", "dinner", "urgent", "later"]
    text, judged, threshold = "", "", 0.0
    for _ in range(7):
        action = rng.choice(["type", "button", "Enter", "two clicks", "threshold", "tab"])
        if action in ("threshold", "tab"):
            if action == "threshold":
                threshold = rng.choice([0, 0.6, 0.9, 0.99])
                set_threshold(page, threshold)
            choose_tab(page, rng.choice(TABS))
        else:
            choose_tab(page, "One message")
            for _click in range(2 if action == "two clicks" else 1):
                text = " ".join([*rng.sample(words, 4), str(rng.randrange(10_000))])
                box(page).fill(f" {text}\n" if rng.random() < 0.5 else text)
                if action == "Enter":
                    box(page).press("Enter")
                elif action != "type":
                    page.get_by_role("button", name="Classify", exact=True).click()
            judged = judged if action == "type" else text
        if judged:
            answer = decide(opened.probabilities([judged])[0], opened.names, threshold)
            expect_answer(page, answer)
            stale = re.compile("stale")
            shown = expect(page.locator("#answer"))
            (shown.not_to_have_class if text == judged else shown.to_have_class)(stale)
            for word in judged.split():
                expect(page.locator("#words")).to_contain_text(word)


def test_messages_are_forgotten_when_their_page_has_been_closed(browser, spread, monkeypatch):
    monkeypatch.setenv("GRADIO_IS_E2E_TEST", "1")  # after a second instead of an hour
    served = build_page(spread)
    served.launch(**LAUNCH)

    def remembered() -> list[str]:
        sessions = served.app.state_holder.session_data.values()
        states = [value for session in sessions for value in session.state_data.values()]
        return [text for state in states if "entries" in state for text in state["entries"]]

    page = browser.new_page()
    page.set_default_timeout(60_000)
    page.goto(served.local_url)
    classify(page, SPAM, "spam")
    assert remembered() == [SPAM]
    page.close()
    deadline = time.monotonic() + 60
    while remembered() and time.monotonic() < deadline:
        time.sleep(0.1)
    served.close(verbose=False)
    assert remembered() == []


def test_clear_and_an_empty_message_leave_no_old_answer(page):
    classify(page, SPAM, "spam")
    page.get_by_role("button", name="Clear", exact=True).click()
    expect(page.locator("#answer")).to_be_hidden()
    expect(box(page)).to_have_value("")
    classify(page, SPAM, "spam")
    classify(page, "  ")
    expect(page.get_by_text("There is no message yet")).to_be_visible()
    expect(page.locator("#answer")).to_be_hidden()


def test_lines_are_messages_and_the_right_label_is_collected(page):
    box(page).fill("home mum dinner\ncash now free\nbus later work")
    page.get_by_role("button", name="Classify each line").click()
    expect(page.locator("#said")).to_contain_text("3 messages")
    page.locator("#history").get_by_text("cash now free").click()
    expect_answer(page, "spam")
    expect(box(page)).to_have_value("cash now free")
    page.locator("#right input").click()
    page.get_by_role("option", name="ham").click()
    assert labelled(page) == [["cash now free", "ham"]]


def labelled(page) -> list[list[str]]:
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Download 1 labelled as CSV").click()
    path = waiting.value.path()
    return read_messages(path.rename(path.with_suffix(".csv"))).values.tolist()


@pytest.fixture
def answers(monkeypatch) -> threading.Event:
    """While it is cleared, no answer comes."""
    may_come, answer = threading.Event(), Opened.probabilities
    may_come.set()

    def wait(self, texts):
        assert may_come.wait(60)
        return answer(self, texts)

    monkeypatch.setattr(Opened, "probabilities", wait)
    return may_come


def test_a_label_goes_to_the_message_on_the_screen_though_another_is_being_answered(page, answers):
    classify(page, SPAM, "spam")
    answers.clear()
    classify(page, "home mum dinner")
    page.locator("#right input").click()
    page.get_by_role("option", name="ham").click()
    expect(page.get_by_role("button", name="Download 1 labelled as CSV")).to_be_enabled()
    answers.set()
    expect_answer(page, "ham")
    assert labelled(page) == [[SPAM, "ham"]]


def test_a_threshold_that_is_set_before_the_answer_comes_holds_for_it(page, answers):
    classify(page, SPAM, "spam")
    answers.clear()
    classify(page, "cash dinner")
    set_threshold(page, 0.99)
    choose_tab(page, "One message")
    expect(page.locator("#answer")).to_be_hidden()  # the server knows the threshold
    answers.set()
    expect_answer(page, "undecided")


def test_a_click_on_an_example_of_the_folder_tries_it(page):
    expect(page.locator("#examples")).to_contain_text("Answered")
    page.locator("#examples").get_by_text(EXAMPLE).click()
    expect_answer(page, "ham")
    expect(box(page)).to_have_value(EXAMPLE)


@in_every_look
def test_many_messages(page, tmp_path):
    texts = [SPAM, HOSTILE, "home mum dinner tonight 0"] * 80
    labels = ["ham", "spam", "ham"] * 80
    choose_tab(page, "Many messages")
    table = pd.DataFrame({"note": "=1+1", "text": texts, "kind": labels})
    upload(page, tmp_path / "some.csv", table.to_csv(index=False).encode())
    expect(page.locator("#problem")).to_contain_text("240 rows")
    expect(page.locator("#column input")).to_have_value("text")
    expect(page.locator("#label-column input")).to_have_value("kind")
    page.get_by_role("button", name="Classify file").click()
    expect(page.locator("#status")).to_contain_text("240 messages: ")
    expect(page.locator("#table")).to_contain_text("<script>")
    expect(page.locator("#table")).to_contain_text("⟨U+202E⟩olleh")
    expect(page.locator("#report")).to_contain_text("95% interval")
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Download CSV").click()
    result = pd.read_csv(waiting.value.path(), dtype=str)
    assert len(result) == 240
    assert result["note"].unique().tolist() == ["'=1+1"]
    assert result["predicted_label"][0] == "spam"
    check_accessibility(page)
    page.reload()
    choose_tab(page, "Many messages")
    expect(page.locator("#status")).to_contain_text("240 messages: ")
    page.locator("#errors").get_by_text(SPAM).first.click()
    expect_answer(page, "spam")
    expect(box(page)).to_have_value(SPAM)
    assert page.title() == "Fine-tuned GPT"


@in_every_look
def test_how_good_is_it_and_what_it_is(page, spread):
    labels, probabilities = Opened(spread).test_predictions
    sure = probabilities.max(axis=1)
    wrong = probabilities.argmax(axis=1) != labels
    expect(page.get_by_role("button", name="Classify", exact=True)).to_be_visible()
    tiles = page.locator("#consequences .tiles > div")
    for value in (0.8, 0.6):
        set_threshold(page, value)
        undecided, num = int((sure < value).sum()), len(sure)
        expect(tiles.nth(0)).to_have_text(f"{undecided} of {num}undecided")
        expect(tiles.nth(1)).to_have_text(f"{(wrong & (sure >= value)).sum()}wrong")
    expect(page.get_by_role("heading", name="Confusion matrix")).to_be_visible()
    expect(page.get_by_text("Expected calibration error")).to_be_visible()
    check_accessibility(page)
    choose_tab(page, "About")
    expect(page.locator(".facts")).to_contain_text("Trained onmessages.csv")
    check_accessibility(page)


def test_text_is_data(page):
    classify(page, HOSTILE)
    expect(page.locator("#words")).to_contain_text("onerror")
    page.get_by_text("Show attention").click()
    page.get_by_text("The map of all tokens").click()
    expect(page.locator("#attention td").first).to_be_attached()
    assert page.title() == "Fine-tuned GPT"
    markup = ":is(#words, #attention, #history, #looked-at) :is(img, script, b)"
    assert page.locator(markup).count() == 0
    assert "{{this}}" in page.locator("#words").inner_text()
    assert "⟨U+202E⟩olleh" in page.locator("#words").inner_text()


def test_a_long_job_can_be_stopped_and_another_file_classified(page, tmp_path):
    choose_tab(page, "Many messages")
    upload(page, tmp_path / "long.txt", f"{SPAM}\n".encode() * 100_000)
    expect(page.locator("#problem")).to_contain_text("100,000 rows")
    page.get_by_role("button", name="Classify file").click()
    expect(page.locator("#status")).to_contain_text("of 100,000 messages classified")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#status")).to_contain_text("stopped after")
    with page.expect_download():
        page.get_by_role("button", name="Download CSV").click()
    page.get_by_role("button", name="Clear").last.click()
    expect(page.locator("#status")).to_have_text("")
    upload(page, tmp_path / "short.txt", SPAM.encode())
    page.get_by_role("button", name="Classify file").click()
    expect(page.locator("#status")).to_contain_text("1 messages: 1 spam")


def test_a_file_that_cannot_be_used_is_refused_in_a_sentence(page, tmp_path):
    choose_tab(page, "Many messages")
    upload(page, tmp_path / "wrong.csv", b"<img src=/y.png>,<img src=/y.png>\n1,2\n")
    expect(page.locator("#problem")).to_contain_text("'<img src=/y.png>'")


def test_the_page_works_by_keyboard(page):
    box(page).focus()
    page.keyboard.type(SPAM)
    page.keyboard.press("Enter")
    expect_answer(page, "spam")
    page.keyboard.press("Shift+Enter")
    expect(box(page)).to_have_value(f"{SPAM}\n")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.innerText") == "Classify"
    page.get_by_role("tab", name="One message").focus()
    for name in ("Many messages", "How good is it?"):
        page.keyboard.press("ArrowRight")
        expect(page.get_by_role("tab", name=name)).to_have_attribute("aria-selected", "true")
