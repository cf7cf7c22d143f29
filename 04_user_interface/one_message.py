"""The first tab: one message, its class, the words behind it, and what a layer attends to.

A session is the messages so far, each with its probabilities. And `/classify`, which gives programs
the same answer.
"""

import time
from collections.abc import Iterator
from typing import Any

import gradio as gr
import html_parts as parts
import numpy as np
import pandas as pd
from explanations import Explanation, attention, explain
from html_parts import QUIET, beginning, note
from opened import Opened
from thresholds import UNDECIDED, decide

NO_MESSAGE = "There is no message yet: type one, or click an example."
NUM_STRONGEST = 6  # words in the table
WEAK = 0.15  # of the strongest word's change: a weaker word is not marked
NOT_READ = "not read"

# The answer is greyed as soon as the box holds another text than the one it belongs to.
MARK_STALE = """(text, judged) => document.querySelector("#answer")?.classList.toggle(
  "stale", text.trim() !== judged.trim())"""


def marked_words(found: Explanation, label_name: str) -> gr.HighlightedText:
    """The message; beside the words that count, what they add to the class or take from it."""
    tokens: list[tuple[str, str | None]] = []
    limit = max(0.05, *(WEAK * abs(change) for change in found.changes))
    for part, change in zip(found.parts, found.changes, strict=True):
        word = part.lstrip()
        number = f"{change:+.1f}" if abs(change) > limit else None
        tokens += [(part[: len(part) - len(word)], None), (parts.visible(word), number)]
    colors = {number: "orange" if number[0] == "+" else "blue" for _, number in tokens if number}
    if found.unread:
        tokens.append((beginning(found.unread), NOT_READ))
    label = f"What each word adds to {label_name!r}, in log-odds, found by leaving it out"
    return gr.HighlightedText(tokens, color_map=colors | {NOT_READ: "#d1d5db"}, label=label)


def strongest_words(found: Explanation, label_name: str) -> str:
    order = np.argsort(-np.abs(found.changes))[:NUM_STRONGEST]
    columns = {
        "word": [beginning(found.parts[i].strip(), 80) for i in order],
        "log-odds": [f"{found.changes[i]:+.2f}" for i in order],
        f"{label_name} without it": [f"{found.probabilities_without[i]:.1%}" for i in order],
    }
    return parts.table(pd.DataFrame(columns), "Strongest words")


