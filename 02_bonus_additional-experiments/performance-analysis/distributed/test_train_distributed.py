"""Two processes do what one does. The cases run under torchrun, which starts this file itself as
the program of its processes; the tests compare what they wrote with the chapter's own code."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import estimates
import pytest
import torch
import torch.distributed as dist
import train_distributed
from train_distributed import (
    DistributedTrainer,
    compute_frozen_layers_together,
    pretrain_further_on_first,
)

import finetune
from gpt_download import load_mini_tokenizer
from previous_chapters import MODEL_CONFIGS, GPTConfig, GPTModel, num_parameters
from text_classifier import (
    TrainConfig,
    Trainer,
    add_classification_head,
    compute_frozen_layers,
    evaluate_model,
    freeze_all_but,
    load_checkpoint,
    predict_logits,
)
from text_data import SpamDataset

HERE = Path(__file__).parent
SCRIPT = HERE / "train_distributed.py"
# Of losses and logits: float32 sums in another order. (Three times the learning rate would need
# more: reversing the rows of a batch within one process then moves a loss by 2e-5.)
TOLERANCE = 1e-5
ROUNDED_TOLERANCE = 0.02  # of losses and logits where products are rounded to 8 bits
NUM_MESSAGES = 11  # batches of 5, 5 and 1: uneven shares, and one process without a message
CONFIG = TrainConfig(
    learning_rate=1e-3, num_epochs=3, batch_size=5, max_grad_norm=0.5, use_class_weights=True
)
CASES = {
    "all layers": ("all", {}),
    "last block": ("last_block", {}),
    "rounded": ("last_block", {"precision": "bfloat16"}),
    "head": ("head", {"max_grad_norm": None, "use_class_weights": False}),
    "accumulated, smoothed, patient": (
        "last_two_blocks",
        {"accumulation_steps": 2, "label_smoothing": 0.1, "patience": 1, "ignore_index": 2},
    ),
}


def tiny_task() -> tuple[GPTModel, SpamDataset, SpamDataset]:
    """A model with random weights, and messages of many lengths in three uneven classes."""
    torch.manual_seed(0)
    shape = {"vocab_size": 50, "context_length": 16, "emb_dim": 16, "num_heads": 2}
    model = GPTModel(GPTConfig(**shape, num_layers=3))
    add_classification_head(model, num_classes=3)
    messages = [torch.randint(50, (1 + 5 * i % 13,)) for i in range(NUM_MESSAGES + 7)]
    labels = [(0, 0, 1, 0, 2)[i % 5] for i in range(len(messages))]
    train, validation = slice(0, NUM_MESSAGES), slice(NUM_MESSAGES, None)
    return model, *(SpamDataset(messages[part], labels[part]) for part in (train, validation))


def prepare(case: str, compute_frozen) -> tuple[Trainer, SpamDataset]:
    """A trainer as one process has it, and the validation messages."""
    trainable, changes = CASES[case]
    model, *datasets = tiny_task()
    num_frozen = freeze_all_but(model, trainable)
    config = TrainConfig(**asdict(CONFIG) | changes)
    if compute_frozen:
        datasets = [
            compute_frozen(model, dataset, num_frozen, precision=config.precision)
            for dataset in datasets
        ]
    return Trainer(model, datasets[0], config), datasets[1]


def finish(trainer: Trainer, validation: SpamDataset) -> dict:
    while not trainer.finished:
        trainer.train_epoch()
        trainer.evaluate_epoch(validation)
    return asdict(trainer.history)


def work(folder: Path) -> None:
    """What each process does under torchrun: all cases with both strategies."""
    dist.init_process_group("gloo")
    cpu, found = torch.device("cpu"), {}
    for strategy in ("ddp", "fsdp"):
        frozen = compute_frozen_layers_together if strategy == "ddp" else None
        for case in CASES:
            plain, validation = prepare(case, frozen)
            trainer = DistributedTrainer(plain, strategy, cpu)
            checkpoint = folder / f"{strategy}, {case}.safetensors"
            trainer.train_epoch()
            trainer.evaluate_epoch(validation)
            trainer.save_checkpoint(checkpoint)
            history = finish(trainer, validation)
            trainer.keep_best_weights()
            logits = trainer.predict_logits(validation)
            whole = trainer.whole_model()
            dist.barrier()  # the checkpoint is written
            again, _ = prepare(case, frozen)
            load_checkpoint(again, checkpoint)
            resumed = finish(DistributedTrainer(again, strategy, cpu), validation)
            if whole is not None:
                _, own_validation = prepare(case, None)
                whole = predict_logits(whole, own_validation).tolist()
            found[f"{strategy}, {case}"] = [history, resumed, logits.tolist(), whole]
    found["pretrained further"] = pretrain_a_tiny_model()
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


def pretrain_a_tiny_model() -> list[float]:
    """Sums of the weights afterwards; the processes start with different ones."""
    torch.manual_seed(dist.get_rank())
    tokenizer = load_mini_tokenizer()
    shape = {"vocab_size": tokenizer.n_vocab, "context_length": 16, "emb_dim": 8, "num_heads": 2}
    model = GPTModel(GPTConfig(**shape, num_layers=1))
    job = SimpleNamespace(
        model=model,
        tokenizer=tokenizer,
        unlabelled=["win a prize", "see you"],
        further_epochs=1,
        config=CONFIG,
    )
    before = [p.double().sum().item() for p in model.parameters()]
    pretrain_further_on_first(job, 0, torch.device("cpu"), progress=False)
    after = [p.double().sum().item() for p in model.parameters()]
    assert before != after
    return after


def torchrun(*arguments, num_processes: int = 2) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(num_processes), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment)


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> tuple[Path, list[dict]]:
    """The folder of the checkpoints, and what either process found."""
    if not dist.is_available():
        pytest.skip("this PyTorch is built without torch.distributed")
    folder = tmp_path_factory.mktemp("cases")
    _, errors = (process := torchrun(__file__, folder)).communicate(timeout=120)
    assert process.returncode == 0, errors
    return folder, [json.loads((folder / f"{rank}.json").read_text("utf-8")) for rank in (0, 1)]


def tolerance(case: str) -> float:
    return ROUNDED_TOLERANCE if case == "rounded" else TOLERANCE


def assert_alike(history: dict, expected: dict, case: str) -> None:
    assert history["best_epoch"] == expected["best_epoch"]
    for name in ("step_losses", "train_loss", "validation_loss", "validation_accuracy"):
        assert history[name] == pytest.approx(expected[name], abs=tolerance(case)), name


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
class TestTwoProcesses:
    def test_have_the_losses_of_one(self, strategy, case, found):
        expected = finish(*prepare(case, compute_frozen_layers))
        assert len(set(expected["step_losses"])) > 3
        for on_process in found[1]:
            history, resumed, *_ = on_process[f"{strategy}, {case}"]
            assert_alike(history, expected, case)
            assert_alike(resumed, expected, case)

    def test_classify_every_message_as_one_does(self, strategy, case, found):
        trainer, validation = prepare(case, None)
        finish(trainer, validation)
        trainer.keep_best_weights()
        expected = predict_logits(trainer.model, validation)
        *_, together, whole = found[1][0][f"{strategy}, {case}"]
        for found_logits in map(torch.tensor, (together, whole)):
            torch.testing.assert_close(found_logits, expected, atol=tolerance(case), rtol=0)
        assert found[1][1][f"{strategy}, {case}"][2:] == [together, None]

    def test_leave_a_checkpoint_that_one_can_go_on_from(self, strategy, case, found):
        expected = finish(*prepare(case, compute_frozen_layers))
        trainer, validation = prepare(case, compute_frozen_layers)
        load_checkpoint(trainer, found[0] / f"{strategy}, {case}.safetensors")
        assert trainer.history.num_epochs == 1
        assert_alike(finish(trainer, validation), expected, case)
        assert not list(found[0].glob("*.partial"))


def test_all_processes_go_on_from_the_first_ones_further_pretraining(found):
    first, second = (on_process["pretrained further"] for on_process in found[1])
    assert first == second


def test_rounding_takes_place(found):
    exact, rounded = (
        found[1][0][f"ddp, {case}"][0]["step_losses"] for case in ("last block", "rounded")
    )
    assert max(abs(a - b) for a, b in zip(exact, rounded, strict=True)) > 10 * TOLERANCE


def test_evaluation_of_the_case_is_not_trivial():
    """Loss and accuracy would not notice a message that is lost if all were alike."""
    trainer, validation = prepare("all layers", None)
    loss, _ = evaluate_model(trainer.model, validation)
    fewer = SpamDataset(validation.sequences[1:], validation.labels[1:])
    assert abs(evaluate_model(trainer.model, fewer)[0] - loss) > 100 * TOLERANCE


def test_finetunes_options_are_all_known():
    """A new option of finetune.py must reach training here too, or be refused."""
    options = set(vars(finetune.parse_args([])))
    assert options == set(vars(train_distributed.parse_args([]))) - {"strategy"}
    data = {"data", "text_column", "label_column", "protocol", "balance", "augment", "max_length"}
    training = {"epochs", "batch_size", "learning_rate", "schedule", "warmup_share", "dropout"}
    training |= {
        "max_grad_norm",
        "weight_decay",
        "patience",
        "seed",
        "pretrain_further",
        "precision",
    }
    run = {"model", "weights", "trainable", "pooling", "output", "device", "resume", "quiet"}
    new = options - data - training - run
    assert not new, f"teach train_distributed.py what to do with {new}"


@pytest.fixture
def messages_csv(tmp_path: Path) -> Path:
    rows = [f"win a prize {i} now,spam\nsee you at home {i},ham" for i in range(30)]
    path = tmp_path / "messages.csv"
    path.write_text("\n".join(["text,label", *rows, ""]), encoding="utf-8")
    return path


def test_the_page_shows_the_tables_of_the_estimates(capsys):
    assert estimates.main([]) == 0
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    for printed in capsys.readouterr().out.strip().split("\n\n"):
        assert printed in readme


def test_the_estimates_know_the_shapes():
    """Biases and norms, which they leave out, are 0.1% of a model's parameters."""
    with torch.device("meta"):
        models = {name: GPTModel(MODEL_CONFIGS[name]) for name in estimates.SHAPES}
    for model in models.values():
        estimate = estimates.Model(model.cfg)
        assert num_parameters(model) == pytest.approx(estimate.parameters, rel=1.5e-3)
        matrices = sum(p.numel() for p in model.trf_blocks.parameters() if p.dim() == 2)
        assert matrices == estimate.block_weights


