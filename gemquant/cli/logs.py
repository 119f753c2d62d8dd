"""The one place where a log handler is installed."""

from __future__ import annotations

import logging
import os

import click


class StderrHandler(logging.Handler):
    """Writes to whatever stderr is at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        click.echo(self.format(record), err=True)


def show_logs(verbosity: int) -> None:
    """Log to stderr: warnings; with one ``-v`` what is done; with two also details."""
    if os.environ.get("GEMQUANT_DEBUG"):
        verbosity = 2
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbosity, 2)]
    logger = logging.getLogger("gemquant")
    logger.setLevel(level)
    if not logger.handlers:
        handler = StderrHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
