"""The program that renders untrusted Jinja templates, in a process with hard limits.

``template_process`` starts it with ``python -I -S``; it imports jinja2 and the standard library
only. A request on stdin and a reply on stdout are each a length of 8 bytes and so many bytes.

    request   {"template": 3, "source": "…" or absent if sent before, "values": {…}}
    reply     one byte for the outcome, then the text: rendered, or the reason

Source of what a chat template may use: transformers/utils/chat_template_utils.py, 5.23.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import IO, Any, NoReturn

from jinja2 import (
    ChainableUndefined,
    StrictUndefined,
    Template,
    TemplateRuntimeError,
    TemplateSyntaxError,
    nodes,
)
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

if sys.platform != "win32":
    import resource

LENGTH_BYTES = 8
STARTED = b""
"""The first reply, once everything is imported."""
RENDERED, REFUSED, INVALID, FAILED, EXHAUSTED = b"=", b"r", b"i", b"f", b"x"
"""Outcomes: the text; the template's own raise_exception; not valid Jinja; any other error; a limit
was reached, after which the process ends."""

MEMORY = "memory"
"""Stands for the reason where memory is exhausted."""
_LONGEST_REASON = 300


class RefusedError(TemplateRuntimeError):
    """Raised by a template's own raise_exception."""


# ---------------------------------------------------------------- what templates may use


class _Generation(Extension):
    """``{% generation %}``: marks what the assistant wrote; its body is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Parser) -> nodes.Node:
        """Render the body in a scope of its own, as transformers does."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class _Namespace(Namespace):
    """``namespace()``, without names that begin with an underscore."""

    def __init__(self, /, *pairs: Any, **attributes: Any) -> None:
        values = dict(*pairs, **attributes)
        for name in values:
            _require_public(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _require_public(name)
        Namespace.__setitem__(self, name, value)


def _require_public(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace has no attribute {name!r}")


class _Dict:
    """``dict()`` without the class itself."""

    def __call__(self, *pairs: Any, **items: Any) -> dict[Any, Any]:
        return dict(*pairs, **items)

    def fromkeys(self, keys: Any, value: Any = None) -> dict[Any, Any]:
        """As dict.fromkeys."""
        return dict.fromkeys(keys, value)


def _raise_exception(message: object) -> NoReturn:
    raise RefusedError(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)  # noqa: DTZ005 - the local time, as in transformers


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes for HTML.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def chat_environment() -> ImmutableSandboxedEnvironment:
    """What transformers gives a chat template."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals.update(
        raise_exception=_raise_exception,
        strftime_now=_strftime_now,
        dict=_Dict(),
        namespace=_Namespace,
    )
    return environment


def probe_environment() -> ImmutableSandboxedEnvironment:
    """The same, but an attribute of what is undefined is undefined, as in llama.cpp."""
    return chat_environment().overlay(undefined=ChainableUndefined)


def task_environment() -> ImmutableSandboxedEnvironment:
    """What lm-eval 0.4 gives the template of a task."""
    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.filters["regex_replace"] = lambda text, pattern, by, count=0: re.sub(
        pattern, by, text, count=count
    )
    return environment


ENVIRONMENTS: Mapping[str, Callable[[], ImmutableSandboxedEnvironment]] = {
    "chat": chat_environment,
    "probe": probe_environment,
    "task": task_environment,
}


# ---------------------------------------------------------------- one request


def answer(
    request: Mapping[str, Any],
    environment: ImmutableSandboxedEnvironment,
    compiled: dict[int, Template],
    longest: int,
) -> tuple[bytes, str]:
    """Compile a template that is new, render it; the outcome and the text."""
    number = request["template"]
    try:
        if "source" in request:
            compiled[number] = environment.from_string(request["source"])
    except Exception as error:  # noqa: BLE001 - jinja2 lets through whatever its compiler raises
        return _failure(error)
    if request["values"] is None:
        return RENDERED, ""
    pieces: list[str] = []
    size = 0
    try:
        for piece in compiled[number].generate(request["values"]):
            pieces.append(piece)
            size += len(piece)
            if size > longest:
                return EXHAUSTED, f"its output exceeds {longest} characters"
        return RENDERED, "".join(pieces)
    except Exception as error:  # noqa: BLE001 - a template raises whatever its methods raise
        return _failure(error)


def _failure(error: Exception) -> tuple[bytes, str]:
    """The outcome that an exception stands for, and the reason in one line."""
    match error:
        case RefusedError():
            return REFUSED, _line(str(error.message))
        case MemoryError():
            return EXHAUSTED, MEMORY
        case RecursionError():
            return EXHAUSTED, "it nests or calls itself too deeply"
        case TemplateSyntaxError():
            return INVALID, _line(f"line {error.lineno}: {error.message}")
        case SyntaxError():  # of the Python that jinja2 makes: a break outside of a loop
            return FAILED, _line(error.msg)
        case _:
            # An overflow is a size that nobody needs, such as a range beyond the sandbox's longest.
            outcome = EXHAUSTED if isinstance(error, OverflowError) else FAILED
            return outcome, _line(str(error) or type(error).__name__)


def _line(text: str) -> str:
    """One line of printable text, no longer than a terminal can bear."""
    line = " ".join(text[: 4 * _LONGEST_REASON].split())[:_LONGEST_REASON]
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line).rstrip(".")


# ---------------------------------------------------------------- the process


def limit_process(memory_bytes: int) -> None:
    """Cap memory; forbid files, further processes and core dumps. Nothing of that on Windows."""
    if sys.platform == "win32":
        return
    limits = {
        # macOS takes RLIMIT_AS and does not enforce it; the parent watches as well.
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_DATA: memory_bytes,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 16,
        resource.RLIMIT_NPROC: 0,
    }
    for kind, most in limits.items():
        _, hard = resource.getrlimit(kind)
        limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(kind, (limit, limit))
        except (ValueError, OSError):
            continue  # not on this system


def allow_cpu(seconds: int) -> None:
    """Let the kernel end the process after so much more processor time."""
    if sys.platform == "win32":
        return
    usage = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    most = math.ceil(usage.ru_utime + usage.ru_stime) + seconds
    resource.setrlimit(
        resource.RLIMIT_CPU, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard)
    )


def requests(stream: IO[bytes]) -> Iterator[Any]:
    """Parsed requests, until the parent closes the pipe."""
    while head := stream.read(LENGTH_BYTES):
        yield json.loads(stream.read(int.from_bytes(head, "big")).decode("utf-8", "surrogatepass"))


def main(kind: str, memory_bytes: int, cpu_seconds: int, longest: int) -> None:
    """Answer requests until stdin ends or a limit is reached."""
    environment, compiled = ENVIRONMENTS[kind](), dict[int, Template]()
    limit_process(memory_bytes)
    replies = sys.stdout.buffer

    def reply(content: bytes) -> None:
        replies.write(len(content).to_bytes(LENGTH_BYTES, "big") + content)
        replies.flush()

    reply(STARTED)
    try:
        for request in requests(sys.stdin.buffer):
            allow_cpu(cpu_seconds)
            outcome, text = answer(request, environment, compiled, longest)
            reply(outcome + text.encode("utf-8", "surrogatepass"))
            if outcome == EXHAUSTED:
                return
    except MemoryError:
        reply(EXHAUSTED + MEMORY.encode())
    except RecursionError:
        reply(EXHAUSTED + b"a message nests too deeply")
