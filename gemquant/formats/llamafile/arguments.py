"""``.args``: what a llamafile's runtime is called with.

From 0.10 the runtime splits the file as a shell would (cosmopolitan's ``cosmo_args``: quotes,
backslashes, # and $NAME mean something); before, each line was one argument. A plain argument on a
line of its own reads alike in both; any other is quoted, as only 0.10 and later understand.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from gemquant.errors import UsageError

USERS_ARGUMENTS = "..."
"""Where the runtime puts what it was called with."""

_PLAIN = re.compile(r"(?!\.\.\.)[^\s'\"$#\\\x00-\x1f]+")


def is_plain(argument: str) -> bool:
    """Whether an argument needs no quotes.

    >>> is_plain("--host=127.0.0.1"), is_plain("Be brief.")
    (True, False)
    """
    return _PLAIN.fullmatch(argument) is not None


def arguments_file(arguments: Sequence[str]) -> bytes:
    r"""Write ``.args``: the arguments, then the user's own.

    >>> arguments_file(["-m", "/zip/gemma.gguf", "-p", "It's short."]).decode().splitlines()
    ['-m', '/zip/gemma.gguf', '-p', "'It'\\''s short.'", '...']
    """
    for argument in arguments:
        if "\0" in argument:
            raise UsageError(f"--arg {argument!r}: a NUL byte cannot be in an argument.")
    lines = [*map(_line, arguments), USERS_ARGUMENTS]
    return "".join(f"{line}\n" for line in lines).encode()


def _line(argument: str) -> str:
    if is_plain(argument):
        return argument
    # Between single quotes everything stands for itself.
    return "'" + argument.replace("'", r"'\''") + "'"
