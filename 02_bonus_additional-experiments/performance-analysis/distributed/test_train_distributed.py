"""Two processes do what one does. The cases run under torchrun, which starts this file itself as
the program of its processes; the tests compare what they wrote with the chapter's own code."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import estimates
import pytest
import torch
import torch.distributed as dist
import train_distributed
from train_distributed import SharedCheckpoint, compute_features_together, share, whole

from features import FastClassifier, FeatureDataset
from fine_tuning import RunConfig, fine_tune
from previous_chapters import GPTConfig, GPTModel
from text_classifier import ClassifierConfig, GPTClassifier, freeze_all_but, predict_logits
from text_data import SpamDataset, class_weights
from training import Checkpoint, TrainConfig, train_classifier_simple

HERE, CPU = Path(__file__).parent, torch.device("cpu")
SCRIPT = HERE / "train_distributed.py"
# Of losses and logits: float32 sums in another order. (Three times the learning rate would need
# more: reversing the rows of a batch within one process then moves a loss by 2e-5.)
TOLERANCE = 1e-5
NUM_MESSAGES = 11  # batches of 5, 5 and 1: uneven shares, and one process without a message
CONFIG = TrainConfig(learning_rate=1e-3, num_epochs=3, batch_size=5, max_grad_norm=0.5)
CASES = {  # what is trained, whether classes are weighted, changes of CONFIG
    # Its best epoch is the second of three, whose weights are put back.
    "all layers, patient": ("all", False, {"max_grad_norm": None, "patience": 1}),
    "last block, accumulated, smoothed": (
        "last_block",
        True,
        {"micro_batch_size": 3, "label_smoothing": 0.1},
    ),
}


def prepare(case: str, compute_features=None) -> tuple:
    """Model, training and validation messages, configuration and class weights of a case: messages
    of many lengths in three uneven classes."""
    trainable, weighted, changes = CASES[case]
    torch.manual_seed(0)
    shape = GPTConfig(vocab_size=50, context_length=16, emb_dim=16, n_heads=2, n_layers=3)
    about = ClassifierConfig("gpt-mini", ("a", "b", "c"), max_length=16)
    classifier = GPTClassifier(GPTModel(shape), about)
    messages = [torch.randint(50, (1 + 5 * i % 13,)) for i in range(NUM_MESSAGES + 7)]
    labels = [(0, 0, 1, 0, 2)[i % 5] for i in range(len(messages))]
    parts = slice(0, NUM_MESSAGES), slice(NUM_MESSAGES, None)
    datasets = [SpamDataset(messages[part], labels[part]) for part in parts]
    num_frozen = freeze_all_but(classifier, trainable)
    cached = num_frozen if compute_features else 0
    if cached:
        datasets = [compute_features(classifier, d, cached) for d in datasets]
    model = FastClassifier(classifier, cached)
    weights = class_weights(labels[:NUM_MESSAGES], 3) if weighted else None
    return model, *datasets, replace(CONFIG, **changes), weights


class FirstEpochOnly(SharedCheckpoint):
    """As if the run had been stopped in its second epoch."""

    def save(self, state) -> None:
        if state.history.num_epochs == 1:
            super().save(state)


def work(folder: Path) -> None:
    """What each process does under torchrun: all cases with both strategies."""
    dist.init_process_group("gloo")
    found = {}
    for strategy in ("ddp", "fsdp"):
        for case in CASES:
            key, results = f"{strategy}, {case}", []
            checkpoint = FirstEpochOnly(folder / f"{key}.pt", {"case": case})
            for _ in range(2):  # the second time from the checkpoint of the first
                features = compute_features_together if strategy == "ddp" else None
                model, train, validation, config, weights = prepare(case, features)
                shared = share(model, strategy, CPU)
                how = (train, validation, config, weights, checkpoint)
                results.append(asdict(train_classifier_simple(shared, *how)))
                dist.barrier()
            logits = predict_logits(shared, validation)
            tensors = whole(model.classifier.state_dict())
            if dist.get_rank() == 0:
                alone, _, validation, *_ = prepare(case)
                alone.classifier.load_state_dict(tensors)
                found[key + ", whole"] = predict_logits(alone, validation).tolist()
            found[key] = [*results, logits.tolist()]
    decoder = torch.nn.Linear(3, 3)
    torch.nn.init.constant_(decoder.weight, dist.get_rank())
    train_distributed.send_from_first(decoder, CPU)
    found["sent"] = decoder.weight.tolist()
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


def torchrun(*arguments) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment)


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> tuple[Path, list[dict]]:
    """The folder of the checkpoints, and what either process found."""
    folder = tmp_path_factory.mktemp("cases")
    _, errors = (process := torchrun(__file__, folder)).communicate(timeout=1200)
    assert process.returncode == 0, errors
    return folder, [json.loads((folder / f"{rank}.json").read_text("utf-8")) for rank in (0, 1)]


def assert_alike(history: dict, expected: dict) -> None:
    assert history["best_epoch"] == expected["best_epoch"]
    for name in ("step_losses", "train_loss", "validation_loss", "validation_accuracy"):
        assert history[name] == pytest.approx(expected[name], abs=TOLERANCE), name


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_and_predict_as_one_does(strategy, case, found):
    folder, on_process = found
    model, train, validation, config, weights = prepare(case, FeatureDataset.from_classifier)
    expected = asdict(train_classifier_simple(model, train, validation, config, weights))
    assert len(set(expected["step_losses"])) > 3
    key = f"{strategy}, {case}"
    for history, resumed, _ in (results[key] for results in on_process):
        assert_alike(history, expected)
        assert_alike(resumed, expected)
    logits = predict_logits(model, validation)
    for got in (on_process[0][key][2], on_process[1][key][2], on_process[0][f"{key}, whole"]):
        torch.testing.assert_close(torch.tensor(got), logits, atol=TOLERANCE, rtol=0)

    # One process goes on from the checkpoint that two wrote.
    model, train, validation, config, weights = prepare(case, FeatureDataset.from_classifier)
    checkpoint = Checkpoint(folder / f"{key}.pt", {"case": case})
    resumed = train_classifier_simple(model, train, validation, config, weights, checkpoint)
    assert_alike(asdict(resumed), expected)


def test_all_processes_get_the_first_ones_weights(found):
    assert [results["sent"] for results in found[1]] == [[[0.0] * 3] * 3] * 2


def test_the_page_shows_the_tables_of_the_estimates():
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    assert all(table in readme for table in estimates.tables())


@pytest.fixture
def messages_csv(tmp_path: Path) -> Path:
    rows = [f"win a prize {i} now,spam\nsee you at home {i},ham" for i in range(30)]
    path = tmp_path / "messages.csv"
    path.write_text("\n".join(["text,label", *rows, ""]), encoding="utf-8")
    return path


def options_for(messages_csv: Path, output: Path) -> list[str]:
    options = ["--model", "gpt-mini", "--data", messages_csv, "--output", output, "--quiet"]
    options += ["--num-epochs", 8, "--batch-size", 5, "--continued-pretraining-epochs", 1]
    return [*map(str, options), "--device", "cpu"]


def kill_one_process_after_an_epoch(torchrun_process: subprocess.Popen, output: Path) -> None:
    deadline = time.monotonic() + 300
    while not (output / "checkpoint.pt").exists() and time.monotonic() < deadline:
        assert torchrun_process.poll() is None, torchrun_process.communicate()[1]
        time.sleep(0.01)
    list_children = ["ps", "-o", "pid=", "--ppid", str(torchrun_process.pid)]
    workers = subprocess.run(list_children, capture_output=True, text=True).stdout.split()
    os.kill(int(workers[-1]), signal.SIGKILL)


def assert_ends_as_finetune_does(output: Path, messages_csv: Path) -> None:
    metrics = json.loads((output / "metrics.json").read_text("utf-8"))
    config = {"data": messages_csv, "model": "gpt-mini", "quiet": True, "device": "cpu"}
    config |= {"num_epochs": 8, "batch_size": 5, "continued_pretraining_epochs": 1}
    expected = fine_tune(RunConfig(**config)).metrics
    for name in ("train_loss", "validation_loss", "validation_accuracy"):
        assert metrics["history"][name] == pytest.approx(expected["history"][name], abs=TOLERANCE)
    assert metrics["test"] == expected["test"]
    assert set(expected) - set(metrics) <= {"threads"}


def test_a_killed_run_ends_with_one_sentence_and_goes_on_as_if_nothing_happened(
    tmp_path, messages_csv
):
    output = tmp_path / "run"
    process = torchrun(SCRIPT, *options_for(messages_csv, output))
    kill_one_process_after_an_epoch(process, output)
    _, errors = process.communicate(timeout=300)
    assert process.returncode != 0
    said = [line for line in errors.splitlines() if line.startswith("train_distributed.py:")]
    assert len(said) == 1
    assert "--resume" in said[0]
    assert not (output / "metrics.json").exists()

    options = [*options_for(messages_csv, output), "--resume", "--strategy", "fsdp"]
    before = (output / "checkpoint.pt").read_bytes()
    assert train_distributed.main([*options, "--seed", "7"]) == 2  # another run
    assert (output / "checkpoint.pt").read_bytes() == before
    assert train_distributed.main(options) == 0  # on one process, with the other strategy
    assert_ends_as_finetune_does(output, messages_csv)
    assert not (output / "checkpoint.pt").exists()
    assert train_distributed.main(options) == 0  # finished already


@pytest.mark.slow
def test_restarted_by_torchrun_it_goes_on_by_itself(tmp_path, messages_csv):
    output = tmp_path / "run"
    process = torchrun("--max-restarts", 1, SCRIPT, *options_for(messages_csv, output))
    kill_one_process_after_an_epoch(process, output)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert_ends_as_finetune_does(output, messages_csv)


@pytest.mark.slow
def test_a_wrong_option_is_reported_once(tmp_path):
    process = torchrun(SCRIPT, "--data", "none.csv", "--output", tmp_path / "run")
    said, errors = process.communicate(timeout=300)
    assert process.returncode != 0
    assert (said + errors).count("train_distributed.py: ") == 1


if __name__ == "__main__":
    work(Path(sys.argv[1]))
