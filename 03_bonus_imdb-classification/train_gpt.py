"""Fine-tune a GPT to tell positive film reviews from negative ones.

    python 03_bonus_imdb-classification/train_gpt.py NAME --model gpt-mini --trainable all

The state of a run stands in `runs/NAME`, so that `--resume` goes on after a stop; at its end the
classifier is there too, and the metrics are in `my-results/NAME.json`.
"""

import ctrl_c  # noqa: F401
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from classifier_folder import save_classifier
from command_line import run_command
from download_prepare_dataset import LABELS
from feature_store import FeatureStore
from features import FastClassifier, FeatureDataset
from fine_tuning import load_decoder, make_classifier, pretrain_on_texts
from lora import merge_lora
from measuring import Clock
from options import AT_LEAST_0, option
from text_classifier import ClassifierConfig, Trainable, pick_device
from text_data import WHOLE, ChunkDataset, SpamDataset, encode_messages
from training_runs import STOPPED, Learner, ReviewsConfig, chapters, training_command


@dataclass(frozen=True)
class GPTRunConfig(ReviewsConfig):
    """One run. Raises ``ValueError`` that names everything wrong with it."""

    model: str = chapters("model", "gpt-mini")
    continued_pretraining_epochs: int = option(
        0,
        "epochs of language modelling on the training reviews, the first --max-length tokens of "
        "each, before the head is put on",
        AT_LEAST_0,
        "model",
    )
    trainable: Trainable | Literal["lora", "dora"] | int = chapters("trainable", "all")
    feature_store: Path | None = option(
        None,
        "folder that keeps what the frozen layers made of each review, for other runs and after a "
        "stop: 2 bytes for each token and embedding dimension",
        group="run",
    )

    def problems(self) -> list[str]:
        nothing_to_keep = self.trainable in ("all", "lora", "dora") or self.word_dropout
        sentence = (
            "--feature-store keeps what frozen layers make of whole reviews: choose --trainable "
            "head, last_block, last_two_blocks or a number, and no --word-dropout"
        )
        return super().problems() + [sentence] * bool(self.feature_store and nothing_to_keep)


class GPTLearner(Learner):
    script = "train_gpt.py"

    def __init__(self, config: GPTRunConfig):
        device = pick_device(config.device)
        self.decoder, self.tokenizer, name = load_decoder(config, device)
        if config.max_length > (context := self.decoder.cfg.context_length):
            raise ValueError(
                f"--max-length {config.max_length} exceeds {name}'s context of {context}."
            )
        self.config = config.for_model(name)
        reads = (config.max_length, self.config.pooling, config.cut)
        self.about = ClassifierConfig(name, LABELS, *reads)

    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        return encode_messages(texts, self.tokenizer, WHOLE)

    def make_model(self, texts: Sequence[str], clock: Clock, is_under_way: bool) -> FastClassifier:
        config = self.config
        all_are_loaded = is_under_way and config.trainable == "all"
        if config.continued_pretraining_epochs and not all_are_loaded:
            with clock.stage("pretraining"):
                how = (config.max_length, config)
                pretrain_on_texts(self.decoder, self.tokenizer, texts, *how)
        self.classifier, self.num_frozen = make_classifier(self.decoder, self.about, config)
        return FastClassifier(self.classifier, self.num_frozen, config.precision)

    def compute_frozen_layers(self, dataset: ChunkDataset) -> SpamDataset:
        if self.config.feature_store is None:
            return dataset
        how = (self.num_frozen, self.config.precision, not self.config.quiet)
        with FeatureStore(self.config.feature_store) as store:
            return FeatureDataset.from_classifier(self.classifier, dataset, *how, store)

    def save(self, folder: Path, options: dict[str, Any]) -> None:
        merge_lora(self.decoder)
        card = {"trained_on": "Large Movie Review Dataset", "training": options}
        self.classifier.config = replace(self.about, card=card)
        save_classifier(self.classifier, folder)


def main(argv: list[str] | None = None) -> int:
    about = "Fine-tune a GPT on the film reviews, and measure it on the official test half."
    command = training_command(GPTLearner, GPTRunConfig, about, argv)
    return run_command("train_gpt.py", command, STOPPED)


if __name__ == "__main__":
    sys.exit(main())
