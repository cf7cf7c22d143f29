"""Documents in step: tables rebuilt from raw files, commands parsed, links checked."""

import json
import re
import shlex
import tomllib

import pytest
from conftest import CHAPTER

import classify
import finetune
import several_seeds

TOP = CHAPTER.parent
READMES = [path for path in sorted(TOP.rglob("README.md")) if ".venv" not in path.parts]
BENCHMARK = TOP / "02_bonus_additional-experiments" / "performance-analysis" / "results"


def test_table_of_results_is_the_one_that_the_raw_files_give():
    assert several_seeds.make_table() in (TOP / "README.md").read_text(encoding="utf-8")


def test_results_are_of_real_messages_over_five_seeds():
    paths = list(several_seeds.RESULTS.glob("*.json"))
    assert len(paths) >= 3
    for path in paths:
        runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
        assert len({run["seed"] for run in runs}) >= 5
        assert {run["data"] for run in runs} == {finetune.SMS_NAME}


def test_quoted_speed_is_the_measured_one():
    result = json.loads((BENCHMARK / "train.json").read_text(encoding="utf-8"))
    rounded, all_layers = result["last_block"]["bfloat16"], result["all_layers"]
    quoted = [
        f"{result['speedup']:.1f} times faster than the plain way, "
        f"{result['times_floor']:.2f} times the floor",
        f"{rounded['speedup']:.1f} times and {rounded['times_floor']:.2f} times that floor",
        f"all blocks at every step and evaluation | {result['plain_seconds']:,.0f} |",
        f"the final accuracies | {result['fast_seconds']:.0f} |",
        f"`--precision bfloat16` | {rounded['fast_seconds']:.0f} |",
        f"in float32 ({result['matrix_gflops']:.0f} GFLOP/s) | {result['floor_seconds']:.0f} |",
    ]
    for readme in (TOP / "README.md", BENCHMARK.parent.parent / "README.md"):
        text = readme.read_text(encoding="utf-8")
        assert [words for words in quoted if words not in text] == []
    top = (TOP / "README.md").read_text(encoding="utf-8")
    assert (
        f"the chapter's way is {all_layers['speedup']:.1f} times faster than the plain one" in top
    )
    chapter = (TOP / "01_main-chapter-code" / "README.md").read_text(encoding="utf-8")
    seconds = result["fast_seconds"], rounded["fast_seconds"]
    assert "a training of {:.0f} seconds took {:.0f}".format(*seconds) in chapter


def test_the_two_commands_stand_at_the_top():
    text = (TOP / "README.md").read_text(encoding="utf-8")
    install = "python -m pip install -r requirements.txt"
    first = text.index(f"{install} && python 01_main-chapter-code/finetune.py\n")
    assert first < text.index(f"{install} && python -m pytest\n") < 3000


def commands() -> list[tuple[str, str]]:
    found = []
    for readme in READMES:
        for block in re.findall(r"```bash\n(.*?)```", readme.read_text("utf-8"), re.DOTALL):
            for line in block.splitlines():
                if match := re.search(r"(finetune|classify)\.py ?(.*)", line):
                    found.append(match.groups())
    return found


@pytest.mark.parametrize(("script", "arguments"), commands())
def test_every_command_of_a_readme_is_understood(script, arguments):
    arguments = shlex.split(arguments, comments=True)
    if "<" in arguments:
        arguments = arguments[: arguments.index("<")]
    parse = {"finetune": finetune.parse_args, "classify": classify.parse_args}[script]
    parse(arguments)  # an unknown option would end in SystemExit


def test_commands_of_the_result_files_are_understood():
    for path in several_seeds.RESULTS.glob("*.json"):
        command = shlex.split(json.loads(path.read_text(encoding="utf-8"))["command"])
        assert command[:3] == ["several_seeds.py", "run", path.stem]
        options = command[command.index("--model") :]
        assert finetune.parse_args(options).model == "gpt-mini"


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(TOP)))
def test_links_lead_somewhere_and_pictures_say_what_they_show(readme):
    text = readme.read_text(encoding="utf-8")
    for alt, target in re.findall(r"(!?\[[^\]]*\])\(([^)\s]+)\)", text):
        assert alt not in ("![]", "[]"), target
        if not target.startswith(("http://", "https://", "#")):
            assert (readme.parent / target.split("#")[0]).exists(), target


def test_every_module_that_another_folder_imports_is_installed():
    project = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))
    own = {path.stem for path in CHAPTER.glob("*.py")}
    imported = set()
    for path in TOP.glob("0[2-9]*/**/*.py"):
        imports = re.findall(r"^\s*(?:from|import) (\w+)", path.read_text("utf-8"), re.MULTILINE)
        imported |= own.intersection(imports)
    assert {"classify", "previous_chapters"} <= imported
    assert imported <= set(project["tool"]["setuptools"]["py-modules"])


