"""The Large Movie Review Dataset (Maas et al. 2011) as train, validation and test Parquet files.

    python 03_bonus_imdb-classification/download_prepare_dataset.py

Fetches the archive (84 MB), or takes an archive or an extracted folder that is there already, and
reads the 50,000 labelled reviews. Archives are read, never extracted: nothing of them is written
to the disk under a name of their own choosing.
"""

import argparse
import gzip
import hashlib
import html
import lzma
import re
import sys
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pandas as pd
from tqdm import tqdm

from gpt_download import IMDB_ARCHIVE, DownloadError, cache_folder, fetch, is_intact
from message_files import DataError

REVIEWS = Path(__file__).parent / "reviews"
PARTS = ("train", "validation", "test")
HALVES, LABELS = ("train", "test"), ("neg", "pos")
REVIEWS_PER_LABEL = 12_500  # in each half
VALIDATION_SHARE = 0.1  # of the films of the training half
MAX_FILE_BYTES = 2_000_000  # the longest review has 13,704 characters, a list of films 700,000

REVIEW_PATH = re.compile(r"(?:.*/)?(train|test)/(neg|pos)/(\d+)_(\d+)\.txt")
FILMS_PATH = re.compile(r"(?:.*/)?(train|test)/urls_(neg|pos)\.txt")
FILM_ID = re.compile(r"/title/(tt\d+)/")


# ---------------------------------------------------------------------------------------------
# Where the reviews are: an archive or a folder
# ---------------------------------------------------------------------------------------------


def find_source() -> Path:
    """What the cache holds: the archive, one of its labelled half, or an extracted folder; else
    the archive, fetched. Raises ``DownloadError`` if it is not to be had."""
    others = [cache_folder() / name for name in ("aclImdb_labelled.tar.xz", "aclImdb")]
    found = [path for path in others if path.exists()]
    if found and not is_intact(IMDB_ARCHIVE):
        return found[0]
    return fetch(IMDB_ARCHIVE)


def read_files(source: Path) -> Iterator[tuple[str, bytes]]:
    """Path and content of every file of `source` that is needed, in no particular order.

    Raises ``DataError`` for something else than an intact archive or a folder.
    """
    if source.is_dir():
        yield from _read_folder(source)
    elif source.is_file():
        try:
            yield from _read_archive(source)
        except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
            raise DataError(
                f"{source} is truncated or damaged ({error}); delete it and run this again."
            ) from None
    else:
        raise DataError(
            f"{source}: there is no such file or folder; name the archive aclImdb_v1.tar.gz or the "
            f"folder aclImdb extracted from it, or leave out --source to fetch it."
        )


def _is_needed(path: str) -> bool:
    return bool(REVIEW_PATH.fullmatch(path) or FILMS_PATH.fullmatch(path))


def _read_folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    for half in HALVES:
        for path in (folder / half).glob("urls_*.txt"):
            yield path.relative_to(folder).as_posix(), path.read_bytes()
        for label in LABELS:
            for path in (folder / half / label).glob("*.txt"):
                yield path.relative_to(folder).as_posix(), path.read_bytes()


def _read_archive(path: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path) as archive:
        for member in archive:
            name = PurePosixPath(member.name)
            # Nothing is extracted; but an archive that tries to leave its folder is no honest one.
            if ".." in name.parts or not (member.isreg() or member.isdir()):
                raise DataError(
                    f"{path} is not to be trusted, since {name} is a link, a device or outside "
                    f"its folder; fetch the archive anew from {IMDB_ARCHIVE.urls[0]}."
                )
            if not _is_needed(str(name)):
                continue
            if member.size > MAX_FILE_BYTES:
                raise tarfile.ReadError(f"{name} is larger than a review's file")
            yield str(name), archive.extractfile(member).read()


# ---------------------------------------------------------------------------------------------
# From files to a table
# ---------------------------------------------------------------------------------------------


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


