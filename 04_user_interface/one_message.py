"""The first tab: one message, its class, the words behind it, and the attention map.

And `/classify`, which gives programs the same answer.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr
import numpy as np
import pandas as pd
from explanations import Explanation, attention, explain
from html_parts import heat_table, note, refusal, visible

from classifier_folder import classify_texts
from text_classifier import GPTClassifier

NUM_STRONGEST = 6  # words in the table
WEAK = 0.15  # of the strongest word's change: a weaker word is not marked
UNDECIDED = "undecided"
NOT_READ = "not read"
ATTENTION_CAPTION = (
    "Each row shows where its token looks: the numbers are percents of its attention, the shades "
    "grow with their square root. Of a long message, the last tokens are shown."
)
SPAM_EXAMPLES = [
    "Are we still on for lunch tomorrow? I can pick you up at noon.",
    "URGENT! You have won a £900 prize. Call 09061701461 now to claim.",
    "Sorry, stuck in a meeting. Will call you later tonight.",
    "Free entry! Text WIN to 80086 for your chance of a new phone. 150p per msg.",
    "Your parcel is at the depot. Reply with your postcode and we bring it tomorrow.",
]
OTHER_EXAMPLES = [
    "I would see it again tomorrow: warm, funny, and not a minute too long.",
    "Two hours of my life that nobody will give me back.",
    "The team won in the last minute of a match that had seemed lost.",
    "The central bank raised its rate by a quarter of a point on Thursday.",
]


def decide(probabilities: Sequence[float], label_names: Sequence[str], threshold: float) -> str:
    """Of two classes the second one where its probability reaches the threshold, else the first;
    of more classes the likeliest, where it reaches the threshold.

    >>> decide([0.3, 0.7], ["ham", "spam"], 0.9)
    'ham'
    >>> decide([0.3, 0.5, 0.2], ["a", "b", "c"], 0.6)
    'undecided'
    """
    if len(label_names) == 2:
        return label_names[int(probabilities[1] >= threshold)]
    best = int(np.argmax(probabilities))
    return label_names[best] if probabilities[best] >= threshold else UNDECIDED


def threshold_slider(label_names: Sequence[str]) -> gr.Slider:
    if len(label_names) == 2:
        label = f"Threshold: call it {label_names[1]!r} from this probability on"
        info = "Higher: fewer false alarms. Lower: fewer messages of that class get through."
        return gr.Slider(0.01, 0.99, 0.5, step=0.01, label=label, info=info)
    info = "0 always answers with the likeliest class."
    return gr.Slider(0, 0.99, 0, step=0.01, label="Threshold: undecided below it", info=info)


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
        rest = found.unread[:200] + ("…" if len(found.unread) > 200 else "")
        tokens.append((visible(rest), NOT_READ))
    label = f"What each word adds to {label_name!r}, in log-odds, found by leaving it out"
    return gr.HighlightedText(tokens, color_map=colors | {NOT_READ: "#d1d5db"}, label=label)


def strongest_words(found: Explanation, label_name: str) -> pd.DataFrame:
    order = np.argsort(-np.abs(found.changes))[:NUM_STRONGEST]
    return pd.DataFrame(
        {
            "word": [visible(found.parts[i].strip()[:80]) for i in order],
            "log-odds": [f"{found.changes[i]:+.2f}" for i in order],
            f"{label_name} without it": [f"{found.probabilities_without[i]:.1%}" for i in order],
        }
    )


def one_message_tab(classifier: GPTClassifier, tokenizer) -> None:
    names, shape = classifier.config.label_names, classifier.decoder.cfg

    def probabilities_of(message: str) -> dict[str, float]:
        if not str(message).strip():
            raise refusal("There is no message yet: type one, or click an example.")
        probabilities = classify_texts(classifier, tokenizer, [str(message)])[0]  # (C,)
        return dict(zip(names, probabilities.tolist(), strict=True))

    def show_decision(probabilities: dict[str, float] | None, threshold: float) -> gr.Label:
        if probabilities is None:
            return gr.skip()
        decision = decide(list(probabilities.values()), names, threshold)
        return gr.Label(decision, label=f"Answer at a threshold of {threshold:.2f}")

    def examine(message: str, threshold: float) -> Iterator[tuple]:
        """The answer at once, then the words behind it."""
        answer = probabilities_of(message)
        yield answer, show_decision(answer, threshold), answer, gr.skip(), gr.skip()
        found = explain(classifier, tokenizer, message)
        name = names[found.label_index]
        words = marked_words(found, name), strongest_words(found, name)
        yield gr.skip(), gr.skip(), gr.skip(), *words

    def show_attention(message: str, layer: int, head: int) -> str:
        weights, tokens = attention(classifier, tokenizer, message, layer, head)
        percents, shades = (100 * weights).round().int().numpy(), weights.sqrt().numpy()
        numbers = np.where(percents, percents.astype(str), "")
        return note(ATTENTION_CAPTION) + heat_table("map", numbers, shades, tokens, tokens)

    def classify(message: str) -> dict[str, Any]:
        """Classify one message: the likeliest label, and the probability of every label."""
        answer = probabilities_of(message)
        return {"label": max(answer, key=answer.get), "probabilities": answer}

    judged = gr.State()  # the probabilities of the message that the answer belongs to
    with gr.Row():
        with gr.Column(scale=5, min_width=300):
            message = gr.Textbox(
                label="Message",
                lines=3,
                max_lines=12,
                placeholder="Type or paste a message",
                info="Shift+Enter classifies it, too.",
                elem_id="message",
            )
            button = gr.Button("Classify", variant="primary")
            threshold = threshold_slider(names)
            examples = gr.Examples(
                SPAM_EXAMPLES if "spam" in names else OTHER_EXAMPLES,
                message,
                label="Examples (made up)",
                api_visibility="private",
            )
        with gr.Column(scale=6, min_width=300):
            decision = gr.Label(label="Answer", elem_id="decision", elem_classes="answer")
            bars = gr.Label(
                label="Probability of each class", num_top_classes=10, show_heading=False
            )
            words = gr.HighlightedText(
                label="Words that moved the answer", combine_adjacent=True, elem_id="words"
            )
            strongest = gr.Dataframe(
                label="Strongest words",
                headers=["word", "log-odds", "probability without it"],
                interactive=False,
                buttons=[],
                wrap=True,
                row_count=1,
            )
    with gr.Accordion("Attention map: which token looks at which?", open=False):
        with gr.Row():
            layers, heads = range(1, shape.n_layers + 1), range(1, shape.n_heads + 1)
            layer = gr.Dropdown(list(layers), value=layers[-1], label="Layer")
            head = gr.Dropdown(list(heads), value=1, label="Head")
        draw = gr.Button("Draw the attention map")
        attention_map = gr.HTML(elem_id="attention")

    outputs = [judged, decision, bars, words, strongest]
    for event in (button.click, message.submit, examples.load_input_event.success):
        event(
            examine,
            [message, threshold],
            outputs,
            api_visibility="private",
            show_progress="minimal",
        )
    latest = {"api_visibility": "private", "show_progress": "hidden", "trigger_mode": "always_last"}
    threshold.change(show_decision, [judged, threshold], decision, **latest)
    drawn = [draw.click, layer.input, head.input]
    gr.on(drawn, show_attention, [message, layer, head], attention_map, **latest)
    gr.api(classify, api_name="classify")