def test_help_of_every_command_explains_its_options(capsys):
    for parse in (finetune.parse_args, classify.parse_args, several_seeds.main):
        with pytest.raises(SystemExit) as stop:
            parse(["--help"])
        assert stop.value.code == 0
    help_text = capsys.readouterr().out
    for option in ("--balance", "--max-length", "--resume", "--text-column", "--output"):
        assert option in help_text


def test_differences_are_paired_by_seed(capsys):
    readme = (TOP / "README.md").read_text(encoding="utf-8")
    bare, random = "2-without-further-pretraining", "3-random-weights"
    for names in (("1-default", bare), (bare, random)):
        assert several_seeds.main(["compare", *names]) == 0
        assert capsys.readouterr().out.strip() in readme
    assert several_seeds.main(["compare", "4-all-layers-mean"]) == 0
    assert capsys.readouterr().out.startswith("0.0 points (")
    result = several_seeds.read_result(random)
    shifted = {"runs": [run | {"seed": run["seed"] + 1} for run in result["runs"]]}
    with pytest.raises(several_seeds.DataError, match="cannot be paired"):
        several_seeds.paired_difference(result, shifted)
    assert several_seeds.main(["compare", "absent"]) == 2
    assert "absent.json: there is no such result" in capsys.readouterr().err


def test_several_seeds_keeps_every_run_and_averages_them(tmp_path, capsys, messages_csv):
    options = ["--data", str(messages_csv), "--model", "gpt-mini", "--trainable", "head"]
    arguments = ["run", "trial", "--seeds", "1", "2", "--results", str(tmp_path)]
    assert several_seeds.main([*arguments, *options, "--epochs", "1"]) == 0
    result = json.loads((tmp_path / "trial.json").read_text(encoding="utf-8"))
    assert [run["seed"] for run in result["runs"]] == [1, 2]
    mean = sum(run["test"]["accuracy"] for run in result["runs"]) / 2
    assert several_seeds.make_table(tmp_path).splitlines()[-1].startswith(f"| {mean:.1%} |")
    assert [path.name for path in tmp_path.glob("trial*")] == ["trial.json"]
    assert several_seeds.main([*arguments, "--data", str(tmp_path / "none.csv")]) == 2
    assert "no such file" in capsys.readouterr().err


def test_seeds_that_are_done_are_kept_when_the_next_one_fails(tmp_path, monkeypatch, messages_csv):
    run, seeds = finetune.run, []

    def run_once(args):
        seeds.append(args.seed)
        if len(seeds) > 1:
            raise OSError("the disk is full")
        return run(args)

    monkeypatch.setattr(finetune, "run", run_once)
    options = ["--data", str(messages_csv), "--model", "gpt-mini", "--trainable", "head"]
    options += ["--epochs", "1", "--pretrain-further", "0", "--results", str(tmp_path / "new")]
    assert several_seeds.main(["run", "trial", *options]) == 1
    [kept] = (tmp_path / "new").iterdir()
    [first] = json.loads(kept.read_text(encoding="utf-8"))["runs"]
    assert first["seed"] == seeds[0] == 1


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["table", "--anything"], "leave out --anything"),
        (["run", "a/b"], "'a/b'"),
        (["run", ""], "''"),
        (["run", "a", "--output", "x"], "--results"),
        (["run", "a", "--outp=x"], "--results"),
        (["run", "a", "--seed", "3"], "--seeds"),
        (["run", "a", "--seeds", "1", "1"], "each once"),
        (["run", "a", "--seeds", "1", "4294967296"], "2**32"),
        (["run", "a", "--results", "{file}"], "cannot be written"),
        (["run", "a", "--modle", "x"], "--modle"),
    ],
    ids=str,
)
def test_several_seeds_refuses_before_the_work_begins(
    tmp_path, capsys, monkeypatch, arguments, part
):
    monkeypatch.setattr(finetune, "run", None)
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    arguments = [argument.format(file=tmp_path / "file") for argument in arguments]
    try:
        status = several_seeds.main(arguments)
    except SystemExit as stop:  # argparse
        status = stop.code
    assert status == 2
    assert part in capsys.readouterr().err
    assert not (several_seeds.RESULTS / "a.json.unfinished").exists()


def test_a_row_without_a_baseline_has_a_dash():
    run = {"test": {"accuracy": 0.5}, "ngram_baseline": None}
    assert "| – |" in several_seeds.table_row({"runs": [run, run], "command": "c"})
