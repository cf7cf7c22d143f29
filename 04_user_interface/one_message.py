"""The first tab: one message, its class, the words behind it, and what a layer attends to.

A session is the messages so far with their probabilities, the right labels that were said, which
message is open, and the threshold. And `/classify`, which gives programs the same answer.
"""

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
import html_parts as parts
import numpy as np
import pandas as pd
from explanations import Attention, Explanation, attention, explain
from gradio.events import Dependency
from html_parts import QUIET, beginning, note
from opened import Opened
from thresholds import UNDECIDED, decide

MAX_LINES = 200  # that are classified each by itself
NO_MESSAGE = "There is no message yet: type one, or click an example."
NO_REASONS = (gr.HighlightedText([], label="Words …"), "", "")
NUM_STRONGEST = 6  # words in the table
WEAK = 0.15  # of the strongest word's change: a weaker word is not marked
NOT_READ = "not read"
MAX_TOKENS_SHOWN = 32  # a larger attention map is no longer legible
LOOKED_FROM = {
    "last": "The class is read at the last token. From there, this head looks at:",
    "mean": "The class is read from the mean of all tokens. On their average, this head looks at:",
    "first": "The class is read at the first token. From there, this head looks at:",
}
ANYWHERE = "From where the class is read, this head looks at:"

# The answer is greyed as soon as the box holds another text than the one it belongs to.
MARK_STALE = """(text, judged) => {
  const [now, then] = [text.trim(), judged.trim()];
  document.querySelector("#answer")?.classList.toggle("stale", now !== then);
  document.querySelector("#lines").hidden = !now.includes("\\n");
}"""
COPY = """(judged) => {
  const said = document.querySelector("#decision").innerText.trim();
  navigator.clipboard?.writeText(`${said.replace(/\\s*\\n\\s*/g, " – ")}\\n${judged}`);
}"""


def marked_words(found: Explanation, label_name: str) -> gr.HighlightedText:
    """The message; beside the words that count, what they add to the class or take from it."""
    tokens: list[tuple[str, str | None]] = []
    limit = max([0.05, *(WEAK * abs(change) for change in found.changes)])
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


def attention_map(seen: Attention) -> str:
    tokens = seen.tokens[-MAX_TOKENS_SHOWN:]
    shades = seen.weights[-len(tokens) :, -len(tokens) :].sqrt().numpy()
    return parts.heat_table("map", np.full(shades.shape, ""), shades / shades.max(), tokens, tokens)


