"""The rows of the experiments' tables: a name and the options that make it what it is.

Settings that differ from the chapter's were chosen for gpt-mini, on validation messages of seeds
that the tables do not use: learning rate and dropout for all layers on seeds 101 to 106, continued
pretraining on seed 101 alone. LoRA's learning rate and the epochs with all ham were not searched
for.
"""

from typing import NamedTuple


class Row(NamedTuple):
    """One line of a table."""

    name: str
    """Folder of its results."""
    options: str
    """What is added to the command."""
    says: str
    """What the reader compares, in a few words."""

    @property
    def is_classical(self) -> bool:
        """Whether it needs no language model."""
        return "--classifier" in self.options and "frozen_features" not in self.options


ALL_LAYERS = "--trainable all --learning-rate 5e-4 --dropout 0.1"

# The rows that readers of this field know, in the order in which they know them.
KNOWN = [
    Row("last-block", "", "last block, last real token"),
    Row("first-token", "--pooling first", "first token instead of the last"),
    Row("head", "--trainable head", "head only"),
    Row("two-blocks", "--trainable last_two_blocks", "last two blocks"),
    Row("all-layers", ALL_LAYERS, "all layers"),
    Row("random-all-layers", f"--weights random {ALL_LAYERS}", "random weights, all layers"),
    Row("lora", "--trainable lora --learning-rate 2e-3", "LoRA, rank 8, all linear layers"),
    Row("full-context", "--padding context", "last position, padded to the model's context"),
    Row("batch-of-one", "--batch-size 1", "no padding, one message at a time"),
    Row("accumulated", "--batch-size 8 --micro-batch-size 1", "no padding, gradients of 8"),
    Row("last-position", "--padding training", "last position, padded to the longest"),
    Row("no-causal-mask", "--no-causal", "no causal mask"),
    Row("mean-pooling", "--pooling mean", "mean over all real tokens"),
]

# The same with GPT-2's weights, whose figures others have published.
PUBLISHED = "--protocol published --padding training"
LARGER = [
    Row("gpt2-small", "--model gpt2-small", "GPT-2 124M, last block, last real token"),
    Row("gpt2-medium", f"--model gpt2-medium {PUBLISHED}", "GPT-2 355M, last block, last position"),
    Row("gpt2-large", f"--model gpt2-large {PUBLISHED}", "GPT-2 774M, last block, last position"),
    Row("gpt2-xl", f"--model gpt2-xl {PUBLISHED}", "GPT-2 1558M, last block, last position"),
    Row(
        "gpt2-xl-all-layers",
        f"--model gpt2-xl --trainable all {PUBLISHED}",
        "GPT-2 1558M, all layers, last position",
    ),
    Row(
        "gpt2-xl-lora",
        f"--model gpt2-xl --trainable lora --lora-rank 16 --lora-alpha 8 {PUBLISHED}",
        "GPT-2 1558M, LoRA, last position",
    ),
]

FURTHER = [
    Row("random-last-block", "--weights random", "random weights, last block"),
    Row("augmented", "--augment 1", "one altered copy of each message"),
    Row("dropout", "--dropout 0.1", "dropout 0.1"),
    Row("dropout-0.3", "--dropout 0.3", "dropout 0.3"),
    Row("no-weight-decay", "--weight-decay 0", "no weight decay"),
    Row("weight-decay-1", "--weight-decay 1", "weight decay 1"),
    Row("no-warmup", "--warmup-ratio 0", "no warm-up"),
    Row("constant-rate", "--warmup-ratio 0 --schedule constant", "constant learning rate"),
    Row("label-smoothing", "--label-smoothing 0.1", "label smoothing 0.1"),
    Row("all-ham", "--balance none --num-epochs 2", "all ham, as it is"),
    Row("all-ham-weighted", "--balance weights --num-epochs 2", "all ham, class weights"),
]

