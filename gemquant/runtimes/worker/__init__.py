"""Foreign tools with versions of their own, run under another interpreter.

Nothing of them is imported here. A job goes to the tool as a JSON file; it answers with JSON lines
of progress on stdout and a JSON file as its result. It gets so much time and memory and no more,
and no process of it outlives the call.
"""

from gemquant.runtimes.worker.interpreter import Interpreter
from gemquant.runtimes.worker.run import Limits, Tool, run_tool

__all__ = ["Interpreter", "Limits", "Tool", "run_tool"]
