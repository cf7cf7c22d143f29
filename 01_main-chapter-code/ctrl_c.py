"""Imported by every command before the libraries, which take seconds to load: Ctrl+C says one word
then, too, and shows no traceback."""

import sys


def say_stopped(kind: type[BaseException], error: BaseException, traceback) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("stopped.", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


sys.excepthook = say_stopped
