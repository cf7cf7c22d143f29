"""The Large Movie Review Dataset (Maas et al. 2011) as train, validation and test Parquet files.

    python 03_bonus_imdb-classification/download_prepare_dataset.py

Fetches the archive (84 MB), or takes an archive or an extracted folder that is there already, and
reads the 50,000 labelled reviews. Archives are read, never extracted: nothing of them is written
to the disk under a name of their own choosing.
"""

import hashlib
import html
import re
import startup_errors  # noqa: F401
import sys
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from command_line import make_parser, run_command
from files import file_sha256, tar_members, whole_file
from gpt_download import IMDB_ARCHIVE, cache_folder, fetch, is_intact
from message_files import DataError

REVIEWS = Path(__file__).parent / "reviews"
PARTS = ("train", "validation", "test")
HALVES, LABELS = ("train", "test"), ("neg", "pos")
REVIEWS_PER_LABEL = 12_500  # in each half
VALIDATION_FRACTION = 0.1  # of the films of the training half

NEEDED = re.compile(r"(?:.*/)?(train|test)/(?:(neg|pos)/(\d+)_(\d+)|urls_(neg|pos))\.txt")
FILM_ID = re.compile(r"/title/(tt\d+)/")


def find_source() -> Path:
    """What the cache holds: the archive, one of its labelled half, or an extracted folder; else
    the archive, fetched. Raises ``DownloadError`` if it is not to be had."""
    others = [cache_folder() / name for name in ("aclImdb_labelled.tar.xz", "aclImdb")]
    found = [path for path in others if path.exists()]
    return found[0] if found and not is_intact(IMDB_ARCHIVE) else fetch(IMDB_ARCHIVE)


def read_files(source: Path) -> Iterator[tuple[re.Match, bytes]]:
    """Path, taken apart, and content of every file of `source` that is needed, in any order.

    Raises ``ValueError`` for an archive that is not whole, ``FileNotFoundError`` for none.
    """
    if source.is_dir():
        for path in source.glob("t*/**/*.txt"):
            if match := NEEDED.fullmatch(path.as_posix()):
                yield match, path.read_bytes()
        return
    for name, content in tar_members(source):
        if match := NEEDED.fullmatch(name):
            yield match, content


def remove_markup(text: str) -> str:
    r"""The text that a reader of the review saw: line breaks for `<br />`, no tags, no entities.

    Windows' dashes, dots and quotes, which the data set holds as control characters that some
    programs take for line ends, become what they were meant to be. (Python takes the dots for one
    too: beside a line break, in 82 reviews, they go with it.)

    >>> remove_markup("Good\x85 or?<br /><br />Very <i>good</i> &amp; short")
    'Good… or?\nVery good & short'
    """
    text = re.sub(r"(?:\s*<br\s*/?>\s*)+", "\n", text, flags=re.IGNORECASE)
    text = re.sub(r"</?(?:i|b|em|p|hr|spoiler)\s*/?>", "", text, flags=re.IGNORECASE)
    text = re.sub(
        "[\x80-\x9f]", lambda sign: sign[0].encode("latin-1").decode("cp1252", "ignore"), text
    )
    return html.unescape(text).strip()


def read_reviews(source: Path) -> pd.DataFrame:
    """All 50,000 reviews: `id`, `text`, `label`, `rating` (stars, 1-10) and `film`, sorted by id.

    Raises ``DataError`` that says what is missing or cannot be read.
    """
    rows, films = [], {}
    for match, content in tqdm(read_files(source), "reading"):
        half, label, number, rating, label_of_films = match.groups()
        if label:
            text = remove_markup(content.decode("utf-8"))
            rows.append((half, label, int(number), int(rating), text))
        else:
            films[half, label_of_films] = FILM_ID.findall(content.decode("ascii", "replace"))
    reviews = pd.DataFrame(sorted(rows), columns=["half", "label", "number", "rating", "text"])
    found = reviews.groupby(["half", "label"]).size()
    missing = [
        "/".join(key)
        for key in product(HALVES, LABELS)
        if min(found.get(key, 0), len(films.get(key, []))) < REVIEWS_PER_LABEL
    ]
    if missing:
        raise DataError(
            f"{source} is not the whole data set: reviews or their films are missing in "
            f"{', '.join(missing)}. Was its extraction interrupted? Delete it and run this again."
        )
    path = reviews["half"] + "/" + reviews["label"] + "/" + reviews["number"].astype(str)
    places = zip(reviews["half"], reviews["label"], reviews["number"])
    film = [films[half, label][number] for half, label, number in places]
    reviews = reviews.assign(id=path + "_" + reviews["rating"].astype(str), film=film)
    return reviews[["id", "text", "label", "rating", "film"]]


