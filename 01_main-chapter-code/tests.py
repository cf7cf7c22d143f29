"""The chapter's tests: `python 01_main-chapter-code/tests.py [pytest options]`."""

import sys
from pathlib import Path

import pytest

if __name__ == "__main__":
    here = Path(__file__).parent
    sys.exit(pytest.main([str(here), "--rootdir", str(here.parent), *sys.argv[1:]]))
