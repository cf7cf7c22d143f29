"""The case study: reading e-mails, signals, what is learned from what, the report in step."""

import io
import json
import re
import shutil
import tarfile

import domain_shift as study
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import shift_report as report
import shift_signals as signals
import torch

from gpt_download import load_mini_tokenizer
from previous_chapters import GPTConfig, GPTModel, calc_text_loss
from text_data import clean_messages, read_sample_messages, split_messages

TINY = GPTConfig(vocab_size=4096, context_length=160, emb_dim=16, n_heads=2, n_layers=2)
SIZES = ("--sizes", "10", "40")
TOKENIZER = load_mini_tokenizer()


def tiny_decoder() -> GPTModel:
    torch.manual_seed(0)
    return GPTModel(TINY).eval()


def made_up_emails(size: int = 40) -> pd.DataFrame:
    rows = [
        (label, f"Subject: {word} number {i} and more {word} {i * i}")
        for i in range(size)
        for label, word in (("ham", "meeting minutes"), ("spam", "cheap watches"))
    ]
    return pd.DataFrame(rows, columns=["label", "text"])


def few_messages() -> pd.DataFrame:
    return read_sample_messages().groupby("label").head(40)


@pytest.fixture
def parts():
    sms = split_messages(clean_messages(few_messages()), 1)
    return sms, *study.sample_emails(made_up_emails(), seed=1, size=80)


# --- E-mails -------------------------------------------------------------------------------------