def test_commands_of_the_page_are_understood():
    text = (HERE / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^torchrun .*/train_distributed\.py (.*)$", text, re.MULTILINE)
    assert len(commands) == 3
    strategies = [train_distributed.parse_args(shlex.split(c)).strategy for c in commands]
    assert strategies == ["ddp", "ddp", "fsdp"]


def options_for(messages_csv: Path, output: Path) -> list:
    options = ["--model", "gpt-mini", "--data", messages_csv, "--output", output, "--quiet"]
    return [*options, "--epochs", 8, "--batch-size", 5, "--pretrain-further", 1]


def kill_one_process_after_an_epoch(torchrun_process: subprocess.Popen, output: Path) -> None:
    deadline = time.monotonic() + 100
    while not (output / "checkpoint.safetensors").exists() and time.monotonic() < deadline:
        assert torchrun_process.poll() is None, torchrun_process.communicate()[1]
        time.sleep(0.01)
    list_children = ["ps", "-o", "pid=", "--ppid", str(torchrun_process.pid)]
    workers = subprocess.run(list_children, capture_output=True, text=True).stdout.split()
    os.kill(int(workers[-1]), signal.SIGKILL)


def test_a_killed_process_ends_the_run_with_one_sentence(tmp_path, messages_csv):
    output = tmp_path / "run"
    process = torchrun(SCRIPT, *options_for(messages_csv, output))
    kill_one_process_after_an_epoch(process, output)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    said = [line for line in errors.splitlines() if line.startswith("train_distributed.py: ")]
    assert len(said) == 1
    assert "one of its processes ended" in said[0]
    assert "--resume" in said[0]
    assert not (output / "metrics.json").exists()
    before = (output / "checkpoint.safetensors").read_bytes()

    other = [*options_for(messages_csv, output), "--resume", "--seed", 7]
    assert train_distributed.main(list(map(str, other))) == 2  # refused, and nothing spoilt
    assert (output / "checkpoint.safetensors").read_bytes() == before


def test_one_process_ends_as_finetune_does(tmp_path, messages_csv):
    options = ["--model", "gpt-mini", "--data", messages_csv, "--trainable", "head", "--quiet"]
    options += ["--epochs", 1, "--pretrain-further", 0, "--device", "cpu", "--output"]
    together, plain = ([str(option) for option in (*options, tmp_path / x)] for x in "ab")
    assert train_distributed.main(together) == 0
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text("utf-8"))
    expected = finetune.run(finetune.parse_args(plain))
    for part in ("train", "validation", "test"):
        assert metrics[part]["accuracy"] == expected[part]["accuracy"], part
    assert (metrics["strategy"], metrics["num_processes"]) == ("ddp", 1)


