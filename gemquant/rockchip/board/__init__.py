"""A board reached through ssh or adb: its survey, and programs that leave nothing on it."""

from __future__ import annotations

from gemquant.rockchip.board.connection import BoardAddress, ask
from gemquant.rockchip.board.survey import Survey, survey

__all__ = ["BoardAddress", "Survey", "ask", "survey"]
