"""The page: four tabs around one classifier, and the two functions of its API.

Gradio's own widgets, queue and API do the work; what a message, a file or the saved figures
yield comes from the modules beside this one.
"""

import tempfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import gradio as gr
import html_parts
import numpy as np
import pandas as pd
from explanations import Explanation, attention, explain
from gradio_client.utils import is_file_obj_with_meta, is_http_url_like, traverse
from message_tables import (
    FILE_TYPES,
    MAX_CHARACTERS,
    ROWS_SHOWN,
    as_table_file,
    classify_into,
    survey_table,
)
from saved_results import AtThreshold, SavedResults, at_threshold, read_results

from evaluation import calibration, precision_recall_curve
from message_files import DataError
from previous_chapters import num_parameters
from text_classifier import Classifier, classify_texts

MAX_UPLOAD = "50 MB"
MAX_WAITING = 200  # requests in the queue; whoever comes later is told that it is full
NUM_STRONGEST = 6  # words in the table
UNDECIDED = "undecided"

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

# Only fonts that a device has already: nothing is fetched from anywhere.
THEME = gr.themes.Default(
    primary_hue="indigo",
    font=["system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
).set(
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_hover="*primary_700",
    button_primary_background_fill_dark="*primary_600",
    button_primary_background_fill_hover_dark="*primary_500",
    block_info_text_color="*neutral_600",  # the theme's own greys are too faint
    block_info_text_color_dark="*neutral_300",
    block_label_text_color="*neutral_700",
    block_title_text_color="*neutral_700",
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
)
LAUNCH = {
    "theme": THEME,
    "css": html_parts.STYLE,
    "share": False,
    "max_file_size": MAX_UPLOAD.replace(" ", "").lower(),
    "run_history": False,  # messages are not kept, not even in the reader's browser
    "footer_links": ["api", "settings"],
    "enable_monitoring": False,
    "ssr_mode": False,
    "pwa": False,
    "mcp_server": False,
    "_frontend": False,  # no look at itself, after which a busy machine's page would give up
}


def build_page(classifier: Classifier, folder: Path) -> gr.Blocks:
    """The page of one classifier; `folder` is where its saved figures lie."""
    results = read_results(folder, classifier)
    # Uploads and results are deleted after an hour.
    with Page(title="Fine-tuned GPT", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown("# What does this GPT make of your message?")
        gr.HTML(html_parts.note(summary(classifier)), padding=False, elem_id="summary")
        if classifier.card.get("made_up_data"):
            gr.HTML(html_parts.warning(MADE_UP_WARNING))
        with gr.Tab("One message"):
            one_message_tab(classifier)
        with gr.Tab("Many messages"):
            many_messages_tab(classifier)
        with gr.Tab("How good is it?"):
            quality_tab(classifier, results)
        with gr.Tab("About"):
            gr.HTML(html_parts.facts(model_card(classifier, folder)))
        add_api(classifier)
    return page.queue(max_size=MAX_WAITING, default_concurrency_limit=2)


MADE_UP_WARNING = (
    "This classifier was trained on a few made-up messages, because no real ones could be had: "
    "it shows that the page works, and its answers and figures mean nothing."
)


def summary(classifier: Classifier) -> str:
    """One line on what answers here."""
    line = f"{classifier.model_name}, fine-tuned on {trained_on(classifier)}, tells apart: "
    line += ", ".join(classifier.label_names[:12])
    line += ", …" if len(classifier.label_names) > 12 else ""
    return line + "."


def trained_on(classifier: Classifier) -> str:
    return str(classifier.card.get("trained_on") or "data that its folder does not name")


def refusal(sentence: str) -> gr.Error:
    """A sentence for the reader; the server's log has no use for it.

    Gradio shows it as HTML, and a file's column may have any name.
    """
    return gr.Error(html_parts.safe(sentence, quote=False), print_exception=False)


class Page(gr.Blocks):
    """Gradio's page, but one that fetches nothing.

    Gradio would download a file whose address stands in a request, whatever its size, and for any
    input: for a message as well.
    """

    async def preprocess_data(self, block_fn, inputs, *args, **kwargs):
        traverse(inputs, refuse_address, is_file_obj_with_meta)
        return await super().preprocess_data(block_fn, inputs, *args, **kwargs)


def refuse_address(file: dict[str, Any]) -> None:
    if is_http_url_like(file["path"]):
        raise refusal("The page fetches no file from an address: upload the file itself.")


def read_message(message: Any) -> str:
    """The message as text that can be encoded. Raises ``gr.Error`` with a sentence otherwise."""
    if not isinstance(message, str):
        raise refusal("The message must be a text.")
    if not message.strip():
        raise refusal("There is no message yet: type one, or click an example.")
    if len(message) > MAX_CHARACTERS:
        raise refusal(f"The message is longer than {MAX_CHARACTERS:,} characters.")
    return message.encode("utf-8", "replace").decode("utf-8")  # half an emoji is no character


# ---------------------------------------------------------------------------------------------
# One message
# ---------------------------------------------------------------------------------------------


def visible_names(classifier: Classifier) -> list[str]:
    """The classes' names, with invisible signs spelled out."""
    return [html_parts.visible(name) for name in classifier.label_names]


def decide(probabilities: np.ndarray, label_names: list[str], threshold: float) -> str:
    """Of two classes the second one where its probability reaches the threshold, else the first;
    of more classes the likeliest, where it reaches the threshold.

    >>> decide(np.array([0.3, 0.7]), ["ham", "spam"], 0.9)
    'ham'
    >>> decide(np.array([0.3, 0.5, 0.2]), ["a", "b", "c"], 0.6)
    'undecided'
    """
    if len(label_names) == 2:
        return label_names[int(probabilities[1] >= threshold)]
    best = int(probabilities.argmax())
    return label_names[best] if probabilities[best] >= threshold else UNDECIDED


def threshold_slider(classifier: Classifier) -> gr.Slider:
    names = visible_names(classifier)
    if len(names) == 2:
        label = f"Threshold: call it {names[1]!r} from this probability on"
        info = "Higher: fewer false alarms. Lower: fewer messages of that class get through."
        return gr.Slider(0.01, 0.99, 0.5, step=0.01, label=label, info=info)
    info = "0 always answers with the likeliest class."
    return gr.Slider(0, 0.99, 0, step=0.01, label="Threshold: undecided below it", info=info)


def one_message_tab(classifier: Classifier) -> None:
    names, config = visible_names(classifier), classifier.model.cfg

    def show_decision(message: str, threshold: float) -> tuple[str, dict[str, float]]:
        message = read_message(message)
        probabilities = classify_texts(classifier, [message])[0].numpy()  # (C,)
        decision = decide(probabilities, names, threshold)
        best = int(probabilities.argmax())
        detail = f"likeliest: {names[best]}, {probabilities[best]:.1%}; threshold {threshold:.2f}"
        shares = dict(zip(names, probabilities.tolist()))
        return html_parts.answer(decision, detail), shares

    def examine(message: str, threshold: float) -> Iterator[tuple]:
        """The answer at once, then the words behind it."""
        yield *show_decision(message, threshold), gr.skip(), gr.skip()
        found = explain(classifier, read_message(message))
        yield gr.skip(), gr.skip(), show_words(found), strongest_words(found)

    def show_words(found: Explanation) -> str:
        text = (
            f"Log-odds that each word adds to {names[found.label_index]!r} (+, orange) or takes "
            f"from it (-, blue), found by leaving the word out."
        )
        if found.unread:
            text += (
                f" The model reads {classifier.max_length} tokens; the last "
                f"{len(found.unread):,} characters are beyond them."
            )
        rest = found.unread[:200] + ("…" if len(found.unread) > 200 else "")
        return html_parts.note(text) + html_parts.marked_words(found.parts, found.changes, rest)

    def strongest_words(found: Explanation) -> pd.DataFrame:
        order = np.argsort(-np.abs(found.changes))[:NUM_STRONGEST]
        return pd.DataFrame(
            {
                "word": [html_parts.visible(found.parts[i].strip()[:80]) for i in order],
                "log-odds": [f"{found.changes[i]:+.2f}" for i in order],
                f"{names[found.label_index]} without it": [
                    f"{found.probabilities_without[i]:.1%}" for i in order
                ],
            }
        )

    def show_attention(message: str, layer: int, head: int) -> str:
        found = attention(classifier, read_message(message), layer, head)
        caption = (
            f"Layer {layer}, head {head}: each row shows where its token looks. The class is read "
            f"at the last row. Shades grow with the square root of the weight."
        )
        if found.num_left_out:
            caption += f" The first {found.num_left_out} tokens are not shown."
        shades, weights = np.sqrt(found.weights), np.round(found.weights, 3)
        return html_parts.heat_table("map", caption, found.tokens, found.tokens, shades, weights)

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
            button = gr.Button("Classify", variant="primary", elem_id="classify")
            threshold = threshold_slider(classifier)
            texts = SPAM_EXAMPLES if "spam" in names else OTHER_EXAMPLES
            examples = gr.Examples(
                texts, message, label="Examples (made up)", api_visibility="private"
            )
        with gr.Column(scale=6, min_width=300):
            decision = gr.HTML(html_parts.note("The answer will stand here."), elem_id="decision")
            bars = gr.Label(
                label="Probability of each class", num_top_classes=10, show_heading=False
            )
            words = gr.HTML(
                label="Words that moved the decision",
                show_label=True,
                container=True,
                elem_id="words",
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
            layers, heads = (list(range(1, n + 1)) for n in (config.num_layers, config.num_heads))
            layer = gr.Dropdown(layers, value=layers[-1], label="Layer")
            head = gr.Dropdown(heads, value=1, label="Head")
        draw = gr.Button("Draw the attention map", elem_id="draw")
        attention_map = gr.HTML(elem_id="attention")

    outputs = [decision, bars, words, strongest]
    once = {"api_visibility": "private", "show_progress": "minimal"}
    latest = {"api_visibility": "private", "show_progress": "hidden", "trigger_mode": "always_last"}
    for event in (button.click, message.submit, examples.load_input_event.success):
        event(examine, [message, threshold], outputs, **once)
    threshold.change(
        lambda text, value: show_decision(text, value) if text.strip() else (gr.skip(), gr.skip()),
        [message, threshold],
        [decision, bars],
        **latest,
    )
    draw.click(show_attention, [message, layer, head], attention_map, **once)
    gr.on(
        [layer.input, head.input],
        show_attention,
        [message, layer, head],
        attention_map,
        **latest,
    )


# ---------------------------------------------------------------------------------------------
# Many messages
# ---------------------------------------------------------------------------------------------


def as_sentence(error: Exception, path: Path, folder: str) -> gr.Error:
    """The error for the reader, with the file's name only: where it lies here is nobody's
    business, nor where the table does that was made of it in `folder`."""
    text = str(error).replace(str(path), path.name)
    return refusal(text.replace(str(Path(folder) / f"{path.stem}.jsonl"), path.name))


def many_messages_tab(classifier: Classifier) -> None:
    def list_columns(file: str | None) -> tuple[Any, Any, Any, Any]:
        """The file's columns to choose from, the guessed one chosen; what was there is cleared."""
        no_result = (None, gr.DownloadButton(value=None, interactive=False))
        if file is None:
            return gr.Dropdown(choices=[], value=None, interactive=False), *no_result, ""
        path = Path(file)
        try:
            with tempfile.TemporaryDirectory() as folder:
                survey = survey_table(as_table_file(path, Path(folder)), None)
        except DataError as error:
            raise as_sentence(error, path, folder) from None
        found = html_parts.note(f"{path.name}: {survey.num_rows:,} rows.")
        choices = [(html_parts.visible(name), name) for name in survey.columns]
        columns = gr.Dropdown(choices=choices, value=survey.text_column, interactive=True)
        return columns, *no_result, found

    def show_results(
        file: str | None,
        text_column: str | None,
        progress=gr.Progress(),  # noqa: B008 (Gradio finds its bar by this default)
    ) -> Iterator[tuple[str, pd.DataFrame, str | None]]:
        """A sentence, the first rows, and at last the file with all rows."""
        if not file:
            raise refusal("There is no file yet: choose one first.")
        path = Path(file)
        progress(0, "Reading the file")
        # The caller's copy is made when a result is handed over; ours goes when this ends.
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / f"{path.stem}-classified.csv"
            try:
                for state in classify_into(classifier, path, text_column or None, output):
                    progress((state.num_done, state.num_rows), "Classifying", unit="messages")
                    done = f"{state.num_done:,} of {state.num_rows:,} messages classified …"
                    yield html_parts.note(done), state.shown, None
            except DataError as error:
                raise as_sentence(error, path, folder) from None
            yield html_parts.note(final_sentence(state)), state.shown, str(output)

    def classify_for_client(file: str, text_column: str = "") -> Iterator[str | None]:
        """Classify every row of a CSV, TSV, JSON lines, Parquet or text file (a message a line).

        Gives a CSV file with all rows and columns, and the columns `predicted_label` and
        `probability` added. Where the column with the texts is not named, it is guessed.
        """
        for _, _, output in show_results(file, text_column):
            yield output

    def final_sentence(state) -> str:
        counts = ", ".join(f"{n:,} {name}" for name, n in state.counts.most_common(12))
        text = f"{state.num_rows:,} messages: {counts}."
        if state.num_rows > ROWS_SHOWN:
            text += f" The table shows the first {ROWS_SHOWN}; the download holds all."
        return text

    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            file = gr.File(
                label=f"File: CSV, TSV, text, JSON lines or Parquet, up to {MAX_UPLOAD}",
                file_types=FILE_TYPES,
                height=150,
                elem_id="upload",
            )
            column = gr.Dropdown(
                label="Column with the messages",
                info="Guessed from the length of its texts.",
                choices=[],
                interactive=False,
                allow_custom_value=True,
                elem_id="column",
            )
            with gr.Row():
                start = gr.Button("Classify the file", variant="primary", elem_id="classify-file")
                stop = gr.Button("Stop", elem_id="stop")
        with gr.Column(scale=5, min_width=300):
            status = gr.HTML(
                html_parts.note("A row for each message, with columns; or a message on each line."),
                elem_id="status",
                min_height=60,
            )
            table = gr.Dataframe(
                label="Result (a heading's ⋮ sorts)",
                headers=["row", "message", "label", "confidence"],
                datatype=["number", "str", "str", "number"],
                interactive=False,
                max_height=460,
                show_search="search",
                column_widths=["12%", "44%", "17%", "27%"],
                buttons=["fullscreen"],
                wrap=True,
                elem_id="table",
            )
            download = gr.DownloadButton(
                "Download all rows as CSV", interactive=False, elem_id="download"
            )

    file.change(
        list_columns,
        file,
        [column, table, download, status],
        show_progress_on=column,
        api_visibility="private",
    )
    # A large file keeps one core busy; the other is for single messages.
    one_at_a_time = {"concurrency_limit": 1, "concurrency_id": "files"}
    run = start.click(
        show_results,
        [file, column],
        [status, table, download],
        show_progress_on=status,
        api_visibility="private",
        **one_at_a_time,
    )
    run.success(
        lambda: gr.DownloadButton(interactive=True), None, download, api_visibility="private"
    )
    stop.click(None, cancels=run, api_visibility="private")

    # What clients call has widgets of its own, which nobody sees.
    with gr.Row(visible=False):
        sent = gr.File(label="file", file_types=FILE_TYPES)
        sent_column = gr.Textbox(label="text_column")
        returned = gr.File(label="classified", interactive=False)
        gr.Button().click(
            classify_for_client,
            [sent, sent_column],
            returned,
            api_name="classify_file",
            **one_at_a_time,
        )


# ---------------------------------------------------------------------------------------------
# How good is it?
# ---------------------------------------------------------------------------------------------


def quality_tab(classifier: Classifier, results: SavedResults) -> None:
    names = visible_names(classifier)
    if classifier.card.get("made_up_data"):
        gr.HTML(html_parts.warning(MADE_UP_WARNING))
    if results.test is None:
        gr.HTML(html_parts.warning("The folder holds no test figures; finetune.py writes them."))
        return
    gr.HTML(html_parts.tiles(headline_figures(results)), padding=False)
    matrix = np.array(results.test["confusion_matrix"])
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    gr.Markdown("## Confusion matrix")
    caption = "A row for each true class, a column for each predicted one."
    gr.HTML(html_parts.heat_table("numbers", caption, names, names, shares, matrix), padding=False)
    if results.probabilities is None:
        gr.HTML(html_parts.warning(f"No curves: {results.missing}"))
        return
    if len(set(results.labels.tolist())) > 1:
        curve_widgets(names, results.labels, results.probabilities)
    else:
        gr.HTML(html_parts.warning("No curve: all test messages are of one class."))
    calibration_widgets(results.labels, results.probabilities)


def headline_figures(results: SavedResults) -> dict[str, str]:
    test = results.test
    low, high = test["accuracy_interval"]
    figures = {
        f"right, of {test['num_examples']:,} test messages": f"{test['accuracy']:.1%}",
        "95% interval of that share": f"{low:.1%} – {high:.1%}",
        "macro F1": f"{test['macro_f1']:.3f}",
        "Matthews correlation": f"{test['mcc']:.3f}",
    }
    if results.baseline:
        figures["right, by a linear model on n-grams"] = f"{results.baseline['accuracy']:.1%}"
    return figures


def curve_widgets(names: list[str], labels: np.ndarray, probabilities: np.ndarray) -> None:
    def show(name: str, threshold: float) -> tuple[str, pd.DataFrame]:
        index = names.index(name)
        positive, scores = labels == index, probabilities[:, index]
        found = at_threshold(positive, scores, threshold)
        precision = "–" if found.precision is None else f"{found.precision:.1%}"
        figures = {
            f"missed, of {found.num_positive} {name}": f"{found.num_missed}",
            f"lost, of {found.num_negative} others": f"{found.num_lost}",
            "recall": f"{found.recall:.1%}",
            "precision": precision,
        }
        return html_parts.tiles(figures), curve_points(positive, scores, found)

    present = [name for i, name in enumerate(names) if 0 < (labels == i).sum() < len(labels)]
    gr.Markdown(
        "## Where to set the threshold\n"
        "A message is put into the class if its probability reaches the threshold. Messages of "
        "the class below it are **missed**, messages of other classes above it are **lost**. The "
        "orange line marks the threshold on the curve."
    )
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            label = gr.Dropdown(present, value=present[-1], label="Class in question")
            threshold = gr.Slider(
                0.01, 0.99, 0.5, step=0.01, label="Threshold", elem_id="test-threshold"
            )
            figures_then, points_then = show(present[-1], 0.5)
            figures = gr.HTML(figures_then, padding=False, elem_id="missed-and-lost")
        with gr.Column(scale=3, min_width=300):
            curve = gr.LinePlot(
                points_then,
                x="recall",
                y="precision",
                color="line",
                color_map={"all thresholds": "#6366f1", "chosen threshold": "#ea580c"},
                x_lim=[0, 1.01],
                y_lim=[0, 1.01],
                x_title="recall (share of the class that is caught)",
                y_title="precision",
                color_title=" ",
                label="Precision and recall on the test messages",
                height=320,
            )
    for event in (label.change, threshold.change):
        event(
            show,
            [label, threshold],
            [figures, curve],
            api_visibility="private",
            show_progress="hidden",
            trigger_mode="always_last",
        )


def curve_points(positive: np.ndarray, scores: np.ndarray, chosen: AtThreshold) -> pd.DataFrame:
    """The curve, and an upright line at the chosen threshold."""
    curve = precision_recall_curve(positive, scores)
    points = pd.DataFrame({"recall": curve.x, "precision": curve.y, "line": "all thresholds"})
    if chosen.precision is not None:
        for height in (0, chosen.precision):
            points.loc[len(points)] = [chosen.recall, height, "chosen threshold"]
    return points


def calibration_widgets(labels: np.ndarray, probabilities: np.ndarray) -> None:
    result = calibration(probabilities, labels)
    gr.Markdown(
        "## Is it as right as it is sure?\n"
        "Messages are grouped by the confidence of their answer. On the grey line, a confidence of "
        "90% means being right 9 times in 10; below it, the classifier is too sure of itself. "
        "Groups of a few messages say little. Expected calibration error: "
        f"**{result.expected_error:.3f}**."
    )
    groups = pd.DataFrame(
        {"confidence": result.confidence, "right": result.accuracy, "messages": result.counts}
    )
    dots = np.linspace(0, 1, 41)
    ideal = pd.DataFrame({"confidence": dots, "right": dots})
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            gr.Dataframe(
                groups.map(lambda value: f"{value:.1%}" if isinstance(value, float) else value),
                label="Groups of test messages",
                interactive=False,
                buttons=[],
            )
        with gr.Column(scale=3, min_width=300):
            gr.ScatterPlot(
                pd.concat([ideal.assign(line="ideal"), groups.assign(line="this classifier")]),
                x="confidence",
                y="right",
                color="line",
                color_map={"this classifier": "#6366f1", "ideal": "#9ca3af"},
                color_title=" ",
                x_lim=[0, 1.02],
                y_lim=[0, 1.02],
                x_title="mean confidence of the group",
                y_title="share that was right",
                label="Calibration on the test messages",
                height=320,
            )


# ---------------------------------------------------------------------------------------------
# About
# ---------------------------------------------------------------------------------------------


def model_card(classifier: Classifier, folder: Path) -> dict[str, str]:
    """What the classifier is, what it was trained on and with, and where it ends."""
    config, training = classifier.model.cfg, classifier.card.get("training") or {}
    millions = num_parameters(classifier.model) / 1e6
    written = date.fromtimestamp((folder / "model.safetensors").stat().st_mtime)
    settings = (
        "weights",
        "pretrain_further",
        "trainable",
        "epochs",
        "batch_size",
        "learning_rate",
        "precision",
        "balance",
        "seed",
    )
    return {
        "Model": f"{classifier.model_name}: {config.num_layers} layers of {config.num_heads} "
        f"heads, {millions:.1f} million parameters",
        "Classes": ", ".join(classifier.label_names),
        "Trained on": trained_on(classifier),
        "Trained with": ", ".join(
            f"{name.replace('_', ' ')} {training[name]}" for name in settings if name in training
        )
        or "settings that its folder does not name",
        "Written on": f"{written:%d %B %Y} (date of the weights' file)",
        "Reads": f"the first {classifier.max_length} tokens of a message; the rest has no part in "
        "the answer",
        "Limits": "It knows messages like those it was trained on and always names one of its "
        "classes, however far from them a text may be: another language, another sort of text, "
        "or a sender who wants to deceive it. Its probabilities hold for the mix of classes in "
        "its test messages. Nobody should lose a message, or anything else, on its word alone.",
        "Words": "The marked words show what this model reacts to, which need not be what makes a "
        "message spam or not.",
        "Privacy": "Messages are classified on the machine that serves this page and not stored; "
        "uploaded files and results are deleted after about an hour. The page asks no other "
        "machine for anything.",
    }


# ---------------------------------------------------------------------------------------------
# The API
# ---------------------------------------------------------------------------------------------


def add_api(classifier: Classifier) -> None:
    """`/classify` takes a message; `/classify_file` stands with the second tab."""

    def classify(message: str) -> dict[str, Any]:
        """Classify one message: the likeliest label, and the probability of every label."""
        probabilities = classify_texts(classifier, [read_message(message)])[0]  # (C,)
        return {
            "label": classifier.label_names[int(probabilities.argmax())],
            "probabilities": dict(zip(classifier.label_names, probabilities.tolist())),
        }

    gr.api(classify, api_name="classify")