def write_archive(path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def test_emails_are_read_if_all_are_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CH06_CACHE", str(tmp_path))
    for i in (1, 2):
        files = {
            f"enron{i}/spam/{i}.txt": b"Subject: buy %d\r\ncaf\xe9" % i,
            f"enron{i}/ham/{i}.txt": b" ",
            f"enron{i}/Summary.txt": b"no",
        }
        write_archive(tmp_path / "enron-spam" / f"enron{i}.tar.gz", files)
    assert study.main(["run", "--results", str(tmp_path / "results")]) == 1
    assert study.ADDRESS in capsys.readouterr().err
    monkeypatch.setattr(study, "NUM_COLLECTED", 2)
    expected = [["spam", f"Subject: buy {i} café"] for i in (1, 2)]
    assert study.read_emails().values.tolist() == expected


def test_no_model_sees_more_of_a_text_than_another():
    texts = ["a b " * 999, "a b " * 500, "c"]
    cut = study.shorten(pd.DataFrame({"label": ["ham", "ham", "spam"], "text": texts}), TOKENIZER)
    assert cut["label"].tolist() == ["ham", "spam"]  # two texts became one
    assert len(TOKENIZER.encode_ordinary(cut["text"][0])) <= study.MAX_TOKENS


def test_samples_are_balanced_and_apart(parts):
    _, pool, test = parts
    assert not set(pool["text"]) & set(test["text"])
    for part in (pool, test):
        assert part["label"].value_counts().to_dict() == {"ham": 20, "spam": 20}
    _, other = study.sample_emails(made_up_emails(), seed=2, size=80)
    assert other["text"].tolist() != test["text"].tolist()


def test_filter_learns_from_what_its_name_says(parts):
    sms, pool, _ = parts
    sets = study.training_sets(sms.train, pool, (10, 30))
    assert sets["email 10"]["label"].value_counts().to_dict() == {"ham": 5, "spam": 5}
    assert len(sets["sms and email 10"]) == len(sms.train) + 10
    assert set(sets["email 10"]["text"]) < set(sets["email 30"]["text"]) < set(pool["text"])
    assert set(sets["sms"]["text"]) < set(sets["sms and email 30"]["text"])


# --- Signals -------------------------------------------------------------------------------------


def test_two_samples_are_told_apart_only_if_they_differ(parts):
    sms, _, emails = parts
    apart, p_apart = signals.two_sample_test(sms.train["text"][:40], emails["text"][:40])
    few = [*sms.train["text"][:38], *emails["text"][:2]]  # a part that comes in one piece
    assert signals.two_sample_test(few, emails["text"][2:42])[0] > 0.9
    texts = sms.train["text"].tolist()
    alike, p_alike = signals.two_sample_test(texts[::2][:25], texts[1::2][:25])
    assert (apart > 0.95, p_apart < 1e-6, alike < 0.8, p_alike > p_apart) == (True,) * 4


def test_nats_per_token_are_those_of_the_language_model():
    decoder, texts = tiny_decoder(), ["Subject: a few words to be read", "and some more"]
    lengths = [len(TOKENIZER.encode_ordinary(text)) - 1 for text in texts]
    losses = [calc_text_loss(decoder, TOKENIZER, text) for text in texts]
    measured = signals.nats_per_token(decoder, TOKENIZER, [*texts, "x"], max_tokens=100)
    assert measured == pytest.approx(np.average(losses, weights=lengths), abs=1e-5)


# --- A whole seed, and the report ----------------------------------------------------------------


def run_tiny(folder, *options: str):
    """Two seeds, both the same, in the folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "read_emails", made_up_emails)
        patch.setattr(study, "read_sms_spam", few_messages)
        patch.setattr(study, "load_pretrained", lambda *_: (tiny_decoder(), TOKENIZER))
        patch.setattr(study, "NUM_EMAILS", 80)
        patch.setattr(study, "FEWEST_UPDATES", 20)
        patch.setattr(study, "STREAM_FRACTIONS", (0, 1))
        assert study.main(["run", "--results", str(folder), "--seeds", "1", *options]) == 0
    shutil.copy(folder / "seed-1.json", folder / "seed-2.json")
    return folder


@pytest.fixture(scope="module")
def tiny_results(tmp_path_factory):
    return run_tiny(tmp_path_factory.mktemp("results"), *SIZES)


def test_model_without_continued_pretraining_has_a_report_without_it(tmp_path):
    run_tiny(tmp_path, *SIZES, "--model", "smollm2-135m")
    assert study.main(["report", "--results", str(tmp_path)]) == 0
    plt.close("all")
    tables = (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert "smollm2-135m: mean over 2 seeds" in tables
    assert "continued" not in tables


def test_sizes_that_no_filter_can_learn_from_are_refused(tmp_path, capsys):
    assert study.main(["run", "--results", str(tmp_path / "x"), "--sizes", "10", "25"]) == 2
    assert "even numbers" in capsys.readouterr().err


def test_seed_leaves_all_metrics_and_no_message(tiny_results):
    text = (tiny_results / "seed-1.json").read_text(encoding="utf-8")
    result, metrics = json.loads(text), report.learned([json.loads(text)])
    assert len(metrics) == len(report.FILTERS) * 5 * 2
    assert metrics[[*report.METRICS]].stack().between(0, 1).all()
    for kind in ("gpt", "ngrams"):  # the labels are those that the filter learned
        assert result["learned"][kind]["email 40"]["email"]["accuracy"] > 0.8
    assert [stream["fraction"] for stream in result["signals"]["streams"]] == [0, 1]
    assert "watches" not in text


def test_complete_results_say_how_to_measure_anew(tiny_results, capsys):
    arguments = ["run", "--results", str(tiny_results), "--seeds", "1", "2"]
    assert study.main(arguments) == 2
    assert "or of other --sizes" in capsys.readouterr().err
    arguments += SIZES
    assert study.main(arguments) == 0
    assert capsys.readouterr().out.count("is there already; to measure anew") == 2
    assert study.main([*arguments, "--model", "gpt2-small"]) == 2
    assert "holds results of gpt-mini" in capsys.readouterr().err


def test_report_of_other_results_lies_beside_them(tiny_results, tmp_path, capsys):
    assert study.main(["report", "--results", str(tiny_results)]) == 0
    plt.close("all")
    assert (tiny_results / "tables.md").read_text(encoding="utf-8").count("\n| ") > 15
    assert {path.stem for path in tiny_results.glob("figures/*.png")} == report.PLOTS.keys()
    assert study.main(["report", "--results", str(tmp_path)]) == 2
    assert "0 result files" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("folder", "output"),
    [(report.RESULTS, report.FOLDER), (report.FOLDER / "results-smollm2",) * 2],
)
def test_tables_are_those_that_the_raw_files_give(folder, output):
    results = report.load(folder)
    assert report.make_tables(results) == (output / "tables.md").read_text(encoding="utf-8")
    for seed, result in enumerate(results, start=1):
        command = f"domain_shift.py run --model {result['model']} --seeds {seed}"
        assert result["command"].startswith(command)
        assert result["seed"] == seed


def test_the_pages_table_of_smollm2_quotes_these_tables():
    page = (report.FOLDER / "README.md").read_text(encoding="utf-8")
    section = page.partition("## With SmolLM2")[2].partition("\n## ")[0]
    quoted = re.findall(r"[\d.]+% \([\d.]+ to [\d.]+\)", section)
    folders = (report.FOLDER, report.FOLDER / "results-smollm2")
    tables = "".join((folder / "tables.md").read_text(encoding="utf-8") for folder in folders)
    assert len(quoted) == 9
    assert [cell for cell in quoted if cell not in tables] == []
