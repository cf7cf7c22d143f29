"""A page to try a saved classifier in.

python 04_user_interface/app.py [DIR [DIR]]
"""

import argparse
import startup_errors  # noqa: F401
import sys
from pathlib import Path

import matplotlib

from command_line import make_parser, quoted, run_command
from fine_tuning import RunConfig, fine_tune
from run_folder import CHECKPOINT


def name_and_password(text: str) -> tuple[str, str]:
    name, _, password = text.partition(":")
    if not (name and password):
        raise argparse.ArgumentTypeError("it must be NAME:PASSWORD, neither of them empty")
    return name, password


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(
        "app.py", "Serve a page on this machine to try a classifier that finetune.py wrote."
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path("classifier"), help="classifier folder"
    )
    parser.add_argument(
        "beside", nargs="?", type=Path, help="another classifier, whose answer is shown beside"
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="the file that the first one was trained on: its test messages become examples, and "
        "its n-gram model answers, too",
    )
    parser.add_argument(
        "--train",
        action="store_true",
        help="where the folder holds no classifier yet, fine-tune gpt-mini into it first (minutes)",
    )
    parser.add_argument("--port", type=int, default=7860, help="port to listen on")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 lets in whoever can reach this machine",
    )
    parser.add_argument(
        "--auth", type=name_and_password, metavar="NAME:PASSWORD", help="ask visitors for these"
    )
    args = parser.parse_args(argv)
    if not 0 <= args.port < 2**16:
        parser.error("--port is a number from 0 to 65535")
    return args


def train_if_missing(folder: Path) -> None:
    """Fine-tune gpt-mini into the folder, or go on with that, unless it holds a classifier."""
    if not (folder / "config.json").exists():
        stopped = (folder / CHECKPOINT).exists()
        fine_tune(RunConfig(model="gpt-mini", output=folder, resume=stopped))


def serve(args: argparse.Namespace) -> None:
    from page import LAUNCH, build_page  # takes seconds, which --help need not wait for

    if args.train:
        train_if_missing(args.folder)
    elif not args.folder.exists():
        raise FileNotFoundError(
            f"there is no folder {args.folder}; make one with `python 01_main-chapter-code/"
            f"finetune.py --output {quoted(args.folder)}`, or start this command with --train."
        )
    page = build_page(args.folder, args.beside, args.data)
    page.launch(server_name=args.host, server_port=args.port, auth=args.auth, **LAUNCH)
    print(f"The page is at {page.local_url} – stop it with Ctrl+C.", flush=True)
    if args.host not in ("127.0.0.1", "localhost") and not args.auth:
        print("Whoever can reach this machine can use it: --auth asks for a password.", flush=True)
    page.block_thread()


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    return run_command("app.py", lambda: serve(args))


if __name__ == "__main__":
    matplotlib.use("Agg")  # --train writes its plots to files: no window is needed
    sys.exit(main())
