"""Every benchmark in a tiny form; the formulas against PyTorch's own counts; the same results."""

import json
import shlex
import sys
from itertools import chain
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent))

import bench_infer
import bench_memory
import bench_scale
import bench_train
import benchmark
import classifying_ways
import floors
import performance_tables
import training_ways
from bench_common import (
    NotHere,
    as_text,
    evenly_spaced,
    interleave,
    load_result,
    mixed_messages,
    try_each,
)
from hugging_face import freeze_twin_but_last_block, hugging_face_twin
from measure_memory import prepare

from gpt_download import MODEL_CONFIGS, DownloadError
from previous_chapters import GPTConfig, GPTModel
from text_classifier import TrainConfig, add_classification_head, freeze_all_but, train_mode
from text_data import SpamDataset, pad_batch

HERE = Path(__file__).parent
TINY = GPTConfig(vocab_size=80, context_length=128, emb_dim=16, num_heads=2, num_layers=3)
CPU = torch.device("cpu")
ONCE = ["--repetitions", "1"]
TINY_FORMS = {
    "train": ["--epochs", "1", "--sample", "2", "--check-steps", "3", *ONCE],
    "infer": ["--messages", "30", "--sample", "12", *ONCE],
    "generate": ["--prompt", "3", "--tokens", "2", "4", *ONCE],
    "memory": ["--choices", "last_block", "all", "--batch-sizes", "8", "--lengths", "120"],
    "scale": [
        *("--lengths", "16", "32", "--batch-sizes", "1", "2", "--shapes", "gpt-mini"),
        *("--messages", "50", "1100", "--threads", "1", "--workers", "0", *ONCE),
    ],
    "quantize": ["--messages", "6", "--epochs", "1", *ONCE],
}


def tiny_model(trainable: str = "last_block") -> GPTModel:
    torch.manual_seed(0)
    model = GPTModel(TINY).eval()
    add_classification_head(model, 2)
    freeze_all_but(model, trainable)
    return model


def tiny_parts(sizes=(40, 9, 9)) -> list[SpamDataset]:
    generator = torch.Generator().manual_seed(0)
    parts = []
    for size in sizes:
        lengths = torch.randint(1, 30, (size,), generator=generator).tolist()
        ids = [torch.randint(TINY.vocab_size, (n,), generator=generator) for n in lengths]
        parts.append(SpamDataset(ids, [i % 2 for i in range(size)]))
    return parts


# --- the commands -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Runs a command once in its tiny form, however many tests look at what it wrote."""
    try:
        mixed_messages(1)
    except DownloadError as error:
        pytest.skip(f"the SMS Spam Collection cannot be had: {str(error).splitlines()[0]}")
    folder, done = tmp_path_factory.mktemp("results"), {}

    def result_of(command: str) -> dict:
        if command not in done:
            arguments = [command, "--model", "gpt-mini", *TINY_FORMS[command], "--plot"]
            assert benchmark.main([*arguments, "--device", "cpu", "--output", str(folder)]) == 0
            done[command] = json.loads((folder / f"{command}.json").read_text(encoding="utf-8"))
            assert (folder / f"{command}.png").stat().st_size > 1000
        return done[command]

    return result_of


@pytest.mark.parametrize("command", TINY_FORMS)
def test_each_result_says_where_and_how_it_was_measured(results, command):
    result = results(command)
    assert result["command"].startswith(f"benchmark.py {command} --model gpt-mini")
    assert result["threads"] >= 1
    assert result["versions"]["torch"] == torch.__version__
    assert result["load_average_at_start"] is None or result["load_average_at_start"] >= 0
    for table in benchmark.COMMANDS[command][0].tables(result):
        assert as_text(table).count("\n") >= len(table.rows)
    assert performance_tables.markdown(command, result).startswith("| ")


