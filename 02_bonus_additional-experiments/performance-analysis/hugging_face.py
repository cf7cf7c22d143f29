"""The same classifier in `transformers`: the measure of what a reader could use instead."""

import tempfile
import time
from collections.abc import Sequence

from bench_common import Unavailable, require, wait_for
from torch import Tensor
from torch.utils.data import DataLoader

from previous_chapters import Decoder, GPTModel, gpt2_state_dict
from text_classifier import GPTClassifier
from text_data import SpamDataset, collate


def _twin(decoder: Decoder, task: str, head: str, **options):
    """`GPT2<task>` with the weights of a decoder, whose output layer it calls `head`.

    `<|endoftext|>` is every special token, and it has no dropout. Raises ``Unavailable``.
    """
    require("transformers")
    import transformers

    if not isinstance(decoder, GPTModel):
        raise Unavailable("the comparison is made for GPT-2's kind of decoder")
    cfg = decoder.cfg
    special = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), cfg.vocab_size - 1)
    no_dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    config = transformers.GPT2Config(
        vocab_size=cfg.vocab_size,
        n_positions=cfg.context_length,
        n_embd=cfg.emb_dim,
        n_layer=cfg.n_layers,
        n_head=cfg.n_heads,
        **special,
        **no_dropout,
        **options,
    )
    twin = getattr(transformers, "GPT2" + task)(config).to(decoder.device).eval()
    weights = {f"transformer.{name}": tensor for name, tensor in gpt2_state_dict(decoder).items()}
    weights[f"{head}.weight"] = decoder.out_head.weight.detach()
    twin.load_state_dict(weights)  # strict: nothing missing, nothing over
    return twin


def hugging_face_generator(decoder: Decoder):
    """A language model with the weights of ours."""
    return _twin(decoder, "LMHeadModel", "lm_head")


def hugging_face_classifier(classifier: GPTClassifier):
    """A sequence classifier with the weights of ours.

    Its head has no bias, so ours must be zero. It finds a message's last real token by looking for
    the padding token, for which it takes `<|endoftext|>`, which no message holds.
    """
    decoder = classifier.decoder
    if decoder.out_head.bias.any():
        raise ValueError("transformers' head has no bias: ours must be zero to give the same.")
    num_labels = len(classifier.config.label_names)
    return _twin(decoder, "ForSequenceClassification", "score", num_labels=num_labels)


def hugging_face_inputs(batch: dict[str, Tensor], twin) -> dict[str, Tensor]:
    """Token ids (B, T), the padding as `twin` wants it, and the mask (B, T)."""
    mask = batch["attention_mask"]
    input_ids = batch["input_ids"].masked_fill(~mask, twin.config.pad_token_id)
    inputs = {"input_ids": input_ids, "attention_mask": mask.long()}
    return {name: tensor.to(twin.device) for name, tensor in inputs.items()}


def freeze_twin_but_last_block(twin) -> None:
    """As `freeze_all_but(classifier, "last_block")` does."""
    twin.requires_grad_(False)
    for part in (twin.transformer.h[-1], twin.transformer.ln_f, twin.score):
        part.requires_grad_(True)


class TrainerJob:
    """`transformers`' Trainer on given batches of a data set's rows. Raises ``Unavailable``."""

    def __init__(
        self,
        twin,
        dataset: SpamDataset,
        steps: Sequence[list[int]],
        evaluations: Sequence[list[int]],
    ):
        require("transformers", "accelerate")
        from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

        moments: list[float] = []

        class Stopwatch(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                wait_for(twin.device)
                moments.append(time.perf_counter())

        def collate_for_twin(items: Sequence[tuple[Tensor, int]]) -> dict[str, Tensor]:
            batch = collate(items)
            return hugging_face_inputs(batch, twin) | {"labels": batch["labels"].to(twin.device)}

        def loader(batches: Sequence[list[int]]) -> DataLoader:
            return DataLoader(dataset, batch_sampler=batches, collate_fn=collate_for_twin)

        class GivenBatches(Trainer):
            def get_train_dataloader(self) -> DataLoader:
                return loader([steps[0], *steps])  # the first step is not counted

            def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
                return loader(evaluations)

        self.moments = moments
        arguments = TrainingArguments(
            output_dir=tempfile.gettempdir(),  # nothing is saved
            num_train_epochs=1,
            learning_rate=1e-6,
            weight_decay=0.1,
            max_grad_norm=1.0,
            save_strategy="no",
            report_to="none",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=twin.device.type == "cpu",
        )
        self.trainer = GivenBatches(
            twin, arguments, train_dataset=dataset, eval_dataset=dataset, callbacks=[Stopwatch()]
        )
        self.trainer.remove_callback(PrinterCallback)
        self.evaluate()

    def train(self) -> float:
        """Seconds of the steps."""
        self.moments.clear()
        self.trainer.train()
        return self.moments[-1] - self.moments[0]

    def evaluate(self) -> float:
        """Seconds of the evaluation batches."""
        start = time.perf_counter()
        self.trainer.evaluate()  # its answers are on the CPU: nothing to wait for
        return time.perf_counter() - start
