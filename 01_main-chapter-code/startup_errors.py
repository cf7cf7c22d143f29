"""Imported by every command before the libraries, which take seconds to load: Ctrl+C says one word
then, too, and a package that is missing is named, both without a traceback."""

import sys


def say_stopped(kind: type[BaseException], error: BaseException, traceback) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("stopped.", file=sys.stderr)
    elif issubclass(kind, ModuleNotFoundError):
        files = "requirements.txt, and the folder's requirements-extra.txt"
        print(f"The package {error.name} is missing: pip install -r {files}.", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


sys.excepthook = say_stopped
