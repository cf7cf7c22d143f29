"""Every benchmark in a tiny form; the formulas against PyTorch's own counts; the same results."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent))

import bench_common as bench
import bench_train
import benchmark
import lower_bound
import performance_tables
from hugging_face import hugging_face_classifier, hugging_face_generator, hugging_face_inputs

from fast_paths import block_at_positions
from gpt_download import MODEL_CONFIGS, DownloadError, build_decoder
from previous_chapters import num_parameters
from smollm2 import LlamaConfig
from text_classifier import GPTClassifier, calc_logits, freeze_all_but
from text_data import SpamDataset

TINY_LLAMA = LlamaConfig(64, 32, emb_dim=64, n_heads=4, n_kv_heads=2, n_layers=2, hidden_dim=96)
CPU = torch.device("cpu")
TINY_FORMS = {
    "train": "--num-epochs 1 --train-size 60 --sample 2 --check-steps 3 --repetitions 1",
    "infer": "--messages 30 --sample 12 --repetitions 1",
    "generate": "--prompt 3 --tokens 2 4 --repetitions 1",
    "memory": "--choices last_block all --batch-sizes 8 --lengths 120",
    "scale": "--lengths 16 --batch-sizes 1 2 --shapes gpt-mini --messages 50 --threads 1 "
    "--repetitions 1",
    "quantize": "--messages 6 --num-epochs 1 --repetitions 1",
}


def tiny_classifier() -> GPTClassifier:
    return bench.random_classifier("tiny", CPU)


def tiny_dataset(size: int) -> SpamDataset:
    generator = torch.Generator().manual_seed(size)
    lengths = torch.randint(1, 30, (size,), generator=generator).tolist()
    ids = [torch.randint(1, 62, (n,), generator=generator) for n in lengths]
    return SpamDataset(ids, [i % 2 for i in range(size)])


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Runs a command once in its tiny form, however many tests look at what it wrote."""
    try:
        bench.mixed_messages(1)
    except DownloadError as error:
        pytest.skip(f"the SMS Spam Collection cannot be had: {str(error).splitlines()[0]}")
    folder, done = tmp_path_factory.mktemp("results"), {}

    def result_of(command: str) -> dict:
        if command == "memory":
            pytest.importorskip(
                "psutil", reason="needs performance-analysis/requirements-extra.txt"
            )
        if command not in done:
            arguments = [command, "--model", "gpt-mini", *TINY_FORMS[command].split(), "--plot"]
            assert benchmark.main([*arguments, "--device", "cpu", "--output", str(folder)]) == 0
            done[command] = json.loads((folder / f"{command}.json").read_text(encoding="utf-8"))
            assert (folder / f"{command}.png").stat().st_size > 1000
        return done[command]

    return result_of


def rows_of(result: dict, table: str = "ways") -> dict[str, dict]:
    """A table's rows by what stands in their first column."""
    return {next(iter(row.values())): row for row in result["tables"][table]}


@pytest.mark.parametrize("command", TINY_FORMS)
def test_result_has_its_command_and_can_be_shown(results, command):
    result = results(command)
    assert result["command"].startswith(f"benchmark.py {command} --model gpt-mini")
    assert result["versions"]["torch"] == torch.__version__
    assert bench.as_markdown(result).startswith("|")


def test_all_improvements_together_give_the_same_losses(results):
    differences = results("train")["largest_difference_of_losses"]
    assert max(differences["float32"].values()) < 1e-6
    assert 1e-4 < max(differences["bfloat16"].values()) < 0.1


REASONS = ("No module named", "no bf16 instructions", "compiler")


@pytest.mark.parametrize("command", ["train", "infer", "generate", "quantize"])
def test_way_is_left_out_for_a_known_reason_only(results, command):
    for way, reason in results(command)["unavailable"].items():
        assert any(known in reason for known in REASONS), f"{way}: {reason}"


def test_all_ways_to_classify_give_the_same_but_for_rounding(results):
    for name, row in rows_of(results("infer")).items():
        limit = 0.05 if name.startswith(("bf16", "int8")) else 1e-4
        assert row["largest difference of probabilities"] < limit, name


@pytest.mark.parametrize("shape", [bench.TINY, TINY_LLAMA])
def test_transformers_gives_the_same_logits_of_texts_and_classes(shape, monkeypatch):
    pytest.importorskip("transformers", reason="needs performance-analysis/requirements-extra.txt")
    monkeypatch.setitem(bench.SHAPES, "tiny", shape)
    classifier, dataset = tiny_classifier(), tiny_dataset(9)
    freeze_all_but(classifier, "last_block")
    twin, batch = hugging_face_classifier(classifier), dataset.collate(list(dataset))
    logits = twin(**hugging_face_inputs(batch, twin)).logits
    torch.testing.assert_close(logits, calc_logits(classifier, batch))
    assert num_parameters(twin, True) == num_parameters(classifier, True) - 2  # the head's bias
    decoder = build_decoder(shape).eval()
    generator = hugging_face_generator(decoder)
    torch.testing.assert_close(generator(batch["input_ids"]).logits, decoder(batch["input_ids"]))