@pytest.mark.parametrize("command", [name for name in TINY_FORMS if name != "memory"])
def test_every_round_is_kept(results, command):
    def lists_in(rounds):
        for value in rounds.values():
            yield from [value] if isinstance(value, list) else lists_in(value)

    result = results(command)
    for part in (result["last_block"], result["all_layers"]) if command == "train" else (result,):
        numbers = {len(seconds) for seconds in lists_in(part["rounds"])}
        assert numbers in ({1}, {1, bench_infer.LATENCY_ROUNDS})


def test_training_figures_add_up(results):
    result = results("train")
    names = list(bench_train.RUNGS)
    for key, num_frozen in (("last_block", 5), ("all_layers", 0)):
        part = result[key]
        plain, stages = part["ways"][0], part["fast_seconds_by_stage"]
        assert plain["steps"] == 131  # 1,045 messages in batches of 8
        assert plain["evaluation_batches"] == 131 + 19 + 131 + 19 + 38
        for way in part["ways"]:
            once = way["name"] in names[4:] and num_frozen > 0
            expected = way["steps"] * way["step_seconds"] + stages["data"] + stages["model"]
            expected += way["evaluation_batches"] * way["evaluation_batch_seconds"]
            assert way["seconds"] == pytest.approx(expected + once * stages["frozen_layers"])
        assert part["plain_seconds"] == plain["seconds"]
        assert part["speedup"] == pytest.approx(part["plain_seconds"] / part["fast_seconds"])
        lengths = [dataset.lengths for dataset in bench_train.read_parts("gpt-mini")]
        operations = floors.floor_operations(MODEL_CONFIGS["gpt-mini"], lengths, 1, num_frozen)
        assert part["floor_seconds"] == pytest.approx(operations / part["matrix_gflops"] / 1e9)
        assert part["times_floor"] == pytest.approx(part["fast_seconds"] / part["floor_seconds"])
        assert part["times_floor"] > 1
        if rounded := part["bfloat16"]:
            times_floor = rounded["fast_seconds"] / part["floor_seconds"]
            assert rounded["times_floor"] == pytest.approx(times_floor)
            assert rounded["speedup"] == pytest.approx(plain["seconds"] / rounded["fast_seconds"])
    assert result["plain_seconds"] == result["last_block"]["plain_seconds"]
    assert [way["name"] for way in result["last_block"]["ways"]] == names
    assert [way["name"] for way in result["all_layers"]["ways"]] == names[:4] + names[-1:]
    differences = result["largest_difference_of_losses"]
    assert max(differences["float32"].values()) < 1e-4
    assert 1e-4 < max(differences["bfloat16"].values()) < 0.1


def test_the_trainer_gets_other_rows_to_evaluate_than_to_train_on():
    pytest.importorskip("accelerate")
    parts = tiny_parts((40, 9, 9))
    job = training_ways.TrainingJob(tiny_model(), parts, 8, num_frozen=2)
    steps, evaluations = bench_train.trainer_batches(job)
    assert sorted(i for rows in steps for i in rows) == list(range(40))
    assert {len(rows) for rows in evaluations} == {bench_train.trainer_evaluation_size(job)}
    lengths = [parts[0].lengths[i] for rows in evaluations for i in rows]
    assert lengths == sorted(lengths)


def test_the_twin_trains_as_many_parameters():
    pytest.importorskip("transformers")
    model = tiny_model()
    num_frozen = freeze_all_but(model, "last_block")
    model.out_head.bias.data.zero_()
    twin = hugging_face_twin(model)
    freeze_twin_but_last_block(twin)
    ours = sum(p.numel() for p in model.parameters() if p.requires_grad)
    theirs = sum(p.numel() for p in twin.parameters() if p.requires_grad)
    assert num_frozen == TINY.num_layers - 1
    assert theirs == ours - len(model.out_head.bias)


