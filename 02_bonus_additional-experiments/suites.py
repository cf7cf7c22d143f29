"""The rows of the experiments' tables: a name and the options that make it what it is.

Settings that differ from the chapter's were chosen on validation messages of seeds that the tables
do not use: learning rate and dropout for all layers on seeds 101 to 106, pretraining further on
seed 101 alone. All seeds draw from the same messages, though: about half of the spam that a table's
seed tests on stands in those validation parts. LoRA's learning rate and the epochs with all ham
were not searched for.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    name: str
    """Folder of its results."""
    options: str
    """What is added to the command."""
    says: str
    """What the reader compares, in a few words."""

    @property
    def is_classical(self) -> bool:
        """Whether it trains no GPT."""
        return "--classifier" in self.options


ALL_LAYERS = "--trainable_layers all --learning_rate 5e-4 --dropout 0.1"

# The rows that readers of this field know, in the order in which they know them.
KNOWN = [
    Row("last-block", "", "last block, last real token"),
    Row("first-token", "--trainable_token_pos first", "first token instead of the last"),
    Row("head", "--trainable_layers head", "head only"),
    Row("two-blocks", "--trainable_layers last_two_blocks", "last two blocks"),
    Row("all-layers", ALL_LAYERS, "all layers"),
    Row("random-all-layers", f"--weights random {ALL_LAYERS}", "random weights, all layers"),
    Row("lora", "--trainable_layers lora --learning_rate 2e-3", "LoRA, rank 8, all linear layers"),
    Row(
        "full-context",
        "--trainable_token_pos last --context_length model",
        "last position, padded to the model's context",
    ),
    Row("batch-of-one", "--no_padding", "no padding, one message at a time"),
    Row("accumulated", "--no_padding --accumulation_steps 8", "no padding, gradients of 8"),
    Row("last-position", "--trainable_token_pos last", "last position, padded to the longest"),
    Row("no-causal-mask", "--disable_causal_mask", "no causal mask"),
    Row("ignore-index", "--ignore_index 4095", "the padding's token id ignored in the loss"),
    Row("mean-pooling", "--average_embeddings", "mean over all real tokens"),
]

FURTHER = [
    Row("random-last-block", "--weights random", "random weights, last block"),
    Row("augmented", "--augment 1", "one altered copy of each message"),
    Row("dropout", "--dropout 0.1", "dropout 0.1"),
    Row("dropout-0.3", "--dropout 0.3", "dropout 0.3"),
    Row("no-weight-decay", "--weight_decay 0", "no weight decay"),
    Row("weight-decay-1", "--weight_decay 1", "weight decay 1"),
    Row("no-warmup", "--warmup_share 0", "no warm-up"),
    Row("constant-rate", "--warmup_share 0 --schedule constant", "constant learning rate"),
    Row("label-smoothing", "--label_smoothing 0.1", "label smoothing 0.1"),
    Row("all-ham", "--balance none --epochs 2", "all ham, as it is"),
    Row("all-ham-weighted", "--balance weights --epochs 2", "all ham, class weights"),
]

BLOCKS = [
    Row("blocks-3", "--trainable_layers 3", "last three blocks"),
    Row("blocks-4", "--trainable_layers 4", "last four blocks"),
    Row("blocks-5", "--trainable_layers 5", "last five blocks"),
    Row("blocks-6", "--trainable_layers 6", "all six blocks"),
]

BASELINES = [
    Row("majority", "--classifier majority", "always the commoner class"),
    Row("naive-bayes", "--classifier naive_bayes", "multinomial naive Bayes, words"),
    Row("word-ngrams", "--classifier word_ngrams", "logistic regression, word n-grams"),
    Row("char-ngrams", "--classifier char_ngrams", "logistic regression, character n-grams"),
    Row("char-svm", "--classifier char_svm", "linear SVM, character n-grams"),
    Row(
        "char-ngrams-all-ham",
        "--classifier char_ngrams --balance weights",
        "character n-grams, all ham, class weights",
    ),
]

# 25, 50, 100, 200 and 400 of the 914 training messages.
FRACTIONS = {25: 0.0274, 50: 0.0547, 100: 0.1094, 200: 0.2188, 400: 0.4376}
# As many updates as all 914 messages get in 5 epochs, but no more than 40 epochs.
EPOCHS = {25: 40, 50: 40, 100: 40, 200: 23, 400: 11}
LEARNERS = {
    "pretrained": "--epochs {epochs}",
    "random": "--weights random --epochs {epochs}",
    "ngrams": "--classifier char_ngrams",
}
CURVES = [
    Row(
        f"{name}-{size}",
        f"{options.format(epochs=EPOCHS[size])} --train_fraction {fraction}",
        f"{name}, {size} training messages",
    )
    for name, options in LEARNERS.items()
    for size, fraction in FRACTIONS.items()
]

# What it takes to leave the n-grams behind.
BEST = [
    Row("pretrained-further", "--pretrain_further 2", "pretrained further, last block"),
    Row(
        "pretrained-further-all-layers",
        f"--pretrain_further 2 {ALL_LAYERS}",
        "pretrained further, all layers",
    ),
    Row(
        "pretrained-further-mean",
        f"--pretrain_further 2 {ALL_LAYERS} --average_embeddings",
        "pretrained further, all layers, mean over all real tokens",
    ),
]

# The protocol of the collection's own paper.
PAPERS = "--protocol almeida --balance"
ALMEIDA = [
    Row(
        "almeida-naive-bayes",
        f"{PAPERS} none --classifier naive_bayes",
        "multinomial naive Bayes, words",
    ),
    Row(
        "almeida-word-ngrams",
        f"{PAPERS} none --classifier word_ngrams",
        "logistic regression, word n-grams",
    ),
    Row(
        "almeida-char-ngrams",
        f"{PAPERS} none --classifier char_ngrams",
        "logistic regression, character n-grams",
    ),
    Row(
        "almeida-char-ngrams-weighted",
        f"{PAPERS} weights --classifier char_ngrams",
        "logistic regression, character n-grams, class weights",
    ),
    Row(
        "almeida-char-svm",
        f"{PAPERS} none --classifier char_svm",
        "linear SVM, character n-grams",
    ),
    Row(
        "almeida-char-svm-weighted",
        f"{PAPERS} weights --classifier char_svm",
        "linear SVM, character n-grams, class weights",
    ),
    Row("almeida-last-block", f"{PAPERS} none", "last block"),
    Row(
        "almeida-pretrained-further",
        f"{PAPERS} none --pretrain_further 2",
        "pretrained further, last block",
    ),
]


def in_order_of_work(rows: list[Row]) -> list[Row]:
    """Rows that share their frozen layers one after the other, so that these are kept for all."""
    matters = ("--weights", "--pretrain", "--trainable", "--disable", "--context", "--protocol")

    def shared(row: Row) -> tuple[str, ...]:
        return tuple(part for part in row.options.split("--") if ("--" + part).startswith(matters))

    groups = list(dict.fromkeys(map(shared, rows)))
    return sorted(rows, key=lambda row: groups.index(shared(row)))


SUITES = {
    "baselines": BASELINES,
    "best": BEST,
    "almeida": ALMEIDA,
    "known": KNOWN,
    "further": FURTHER,
    "curves": CURVES,
    "blocks": BLOCKS,
}
# Rows whose first seed runs in a process of its own, to learn its seconds and its memory.
COST_MEASURED = {row.name for row in (*KNOWN, *BLOCKS)} | {"all-ham-weighted", "pretrained-further"}
# Cheap rows come first, so that a run that is stopped early leaves most of the answers.
COSTLY = {"batch-of-one", "accumulated", "full-context", "random-all-layers"}
SUITES["main"] = sorted(
    in_order_of_work([row for rows in list(SUITES.values()) for row in rows]),
    key=lambda row: (row.name in COSTLY) + 2 * (row in BLOCKS),
)
