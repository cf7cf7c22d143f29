"""SmolLM2-135M-Instruct asked in its chat format, with a few answered examples in the prompt and
nothing trained (Brown et al. 2020, "Language Models are Few-Shot Learners").

Shapes in comments: N texts, C labels, T tokens read, A tokens of an answer, V tokens in the
vocabulary.
"""

from collections.abc import Sequence
from copy import copy

import numpy as np
import torch
from experiment_config import ExperimentConfig
from torch import Tensor

from fast_paths import KeyValueCache
from fine_tuning import load_decoder
from message_files import DataError
from previous_chapters import Decoder
from run_messages import Messages, take_some
from text_classifier import pick_device

# What the model is told, by protocol, and the words that it answers with, by label. No other
# wording was compared to choose them.
OF_SMS = "Is this text message spam or ham? Answer with one word: spam or ham."
OF_REVIEWS = {
    "reviews": "Is this film review positive or negative? Answer with one word.",
    "stars": "How many stars does this film review give, from 1 to 10? Answer with a number.",
}
ANSWERS = {"neg": "negative", "pos": "positive"}


def run_prompt(config: ExperimentConfig, messages: Messages, store=None) -> np.ndarray:
    """Test probabilities (N, C) of the labels as the model's answer; `config.num_examples`
    training messages stand in the prompt with their answers."""
    decoder, tokenizer, _ = load_decoder(config, pick_device(config.device))
    train, _, test = messages.splits
    answers = {name: ANSWERS.get(name, name) for name in messages.label_names}
    turns = [("system", OF_REVIEWS.get(config.protocol, OF_SMS))]
    if config.num_examples:
        examples = take_some(train, config.num_examples, config.seed)
        if len(examples) != config.num_examples:
            raise DataError(f"--num-examples {config.num_examples}: at least one of each label.")
        for text, label in zip(examples["text"], examples["label"]):
            turns += [("user", text), ("assistant", answers[label])]
    conversation = Conversation(decoder, tokenizer, turns, list(answers.values()))
    return np.array([conversation.answer(text) for text in test["text"]])


class Conversation:
    """What was said so far, read once, and the probabilities of the answers to what follows."""

    @torch.no_grad()
    def __init__(
        self, decoder: Decoder, tokenizer, turns: Sequence[tuple[str, str]], answers: Sequence[str]
    ):
        """Takes turns (who speaks, what is said) and the C possible answers."""
        self.decoder, self.tokenizer = decoder, tokenizer
        self.end = tokenizer.encode_single_token("<|im_end|>")
        self.answers = [[*tokenizer.encode_ordinary(answer), self.end] for answer in answers]
        self.caches = [KeyValueCache() for _ in decoder.trf_blocks]
        self._read([i for who, text in turns for i in self._turn(who, text)], self.caches)

    @torch.no_grad()
    def answer(self, text: str) -> np.ndarray:
        """The probability of each answer among these (C,)."""
        caches = list(map(copy, self.caches))
        question = [*self._turn("user", text), *self._turn("assistant", "")[:-2]]
        first = self._read(question, caches)[-1:]  # (1, V)
        scores = []
        for ids in self.answers:
            logits = torch.cat([first, self._read(ids[:-1], list(map(copy, caches)))])  # (A, V)
            scores.append(torch.log_softmax(logits, dim=-1)[range(len(ids)), ids].sum())
        return torch.softmax(torch.stack(scores), dim=0).cpu().numpy()

    def _turn(self, who: str, text: str) -> list[int]:
        """A turn in the chat format; the text is data, whatever marks it holds."""
        start = self.tokenizer.encode_single_token("<|im_start|>")
        ordinary = self.tokenizer.encode_ordinary
        return [start, *ordinary(f"{who}\n{text}"), self.end, *ordinary("\n")]

    def _read(self, ids: Sequence[int], caches: Sequence[KeyValueCache]) -> Tensor:
        """Logits (T, V) of the token after each; the caches then hold these tokens, too."""
        return self.decoder(torch.tensor([ids], device=self.decoder.device), caches=caches)[0]