def test_a_sample_stands_for_all_batches():
    """Lengths are skewed: the middle batches of three groups are shorter than the mean batch."""
    job = training_ways.TrainingJob(tiny_model(), tiny_parts((40, 9, 17)), 8, num_frozen=2)
    way = training_ways.Way("padded", pad_to_longest=True)
    _, samples = bench_train.timed_functions(job, [way], num=3, epochs=2)
    batches = job.train_batches(way)
    tokens = [8 * max(job.parts[0].lengths[i] for i in rows) for rows in batches]
    step, evaluation = samples["step, padded"], samples["evaluation, padded"]
    assert (step.num_timed, step.num, step.tokens) == (3, 2 * 5, 2 * sum(tokens))
    assert step.tokens_timed == sum(sorted(tokens)[i] for i in (0, 2, 4))
    assert evaluation.num == 2 * (5 + 2) + 5 + 2 + 3
    estimate = bench_train.estimate(
        way,
        {"step, padded": [3.0], "evaluation, padded": [0.0]},
        samples,
        {"data": 1.0, "model": 0.5},
    )
    assert estimate["seconds"] == pytest.approx(1.5 + 3 * step.tokens / step.tokens_timed)


def test_a_missing_library_leaves_its_row_out_with_a_reason(monkeypatch):
    monkeypatch.setattr(bench_train, "find_spec", lambda name: None)
    args = benchmark.parse_args(["train"])
    with pytest.raises(NotHere, match="transformers is not installed"):
        bench_train.make_trainer(args, None, "all", "")
    monkeypatch.setattr(bench_memory, "find_spec", lambda name: None)
    with pytest.raises(NotHere, match="psutil is not installed"):
        bench_memory.peaks_by_stage("gpt-mini", "all", 8, 120, CPU)


def test_a_way_that_fails_at_its_first_call_is_left_out():
    def fail(number):
        raise RuntimeError(f"no compiler\nfor {number}")

    makers = {"works": lambda: lambda number: 2 * number, "fails": lambda: fail}
    ways, first, not_here = try_each(makers, lambda way: way(3))
    assert (list(ways), first, not_here) == (["works"], {"works": 6}, {"fails": "no compiler"})


REASONS = ("is not installed", "no bf16 instructions", "compiler", "onnxruntime has no")


@pytest.mark.parametrize("command", ["infer", "quantize"])
def test_a_way_is_left_out_for_a_known_reason_only(results, command):
    for way, reason in results(command)["not_here"].items():
        assert any(known in reason for known in REASONS), f"{way}: {reason}"


def test_the_trainer_is_measured_where_it_is_installed(results):
    pytest.importorskip("accelerate")
    for part in ("last_block", "all_layers"):
        assert results("train")[part]["trainer"]["seconds"] > 0


def test_all_ways_to_classify_give_the_same_but_for_rounding(results):
    for name, figures in results("infer")["ways"].items():
        limit = 0.05 if name.startswith(("bf16", "int8")) else 1e-4
        assert figures["largest_difference_of_probabilities"] < limit, name
        assert figures["latency_ms"] > 0
        assert figures["messages_per_second"] > 0


def test_generation_is_the_same_with_and_without_cache(results):
    result = results("generate")
    assert set(result["tokens_as_with_cache"].values()) == {4}
    assert set(result["tokens_per_second"]["with cache"]) == {"2", "4"}


def test_training_all_layers_takes_the_memory_that_is_predicted(results):
    rows = {row["choice"]: row for row in results("memory")["choices"]}
    for choice in ("last_block", "all"):
        assert rows[choice]["peak_mb"] > 0.8 * rows[choice]["predicted_mb"], choice
        assert rows[choice]["peak_mb"] < 1.5 * rows[choice]["predicted_mb"] + 40, choice
    assert rows["last_block"]["peak_mb"] < rows["all"]["peak_mb"]


def test_streamed_messages_all_come_out(results):
    rows = results("scale")["messages"]
    assert [row["messages"] for row in rows] == [50, 1100]
    assert rows[1]["peak_mb"] < rows[0]["peak_mb"] + 50


