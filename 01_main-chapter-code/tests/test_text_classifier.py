"""The classifier: the last real token, freezing, cached and plain training, saving, resuming."""

import dataclasses
import json
import math
import subprocess
import sys
import textwrap

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from gpt_download import load_mini_tokenizer, load_pretrained
from previous_chapters import GPTConfig, GPTModel, num_parameters
from text_classifier import (
    Classifier,
    TrainConfig,
    Trainer,
    add_classification_head,
    calc_accuracy_loader,
    calc_loss_batch,
    calc_loss_loader,
    classify_review,
    classify_texts,
    compute_frozen_layers,
    evaluate_model,
    file_sha256,
    freeze_all_but,
    last_token_logits,
    learning_rate_at,
    open_classifier,
    pick_device,
    predict_logits,
    save_classifier,
    save_tensors,
    set_dropout,
    train_classifier_simple,
    train_mode,
)
from text_data import SpamDataset, encode_messages, make_loader, pad_batch

TINY = GPTConfig(vocab_size=50, context_length=40, emb_dim=16, num_heads=2, num_layers=3)


def tiny_model(num_classes: int = 2, seed: int = 0, trainable: str = "last_block") -> GPTModel:
    torch.manual_seed(seed)
    model = GPTModel(TINY).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    add_classification_head(model, num_classes)
    freeze_all_but(model, trainable)
    return model


def tiny_dataset(size: int = 40, num_classes: int = 2, seed: int = 0) -> SpamDataset:
    """Messages whose class shows in how often their first token occurs."""
    rng = torch.Generator().manual_seed(seed)
    sequences, labels = [], []
    for i in range(size):
        label = i % num_classes
        length = int(torch.randint(1, 30, (1,), generator=rng))
        noise = torch.randint(num_classes, TINY.vocab_size, (length,), generator=rng)
        noise[torch.rand(length, generator=rng) < 0.5] = label
        sequences.append(noise)
        labels.append(label)
    return SpamDataset(sequences, labels)


# --- reading the last real token --------------------------------------------------------------


@pytest.mark.parametrize("trainable", ["head", "last_block", "all"])
def test_last_token_logits_equal_the_plain_models(trainable):
    model, dataset = tiny_model(trainable=trainable), tiny_dataset(8)
    batch = pad_batch([dataset[i] for i in range(8)])
    plain = model(batch.inputs)[torch.arange(8), batch.last_positions]
    torch.testing.assert_close(last_token_logits(model, batch), plain, atol=1e-6, rtol=0)


def test_padding_never_changes_a_prediction():
    """Added, removed or shuffled within a batch: probabilities move by less than 1e-5."""
    model, _ = load_pretrained("gpt-mini")
    torch.manual_seed(0)
    add_classification_head(model, 2)
    torch.nn.init.normal_(model.out_head.weight, std=1.0)  # a confident head shows differences
    generator = torch.Generator().manual_seed(3)
    messages = [torch.randint(4096, (n,), generator=generator) for n in (1, 2, 7, 20, 55, 120, 300)]
    alone = torch.cat(
        [torch.softmax(last_token_logits(model, pad_batch([(m, 0)])), -1) for m in messages]
    )
    assert (alone[:, 1] - alone[0, 1]).abs().max() > 0.01  # messages do differ
    order = torch.randperm(len(messages), generator=generator)
    batch = pad_batch([(messages[i], 0) for i in order])
    together = torch.softmax(last_token_logits(model, batch), -1)
    assert (together - alone[order]).abs().max() < 1e-5
    more = batch._replace(inputs=F.pad(batch.inputs, (0, 150), value=4095))
    assert (torch.softmax(last_token_logits(model, more), -1) - together).abs().max() < 1e-5


def test_predictions_do_not_depend_on_batches_and_keep_the_order():
    model, dataset = tiny_model(), tiny_dataset(150)
    one_by_one = torch.cat(
        [last_token_logits(model, pad_batch([dataset[i]])) for i in range(len(dataset))]
    )
    torch.testing.assert_close(predict_logits(model, dataset), one_by_one, atol=1e-5, rtol=0)


# --- freezing ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trainable", "num_frozen", "parts"),
    [
        ("head", 3, ("out_head",)),
        ("last_block", 2, ("out_head", "final_norm", "trf_blocks.2")),
        ("last_two_blocks", 1, ("out_head", "final_norm", "trf_blocks.1", "trf_blocks.2")),
        ("all", 0, ("",)),
    ],
)
def test_only_the_named_part_is_trained_and_the_rest_stays_bit_identical(
    trainable, num_frozen, parts
):
    model, dataset = tiny_model(), tiny_dataset()
    assert freeze_all_but(model, trainable) == num_frozen
    before = {name: p.clone() for name, p in model.named_parameters()}
    train_classifier_simple(model, dataset, dataset, TrainConfig(num_epochs=1, dropout=0.1))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != name.startswith(parts), name


