"""A board behind ssh or adb: what it is; programs that run on it and leave nothing there."""

from __future__ import annotations

from gemquant.rockchip.board.connection import BoardAddress, ask
from gemquant.rockchip.board.survey import Survey, survey

__all__ = ["BoardAddress", "Survey", "ask", "survey"]