def read_reviews(source: Path, progress: bool = False) -> pd.DataFrame:
    """All 50,000 reviews: `id`, `text`, `label`, `rating` (stars, 1-10) and `film`, sorted by id.

    Raises ``DataError`` that says what is missing or cannot be read.
    """
    reviews: dict[tuple, bytes] = {}
    films: dict[tuple, list[str]] = {}
    total = len(HALVES) * len(LABELS) * REVIEWS_PER_LABEL
    bar = tqdm(total=total, desc="reading", unit="review", disable=not progress)
    for path, content in read_files(source):
        if match := REVIEW_PATH.fullmatch(path):
            half, label, number, rating = match.groups()
            reviews[half, label, int(number), int(rating)] = content
            bar.update()
        elif match := FILMS_PATH.fullmatch(path):
            films[match.groups()] = FILM_ID.findall(content.decode("ascii", "replace"))
    bar.close()
    check_complete(source, reviews, films)
    rows = []
    for (half, label, number, rating), content in sorted(reviews.items()):
        name = f"{half}/{label}/{number}_{rating}"
        try:
            text = remove_markup(content.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(f"{source}: review {name} is damaged: {error}") from None
        rows.append((name, text, label, rating, films[half, label][number]))
    return pd.DataFrame(rows, columns=["id", "text", "label", "rating", "film"])


def check_complete(source: Path, reviews: dict[tuple, bytes], films: dict[tuple, list]) -> None:
    """Raise ``DataError`` unless every review of both halves is there, with its film."""
    problems = []
    for half in HALVES:
        for label in LABELS:
            numbers = {n for h, lab, n, _ in reviews if (h, lab) == (half, label)}
            missing = sorted(set(range(REVIEWS_PER_LABEL)) - numbers)
            if missing:
                problems.append(
                    f"{len(missing):,} of {REVIEWS_PER_LABEL:,} reviews are missing in "
                    f"{half}/{label} (number {missing[0]} is the first)"
                )
            if len(films.get((half, label), [])) < REVIEWS_PER_LABEL:
                problems.append(f"{half}/urls_{label}.txt is missing or too short")
    empty = (key for key, content in reviews.items() if not content)
    problems += ["{}/{}/{}_{} is empty".format(*key) for key in empty]
    if not problems and len(reviews) > len(HALVES) * len(LABELS) * REVIEWS_PER_LABEL:
        problems.append("some reviews are there twice, with different ratings")
    if problems:
        raise DataError(
            f"{source} is not the whole data set: {'; '.join(problems[:9])}. Was its extraction "
            f"interrupted? Delete it and run this again, or name another with --source."
        )


# ---------------------------------------------------------------------------------------------
# Three parts
# ---------------------------------------------------------------------------------------------


def is_validation_film(film: str) -> bool:
    """Whether a film's reviews are for validation: drawn by its name, so alike on every run.

    >>> [is_validation_film(film) for film in ("tt0064354", "tt0100680")]
    [False, False]
    """
    draw = int.from_bytes(hashlib.sha256(film.encode()).digest()[:8], "big") / 2**64
    return draw < VALIDATION_SHARE


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
    """Three Parquet files: all are written under temporary names, then renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    partials = {name: folder / f"{name}.parquet.partial" for name in parts}
    try:
        for name, part in parts.items():
            part.to_parquet(partials[name], index=False, compression="zstd")
        for name, partial in partials.items():
            partial.replace(folder / f"{name}.parquet")
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)


def read_parts(folder: Path = REVIEWS) -> dict[str, pd.DataFrame]:
    """The three parts as `write_parts` left them. Raises ``DataError`` if one cannot be read."""
    parts = {}
    for name in PARTS:
        path = folder / f"{name}.parquet"
        if not path.is_file():
            raise DataError(f"{path} is missing; run download_prepare_dataset.py first.")
        try:
            parts[name] = pd.read_parquet(path)
            parts[name][["id", "text", "label", "rating", "film"]]
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                f"{path} is damaged ({error}); run download_prepare_dataset.py again."
            ) from None
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
        with path.open("rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
        lines.append(
            f"{path.name:<19}{len(part):>7,} reviews of {part['film'].nunique():>5,} films, "
            f"{(part['label'] == 'pos').mean():.1%} positive, SHA-256 {checksum}"
        )
    return "\n".join(lines)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="download_prepare_dataset.py",
        description="Fetch the Large Movie Review Dataset, check that all 50,000 labelled reviews "
        "are there, remove markup, and write train, validation and test as Parquet files with the "
        "columns id, text, label, rating and film.",
        epilog="Exit status: 0 if all is well, 1 if the data cannot be had or written, 2 for a "
        "wrong option or damaged data.",
    )
    parser.add_argument(
        "--source",
        type=Path,
        help="archive or extracted folder aclImdb, taken without a checksum; default: what the "
        "cache holds (CH06_CACHE), else it is fetched and its checksum compared",
    )
    parser.add_argument(
        "--output", type=Path, default=REVIEWS, help="folder to write (default: reviews, here)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        source = args.source or find_source()
        reviews = read_reviews(source, progress=not args.quiet)
        parts = split_reviews(reviews)
        write_parts(parts, args.output)
        print(report(reviews, parts, args.output))
    except DataError as error:
        print(f"download_prepare_dataset.py: {error}", file=sys.stderr)
        return 2
    except (DownloadError, OSError) as error:
        print(f"download_prepare_dataset.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "\nStopped. Run it again: what was fetched is kept, the three files are written anew.",
            file=sys.stderr,
        )
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
