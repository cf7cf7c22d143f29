"""A page to try a saved classifier in.

python 04_user_interface/app.py [DIR]
"""

import argparse
import os
import shlex
import socket
import sys
from pathlib import Path

import matplotlib

from finetune import number
from finetune import parse_args as parse_finetune_args
from finetune import run as finetune
from gpt_download import DownloadError
from text_classifier import open_classifier

DEFAULT_FOLDER = Path("classifier")  # where finetune.py writes
PORT = number(int, "between 1 and 65535", lambda value: 1 <= value <= 65535)


def name_and_password(text: str) -> tuple[str, str]:
    name, colon, password = text.partition(":")
    if not (name and colon and password):
        raise argparse.ArgumentTypeError("it must be NAME:PASSWORD, neither of them empty")
    return name, password


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="app.py",
        description="Serve a page on this machine to try a classifier folder in that finetune.py "
        "wrote.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, default=DEFAULT_FOLDER, help="classifier folder"
    )
    parser.add_argument(
        "--train",
        action="store_true",
        help="where the folder does not exist, or this was stopped in it, fine-tune gpt-mini into "
        "it first (minutes)",
    )
    parser.add_argument("--port", type=PORT, default=7860, help="port to listen on")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 lets in whoever can reach this machine",
    )
    parser.add_argument(
        "--auth", type=name_and_password, metavar="NAME:PASSWORD", help="ask visitors for these"
    )
    return parser.parse_args(argv)


def find_folder(folder: Path, train: bool) -> Path:
    """The folder, with a classifier in it. Raises ``FileNotFoundError`` with what to do."""
    options = ["--model", "gpt-mini", "--output", str(folder)]
    if (folder / "run.json").is_file() and not (folder / "config.json").exists():
        if not train:
            raise FileNotFoundError(
                f"the training in {folder} was stopped; go on with `finetune.py --resume` and its "
                f"options, or, if it was this command's, with --train."
            )
        options.append("--resume")
    elif folder.exists():
        if train:
            raise ValueError(f"--train: {folder} exists already; leave --train out to open it.")
        return folder
    elif not train:
        raise FileNotFoundError(
            f"there is no folder {folder}; make one with `python 01_main-chapter-code/finetune.py "
            f"{shlex.join(options)}`, or start this command with --train."
        )
    finetune(parse_finetune_args(options))
    return folder


def check_address(host: str, port: int) -> None:
    """Raise ``OSError`` with a sentence where nothing can listen there."""
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise OSError(
            f"cannot listen on {host}, port {port} ({error.strerror}); choose another --port or "
            f"--host."
        ) from None


def serve(args: argparse.Namespace) -> None:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        from page import LAUNCH, build_page
    except ModuleNotFoundError as error:
        raise OSError(
            f"the package {error.name} is missing; install what the page needs with "
            f"`python -m pip install -r 04_user_interface/requirements-extra.txt`."
        ) from None
    check_address(args.host, args.port)
    folder = find_folder(args.folder, args.train)
    page = build_page(open_classifier(folder), folder)
    page.launch(
        server_name=args.host,
        server_port=args.port,
        auth=args.auth,
        prevent_thread_lock=True,
        quiet=True,
        **LAUNCH,
    )
    print(f"The page is at {page.local_url} – stop it with Ctrl+C.", flush=True)
    if args.host not in ("127.0.0.1", "localhost") and not args.auth:
        print("Whoever can reach this machine can use it: --auth asks for a password.", flush=True)
    page.block_thread()


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        serve(args)
    except (ValueError, FileNotFoundError) as error:  # a wrong option or folder
        print(f"app.py: {error}", file=sys.stderr)
        return 2
    except (DownloadError, OSError) as error:
        print(f"app.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    matplotlib.use("Agg")  # --train writes its plots to files: no window is needed
    sys.exit(main())
