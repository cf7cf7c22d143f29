"""The same classifier in `transformers`: the measure of what a reader could use instead."""

import time
from collections.abc import Sequence

import torch
from bench_common import wait_for
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from previous_chapters import GPTConfig, GPTModel, gpt2_state_dict


def hugging_face_config(cfg: GPTConfig, **options):
    """`GPT2Config` of the same shape, without dropout; `<|endoftext|>` is every special token."""
    from transformers import GPT2Config

    end_of_text = cfg.vocab_size - 1
    return GPT2Config(
        vocab_size=cfg.vocab_size,
        n_positions=cfg.context_length,
        n_embd=cfg.emb_dim,
        n_layer=cfg.num_layers,
        n_head=cfg.num_heads,
        pad_token_id=end_of_text,
        bos_token_id=end_of_text,
        eos_token_id=end_of_text,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        **options,
    )


def hugging_face_state(model: GPTModel) -> dict[str, Tensor]:
    """Our weights under its names, without the head."""
    return {f"transformer.{name}": tensor for name, tensor in gpt2_state_dict(model).items()}


def hugging_face_generator(model: GPTModel):
    """`GPT2LMHeadModel` with the weights of our language model."""
    from transformers import GPT2LMHeadModel

    twin = GPT2LMHeadModel(hugging_face_config(model.cfg)).to(model.tok_emb.weight.device).eval()
    head = {"lm_head.weight": model.out_head.weight.detach()}
    twin.load_state_dict(hugging_face_state(model) | head)  # strict: nothing missing, nothing over
    return twin


def hugging_face_twin(model: GPTModel):
    """`GPT2ForSequenceClassification` with the weights of our classifier.

    Its head has no bias, so ours must be zero. It finds a message's last real token by looking for
    the padding token, for which it takes `<|endoftext|>`, which no message holds.
    """
    from transformers import GPT2ForSequenceClassification

    if model.out_head.bias.any():
        raise ValueError("transformers' head has no bias: ours must be zero to give the same.")
    config = hugging_face_config(model.cfg, num_labels=model.out_head.out_features)
    twin = GPT2ForSequenceClassification(config).to(model.tok_emb.weight.device).eval()
    head = {"score.weight": model.out_head.weight.detach()}
    twin.load_state_dict(hugging_face_state(model) | head)
    return twin


def hugging_face_inputs(sequences: Sequence[Tensor], pad_id: int) -> dict[str, Tensor]:
    """Token ids and mask of a batch, padded to its longest message."""
    input_ids = pad_sequence(list(sequences), batch_first=True, padding_value=pad_id)
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    mask = torch.arange(input_ids.shape[1]) < lengths.unsqueeze(1)
    return {"input_ids": input_ids, "attention_mask": mask.long()}


def freeze_twin_but_last_block(twin) -> None:
    twin.requires_grad_(False)
    for part in (twin.transformer.h[-1], twin.transformer.ln_f, twin.score):
        part.requires_grad_(True)


Rows = Sequence[tuple[Tensor, int]]  # token ids (T,) and label


class TrainerJob:
    """`transformers`' Trainer on given rows, in their order.

    Evaluation has rows and a batch size of its own, as in the chapter.
    """

    def __init__(
        self, twin, train: Rows, batch_size: int, evaluation: Rows, evaluation_size: int, folder
    ):
        from transformers import Trainer, TrainerCallback, TrainingArguments

        moments: list[float] = []

        class Stopwatch(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                wait_for(twin.device)
                moments.append(time.perf_counter())

        def collate(items: Sequence[dict]) -> dict[str, Tensor]:
            inputs = hugging_face_inputs([i["input_ids"] for i in items], twin.config.pad_token_id)
            return inputs | {"labels": torch.tensor([i["labels"] for i in items])}

        def as_dicts(rows: Rows) -> list[dict]:
            return [{"input_ids": ids, "labels": label} for ids, label in rows]

        self.moments, self.evaluation = moments, as_dicts(evaluation)
        self.num_evaluation_batches = -(-len(evaluation) // evaluation_size)
        arguments = TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=batch_size,
            per_device_eval_batch_size=evaluation_size,
            num_train_epochs=1,
            learning_rate=1e-6,
            weight_decay=0.1,
            max_grad_norm=1.0,
            train_sampling_strategy="sequential",
            save_strategy="no",
            report_to="none",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=twin.device.type == "cpu",
            dataloader_pin_memory=False,
        )
        self.trainer = Trainer(
            twin,
            arguments,
            data_collator=collate,
            train_dataset=as_dicts(train),
            callbacks=[Stopwatch()],
        )

    def train(self) -> float:
        """Mean seconds of a step, the first one of the run left out."""
        self.moments.clear()
        self.trainer.train()
        return (self.moments[-1] - self.moments[0]) / (len(self.moments) - 1)

    def evaluate(self) -> float:
        """Mean seconds of an evaluation batch."""
        start = time.perf_counter()
        self.trainer.predict(self.evaluation)  # its answers are on the CPU: nothing to wait for
        return (time.perf_counter() - start) / self.num_evaluation_batches
