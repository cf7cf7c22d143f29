"""What finetune.py and classify.py share as commands: standard output, and memory that ends."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def standard_output() -> Iterator[None]:
    """Standard output for a command to print to. Raises ``OSError`` where it cannot be written.

    A character that the terminal cannot show is spelled out, not an error.
    """
    if sys.stdout is None:
        raise OSError("standard output is closed; leave it open, or send it to a file.")
    sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        try:
            sys.stdout.flush()  # now, while it can still be said that the disk is full
        except OSError:
            # Python would try once more when it ends, and complain in its own words.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ended; on a CPU and on MPS, PyTorch says so by a plain ``RuntimeError``.

    >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("shapes do not match"))
    (True, False)
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    signs = ("DefaultCPUAllocator", "MPS backend out of memory")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