def test_frozen_layers_in_bfloat16_are_rounded_and_kept_in_float32():
    model, dataset = tiny_model(), tiny_dataset()
    exact = compute_frozen_layers(model, dataset, 2)
    rounded = compute_frozen_layers(model, dataset, 2, precision="bfloat16")
    for a, b in zip(exact.sequences, rounded.sequences, strict=True):
        assert b.dtype == torch.float32
        assert not torch.equal(a, b)
        torch.testing.assert_close(a, b, atol=0.02, rtol=0.02)


def test_number_of_trained_parameters():
    model = tiny_model(num_classes=5, trainable="head")
    assert num_parameters(model, trainable_only=True) == 16 * 5 + 5


def test_more_blocks_than_there_are_trains_them_all():
    torch.manual_seed(0)
    model = GPTModel(dataclasses.replace(TINY, num_layers=1))
    add_classification_head(model, 2)
    assert freeze_all_but(model, "last_two_blocks") == 0
    assert not model.tok_emb.weight.requires_grad


def test_frozen_parts_stay_in_evaluation_mode():
    model = tiny_model()
    train_mode(model)
    modes = [block.training for block in model.trf_blocks]
    assert modes == [False, False, True]
    assert not model.drop_emb.training
    assert model.out_head.training


# --- cached equals plain ----------------------------------------------------------------------


def assert_equal_weights(expected: dict, actual: dict) -> None:
    for name, weight in expected.items():
        # A key bias adds the same to all scores of a query, which softmax ignores: its gradient
        # is rounding noise, and AdamW makes steps of any noise.
        if not name.endswith("W_key.bias"):
            torch.testing.assert_close(actual[name], weight, atol=1e-4, rtol=0)


@pytest.mark.parametrize("trainable", ["head", "last_block", "last_two_blocks"])
def test_cached_training_equals_plain_training(trainable):
    """Same losses (1e-5) and same final weights (1e-4) over 20 steps."""
    dataset = tiny_dataset(80)
    config = TrainConfig(num_epochs=2, batch_size=8, learning_rate=1e-2)
    results = []
    for cached in (False, True):
        model = tiny_model(trainable=trainable)
        num_frozen = freeze_all_but(model, trainable)
        data = compute_frozen_layers(model, dataset, num_frozen) if cached else dataset
        history = train_classifier_simple(model, data, data, config)
        results.append((history, dict(model.named_parameters())))
    (plain, plain_weights), (cached, cached_weights) = results
    assert len(plain.step_losses) == 20
    assert plain.step_losses[-1] != pytest.approx(plain.step_losses[0], abs=1e-3)
    assert cached.step_losses == pytest.approx(plain.step_losses, abs=1e-5)
    assert cached.validation_loss == pytest.approx(plain.validation_loss, abs=1e-5)
    assert_equal_weights(plain_weights, cached_weights)


def test_cached_training_equals_plain_training_on_the_pretrained_model():
    generator = torch.Generator().manual_seed(0)
    sequences = [
        torch.randint(4096, (int(n),), generator=generator)
        for n in torch.randint(1, 60, (80,), generator=generator)
    ]
    dataset = SpamDataset(sequences, [i % 2 for i in range(80)])
    config = TrainConfig(num_epochs=2)
    results = []
    for cached in (False, True):
        model, _ = load_pretrained("gpt-mini")
        torch.manual_seed(0)
        add_classification_head(model, 2)
        num_frozen = freeze_all_but(model, "last_block")
        data = compute_frozen_layers(model, dataset, num_frozen) if cached else dataset
        losses = train_classifier_simple(model, data, data, config).step_losses
        results.append((losses, dict(model.named_parameters())))
    assert len(results[0][0]) == 20
    assert results[1][0] == pytest.approx(results[0][0], abs=1e-5)
    assert_equal_weights(results[0][1], results[1][1])


def test_gradients_through_one_position_equal_those_through_all():
    model, dataset = tiny_model(trainable="all"), tiny_dataset(8)
    batch = pad_batch([dataset[i] for i in range(8)])
    gradients = []
    for logits in (
        last_token_logits(model, batch),
        model(batch.inputs)[torch.arange(8), batch.last_positions],
    ):
        model.zero_grad()
        F.cross_entropy(logits, batch.labels).backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-6, rtol=1e-4)


