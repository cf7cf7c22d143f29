"""The first tab: one message, its class, the words behind it, and what a layer attends to.

Everything shown is made from one state: the session's messages, each with its own answer, and
which of them is open. And `/classify`, which gives programs the same answer.
"""

from collections.abc import Callable
from typing import Any

import gradio as gr
import numpy as np
import pandas as pd
from explanations import Attention, Explanation, attention
from gradio.events import Dependency
from html_parts import (
    QUIET,
    beginning,
    download_on_click,
    heat_table,
    note,
    refusal,
    safe,
    table,
    visible,
)
from opened import Opened
from session import (
    NO_MESSAGE,
    Judge,
    close_entry,
    history_rows,
    labelled_file,
    new_session,
    opened_entry,
    say_right,
)
from thresholds import UNDECIDED, decide

NUM_STRONGEST = 6  # words in the table
WEAK = 0.15  # of the strongest word's change: a weaker word is not marked
NOT_READ = "not read"
MAX_TOKENS_SHOWN = 32  # a larger attention map is no longer legible
LOOKED_FROM = {
    "last": "The class is read at the last token. From there, this head looks at:",
    "mean": "The class is read from the mean of all tokens. On their average, this head looks at:",
    "first": "The class is read at the first token. From there, this head looks at:",
}

# The answer is greyed as soon as the text in the box is another one than that it belongs to.
MARK_STALE = """(text, judged) => {
  const [now, then] = [text.trim(), judged.trim()];
  document.querySelector("#answer")?.classList.toggle("stale", now !== then);
  document.querySelector("#lines").hidden = !now.includes("\\n");
}"""
COPY = """(judged) => {
  const said = document.querySelector("#decision").innerText.trim();
  navigator.clipboard?.writeText(`${said.replace(/\\s*\\n\\s*/g, " – ")}\\n${judged}`);
}"""
# The text stands behind the #, which browsers send to no server.
LINK = """(judged) => {
  history.replaceState(null, "", "#text=" + encodeURIComponent(judged));
  navigator.clipboard?.writeText(location.href);
}"""
FROM_LINK = """() => {
  try { return decodeURIComponent(location.hash.match(/^#text=(.*)$/)?.[1] ?? ""); }
  catch { return ""; }
}"""


def marked_words(found: Explanation, label_name: str) -> gr.HighlightedText:
    """The message; beside the words that count, what they add to the class or take from it."""
    tokens: list[tuple[str, str | None]] = []
    limit = max(0.05, *(WEAK * abs(change) for change in found.changes))
    for part, change in zip(found.parts, found.changes, strict=True):
        word = part.lstrip()
        number = f"{change:+.1f}" if abs(change) > limit else None
        tokens += [(part[: len(part) - len(word)], None), (visible(word), number)]
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
    return table(pd.DataFrame(columns), "Strongest words")


def attention_map(seen: Attention) -> str:
    tokens = seen.tokens[-MAX_TOKENS_SHOWN:]
    shades = seen.weights[-len(tokens) :, -len(tokens) :].sqrt().numpy()
    return heat_table("map", np.full(shades.shape, ""), shades / shades.max(), tokens, tokens)


