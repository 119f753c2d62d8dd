"""Programs for other interpreters and for boards: plain files that do not import gemquant."""

from pathlib import Path

PROGRAMS = Path(__file__).resolve().parent
