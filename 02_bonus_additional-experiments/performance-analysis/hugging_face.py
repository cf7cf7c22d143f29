"""The same classifier in `transformers`: the measure of what a reader could use instead."""

import tempfile
from collections.abc import Callable

from torch import Tensor
from torch.utils.data import DataLoader

from export import shape_in_transformers
from previous_chapters import Decoder
from text_classifier import GPTClassifier

LAST_LAYERS = {"gpt2": ("h", "ln_f"), "llama": ("layers", "norm")}  # blocks and final norm


def _twin(decoder: Decoder, task: str, head: str):
    """A model of `transformers` in the decoder's shape and with its weights; `head` is the name of
    the layer that gives the logits."""
    import transformers

    kind, sizes, weights = shape_in_transformers(decoder)
    # Every special token is `<|endoftext|>`: GPT-2's last token, SmolLM2's first.
    end_id = decoder.cfg.vocab_size - 1 if kind == "GPT2" else 0
    config = transformers.AutoConfig.for_model(
        kind.lower(),
        vocab_size=decoder.cfg.vocab_size,
        tie_word_embeddings=True,
        **sizes,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), end_id),
    )
    twin = getattr(transformers, f"AutoModelFor{task}").from_config(config)
    twin.load_state_dict(weights | {f"{head}.weight": decoder.out_head.weight.detach()})
    return twin.to(decoder.device).eval()


def hugging_face_generator(decoder: Decoder):
    """A language model with the weights of ours."""
    return _twin(decoder, "CausalLM", "lm_head")


def hugging_face_classifier(classifier: GPTClassifier):
    """A sequence classifier that gives the logits of ours, read at the last token, as long as the
    head's bias, which the library's has not, is zero; it has the same layers frozen.

    It finds a message's last real token by the padding token, `<|endoftext|>`, which none holds.
    """
    twin = _twin(classifier.decoder, "SequenceClassification", "score")
    twin.requires_grad_(classifier.decoder.tok_emb.weight.requires_grad)
    blocks, norm = (getattr(twin.base_model, n) for n in LAST_LAYERS[twin.config.model_type])
    for part in (blocks[-1], norm, twin.score):
        part.requires_grad_(True)
    return twin


def hugging_face_inputs(batch: dict[str, Tensor], twin) -> dict[str, Tensor]:
    """A batch's token ids (B, T) with the padding that `twin` wants, mask (B, T), labels (B,)."""
    mask = batch["attention_mask"]
    input_ids = batch["input_ids"].masked_fill(~mask, twin.config.pad_token_id)
    inputs = {"input_ids": input_ids, "attention_mask": mask.long(), "labels": batch["labels"]}
    return {name: tensor.to(twin.device) for name, tensor in inputs.items()}


def trainer_timing(
    classifier: GPTClassifier, batches: dict[str, list[dict[str, Tensor]]]
) -> Callable[[], dict[str, float]]:
    """A function that takes the steps and the evaluation batches with `transformers`' Trainer, and
    returns the seconds of both."""
    from transformers import PrinterCallback, Trainer, TrainingArguments

    twin = hugging_face_classifier(classifier)
    steps, evaluations = (
        [hugging_face_inputs(batch, twin) for batch in batches[stage]]
        for stage in ("training", "evaluation")
    )

    class GivenBatches(Trainer):
        def get_train_dataloader(self) -> DataLoader:
            return DataLoader(steps, batch_size=None)

        def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
            return DataLoader(evaluations, batch_size=None)

    nothing = {"save_strategy": "no", "logging_strategy": "no", "report_to": "none"}
    rates = {"learning_rate": 1e-6, "weight_decay": 0.1, "num_train_epochs": 1}
    where = {"output_dir": tempfile.gettempdir(), "use_cpu": twin.device.type == "cpu"}
    arguments = TrainingArguments(**where, **rates, **nothing, disable_tqdm=True)
    data = {"train_dataset": steps, "eval_dataset": evaluations}
    trainer = GivenBatches(twin, arguments, **data)
    trainer.remove_callback(PrinterCallback)

    def run() -> dict[str, float]:
        training, evaluation = trainer.train().metrics, trainer.evaluate()
        return {"training": training["train_runtime"], "evaluation": evaluation["eval_runtime"]}

    run()  # the first call allocates
    return run