def test_generated_tokens_are_the_same_with_and_without_cache(results):
    rows = rows_of(results("generate"))
    assert {row["same as with cache, of 4"] for row in rows.values()} == {4}


def test_training_takes_the_memory_that_is_predicted(results):
    rows = rows_of(results("memory"), "peak_mb")
    for row in rows.values():
        assert 0.8 * row["predicted"] < row["peak"] < 1.5 * row["predicted"] + 40
    assert rows["last block"]["peak"] < rows["all"]["peak"]


def test_quantised_weights_take_less_room(results):
    rows = rows_of(results("quantize"))
    assert rows["bfloat16"]["gpt-mini, MB"] < 0.6 * rows["float32"]["gpt-mini, MB"]
    assert rows["float32"]["changed labels"] == 0
    for row in rows.values():
        low, high = row["95% interval"]
        assert low < row["accuracy"] < high


def test_a_wrong_option_exits_2_with_the_reason(tmp_path, capsys):
    arguments = ["scale", "--model", "gpt-mini", "--lengths", "600"]
    assert benchmark.main([*arguments, "--output", str(tmp_path)]) == 2
    assert "context of 512" in capsys.readouterr().err


def count_operations(function) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", ["gpt-mini", "smollm2-135m"])
def test_operations_of_a_block_are_those_that_pytorch_counts(name):
    """By hand, every query is multiplied with every key: twice what the lower bound counts."""
    cfg = MODEL_CONFIGS[name]
    block, x = lower_bound.one_block(cfg), torch.randn(1, 20, cfg.emb_dim, device="meta")
    counted = count_operations(lambda: bench_train.block_by_hand(block, x))
    assert counted == lower_bound.block_operations(cfg, [20]) + 2 * cfg.emb_dim * 20**2


@pytest.mark.parametrize("adapted", [True, False])
def test_operations_of_the_tail_are_those_that_pytorch_counts(adapted):
    block, x = tiny_classifier().decoder.trf_blocks[0], torch.randn(1, 20, bench.TINY.emb_dim)
    if adapted:  # keys and values are made where a layer is more than its weights
        block.att.W_key = torch.nn.Sequential(block.att.W_key)
    position = torch.tensor([19])
    counted = count_operations(lambda: block_at_positions(block, x, position))
    # PyTorch does not count its fused kernel: D operations a token, where matrices take D^2.
    tail = lower_bound.tail_operations if adapted else lower_bound.lean_tail_operations
    assert counted == tail(bench.TINY, [20])


@pytest.mark.parametrize("shape", [bench.TINY, TINY_LLAMA])
@pytest.mark.parametrize("trainable", ["last_block", "all"])
def test_every_way_gives_the_same_logits_of_all_messages(trainable, shape, monkeypatch):
    monkeypatch.setitem(bench.SHAPES, "tiny", shape)
    monkeypatch.setattr(bench_train, "PADDED_LENGTH", 31)
    classifier, parts = tiny_classifier(), [tiny_dataset(size) for size in (40, 9, 17)]
    num_frozen = freeze_all_but(classifier, trainable)
    sums, ways = {}, bench_train.make_ways(classifier, parts, num_frozen)
    assert (bench_train.FROZEN_ONCE in ways) == (num_frozen > 0)
    for name, (model, batches) in ways.items():
        widths = {batch["attention_mask"].shape[1] for batch in batches["training"]}
        assert (widths == {31}) == (name in (bench_train.PLAIN, bench_train.FUSED))
        with torch.no_grad():
            logits = torch.cat([calc_logits(model, batch) for batch in batches["evaluation"]])
        assert len(logits) == 2 * (40 + 9) + 17
        sums[name] = logits.sort(dim=0).values
        torch.testing.assert_close(sums[name], sums[bench_train.PLAIN], atol=1e-5, rtol=0)


def test_sample_stands_for_all_batches_by_their_positions():
    parts = [tiny_dataset(size) for size in (40, 9, 17)]
    everything = bench_train.make_batches(parts, num_epochs=2)
    sample = bench_train.sample_of(everything, 3)
    calls = {"training": [], "evaluation": []}
    run = bench_train.timing({stage: calls[stage].append for stage in calls}, sample)
    assert set(run()) == set(calls)
    for stage, batches in everything.items():
        assert len(batches) == {"training": 2 * 5, "evaluation": 3 * (5 + 2) + 3}[stage]
        positions = sorted(map(bench_train.num_positions, batches))
        timed = [positions[int((i + 0.5) * len(positions) / 3)] for i in range(3)]
        assert list(map(bench_train.num_positions, calls[stage][1:])) == timed


def test_tables_are_those_that_the_raw_files_give():
    for path in performance_tables.DOCUMENTS:
        assert performance_tables.updated(path) == path.read_text(encoding="utf-8")