# --- losses and accuracies --------------------------------------------------------------------


def test_loaders_agree_with_the_whole_data_set_whatever_the_batch_size():
    model, dataset = tiny_model(num_classes=3), tiny_dataset(50, num_classes=3)
    loss, accuracy = evaluate_model(model, dataset)
    for batch_size in (1, 7, 50):
        loader = make_loader(dataset, batch_size)
        assert calc_loss_loader(model, loader) == pytest.approx(loss, abs=1e-5)
        assert calc_accuracy_loader(model, loader) == pytest.approx(accuracy)


def test_class_weights_enter_the_loss():
    model, dataset = tiny_model(), tiny_dataset(10)
    batch = pad_batch([dataset[i] for i in range(10)])
    log_p = F.log_softmax(last_token_logits(model, batch), -1)
    picked = -log_p[torch.arange(10), batch.labels]
    weights = torch.tensor([1.0, 3.0])
    expected = (picked * weights[batch.labels]).sum() / weights[batch.labels].sum()
    torch.testing.assert_close(calc_loss_batch(model, batch, weights), expected)


def test_one_batch_can_be_overfitted():
    model, dataset = tiny_model(), tiny_dataset(8)
    config = TrainConfig(num_epochs=60, learning_rate=1e-2, weight_decay=0)
    history = train_classifier_simple(model, dataset, dataset, config)
    assert history.train_accuracy[-1] == 1.0
    assert history.train_loss[-1] < 0.05


# --- options that act -------------------------------------------------------------------------


def test_learning_rate_rises_then_falls_along_a_cosine():
    config = TrainConfig(learning_rate=1.0, warmup_share=0.1, schedule="cosine")
    rates = [learning_rate_at(step, 100, config) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates == sorted(rates[:11]) + sorted(rates[11:], reverse=True)
    assert 0 < rates[-1] < 0.01
    constant = dataclasses.replace(config, schedule="constant", warmup_share=0)
    assert {learning_rate_at(step, 100, constant) for step in range(100)} == {1.0}


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 1e-3},
        {"num_epochs": 3},
        {"batch_size": 5},
        {"weight_decay": 0.9},
        {"dropout": 0.3},
        {"warmup_share": 0.5},
        {"schedule": "constant"},
        {"max_grad_norm": 0.01},
        {"use_class_weights": True},
        {"seed": 7},
    ],
)
def test_every_training_option_changes_the_outcome(change):
    dataset = SpamDataset(tiny_dataset(40).sequences, [int(i % 4 == 0) for i in range(40)])
    base = TrainConfig(num_epochs=2, learning_rate=1e-2)
    outcomes = []
    for config in (base, base, dataclasses.replace(base, **change)):
        model = tiny_model()
        train_classifier_simple(model, dataset, dataset, config)
        outcomes.append(model.out_head.weight.detach().clone())
    assert torch.equal(outcomes[0], outcomes[1])  # the same twice is the same
    assert not torch.equal(outcomes[0], outcomes[2])


def test_early_stopping_keeps_the_best_weights():
    train, validation = tiny_dataset(12, seed=1), tiny_dataset(60, seed=2)
    model = tiny_model()
    config = TrainConfig(num_epochs=60, learning_rate=3e-2, patience=3, schedule="constant")
    history = train_classifier_simple(model, train, validation, config)
    assert history.num_epochs < 60
    assert history.best_epoch == history.num_epochs - 3
    best_loss = min(history.validation_loss)
    assert history.validation_loss[-1] > best_loss
    assert evaluate_model(model, validation)[0] == pytest.approx(best_loss, abs=1e-6)


def test_a_loss_that_stays_the_same_is_no_improvement(monkeypatch):
    monkeypatch.setattr("text_classifier.evaluate_model", lambda *_: (0.0, 1.0))
    dataset = tiny_dataset(8)
    config = TrainConfig(num_epochs=9, patience=2)
    history = train_classifier_simple(tiny_model(), dataset, dataset, config)
    assert (history.best_epoch, history.num_epochs) == (1, 3)


def test_dropout_acts_in_training_only():
    model, dataset = tiny_model(), tiny_dataset(8)
    set_dropout(model, 0.5)
    batch = pad_batch([dataset[i] for i in range(8)])
    model.eval()
    assert torch.equal(last_token_logits(model, batch), last_token_logits(model, batch))
    train_mode(model)
    assert not torch.equal(last_token_logits(model, batch), last_token_logits(model, batch))


def test_values_out_of_range_are_named_together():
    with pytest.raises(ValueError, match=r"learning_rate=-1, dropout=1\.5, schedule='linear'"):
        TrainConfig(learning_rate=-1, dropout=1.5, schedule="linear")


