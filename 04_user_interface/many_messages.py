"""The second tab: a file of messages is classified into a file to download.

And `/classify_file`, which does the same for programs.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import pandas as pd
from classified_files import FILE_TYPES, ROWS_SHOWN, Progress, classify_upload, survey_upload
from html_parts import note, refusal, visible

from message_files import DataError
from text_classifier import GPTClassifier


def as_sentence(error: DataError) -> gr.Error:
    """The error for the reader, with the file's name only, not where it lies here."""
    path, colon, reason = str(error).partition(": ")
    return refusal(f"{Path(path).name}{colon}{reason}")


def list_columns(file: str | None) -> tuple:
    """The file's columns to choose from, the guessed one chosen; what was there is cleared."""
    no_result = (None, gr.DownloadButton(value=None, interactive=False))
    if file is None:
        return gr.Dropdown(choices=[], value=None, interactive=False), "", *no_result
    path = Path(file)
    try:
        with tempfile.TemporaryDirectory() as folder:
            _, survey = survey_upload(path, None, Path(folder))
    except DataError as error:
        raise as_sentence(error) from None
    choices = [(visible(name), name) for name in survey.columns]
    columns = gr.Dropdown(choices=choices, value=survey.text_column, interactive=True)
    return columns, note(f"{path.name}: {survey.num_rows:,} rows."), *no_result


def summary(done: Progress) -> str:
    counts = ", ".join(f"{n:,} {name}" for name, n in done.counts.most_common(12))
    text = f"{done.num_rows:,} messages: {counts}."
    if done.num_rows > ROWS_SHOWN:
        text += f" The table shows the first {ROWS_SHOWN}; the download holds all."
    return text


def many_messages_tab(classifier: GPTClassifier, tokenizer) -> None:
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
                work = classify_upload(classifier, tokenizer, path, text_column or None, output)
                for done in work:
                    progress((done.num_done, done.num_rows), "Classifying", unit="messages")
                    so_far = f"{done.num_done:,} of {done.num_rows:,} messages classified …"
                    yield note(so_far), done.shown, None
            except DataError as error:
                raise as_sentence(error) from None
            yield note(summary(done)), done.shown, str(output)

    def classify_for_client(file: str, text_column: str = "") -> Iterator[str | None]:
        """Classify every row of a CSV, TSV, JSON lines, Parquet or text file (a message a line).

        Gives a CSV file with all rows and columns, and the columns `predicted_label` and
        `probability` added. Where the column with the texts is not named, it is guessed.
        """
        for _, _, output in show_results(file, text_column):
            yield output

    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            file = gr.File(
                label="File: CSV, TSV, text, JSON lines or Parquet, up to 50 MB",
                file_types=FILE_TYPES,
                height=150,
                elem_id="upload",
            )
            column = gr.Dropdown(
                label="Column with the messages",
                info="Guessed from the length of its texts.",
                choices=[],
                interactive=False,
                allow_custom_value=True,  # else Gradio may compare with an earlier file's columns
                elem_id="column",
            )
            with gr.Row():
                start = gr.Button("Classify the file", variant="primary")
                stop = gr.Button("Stop")
        with gr.Column(scale=5, min_width=300):
            status = gr.HTML(
                note("A row for each message, with columns; or a message on each line."),
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
            download = gr.DownloadButton("Download all rows as CSV", interactive=False)

    file.change(
        list_columns,
        file,
        [column, status, table, download],
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
        trigger_mode="multiple",  # a click soon after Stop would otherwise be dropped
        api_visibility="private",
        **one_at_a_time,
    )
    run.success(
        lambda: gr.DownloadButton(interactive=True), None, download, api_visibility="private"
    )
    stop.click(lambda: note("Stopped."), None, status, cancels=run, api_visibility="private")

    # What programs call has widgets of its own, which nobody sees.
    with gr.Row(visible=False):
        sent, sent_column = gr.File(label="file", file_types=FILE_TYPES), gr.Textbox()
        gr.Button().click(
            classify_for_client,
            [sent, sent_column],
            gr.File(label="classified"),
            api_name="classify_file",
            **one_at_a_time,
        )
