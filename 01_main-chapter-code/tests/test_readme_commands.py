"""Every command of every README does what it should in a copy of the collection, and leaves no
trace in git.

Commands are shortened by the options below.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import CHAPTER

from gpt_download import SMS_SPAM_ZIP, cache_folder, is_intact
from text_data import read_sms_spam

TOP = CHAPTER.parent
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="the commands are written for a Unix shell"),
    pytest.mark.skipif(not shutil.which("git"), reason="needs git"),
    pytest.mark.skipif(not is_intact(SMS_SPAM_ZIP), reason="needs the SMS messages in the cache"),
]

FEW = "--model gpt-mini --continued-pretraining-epochs 0 --train-size 40 --num-epochs 1"
FEW_REVIEWS = f"{FEW} --max-length 32 --test-size 40 --overwrite"
SHORTENED = {
    "finetune.py": FEW,
    "classify.py": "",
    "train_distributed.py": FEW,
    "make_tables.py": "",
    "domain_shift.py": "",
    "additional_experiments.py --trainable": "--train-size 40 --num-epochs 1",
    "additional_experiments.py --suite": "",
    "download_prepare_dataset.py": "",
    "train_linear.py": "--train-size 200",
    "train_gpt.py": FEW_REVIEWS,
}
NOT_RUN = (  # of these; others need a corpus, a server, an extra or hours, and have their own tests
    "pip install",
    "--resume",  # goes on with a run of the very same options, which are shortened here
    "--nproc_per_node 8",
    "gpt2-",
)


def commands(readme: Path) -> list[str]:
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [re.sub(r"\s+#.*", "", line).strip() for line in lines if line.strip()]


READMES = sorted(TOP.glob("README.md")) + sorted(TOP.glob("0*/**/README.md"))


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A fresh clone of what stands in the working tree, with results that took hours beside it."""
    copy = tmp_path_factory.mktemp("clone") / "collection"
    for name in git(TOP, "ls-files", "--cached", "--others", "--exclude-standard").splitlines():
        if (TOP / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(TOP / name, copy / name)
    # The page makes this file, of messages whose labels its visitors corrected.
    read_sms_spam()[:200].to_csv(copy / "labelled.csv", index=False)
    git(copy, "init", "--quiet")
    git(copy, "add", "--all")
    git(copy, "-c", "user.name=test", "-c", "user.email=test", "commit", "-q", "-m", "all")
    experiments = copy / "02_bonus_additional-experiments"
    shutil.copytree(experiments / "results", copy / "my-results")
    shutil.copytree(experiments / "case-study-domain-shift" / "results", copy / "my-shift")
    return copy


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_the_commands_of_a_readme_succeed_and_leave_git_clean(copy, readme):
    environment = os.environ | {
        "PYTHONPATH": str(copy / CHAPTER.name),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "CH06_CACHE": str(cache_folder()),
        "OMP_NUM_THREADS": "1",
    }
    if readme.parent.name.startswith("03_") and not any(cache_folder().glob("aclImdb*")):
        pytest.skip("needs the film reviews in the cache")
    for command in commands(readme):
        command = command.removeprefix("python -m pip install -r requirements.txt && ")
        shortened = [options for script, options in SHORTENED.items() if script in command]
        if not shortened or any(part in command for part in NOT_RUN):
            continue
        bash = ["bash", "-c", f"{command} {shortened[0]}"]
        done = subprocess.run(bash, cwd=copy, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert git(copy, "status", "--porcelain") == ""