def test_gradients_lie_in_the_memory_in_which_they_are_exchanged():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        module = train_distributed.CalledThrough(torch.nn.Linear(2, 2))
        distributed = train_distributed.distribute(module, "ddp", torch.device("cpu"))
        assert distributed.gradient_as_bucket_view
    finally:
        dist.destroy_process_group()


def assert_results_of_finetune(metrics: dict, messages_csv: Path, output: Path) -> None:
    expected = finetune.run(finetune.parse_args(list(map(str, options_for(messages_csv, output)))))
    for name in ("train_loss", "validation_loss", "validation_accuracy"):
        assert metrics["history"][name] == pytest.approx(expected["history"][name], abs=TOLERANCE)
    assert metrics["test"] == expected["test"]
    assert set(expected) <= set(metrics)


@pytest.mark.slow
def test_restarted_by_torchrun_it_goes_on_by_itself(tmp_path, messages_csv):
    output = tmp_path / "run"
    arguments = ["--max-restarts", "1", SCRIPT, *options_for(messages_csv, output)]
    process = torchrun(*arguments)
    kill_one_process_after_an_epoch(process, output)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    metrics = json.loads((output / "metrics.json").read_text("utf-8"))
    assert_results_of_finetune(metrics, messages_csv, tmp_path / "plain")


