"""The page: four tabs around one classifier, from Gradio's own widgets, queue and API."""

from pathlib import Path

import gradio as gr
from about import about_tab, trained_on
from html_parts import note
from many_messages import many_messages_tab
from one_message import one_message_tab
from quality import quality_tab

from classifier_folder import open_classifier
from text_classifier import GPTClassifier

MADE_UP_WARNING = (
    "⚠️ **This classifier was trained on a few made-up messages**, because no real ones could be "
    "had: it shows that the page works; its answers and metrics mean nothing."
)

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
    "css_paths": Path(__file__).parent / "style.css",
    "max_file_size": "50mb",
    "run_history": False,  # messages are not kept, not even in the reader's browser
    "footer_links": ["api", "settings"],
    "quiet": True,
    "prevent_thread_lock": True,
    "_frontend": False,  # no look at itself, after which a busy machine's page would give up
}


def build_page(folder: Path) -> gr.Blocks:
    """The page of the classifier in a folder. Raises what `open_classifier` does."""
    classifier, tokenizer = open_classifier(folder)
    # Uploads and results are deleted after an hour.
    with gr.Blocks(
        title="Fine-tuned GPT", analytics_enabled=False, delete_cache=(600, 3600)
    ) as page:
        gr.Markdown("# What does this GPT make of your message?")
        gr.HTML(note(summary(classifier)))
        if classifier.config.card.get("made_up_data"):
            gr.Markdown(MADE_UP_WARNING)
        with gr.Tab("One message"):
            one_message_tab(classifier, tokenizer)
        with gr.Tab("Many messages"):
            many_messages_tab(classifier, tokenizer)
        with gr.Tab("How good is it?"):
            quality_tab(classifier, folder)
        with gr.Tab("About"):
            about_tab(classifier)
    # Whoever comes when 200 requests wait is told that the queue is full.
    return page.queue(max_size=200, default_concurrency_limit=2)


def summary(classifier: GPTClassifier) -> str:
    """One line on what answers here."""
    names = classifier.config.label_names
    line = f"{classifier.config.model_name}, fine-tuned on {trained_on(classifier)}, tells apart: "
    return line + ", ".join(names[:12]) + (", …" if len(names) > 12 else ".")