def is_validation_film(film: str) -> bool:
    """Whether a film's reviews are for validation: drawn by its name, so alike on every run.

    >>> [is_validation_film(film) for film in ("tt0064354", "tt0100680")]
    [False, False]
    """
    draw = int.from_bytes(hashlib.sha256(film.encode()).digest()[:8], "big") / 2**64
    return draw < VALIDATION_FRACTION


def split_reviews(reviews: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The official test half, untouched, and the training half without repeated texts and
    without the test half's texts, divided by films into training and validation."""
    is_test = reviews["id"].str.startswith("test/")
    test, half = reviews[is_test], reviews[~is_test]
    half = half[~half["text"].isin(test["text"])].drop_duplicates("text")
    is_validation = half["film"].map(is_validation_film)
    parts = (half[~is_validation], half[is_validation], test)
    return {name: part.reset_index(drop=True) for name, part in zip(PARTS, parts, strict=True)}


def write_parts(parts: dict[str, pd.DataFrame], folder: Path) -> None:
    """Three Parquet files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        with whole_file(folder / f"{name}.parquet") as partial:
            part.to_parquet(partial, index=False, compression="zstd")


def read_parts(folder: Path = REVIEWS, names: Sequence[str] = PARTS) -> dict[str, pd.DataFrame]:
    """The named parts as `write_parts` left them. Raises ``DataError`` if one is missing."""
    parts = {}
    for name in names:
        path = folder / f"{name}.parquet"
        if not path.is_file():
            raise DataError(f"{path} is missing; run download_prepare_dataset.py first.")
        parts[name] = pd.read_parquet(path)
    return parts


def report(reviews: pd.DataFrame, parts: dict[str, pd.DataFrame], folder: Path) -> str:
    """What was found, what was left out, and what was written."""
    is_test = reviews["id"].str.startswith("test/")
    train_texts, test_texts = set(reviews["text"][~is_test]), set(reviews["text"][is_test])
    num_used = len(parts["train"]) + len(parts["validation"])
    lines = [
        f"{len(reviews):,} reviews, {len(train_texts | test_texts):,} different texts",
        f"{len(train_texts & test_texts):,} texts stand in both halves",
        f"{(~is_test).sum() - num_used:,} reviews of the training half left out: they stand in the "
        f"test half, or repeat another",
    ]
    for name, part in parts.items():
        path = folder / f"{name}.parquet"
        lines.append(
            f"{path.name:<19}{len(part):>7,} reviews of {part['film'].nunique():>5,} films, "
            f"{(part['label'] == 'pos').mean():.1%} positive, SHA-256 {file_sha256(path)}"
        )
    return "\n".join(lines)


def run(output: Path) -> None:
    reviews = read_reviews(find_source())
    parts = split_reviews(reviews)
    write_parts(parts, output)
    print(report(reviews, parts, output))


def main(argv: list[str] | None = None) -> int:
    parser = make_parser("download_prepare_dataset.py", __doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=REVIEWS, help="folder to write")
    output = parser.parse_args(argv).output
    when_stopped = "stopped; run it again."
    return run_command("download_prepare_dataset.py", lambda: run(output), when_stopped, output)


if __name__ == "__main__":
    sys.exit(main())