@pytest.mark.slow
def test_resumed_by_the_other_strategy_it_ends_as_finetune_does(tmp_path, messages_csv):
    test_a_killed_process_ends_the_run_with_one_sentence(tmp_path, messages_csv)
    output = tmp_path / "run"
    arguments = [*options_for(messages_csv, output), "--resume", "--strategy", "fsdp"]
    process = torchrun(SCRIPT, *arguments)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    metrics = json.loads((output / "metrics.json").read_text("utf-8"))
    assert (metrics["strategy"], metrics["num_processes"]) == ("fsdp", 2)
    assert_results_of_finetune(metrics, messages_csv, tmp_path / "plain")
    assert not (output / "checkpoint.safetensors").exists()


@pytest.mark.slow
def test_a_wrong_option_is_reported_once(tmp_path):
    process = torchrun(SCRIPT, "--data", tmp_path / "none.csv", "--output", tmp_path / "run")
    said, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert (said + errors).count("there is no such file") == 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--strategy", "magic"], "'ddp', 'fsdp'"),
        (["--device", "mps"], "choose cpu"),
        (["--epochs", "0"], "at least 1"),
        (["--data", "none.csv"], "there is no such file"),
    ],
)
def test_wrong_options_end_with_status_2(wrong, said, tmp_path, capsys):
    assert train_distributed.main([*wrong, "--output", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


if __name__ == "__main__":
    work(Path(sys.argv[1]))