BLOCKS = [
    Row("blocks-3", "--trainable 3", "last three blocks"),
    Row("blocks-4", "--trainable 4", "last four blocks"),
    Row("blocks-5", "--trainable 5", "last five blocks"),
    Row("blocks-6", "--trainable 6", "all six blocks"),
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

# Training messages, and epochs in which they give as many updates as all 914 messages in 5 epochs,
# but no more than 40.
EPOCHS = {25: 40, 50: 40, 100: 40, 200: 23, 400: 11}


def curve(name: str, options: str) -> list[Row]:
    """A learning curve; `{epochs}` in the options stands for those that suit the size."""
    return [
        Row(
            f"{name}-{size}",
            f"{options.format(epochs=epochs)} --train-size {size}",
            f"{name}, {size} training messages",
        )
        for size, epochs in EPOCHS.items()
    ]


CURVES = [
    *curve("pretrained", "--num-epochs {epochs}"),
    *curve("random", "--weights random --num-epochs {epochs}"),
    *curve("ngrams", "--classifier char_ngrams"),
]

# What it takes to leave the n-grams behind.
CONTINUED = "--continued-pretraining-epochs 2"
BEST = [
    Row("continued-pretraining", CONTINUED, "continued pretraining, last block"),
    Row(
        "continued-pretraining-all-layers",
        f"{CONTINUED} {ALL_LAYERS}",
        "continued pretraining, all layers",
    ),
    Row(
        "continued-pretraining-mean",
        f"{CONTINUED} {ALL_LAYERS} --pooling mean",
        "continued pretraining, all layers, mean over all real tokens",
    ),
]

# The protocol of the collection's own paper.
PAPERS = "--protocol almeida --balance"
ALMEIDA = [
    Row("almeida-naive-bayes", f"{PAPERS} none --classifier naive_bayes", BASELINES[1].says),
    Row("almeida-word-ngrams", f"{PAPERS} none --classifier word_ngrams", BASELINES[2].says),
    Row("almeida-char-ngrams", f"{PAPERS} none --classifier char_ngrams", BASELINES[3].says),
    Row(
        "almeida-char-ngrams-weighted",
        f"{PAPERS} weights --classifier char_ngrams",
        f"{BASELINES[3].says}, class weights",
    ),
    Row("almeida-char-svm", f"{PAPERS} none --classifier char_svm", BASELINES[4].says),
    Row(
        "almeida-char-svm-weighted",
        f"{PAPERS} weights --classifier char_svm",
        f"{BASELINES[4].says}, class weights",
    ),
    Row("almeida-last-block", f"{PAPERS} none", "last block"),
    Row("almeida-continued-pretraining", f"{PAPERS} none {CONTINUED}", BEST[0].says),
]

# A real pretrained decoder, by all messages and by few: nothing trained but a regression, and the
# last block.
SMOLLM2_MEAN = "--model smollm2-135m --pooling mean"
SMOLLM2_FROZEN = f"{SMOLLM2_MEAN} --classifier frozen_features"
SMOLLM2 = [
    Row("smollm2-frozen", SMOLLM2_FROZEN, "SmolLM2, regression on frozen features"),
    *curve("smollm2-frozen", SMOLLM2_FROZEN),
    Row("smollm2-last-block", SMOLLM2_MEAN, "SmolLM2, last block, mean over all real tokens"),
    *curve("smollm2-last-block", SMOLLM2_MEAN + " --num-epochs {epochs}"),
]


def in_order_of_work(rows: list[Row]) -> list[Row]:
    """Rows that share their frozen layers one after the other, so that these are kept for all."""
    matters = ("model", "weights", "continued", "trainable", "no-causal", "padding")

    def shared(row: Row) -> tuple[str, ...]:
        parts = (part.strip() for part in row.options.split("--"))
        return tuple(part for part in parts if part.startswith(matters))

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
COST_MEASURED = {row.name for row in (*KNOWN, *BLOCKS)} | {
    "all-ham-weighted",
    "continued-pretraining",
}
# Cheap rows come first, so that a run that is stopped early leaves most of the answers.
COSTLY = {"batch-of-one", "accumulated", "full-context", "random-all-layers"}
SUITES["main"] = sorted(
    in_order_of_work([row for rows in list(SUITES.values()) for row in rows]),
    key=lambda row: (row.name in COSTLY) + 2 * (row in BLOCKS),
)
SUITES["larger"] = LARGER
# Beside the others: they need weights that are fetched.
SUITES["smollm2"] = SMOLLM2