def one_message_tab(
    opened: Opened, threshold: gr.Slider, page: gr.Blocks
) -> list[gr.components.Component]:
    """Builds the tab; returns what another tab sets to `opening(text)`, to have it answered."""
    names, shape = opened.names, opened.classifier.decoder.cfg

    def show(text: str, session: dict[str, np.ndarray], threshold: float) -> dict[Any, Any]:
        """The answer to a message of the session, and the session, the latest first."""
        rows = [
            [beginning(each), decide(p, names, threshold), f"{p.max():.1%}"]
            for each, p in reversed(session.items())
        ]
        past = {history: gr.Dataset(samples=rows), listed: gr.Column(visible=bool(rows))}
        if not text:
            return past
        probabilities = session[text]
        decided, detail = decide(probabilities, names, threshold), f"{probabilities.max():.1%}"
        if decided == UNDECIDED:
            detail = f"likeliest: {names[probabilities.argmax()]}, {detail}"
        if threshold:
            detail += f"; undecided below {threshold:.0%}"
        return past | {
            judged: text,
            said: note(f"{decided}, {detail}", "unseen"),  # for screen readers
            answer: gr.Column(visible=True),
            decision: f"<h2>{parts.safe(decided)}</h2>{note(detail)}",
            bars: dict(zip(names, probabilities.tolist(), strict=True)),
        }

    def classify_text(
        text: str, session: dict[str, np.ndarray], threshold: float
    ) -> Iterator[dict[Any, Any]]:
        """The answer at once, then the words behind it."""
        text = text.strip()
        if not text:
            yield {judged: "", said: note(NO_MESSAGE), answer: gr.Column(visible=False)}
            return
        if text not in session:
            session[text] = opened.probabilities([text])[0]
        waiting = {words: gr.HighlightedText([], label="Words …"), strongest: ""}
        yield show(text, session, threshold) | waiting
        best = int(session[text].argmax())
        found = explain(opened.classifier, opened.tokenizer, text, best)
        yield {
            words: marked_words(found, names[best]),
            strongest: strongest_words(found, names[best]),
        }

    def show_attention(text: str, layer: int, head: int, wanted: bool) -> tuple[gr.Column, Any]:
        if not (text and wanted):
            return gr.Column(visible=wanted), None
        looks = attention(opened.classifier, opened.tokenizer, text, layer, head)
        full = max(weight for _, weight in looks) / 0.7  # a full red would be hard to read on
        return gr.Column(visible=True), [(token, weight / full) for token, weight in looks]

    def classify(message: str) -> dict[str, Any]:
        """Classify one message: the likeliest label, and the probability of every label."""
        if not str(message).strip():
            raise parts.refusal(NO_MESSAGE)
        probabilities = opened.probabilities([str(message)])[0]
        by_name = dict(zip(names, probabilities.tolist(), strict=True))
        return {"label": names[int(probabilities.argmax())], "probabilities": by_name}

    session, picked = gr.State({}), gr.State()
    message = gr.Textbox(
        label="Message",
        lines=1,  # with one line, Enter submits
        max_lines=12,
        placeholder="Type or paste a message",
        info="Enter classifies it, Shift+Enter begins a new line.",
        elem_id="message",
        autofocus=True,
    )
    judged = gr.Textbox(lines=2, visible="hidden", label="judged")  # what the answer belongs to
    button = gr.Button("Classify", variant="primary")
    said = gr.HTML(elem_id="said", elem_classes="live")
    with gr.Column(visible=False, elem_id="answer") as answer, gr.Row():
        with gr.Column(scale=4, min_width=300):
            decision = gr.HTML(elem_id="decision")
            bars = gr.Label(
                label="Probability of each class", num_top_classes=10, show_heading=False
            )
        with gr.Column(scale=6, min_width=300):
            words = gr.HighlightedText(combine_adjacent=True, elem_id="words")
            strongest = gr.HTML()
            wanted = gr.Checkbox(label="Show attention: which tokens are looked at?")
            with gr.Column(visible=False) as looks:
                with gr.Row():
                    layers, heads = range(1, shape.n_layers + 1), range(1, shape.n_heads + 1)
                    layer = gr.Dropdown(list(layers), value=layers[-1], label="Layer")
                    head = gr.Dropdown(list(heads), value=1, label="Head")
                looked_at = gr.HighlightedText(
                    label=f"From where the class is read (pooling: {opened.config.pooling}), this "
                    f"head looks at:",
                    elem_id="looked-at",
                )
    samples = opened.examples()
    examples = gr.Dataset(
        components=["textbox"] * 3,
        headers=["Test message: click to try", "It is", "Answered"],
        samples=samples,
        label="Examples: test messages, right answers and wrong ones",
        elem_id="examples",
        visible=bool(samples),
    )
    with gr.Column(visible=False) as listed:
        history = gr.Dataset(
            components=["textbox"] * 3,
            headers=["Message", "Answer", "Sure"],
            type="index",
            label="This session: click a message to open it again",
            elem_id="history",
        )

    shown = [judged, said, answer, decision, bars, history, listed]
    latest = {"trigger_mode": "always_last", **QUIET}
    # One event for all ways to open a message: the answers come one after the other.
    gr.on(
        [button.click, message.submit, picked.change],
        classify_text,
        [message, session, threshold],
        [*shown, words, strongest],
        trigger_mode="always_last",
        show_progress_on=[said],
        api_visibility="private",
    )
    history.click(
        lambda row, session: opening([*session][-1 - row]),  # the latest is first
        [history, session],
        [message, picked],
        **QUIET,
    )
    examples.click(lambda row: opening(row[0]), examples, [message, picked], **QUIET)
    threshold.change(show, [judged, session, threshold], shown, **latest)
    gr.on([page.load, message.change, judged.change], None, [message, judged], js=MARK_STALE)
    gr.on(
        [judged.change, layer.input, head.input, wanted.input],
        show_attention,
        [judged, layer, head, wanted],
        [looks, looked_at],
        **latest,
    )
    gr.api(classify, api_name="classify")
    return [message, picked]


def opening(text: str) -> tuple[str, float]:
    """A text for the box, and a sign that it is to be answered."""
    return text, time.monotonic()
