"""Small stand-ins for the reviews: an archive in the original layout, and three parts."""

import random
import sys
import tarfile
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))

WORDS = {
    "neg": ["awful", "boring", "waste", "worst", "dull"],
    "pos": ["great", "superb", "moving", "best", "lovely"],
}
NUM_PER_LABEL = 20
RATINGS = {"neg": 2, "pos": 9}


def made_up_review(label: str, rng: random.Random, num_words: int = 12) -> str:
    return " ".join(rng.choices([*WORDS[label], "the", "film", "was", "and"], k=num_words))


def archive_members() -> dict[str, bytes]:
    """Paths and contents of a data set with 20 reviews of each label in each half."""
    rng = random.Random(0)
    members = {"aclImdb/README": b"not needed"}
    for half in ("train", "test"):
        for label in ("neg", "pos"):
            films = ""
            for i in range(NUM_PER_LABEL):
                text = f"{made_up_review(label, rng)}<br /><br />number {half} {label} {i}"
                members[f"aclImdb/{half}/{label}/{i}_{RATINGS[label]}.txt"] = text.encode()
                film = i // 2 + 100 * (half == "test")  # two reviews of each film
                films += f"http://www.imdb.com/title/tt{film:07}/usercomments\n"
            members[f"aclImdb/{half}/urls_{label}.txt"] = films.encode()
    return members


def write_folder(folder: Path, members: dict[str, bytes]) -> Path:
    for name, content in members.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder / "aclImdb"


def write_archive(path: Path, folder: Path) -> Path:
    with tarfile.open(path, f"w:{path.suffix[1:]}") as archive:
        archive.add(folder, folder.name)
    return path


def write_sample_parts(folder: Path, num_train: int = 12) -> Path:
    """Three parts in which a few words tell the labels apart: 12 reviews of each label in each
    part, but `num_train` to train on."""
    rng = random.Random(1)
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("train", "validation", "test"):
        rows = [
            (f"{part}/{label}/{i}", made_up_review(label, rng), label, RATINGS[label], "t")
            for i in range(num_train if part == "train" else 12)
            for label in WORDS
        ]
        columns = ["id", "text", "label", "rating", "film"]
        pd.DataFrame(rows, columns=columns).to_parquet(folder / f"{part}.parquet", index=False)
    return folder