def test_absent_device_is_refused():
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match=r"'tpu' is not available here; available: auto, .*cpu"):
        pick_device("tpu")


# --- stopping and resuming --------------------------------------------------------------------


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_resumed_training_equals_undisturbed_training(tmp_path, stop_after):
    dataset, validation = tiny_dataset(40), tiny_dataset(20, seed=5)
    config = TrainConfig(num_epochs=4, learning_rate=1e-2, dropout=0.2, patience=2)
    undisturbed = tiny_model()
    expected = train_classifier_simple(undisturbed, dataset, validation, config)

    class Killed(Exception):
        pass

    checkpoint = tmp_path / "checkpoint.safetensors"
    model, real, calls = tiny_model(), Trainer.train_epoch, []

    def dies(self, progress=None):
        calls.append(1)
        if len(calls) > stop_after:
            raise Killed
        real(self, progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_epoch", dies)
        with pytest.raises(Killed):
            train_classifier_simple(model, dataset, validation, config, checkpoint)
    resumed, calls = tiny_model(), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Trainer, "train_epoch", lambda self, bar=None: calls.append(1) or real(self, bar)
        )
        history = train_classifier_simple(resumed, dataset, validation, config, checkpoint)
    assert history == expected
    assert len(calls) == max(0, expected.num_epochs - stop_after)  # gone on with, not done anew
    for (name, a), b in zip(undisturbed.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path):
    weights = tmp_path / "weights.safetensors"
    killed = textwrap.dedent(
        """
        import os, sys
        from pathlib import Path
        import torch
        import text_classifier

        def begins_to_write(tensors, path, metadata):
            (Path(path).parent / ".tmpAbCdEf").write_bytes(b"half")
            os._exit(9)

        text_classifier.save_file = begins_to_write
        text_classifier.save_tensors({"a": torch.ones(3)}, Path(sys.argv[1]), {})
        """
    )
    assert subprocess.run([sys.executable, "-c", killed, weights]).returncode == 9
    assert not weights.exists()
    assert [path for path in tmp_path.rglob("*") if path.is_file()]
    save_tensors({"a": torch.zeros(3)}, weights, {})
    (tmp_path / "weights.safetensors.partial").write_bytes(b"of an earlier version")
    save_tensors({"a": torch.ones(3)}, weights, {})
    assert list(tmp_path.iterdir()) == [weights]
    assert load_file(weights)["a"].tolist() == [1.0, 1.0, 1.0]