@pytest.mark.parametrize(
    ("value", "cell"),
    [(7, "7"), (0.1234, "0.123"), (497.3, "497"), (6230.4, "6,230"), (None, "-"), ("xl", "xl")],
)
def test_numbers_are_shown_to_three_digits_or_in_full(value, cell):
    assert bench_scale.shown(value) == cell


def test_quantised_weights_take_less_room(results):
    ways = results("quantize")["ways"]
    assert ways["bfloat16"]["mini_mb"] < 0.6 * ways["float32"]["mini_mb"]
    assert ways["float32"]["changed_labels"] == 0
    for figures in ways.values():
        low, high = figures["accuracy_interval"]
        assert low < figures["accuracy"] < high


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--model", "gpt9"], "no model 'gpt9'"),
        (["generate", "--model", "gpt-mini", "--tokens", "600"], "context of 512"),
        (["memory", "--model", "gpt-mini", "--lengths", "600"], "512 tokens at most"),
        (["scale", "--model", "gpt-mini", "--lengths", "600"], "512 tokens at most"),
    ],
)
def test_wrong_options_are_explained(arguments, message, tmp_path, capsys):
    assert benchmark.main([*arguments, "--output", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["train", "--sample", "0"], ["infer", "--messages", "x"]])
def test_numbers_out_of_range_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        benchmark.main(arguments)
    assert stop.value.code == 2
    assert arguments[1] in capsys.readouterr().err


# --- formulas ---------------------------------------------------------------------------------


def test_floor_counts_the_operations_of_the_frozen_blocks():
    cfg = MODEL_CONFIGS["gpt2-small (124M)"]
    operations = floors.floor_operations(cfg, [[30] * 1000, [30] * 100, [30] * 200], 5, 11)
    frozen = 11 * 2 * 12 * 768**2 * 30 * 1300
    assert frozen < operations < 1.1 * frozen
    everything = floors.floor_operations(cfg, [[30] * 1000, [30] * 100, [30] * 200], 5, 0)
    assert everything > 10 * operations
    one_layer = GPTConfig(num_layers=1)
    lean = [floors.lean_tail_operations(one_layer, [n]) for n in (7, 5, 3)]
    expected = 2 * (3 + 1) * lean[0] + 2 * lean[1] + lean[2]
    assert floors.floor_operations(one_layer, [[7], [5], [3]], 2, num_frozen=0) == expected


def count_operations(function) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function()
    return counter.get_total_flops()


def test_operations_are_those_that_pytorch_counts():
    """By hand, every query is multiplied with every key: twice what the causal floor counts."""
    block, x = tiny_model().trf_blocks[0], torch.randn(1, 20, 16)
    counted = count_operations(lambda: training_ways.block_by_hand(block, x))
    scores = 2 * 16 * 20**2
    assert counted == floors.block_operations(TINY, [20]) + scores


@pytest.mark.parametrize("plain", [True, False])
def test_tail_operations_are_those_that_pytorch_counts(plain):
    block, x = tiny_model().trf_blocks[0], torch.randn(1, 20, 16)
    if plain:  # keys and values are made where a layer is more than its weights
        block.att.W_key = torch.nn.Sequential(block.att.W_key)
    counted = count_operations(lambda: block(x, torch.tensor([19])))
    # PyTorch does not count its fused kernel: D operations a token, where matrices take D^2.
    tail = floors.tail_operations if plain else floors.lean_tail_operations
    assert counted == tail(TINY, [20])


