"""What the experiments need beyond the chapter: other readings, other losses, more pretraining."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from previous_chapters import GPTConfig, GPTModel
from text_classifier import (
    TrainConfig,
    Trainer,
    add_classification_head,
    calc_loss_batch,
    calc_next_token_loss,
    compute_frozen_layers,
    continue_pretraining,
    freeze_all_but,
    last_token_logits,
    predict_logits,
    read_logits,
)
from text_data import LAST_REAL_TOKEN, Reading, SpamDataset, make_loader, pad_batch, pad_messages

SHAPE = GPTConfig(vocab_size=30, context_length=24, emb_dim=16, num_heads=2, num_layers=3)
READINGS = [
    Reading(position, causal) for position in ("last_real", "first", "mean") for causal in (1, 0)
]


def tiny_model(trainable="last_block", with_head: bool = True) -> GPTModel:
    torch.manual_seed(0)
    model = GPTModel(SHAPE).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    if with_head:
        add_classification_head(model, num_classes=2)
        freeze_all_but(model, trainable)
    return model


def tiny_dataset(reading: Reading = LAST_REAL_TOKEN, size: int = 12) -> SpamDataset:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(2, 16, (size,), generator=generator).tolist()
    sequences = [torch.randint(0, 30, (n,), generator=generator) for n in lengths]
    return SpamDataset(sequences, [i % 2 for i in range(size)], reading=reading)


def logits_of(model: GPTModel, dataset: SpamDataset, batch_size: int) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([read_logits(model, batch) for batch in make_loader(dataset, batch_size)])


# --- readings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("reading", READINGS)
def test_padding_changes_no_reading(reading):
    model, dataset = tiny_model(), tiny_dataset(reading)
    alone = logits_of(model, dataset, batch_size=1)
    together = logits_of(model, dataset, batch_size=12)
    dataset.reading = reading._replace(width=24)
    wide = logits_of(model, dataset, batch_size=12)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(wide, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("trainable", ["head", "last_block", "last_two_blocks"])
def test_frozen_layers_computed_once_give_the_same_logits(reading, trainable):
    model, dataset = tiny_model(trainable), tiny_dataset(reading)
    num_frozen = {"head": 3, "last_block": 2, "last_two_blocks": 1}[trainable]
    once = compute_frozen_layers(model, dataset, num_frozen)
    assert once.num_blocks_done == num_frozen
    expected = predict_logits(model, dataset)
    torch.testing.assert_close(predict_logits(model, once), expected, rtol=0, atol=1e-5)


def test_every_reading_reads_something_else():
    model = tiny_model()
    read = [logits_of(model, tiny_dataset(reading), 4) for reading in READINGS]
    for i, one in enumerate(read):
        for other in read[i + 1 :]:
            assert (one - other).abs().max() > 1e-3


def test_batches_are_as_wide_as_asked():
    batch = next(iter(make_loader(tiny_dataset(Reading(width=24)), 4)))
    assert batch.inputs.shape == (4, 24)
    assert batch.real.sum(dim=1).tolist() == [len(ids) for ids in tiny_dataset().sequences[:4]]


def test_the_first_token_sees_later_ones_without_the_mask_only():
    model, dataset = tiny_model(), tiny_dataset(Reading("first"))
    changed = SpamDataset(
        [torch.cat([ids[:1], 29 - ids[1:]]) for ids in dataset.sequences], dataset.labels
    )
    for causal in (True, False):
        dataset.reading = changed.reading = Reading("first", causal)
        moved = (logits_of(model, changed, 4) - logits_of(model, dataset, 4)).abs().max()
        assert (moved < 1e-5) == causal


def test_the_mean_is_that_of_all_final_states():
    model, ids = tiny_model(), tiny_dataset().sequences[0]
    with torch.no_grad():
        x = model.embed(ids.unsqueeze(0))
        for block in model.trf_blocks:
            x = block(x)
        by_hand = model.out_head(model.final_norm(x).mean(dim=1))
    dataset = SpamDataset([ids], [0], reading=Reading("mean"))
    torch.testing.assert_close(logits_of(model, dataset, 1), by_hand, rtol=0, atol=1e-5)


def test_padding_that_counts_as_message_is_read():
    model, dataset = tiny_model(), tiny_dataset()
    padded = SpamDataset(pad_messages(dataset.sequences, 20, pad_id=3), dataset.labels)
    assert [len(ids) for ids in padded.sequences] == [20] * 12
    assert (logits_of(model, padded, 4) - logits_of(model, dataset, 4)).abs().max() > 1e-3


def test_the_default_reading_is_the_chapters():
    model, dataset = tiny_model(), tiny_dataset()
    batch = pad_batch([dataset[i] for i in range(12)])
    with torch.no_grad():
        assert torch.equal(read_logits(model, batch), last_token_logits(model, batch))


# --- what is trained --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "name"), [(0, "head"), (1, "last_block"), (2, "last_two_blocks")]
)
def test_a_number_of_blocks_is_the_same_as_its_name(number, name):
    by_number, by_name = tiny_model(number), tiny_model(name)
    flags = [[p.requires_grad for p in model.parameters()] for model in (by_number, by_name)]
    assert flags[0] == flags[1]


def test_all_blocks_are_not_all_layers():
    model = tiny_model(3)
    assert all(p.requires_grad for p in model.trf_blocks.parameters())
    assert not model.tok_emb.weight.requires_grad
    assert freeze_all_but(model, 3) == 0


# --- losses and updates -----------------------------------------------------------------------


def weights_after(config: TrainConfig, dataset: SpamDataset) -> torch.Tensor:
    model = tiny_model()
    Trainer(model, dataset, config).train_all_epochs()
    return model.out_head.weight.detach()


def test_accumulated_batches_make_one_update_of_their_mean_gradient():
    dataset = tiny_dataset(size=8)
    config = TrainConfig(1e-2, num_epochs=1, batch_size=8, warmup_share=0, max_grad_norm=None)
    accumulated = dataclasses.replace(config, batch_size=2, accumulation_steps=4)
    trainer = Trainer(tiny_model(), dataset, accumulated)
    trainer.train_all_epochs()
    assert trainer.num_steps == len(trainer.history.step_losses) == 1
    torch.testing.assert_close(
        trainer.model.out_head.weight.detach(), weights_after(config, dataset), rtol=0, atol=1e-5
    )


def test_a_group_that_is_not_full_makes_an_update_too():
    trainer = Trainer(
        tiny_model(), tiny_dataset(size=10), TrainConfig(batch_size=2, accumulation_steps=4)
    )
    trainer.train_epoch()
    assert len(trainer.history.step_losses) == trainer.steps_per_epoch == 2


def test_label_smoothing_reaches_the_loss():
    model, dataset = tiny_model(), tiny_dataset()
    batch = pad_batch([dataset[i] for i in range(12)])
    logits = read_logits(model, batch)
    smooth = 0.8 * F.cross_entropy(logits, batch.labels)
    smooth = smooth - 0.1 * F.log_softmax(logits, dim=-1).sum(dim=-1).mean()
    torch.testing.assert_close(calc_loss_batch(model, batch, label_smoothing=0.2), smooth)
    config = TrainConfig(1e-2, num_epochs=1)
    smoothed = weights_after(dataclasses.replace(config, label_smoothing=0.2), dataset)
    assert not torch.equal(smoothed, weights_after(config, dataset))


def test_an_ignored_label_teaches_nothing_and_an_unknown_one_changes_nothing():
    dataset, config = tiny_dataset(), TrainConfig(1e-2, num_epochs=1, batch_size=2)
    plain = weights_after(config, dataset)
    assert torch.equal(weights_after(dataclasses.replace(config, ignore_index=99), dataset), plain)
    ignored = weights_after(dataclasses.replace(config, ignore_index=1), dataset)
    assert ignored.isfinite().all()
    assert not torch.equal(ignored, plain)


@pytest.mark.parametrize("wrong", [{"accumulation_steps": 0}, {"label_smoothing": 1.5}])
def test_new_options_are_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TrainConfig(**wrong)


# --- continued pretraining --------------------------------------------------------------------


def test_next_token_loss_counts_real_tokens_only():
    model, dataset = tiny_model(with_head=False), tiny_dataset()
    with torch.no_grad():
        together = calc_next_token_loss(model, pad_batch([dataset[i] for i in range(12)]))
        losses = [
            F.cross_entropy(model(ids.unsqueeze(0))[0, :-1], ids[1:], reduction="sum")
            for ids in dataset.sequences
        ]
    num_targets = sum(len(ids) - 1 for ids in dataset.sequences)
    torch.testing.assert_close(together, sum(losses) / num_targets)


def test_continued_pretraining_learns_the_texts_in_a_new_order_each_epoch():
    model, sequences = tiny_model(with_head=False), tiny_dataset(size=32).sequences
    losses = continue_pretraining(model, sequences, TrainConfig(1e-2, num_epochs=20))
    assert len(losses) == 20 * 4
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    assert not model.training
    trainer = Trainer(tiny_model(), tiny_dataset(size=32), TrainConfig(learning_rate=1e-12))
    trainer.train_all_epochs()
    per_epoch = torch.tensor(trainer.history.step_losses).view(5, 4)
    assert (per_epoch[0] - per_epoch[1]).abs().max() > 1e-4
