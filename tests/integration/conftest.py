"""The command line on tiny Gemmas: the fixtures of its unit tests."""

from tests.unit.cli.conftest import clipped, run

__all__ = ["clipped", "run"]