def one_message_tab(
    opened: Opened, second: Opened | None, threshold: gr.Slider, page: gr.Blocks
) -> tuple[gr.Textbox, Callable[[Dependency], None]]:
    """Builds the tab; returns its box, and what opens the box's text after an event.

    A session is changed in place, since the answers to two clicks may be on their way at once.
    """
    names, shape = opened.names, opened.classifier.decoder.cfg

    def remember(texts: list[str], session: dict[str, Any]) -> None:
        """Classify those that are new."""
        if new := [text for text in dict.fromkeys(texts) if text not in session["entries"]]:
            session["entries"].update(zip(new, opened.probabilities(new)))

    def past_of(session: dict[str, Any]) -> list[Any]:
        """The session's messages, the latest first, and how many of them were labelled."""
        right, threshold = session["right"], session["threshold"]
        rows = [
            [beginning(text), decide(p, names, threshold), f"{p.max():.1%}", right.get(text, "")]
            for text, p in reversed(list(session["entries"].items()))
        ]
        download = gr.Button(f"Download {len(right)} labelled as CSV", interactive=bool(right))
        return [gr.Column(visible=bool(rows)), gr.Dataset(samples=rows), download]

    def show(session: dict[str, Any], said: str = "") -> list[Any]:
        """The answer to the open message, if one is, and the past."""
        text, threshold, past = session["open"], session["threshold"], past_of(session)
        if text not in session["entries"]:  # none is open, or it is still being classified
            return ["", note(said), gr.Column(visible=False), "", None, None, *past]
        probabilities = session["entries"][text]
        answer, detail = decide(probabilities, names, threshold), f"{probabilities.max():.1%}"
        if answer == UNDECIDED:
            detail = f"likeliest: {names[probabilities.argmax()]}, {detail}"
        if threshold:
            detail += f"; undecided below {threshold:.0%}"
        said = note(f"{answer}, {detail}", "unseen")  # for screen readers
        decision = f"<h2>{parts.safe(answer)}</h2>{note(detail)}"
        bars, right = dict(zip(names, probabilities.tolist())), session["right"].get(text)
        return [text, said, gr.Column(visible=True), decision, bars, right, *past]

    def open_text(text: str, session: dict[str, Any], judged: str) -> list[Any]:
        """The answer at once; the reasons of another message are gone, and follow."""
        session["open"] = text = text.strip()
        remember([text] if text else [], session)
        if session["open"] != text:  # another message was opened meanwhile: its answer counts
            return [gr.skip()] * len(shown + reasons)
        of_same_text = [gr.skip()] * len(reasons)
        of_other = of_same_text if text == judged else NO_REASONS
        return [*show(session, NO_MESSAGE), *of_other]

    def open_lines(text: str, session: dict[str, Any]) -> list[Any]:
        """Each line becomes one of the session's messages; none is open."""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        remember(lines[:MAX_LINES], session)
        session["open"] = ""
        said = f"{len(lines):,} messages: click one below to see the words behind its answer."
        if len(lines) > MAX_LINES:
            said = f"The first {MAX_LINES} of {said} 'Many messages' takes them all, as a file."
        return show(session, said)

    def close(session: dict[str, Any]) -> list[Any]:
        session["open"] = ""
        return ["", *show(session)]

    def set_threshold(value: float, session: dict[str, Any]) -> list[Any]:
        session["threshold"] = value
        return show(session)

    def give_reasons(text: str, session: dict[str, Any]) -> Iterator[list[Any]]:
        """The words behind an answer, then other opinions, while no other message is opened."""
        if not text:
            return
        best = session["entries"][text].argmax()
        asked = (opened.classifier, opened.tokenizer, text, best)
        found = explain(*asked, wanted=lambda: session["open"] == text)
        if found is None:
            return
        words = [marked_words(found, names[best]), strongest_words(found, names[best])]
        yield [*words, gr.skip()]
        opinions = other_opinions(text)
        if opinions and session["open"] == text:
            yield [*words, parts.table(pd.DataFrame(opinions), "Other opinions")]

    def other_opinions(text: str) -> list[dict[str, str]]:
        opinions = []
        rival = opened.rival_probabilities(text)
        if rival is not None:
            opinions.append(("linear model on n-grams", names, rival))
        if second is not None:
            opinions.append((second.name, second.names, second.probabilities([text])[0]))
        return [
            {"who else": who, "answer": theirs[p.argmax()], "sure": f"{p.max():.1%}"}
            for who, theirs, p in opinions
        ]

    def say_right(label: str, text: str, session: dict[str, Any]) -> list[Any]:
        """Of the text whose answer was on the screen, even if another is open by now."""
        session["right"][text] = label
        return past_of(session)

    def labelled_file(session: dict[str, Any]) -> str:
        """The messages whose right label was said, as `finetune.py --data` takes them."""
        path = parts.fleeting_file("labelled.csv")
        rows = pd.DataFrame(session["right"].items(), columns=["text", "label"])
        rows.to_csv(path, index=False, encoding="utf-8")
        return str(path)

    def show_attention(text: str, layer: int, head: int, wanted: bool, full_map: bool):
        if not (text and wanted):
            return gr.Column(visible=wanted), None, ""
        seen = attention(opened.classifier, opened.tokenizer, text, layer, head)
        share = 0.7 * seen.decisive / seen.decisive.max()  # a full red would be hard to read on
        marked = list(zip(seen.tokens, share.tolist()))
        return gr.Column(visible=True), marked, attention_map(seen) if full_map else ""

    def classify(message: str) -> dict[str, Any]:
        """Classify one message: the likeliest label, and the probability of every label."""
        if not str(message).strip():
            raise parts.refusal(NO_MESSAGE)
        probabilities = opened.probabilities([str(message)])[0]
        answer = dict(zip(names, probabilities.tolist()))
        return {"label": names[probabilities.argmax()], "probabilities": answer}

    def text_of_row(row: int, session: dict[str, Any]) -> str:
        return [*session["entries"]][-1 - row]  # the latest is first

    session = gr.State({"entries": {}, "right": {}, "open": "", "threshold": 0.0})
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
            copy = gr.Button("Copy the answer", size="sm")
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
                    label=LOOKED_FROM.get(opened.config.pooling, ANYWHERE), elem_id="looked-at"
                )
                full_map = gr.Checkbox(
                    label="The map of all tokens (of a long text, the last ones)"
                )
                weights = gr.HTML(elem_id="attention")
    samples = opened.examples()
    examples = gr.Dataset(
        components=["textbox"] * 3,
        headers=["Test message: click to try", "It is", "Answered"],
        samples=samples,
        label="Examples: test messages, right answers and wrong ones",
        elem_id="examples",
        visible=bool(samples),
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

    shown = [judged, said, answer, decision, bars, right, past, history, labelled]
    reasons = [words, strongest, others]
    opening = {"inputs": [message, session, judged], "outputs": [*shown, *reasons]}
    run = {"trigger_mode": "always_last", "show_progress_on": [said], "api_visibility": "private"}
    latest = {"trigger_mode": "always_last", **QUIET}

    def open_after(event: Dependency) -> None:
        event.then(open_text, **opening, **run)

    gr.on([button.click, message.submit], open_text, **opening, **run)
    open_after(history.click(text_of_row, [history, session], message, **QUIET))
    open_after(examples.click(lambda row: row[0], examples, message, **QUIET))
    lines.click(open_lines, [message, session], shown, **run)
    clear.click(close, session, [message, *shown], **QUIET)
    threshold.change(set_threshold, [threshold, session], shown, **latest)
    right.input(say_right, [right, judged, session], [past, history, labelled], **QUIET)
    judged.change(give_reasons, [judged, session], reasons, **latest)
    fit = [page.load, message.change, judged.change]
    gr.on(fit, None, [message, judged], js=MARK_STALE)
    gr.on(
        [judged.change, layer.input, head.input, wanted.input, full_map.input],
        show_attention,
        [judged, layer, head, wanted, full_map],
        [looks, looked_at, weights],
        **latest,
    )
    copy.click(None, judged, js=COPY)
    # Gradio forgets a closed page's state if it was once the output of an event.
    page.load(lambda session: session, session, session, **QUIET)
    parts.download_on_click(labelled, labelled_file, [session])
    gr.api(classify, api_name="classify")
    return message, open_after
