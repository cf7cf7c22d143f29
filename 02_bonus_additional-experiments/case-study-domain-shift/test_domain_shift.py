"""The case study: reading e-mails, signals, what is learned from what, the report in step."""

import io
import json
import re
import shutil
import tarfile
from pathlib import Path

import domain_shift as study
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from gpt_download import DownloadError, load_mini_tokenizer
from message_files import DataError
from previous_chapters import GPTConfig, GPTModel, calc_text_loss
from text_data import clean_messages, read_sample_messages, split_messages

TINY = GPTConfig(vocab_size=4096, context_length=160, emb_dim=16, num_heads=2, num_layers=2)
TOKENIZER = load_mini_tokenizer()


def tiny_model() -> GPTModel:
    torch.manual_seed(0)
    return GPTModel(TINY).eval()


def made_up_emails(size: int = 40) -> pd.DataFrame:
    rows = [
        (label, f"Subject: {word} number {i} and more {word} {i * i}")
        for i in range(size)
        for label, word in (("ham", "meeting minutes"), ("spam", "cheap watches"))
    ]
    return pd.DataFrame(rows, columns=["label", "text"])


@pytest.fixture
def parts():
    sms = split_messages(clean_messages(read_sample_messages().groupby("label").head(40)), 1)
    return sms, study.sample_emails(made_up_emails(), seed=1, size=80)


# ---------------------------------------------------------------------------------------------
# E-mails
# ---------------------------------------------------------------------------------------------


def write_archive(path, files: dict[str, bytes], mode: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def test_both_layouts_of_the_archives_are_read(tmp_path):
    ours = {"enron-spam/ham/enron1/1.txt": b"Subject: caf\xe9\nhello", "enron-spam/x.txt": b"no"}
    write_archive(tmp_path / "ours" / "enron-spam.tar.xz", ours, "w:xz")
    folder = tmp_path / "theirs" / "enron-spam"
    for i in range(1, 7):
        theirs = {
            f"enron{i}/spam/{i}.txt": b"Subject: buy %d\r\n" % i,
            f"enron{i}/Summary.txt": b"no",
        }
        write_archive(folder / f"enron{i}.tar.gz", theirs, "w:gz")
    read = [study.read_emails(tmp_path / name).values.tolist() for name in ("ours", "theirs")]
    assert read == [
        [["ham", "Subject: café hello"]],
        [["spam", f"Subject: buy {i}"] for i in range(1, 7)],
    ]
    (folder / "enron4.tar.gz").unlink()
    with pytest.raises(DownloadError, match="5 of the six archives"):
        study.read_emails(tmp_path / "theirs")


def test_missing_emails_are_explained(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CH06_CACHE", str(tmp_path))
    with pytest.raises(DownloadError, match=r"enron1\.tar\.gz"):
        study.read_emails()
    assert study.main(["run", "--quiet", "--results", str(tmp_path / "results")]) == 1
    assert study.ADDRESS in capsys.readouterr().err


@pytest.mark.parametrize("name", ["enron-spam.tar.xz", "enron-spam/enron1.tar.gz"])
@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "no archive"])
def test_a_damaged_archive_is_named_in_a_sentence(name, damage, tmp_path):
    path = tmp_path / name
    noise = np.random.default_rng(0).bytes(50_000)
    files = {"ham/1.txt": noise, "ham/2.txt": noise[::-1]}
    for i in range(1, 7):  # all six, of which the first is damaged, or the one
        write_archive(tmp_path / name.replace("enron1", f"enron{i}"), files, f"w:{name[-2:]}")
    whole = path.read_bytes()
    changed = whole[:60_000] + bytes(100) + whole[60_100:]
    damaged = {"cut": whole[:60_000], "changed": changed, "empty": b"", "no archive": noise}
    path.write_bytes(damaged[damage])
    with pytest.raises(DataError, match=f"{path.name} is damaged"):
        study.read_emails(tmp_path)


def test_no_model_sees_more_of_a_text_than_another():
    long = pd.DataFrame(
        {"label": ["ham", "ham", "spam"], "text": ["a b " * 999, "a b " * 500, "c"]}
    )
    cut = study.shorten(long, TOKENIZER)
    assert cut["label"].tolist() == ["ham", "spam"]  # two texts became one
    assert len(TOKENIZER.encode_ordinary(cut["text"][0])) <= study.MAX_TOKENS


def test_samples_are_balanced_and_apart(parts):
    emails = parts[1]
    assert not set(emails.pool["text"]) & set(emails.test["text"])
    for part in emails:
        assert part["label"].value_counts().to_dict() == {"ham": 20, "spam": 20}
    other = study.sample_emails(made_up_emails(), seed=2, size=80)
    assert other.test["text"].tolist() != emails.test["text"].tolist()


def test_a_filter_learns_from_what_its_name_says(parts):
    sms, emails = parts
    sets = study.training_sets(sms, emails)
    assert list(sets) == [
        *("sms", "email 10", "sms and email 10", "email 30", "sms and email 30"),
        *("email 40", "sms and email 40"),
    ]
    assert sets["email 10"]["label"].value_counts().to_dict() == {"ham": 5, "spam": 5}
    assert len(sets["sms and email 10"]) == len(sms.train) + 10
    assert set(sets["email 10"]["text"]) < set(sets["email 30"]["text"])
    assert list(study.training_sets(sms, emails, alone=False)) == [
        *("sms", "sms and email 10", "sms and email 30", "sms and email 40")
    ]