def one_message_tab(
    opened: Opened, second: Opened | None, threshold: gr.Slider, page: gr.Blocks
) -> tuple[gr.Textbox, Callable[[Dependency], None]]:
    """Builds the tab; returns its box, and what opens the box's text after an event."""
    names, shape = opened.names, opened.classifier.decoder.cfg
    judge = Judge(opened, second)

    def show(session: dict[str, Any], threshold: float) -> list[Any]:
        """All that the tab shows of the session; what does not belong to the open entry is gone."""
        entry, found = opened_entry(session), None
        decision, bars, others = "", None, []
        said = note(session["said"]) if session["said"] else ""
        if entry is not None:
            found, others = entry["found"], entry["others"]
            probabilities = np.array(entry["probabilities"])
            best = names[int(probabilities.argmax())]
            answer = decide(probabilities, names, threshold)
            detail = f"{probabilities.max():.1%}"
            if answer == UNDECIDED:
                detail = f"likeliest: {best}, {detail}"
            if threshold:
                detail += f"; undecided below {threshold:.0%}"
            decision = f"<h2>{safe(answer)}</h2>{note(detail)}"
            said = note(f"{answer}, {detail}", "unseen")  # for screen readers
            bars = dict(zip(names, entry["probabilities"], strict=True))
        rows = history_rows(session, names, threshold)
        num_said = sum(entry["right"] is not None for entry in session["entries"])
        return [
            entry["text"] if entry else "",
            said,
            gr.Column(visible=entry is not None),
            decision,
            bars,
            marked_words(found, best) if found else gr.HighlightedText([], label="Words …"),
            strongest_words(found, best) if found else "",
            table(pd.DataFrame(others), "Other opinions") if others else "",
            entry["right"] if entry else None,
            gr.Column(visible=bool(rows)),
            gr.Dataset(samples=rows),
            gr.Button(f"Download {num_said} labelled as CSV", interactive=num_said > 0),
        ]

    def show_attention(session: dict[str, Any], layer: int, head: int, wanted: bool, whole: bool):
        entry = opened_entry(session)
        if entry is None or not wanted:
            return gr.Column(visible=wanted), None, ""
        seen = attention(opened.classifier, opened.tokenizer, entry["text"], layer, head)
        share = 0.7 * seen.decisive / seen.decisive.max()  # a full red would be hard to read on
        marked = list(zip(seen.tokens, share.tolist()))
        return gr.Column(visible=True), marked, attention_map(seen) if whole else ""

    def classify(message: str) -> dict[str, Any]:
        """Classify one message: the likeliest label, and the probability of every label."""
        if not str(message).strip():
            raise refusal(NO_MESSAGE)
        probabilities = opened.probabilities([str(message)])[0]
        answer = dict(zip(names, probabilities.tolist(), strict=True))
        return {"label": names[int(probabilities.argmax())], "probabilities": answer}

    def text_of_row(row: int, session: dict[str, Any]) -> str:
        return session["entries"][-1 - row]["text"]  # the latest is first

    session = gr.State(new_session())
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
    with gr.Row():
        button = gr.Button("Classify", variant="primary", min_width=100)
        lines = gr.Button("Classify each line", elem_id="lines", min_width=100)
        clear = gr.Button("Clear", min_width=100)
    said = gr.HTML(elem_id="said", elem_classes="live")
    with gr.Column(visible=False, elem_id="answer") as answer, gr.Row():
        with gr.Column(scale=4, min_width=300):
            decision = gr.HTML(elem_id="decision")
            bars = gr.Label(
                label="Probability of each class", num_top_classes=10, show_heading=False
            )
            others = gr.HTML(elem_id="others")
            right = gr.Dropdown(
                list(names), value=None, label="Wrong? Say the right label", elem_id="right"
            )
            with gr.Row():
                copy = gr.Button("Copy the answer", size="sm", min_width=100)
                link = gr.Button("Copy a link to it", size="sm", min_width=100)
        with gr.Column(scale=6, min_width=300):
            words = gr.HighlightedText(combine_adjacent=True, elem_id="words")
            strongest = gr.HTML()
            wanted = gr.Checkbox(label="Show attention: which token looks at which?")
            with gr.Column(visible=False) as looks:
                with gr.Row():
                    layers, heads = range(1, shape.n_layers + 1), range(1, shape.n_heads + 1)
                    layer = gr.Dropdown(list(layers), value=layers[-1], label="Layer")
                    head = gr.Dropdown(list(heads), value=1, label="Head")
                looked_at = gr.HighlightedText(
                    label=LOOKED_FROM[opened.config.pooling], elem_id="looked-at"
                )
                whole = gr.Checkbox(label="The map of all tokens (of a long text, the last ones)")
                weights = gr.HTML(elem_id="attention")
    examples = opened.examples()
    if examples:
        example = gr.Dataset(
            components=["textbox"] * 3,
            headers=["Test message: click to try", "It is", "Answered"],
            samples=examples,
            label="Examples: test messages, right answers and wrong ones",
            elem_id="examples",
        )
    with gr.Column(visible=False) as past:
        history = gr.Dataset(
            components=["textbox"] * 4,
            headers=["Message", "Answer", "Sure", "Right label"],
            type="index",
            label="This session: click a message to open it again",
            elem_id="history",
        )
        labelled = gr.Button("Download labelled as CSV", elem_id="labelled", size="sm")

    run = {"trigger_mode": "multiple", "show_progress_on": [said], "api_visibility": "private"}
    latest = {"trigger_mode": "always_last", **QUIET}

    def open_after(event: Dependency) -> None:
        event.then(judge.open_if_any, [message, session], session, **run)

    gr.on([button.click, message.submit], judge.open, [message, session], session, **run)
    open_after(history.click(text_of_row, [history, session], message, **QUIET))
    open_after(page.load(None, None, message, js=FROM_LINK))
    if examples:
        open_after(example.click(lambda row: row[0], example, message, **QUIET))
    lines.click(judge.open_lines, [message, session], session, **run)
    clear.click(close_entry, session, [message, session], **QUIET)
    right.input(say_right, [right, judged, session], session, **QUIET)
    shown = [judged, said, answer, decision, bars, words, strongest, others, right, past, history]
    gr.on(
        [session.change, threshold.change], show, [session, threshold], [*shown, labelled], **latest
    )
    fit = [page.load, message.change, judged.change]
    gr.on(fit, None, [message, judged], js=MARK_STALE)
    gr.on(
        [session.change, layer.input, head.input, wanted.input, whole.input],
        show_attention,
        [session, layer, head, wanted, whole],
        [looks, looked_at, weights],
        **latest,
    )
    copy.click(None, judged, js=COPY)
    link.click(None, judged, js=LINK)
    download_on_click(labelled, labelled_file, [session])
    gr.api(classify, api_name="classify")
    return message, open_after
