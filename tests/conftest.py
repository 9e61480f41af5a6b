"""Helpers that tests of several folders share are importable by name."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
for folder in (HERE, HERE / "models", HERE / "evaluation"):
    sys.path.insert(0, str(folder))
