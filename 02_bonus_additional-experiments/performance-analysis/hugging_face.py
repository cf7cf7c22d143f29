"""The same classifier in `transformers`: the measure of what a reader could use instead."""

import tempfile
import time
from collections.abc import Callable, Sequence

import bench_common as bench
from torch import Tensor
from torch.utils.data import DataLoader

from export import in_transformers, shape_in_transformers
from previous_chapters import Decoder, GPTModel
from text_classifier import GPTClassifier


def _require_gpt2(decoder: Decoder) -> None:
    if not isinstance(decoder, GPTModel):
        raise TypeError("the comparison is made for GPT-2's kind of decoder")


def hugging_face_generator(decoder: Decoder):
    """A language model with the weights of ours. `<|endoftext|>` is every special token."""
    import transformers

    _require_gpt2(decoder)
    _, sizes, weights = shape_in_transformers(decoder)
    end_id = decoder.cfg.vocab_size - 1
    config = transformers.GPT2Config(
        vocab_size=decoder.cfg.vocab_size,
        **sizes,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), end_id),
    )
    twin = transformers.GPT2LMHeadModel(config).to(decoder.device).eval()
    twin.load_state_dict(weights | {"lm_head.weight": decoder.out_head.weight.detach()})
    return twin


def hugging_face_classifier(classifier: GPTClassifier):
    """A sequence classifier that gives the logits of ours; where the last block alone is trained,
    so it is here.

    It finds a message's last real token by looking for the padding token, for which it takes
    `<|endoftext|>`, which no message holds.
    """
    decoder = classifier.decoder
    _require_gpt2(decoder)
    twin = in_transformers(classifier, decoder.cfg.vocab_size - 1)
    twin.requires_grad_(decoder.tok_emb.weight.requires_grad)
    for part in (twin.transformer.h[-1], twin.transformer.ln_f, twin.score):
        part.requires_grad_(True)
    return twin


def hugging_face_inputs(batch: dict[str, Tensor], twin) -> dict[str, Tensor]:
    """A batch's token ids (B, T) with the padding that `twin` wants, mask (B, T), labels (B,)."""
    mask = batch["attention_mask"]
    input_ids = batch["input_ids"].masked_fill(~mask, twin.config.pad_token_id)
    inputs = {"input_ids": input_ids, "attention_mask": mask.long(), "labels": batch["labels"]}
    return {name: tensor.to(twin.device) for name, tensor in inputs.items()}


def trainer_run(
    twin, steps: Sequence[dict[str, Tensor]], evaluations: Sequence[dict[str, Tensor]]
) -> Callable[[], dict[str, float]]:
    """A function that takes these steps and evaluation batches with `transformers`' Trainer, and
    returns the seconds of both."""
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    moments: list[float] = []

    class Stopwatch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            bench.synchronize()
            moments.append(time.perf_counter())

    class GivenBatches(Trainer):
        def get_train_dataloader(self) -> DataLoader:
            return DataLoader([steps[0], *steps], batch_size=None)  # the first is not counted

        def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
            return DataLoader(evaluations, batch_size=None)

    nothing = {"save_strategy": "no", "logging_strategy": "no", "report_to": "none"}
    rates = {"learning_rate": 1e-6, "weight_decay": 0.1, "num_train_epochs": 1}
    where = {"output_dir": tempfile.gettempdir(), "use_cpu": twin.device.type == "cpu"}
    arguments = TrainingArguments(**where, **rates, **nothing, disable_tqdm=True)
    data = {"train_dataset": steps, "eval_dataset": evaluations}
    trainer = GivenBatches(twin, arguments, callbacks=[Stopwatch()], **data)
    trainer.remove_callback(PrinterCallback)
    trainer.evaluate()  # the first call allocates

    def run() -> dict[str, float]:
        moments.clear()
        trainer.train()
        training = moments[-1] - moments[0]
        return {"training": training, "evaluation": bench.seconds_of(trainer.evaluate)}

    return run