# ---------------------------------------------------------------------------------------------
# Signals
# ---------------------------------------------------------------------------------------------


def test_the_stability_index_grows_with_the_shift():
    rng = np.random.default_rng(0)
    reference = rng.random(2000)
    same, little, much = (
        study.stability_index(reference, rng.random(2000) ** k) for k in (1, 1.3, 3)
    )
    assert same < 0.02 < little < 0.25 < much
    assert np.isfinite(study.stability_index(reference, np.zeros(5)))


def test_two_samples_are_told_apart_only_if_they_differ(parts):
    sms, emails = parts
    apart, p_apart = study.two_sample_test(sms.train["text"][:40], emails.test["text"][:40])
    few = [*sms.train["text"][:38], *emails.test["text"][:2]]  # a part that comes in one piece
    assert study.two_sample_test(few, emails.test["text"][2:42])[0] > 0.9
    texts = sms.train["text"].tolist()
    alike, p_alike = study.two_sample_test(texts[::2][:25], texts[1::2][:25])
    assert apart > 0.95
    assert p_apart < 1e-6
    assert alike < 0.8
    assert p_alike > p_apart


def test_nats_per_token_are_those_of_the_language_model():
    model, text = tiny_model(), "Subject: a few words to be read"
    measured = study.nats_per_token(model, TOKENIZER, [text, "x"])
    assert measured == pytest.approx(calc_text_loss(model, TOKENIZER, text), abs=1e-5)


def test_tokens_per_word():
    words = ["I am here", "am I"]
    num_tokens = sum(len(TOKENIZER.encode_ordinary(text)) for text in words)
    assert study.tokens_per_word(TOKENIZER, words) == num_tokens / 5


# ---------------------------------------------------------------------------------------------
# A whole seed, and the report
# ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "read_emails", made_up_emails)
        patch.setattr(
            study, "read_sms_spam", lambda: read_sample_messages().groupby("label").head(40)
        )
        patch.setattr(study, "load_pretrained", lambda *_: (tiny_model(), TOKENIZER))
        patch.setattr(study, "NUM_EMAILS", 80)
        patch.setattr(study, "FEWEST_UPDATES", 5)
        patch.setattr(study, "SIZES", (10, 40))
        patch.setattr(study, "STREAM_SHARES", (0, 1))
        arguments = ["run", "--model", "gpt-mini", "--quiet", "--results", str(folder)]
        assert study.main([*arguments, "--seeds", "1"]) == 0
        before = (folder / "seed-1.json").stat().st_mtime_ns
        assert study.main([*arguments, "--seeds", "1"]) == 0  # nothing is left to measure
        assert (folder / "seed-1.json").stat().st_mtime_ns == before
        shutil.copy(folder / "seed-1.json", folder / "seed-2.json")
    return folder


def test_a_seed_leaves_all_figures_and_no_message(tiny_results):
    text = (tiny_results / "seed-1.json").read_text(encoding="utf-8")
    result = json.loads(text)
    assert {"gpt", "gpt pretrained further", "ngrams"} == result["learned"].keys()
    for filters in result["learned"].values():
        for tests in filters.values():
            for figures in tests.values():
                assert all(0 <= value <= 1 for value in figures.values())
    assert result["learned"]["ngrams"]["email 40"]["email"]["accuracy"] > 0.9
    assert [stream["share"] for stream in result["signals"]["streams"]] == [0, 1]
    assert "watches" not in text


def test_a_seed_of_another_model_is_not_taken_for_this_ones(tiny_results, tmp_path, capsys):
    path = Path(shutil.copy(tiny_results / "seed-1.json", tmp_path))
    arguments = ["run", "--quiet", "--seeds", "1", "2", "--results", str(tmp_path)]
    assert study.main([*arguments, "--model", "gpt2-small"]) == 2
    assert "measured with gpt-mini, not with gpt2-small" in capsys.readouterr().err
    path.write_text("{", encoding="utf-8")
    assert study.main(arguments) == 2
    assert "is damaged; delete it" in capsys.readouterr().err


def test_the_report_is_made_of_the_results(tiny_results):
    results = study.load(tiny_results)
    marks = "".join(f"<!-- table {name} -->\n<!-- end -->\n" for name in study.TABLES)
    tables = study.make_all(results)
    text = study.fill_in(marks, tables)
    assert study.fill_in(text, tables) == text
    assert text.count("\n| ") > 15
    for plot in study.PLOTS.values():
        figure = plot(results)
        assert all(ax.get_xlabel() and ax.get_ylabel() for ax in figure.axes)
        plt.close(figure)


def test_too_few_results_are_refused(tmp_path, capsys):
    assert study.main(["report", "--results", str(tmp_path)]) == 2
    assert "0 result files" in capsys.readouterr().err


def test_tables_of_the_report_are_those_that_the_raw_files_give():
    text = study.README.read_text(encoding="utf-8")
    assert study.fill_in(text, study.make_all(study.load())) == text


def test_results_have_several_seeds_and_the_commands_are_understood():
    results = study.load()
    assert len({result["seed"] for result in results}) >= 5
    for result in results:
        arguments = result["command"].split()[1:]
        assert study.parse_args(arguments).seeds == [result["seed"]]
        assert result["model"] == "gpt-mini"
    for arguments in re.findall(r"domain_shift\.py ([^\n`]*)", study.README.read_text("utf-8")):
        study.parse_args(arguments.split())
