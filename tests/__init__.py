"""The tests, in the folders of what they test; what several of them need is in `support`."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
