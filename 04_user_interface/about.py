"""The last tab: what the classifier is, what it was trained on and with, and where it ends."""

import gradio as gr
from html_parts import facts
from opened import Opened

from previous_chapters import num_parameters

READS = {
    "head": "the first {} tokens of a message; the rest has no part in the answer",
    "tail": "the last {} tokens of a message; the rest has no part in the answer",
    "both": "{} tokens of a message, a quarter from its beginning and the rest from its end",
    "windows": "a whole message, {} tokens at a time; the mean of the answers counts",
}
SETTINGS = ("weights", "trainable", "num_epochs", "learning_rate", "balance", "seed")


def trained_on(opened: Opened) -> str:
    return str(opened.card.get("trained_on") or "data that its folder does not name")


def about_tab(opened: Opened) -> None:
    config, shape = opened.config, opened.classifier.decoder.cfg
    options = config.card.get("training") or {}
    settings = [f"{key.replace('_', ' ')} {options[key]}" for key in SETTINGS if key in options]
    card = {
        "Model": f"{config.model_name}: {shape.n_layers} layers of {shape.n_heads} heads, "
        f"{num_parameters(opened.classifier) / 1e6:.1f} million parameters",
        "Classes": ", ".join(config.label_names),
        "Trained on": trained_on(opened),
        "Trained with": ", ".join(settings) or "settings that its folder does not name",
        "Reads": READS[config.cut].format(config.max_length),
        "Limits": "It knows messages like those it was trained on and always names one of its "
        "classes, however far from them a text may be: another language, another sort of text, "
        "or a sender who wants to deceive it. Its probabilities hold for the mix of classes in "
        "its test messages. Nobody should lose a message, or anything else, on its word alone.",
        "Words": "The marked words show what this model reacts to, which need not be what puts a "
        "message into its class.",
        "Privacy": "Messages are classified on the machine that serves this page, and forgotten an "
        "hour after the page is closed; uploaded files and results are deleted after about an "
        "hour. The page asks no other machine for anything.",
    }
    gr.HTML(facts(card))