def test_checkpoint_of_another_run_is_refused(tmp_path):
    checkpoint, dataset = tmp_path / "checkpoint.safetensors", tiny_dataset()
    train_classifier_simple(tiny_model(), dataset, dataset, TrainConfig(num_epochs=1), checkpoint)
    with pytest.raises(ValueError, match="batch_size: 8 then, 4 now"):
        train_classifier_simple(
            tiny_model(), dataset, dataset, TrainConfig(num_epochs=1, batch_size=4), checkpoint
        )
    model = tiny_model(trainable="head")
    with pytest.raises(ValueError, match="other layers were trained"):
        train_classifier_simple(model, dataset, dataset, TrainConfig(num_epochs=1), checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged"):
        train_classifier_simple(
            tiny_model(), dataset, dataset, TrainConfig(num_epochs=1), checkpoint
        )


# --- saving, opening, classifying -------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier():
    model, tokenizer = load_pretrained("gpt-mini")
    torch.manual_seed(0)
    add_classification_head(model, 3)
    torch.nn.init.normal_(model.out_head.weight)
    return Classifier(
        model, tokenizer, "gpt-mini", ["no", "perhaps", "oui — 是"], 60, {"trained_on": "nothing"}
    )


def test_saved_classifier_gives_the_same_answers(tmp_path, classifier):
    save_classifier(classifier, tmp_path / "new" / "folder")
    opened = open_classifier(tmp_path / "new" / "folder")
    texts = ["hello", "", "you have won " * 100, "<|endoftext|>", "是"]
    assert torch.equal(classify_texts(opened, texts), classify_texts(classifier, texts))
    assert opened.label_names == classifier.label_names
    assert opened.max_length == 60
    assert opened.card == {"trained_on": "nothing"}
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_the_pooling_is_saved_and_a_folder_without_reads_the_last_token(tmp_path, classifier):
    texts = ["hello", "you have won " * 100]
    by_last, by_mean = (
        classify_texts(dataclasses.replace(classifier, pooling=pooling), texts)
        for pooling in ("last_real", "mean")
    )
    assert (by_last - by_mean).abs().max() > 1e-3
    save_classifier(dataclasses.replace(classifier, pooling="mean"), tmp_path)
    assert torch.equal(classify_texts(open_classifier(tmp_path), texts), by_mean)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    del config["pooling"]
    path.write_text(json.dumps(config), encoding="utf-8")
    assert torch.equal(classify_texts(open_classifier(tmp_path), texts), by_last)


def test_classify_review_names_the_likeliest_class(classifier):
    probabilities = classify_texts(classifier, ["see you at noon"])[0]
    prediction = classify_review("see you at noon", classifier)
    assert prediction.label == classifier.label_names[probabilities.argmax()]
    assert prediction.probability == pytest.approx(probabilities.max().item())
    assert probabilities.sum().item() == pytest.approx(1)


def test_text_beyond_the_maximum_length_is_not_read(classifier):
    text = "many words in a row " * 40
    ids = classifier.tokenizer.encode_ordinary(text)
    read, less = (classifier.tokenizer.decode(ids[:length]) for length in (60, 40))
    whole_logits, read_logits, less_logits = predict_logits(
        classifier.model,
        SpamDataset(encode_messages([text, read, less], classifier.tokenizer, 60), [0] * 3),
    )
    torch.testing.assert_close(whole_logits, read_logits, atol=1e-4, rtol=0)
    assert (whole_logits - less_logits).abs().max() > 0.1


def test_interrupted_saving_never_pairs_old_and_new(tmp_path, classifier, monkeypatch):
    save_classifier(classifier, tmp_path)
    monkeypatch.setattr("text_classifier.write_text", lambda *_: (_ for _ in ()).throw(OSError))
    with pytest.raises(OSError):  # noqa: PT011
        save_classifier(classifier, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        open_classifier(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_names": ["a", "b"]}, "does not fit its config.json"),
        ({"label_names": ["a"]}, "at least two different"),
        ({"label_names": "abc"}, "must be a list"),
        ({"max_length": 513}, "between 1 and 512"),
        ({"max_length": True}, "between 1 and 512"),
        ({"pooling": "first"}, "one of last_real, mean"),
        ({"model": "gpt2-tiny"}, "no model 'gpt2-tiny'"),
        ({"weights_sha256": "0" * 64}, "damaged or belongs to another"),
        ({"format": "something else"}, "does not describe a classifier"),
        ({"architecture": {"emb_dim": 7, "num_heads": 2}}, "emb_dim=7"),
        ({"architecture": {"surprise": 1}}, "surprise"),
    ],
)
def test_lying_configuration_is_found_out(tmp_path, classifier, change, message):
    save_classifier(classifier, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change))
    with pytest.raises(ValueError, match=message):
        open_classifier(tmp_path)


@pytest.mark.parametrize("architecture", ["[]", "[" * 100_000, '{"num_heads": 2}'], ids=len)
def test_weights_that_say_something_else_are_found_out(tmp_path, classifier, architecture):
    save_classifier(classifier, tmp_path)
    rewrite_metadata(tmp_path, {"architecture": architecture})
    with pytest.raises(ValueError, match=r"does not fit its config\.json"):
        open_classifier(tmp_path)


def test_a_folder_from_before_the_architecture_was_kept_with_the_weights_opens(
    tmp_path, classifier
):
    save_classifier(classifier, tmp_path)
    rewrite_metadata(tmp_path, {"format": "pt"})
    texts = ["hello", "free prize"]
    expected = classify_texts(classifier, texts)
    assert torch.equal(classify_texts(open_classifier(tmp_path), texts), expected)


def rewrite_metadata(folder, metadata: dict[str, str]) -> None:
    """The same weights with other metadata; the checksum is put right."""
    weights, config = folder / "model.safetensors", folder / "config.json"
    tensors = {name: tensor.clone() for name, tensor in load_file(weights).items()}
    save_file(tensors, weights, metadata)
    content = json.loads(config.read_text(encoding="utf-8"))
    content["weights_sha256"] = file_sha256(weights)
    config.write_text(json.dumps(content), encoding="utf-8")


def test_first_loss_of_a_head_that_knows_nothing_is_ln_2():
    model, dataset = tiny_model(), tiny_dataset(40)
    torch.nn.init.zeros_(model.out_head.weight)
    torch.nn.init.zeros_(model.out_head.bias)
    assert evaluate_model(model, dataset)[0] == pytest.approx(math.log(2))


def test_tokenizer_of_the_classifier_is_that_of_the_model(classifier):
    assert classifier.tokenizer.n_vocab == classifier.model.cfg.vocab_size
    assert load_mini_tokenizer().n_vocab == 4096
