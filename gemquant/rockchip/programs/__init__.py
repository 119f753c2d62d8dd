"""Programs for other interpreters and for boards: plain files that import nothing of gemquant."""

from pathlib import Path

PROGRAMS = Path(__file__).resolve().parent
