"""External tools with their own pinned versions, run under another interpreter.

Nothing of them is imported here. The tool reads its job from a JSON file; it writes JSON lines of
progress to stdout and its result to a JSON file. Its time and memory are limited, and no process of
it outlives the call.
"""

from gemquant.runtimes.worker.interpreter import Interpreter
from gemquant.runtimes.worker.run import Limits, Tool, run_tool

__all__ = ["Interpreter", "Limits", "Tool", "run_tool"]