@pytest.mark.parametrize("choice", ["last_block", "all", "lora", "checkpointing"])
def test_kept_numbers_are_those_that_pytorch_keeps(choice):
    """What autograd saves in a forward pass, weights and small change aside.

    The messages are long, so that what the last block keeps of one position is small change.
    """
    batch_size, length = 4, 500
    cfg = GPTConfig(vocab_size=50, context_length=length, emb_dim=64, num_heads=2, num_layers=4)
    torch.manual_seed(0)
    model = GPTModel(cfg)
    add_classification_head(model, 2)
    get_logits = prepare(model, choice)
    train_mode(model)
    batch = pad_batch([(torch.randint(50, (length,)), 0) for _ in range(batch_size)])
    if choice == "last_block":
        hidden = torch.randn(batch_size, length, 64)
        batch = batch._replace(inputs=hidden, num_blocks_done=3)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        get_logits(model, batch)
    expected = 4 * batch_size * length * bench_memory.kept_numbers_per_token(cfg, choice)
    if choice == "checkpointing":
        expected -= 4 * batch_size * length * 16 * 64  # the one block that is computed again, later
    assert sum(kept.values()) == pytest.approx(expected, rel=0.1)


# --- ways to train and to classify ------------------------------------------------------------


@pytest.mark.parametrize("trainable", ["last_block", "all"])
def test_every_improvement_gives_the_same_logits(trainable):
    model = tiny_model(trainable)
    num_frozen = 2 if trainable != "all" else 0
    job = training_ways.TrainingJob(model, tiny_parts(), TrainConfig.batch_size, num_frozen)
    ways = training_ways.ladder(trainable != "all")
    rows = list(range(8))
    batches = {way.name: job.make_batch(rows, way) for way in ways}
    assert batches["plain"].inputs.shape[1] == 120
    expected = training_ways.logits_of(model, batches["plain"], ways[0])
    for way in ways[1:]:
        logits = training_ways.logits_of(model, batches[way.name], way)
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


def test_every_way_trains_and_evaluates_every_message_once():
    job = training_ways.TrainingJob(tiny_model(), tiny_parts(), 8, num_frozen=2)
    for way in training_ways.ladder(any_frozen=True):
        assert sorted(chain(*job.train_batches(way))) == list(range(40))
        assert sorted(chain(*job.evaluation_batches(way, 1))) == list(range(9))


def test_a_sample_is_spread_over_all_lengths():
    assert evenly_spaced(["ccc", "a", "dddd", "bb"], 2, size=len) == ["bb", "dddd"]
    assert len(evenly_spaced(range(3), 10, size=abs)) == 3


def test_functions_take_turns():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = interleave(functions, 2, CPU)
    assert calls == list("ababab")  # the first two are the warm-up
    assert {len(values) for values in seconds.values()} == {2}
    interleave(functions, 1, CPU, warm_up=False)
    assert len(calls) == 8


def test_answers_come_in_the_order_of_the_messages():
    model, sequences = tiny_model(), [part[i][0] for part in tiny_parts() for i in range(9)]
    logits_of_batch = classifying_ways.from_scratch(model)
    loop = classifying_ways.InBatches(logits_of_batch, classifying_ways.one_by_one)(sequences)
    for batches in (classifying_ways.as_they_come, classifying_ways.grouped(CPU)):
        way = classifying_ways.InBatches(logits_of_batch, batches)
        torch.testing.assert_close(way(sequences), loop, atol=1e-5, rtol=0)


# --- documents --------------------------------------------------------------------------------


def test_tables_of_the_readme_are_those_that_the_raw_files_give():
    assert performance_tables.updated_readme() == performance_tables.README.read_text(
        encoding="utf-8"
    )


def test_commands_of_the_readme_and_of_the_results_are_understood():
    lines = performance_tables.README.read_text(encoding="utf-8").splitlines()
    commands = [line for line in lines if line.startswith("python ") and "benchmark.py" in line]
    assert commands
    for line in commands:
        benchmark.parse_args(shlex.split(line.partition("benchmark.py")[2], comments=True))
    for path in (HERE / "results").glob("*.json"):
        if "load_average_at_start" in (result := load_result(path.stem)):
            benchmark.parse_args(shlex.split(result["command"])[1:])
