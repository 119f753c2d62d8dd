"""``gemquant chat``: talk with an artifact in the terminal."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from gemquant.cli.flags import complete_model, complete_template, flags, output_flags, threads_flag
from gemquant.cli.settings import problems_of, setting, threads_of
from gemquant.core.progress import reporter
from gemquant.core.untrusted import UntrustedFile, user_path
from gemquant.errors import GemquantError, UsageError, echo, refuse

if TYPE_CHECKING:
    from gemquant.models.chat import Message
    from gemquant.runtimes.chat.load import ChatRequest
    from gemquant.runtimes.chat.session import Session

PRESETS = ("auto", "exact", "speed", "memory", "memory_extreme")
HELP = """\
!new    start a new conversation
!help   show this list
!quit   leave; so does Ctrl-D
Ctrl-C  stop an answer; the part already shown stays in the conversation"""
_MAX_IMAGE_BYTES = 50_000_000
LONGEST_INPUT = 4_000_000
"""Characters read from a pipe."""


def chat_request(params: Mapping[str, Any], threads: int) -> ChatRequest:
    """Return the request of ``model_flags``, for ``chat`` and ``serve``."""
    from gemquant.runtimes.chat.load import ChatRequest

    return ChatRequest(
        model=params["artifact"],
        preset=params["preset"],
        threads=threads,
        chat_template=params["chat_template"],
        context=params["context"],
        device=params["device"],
        mmproj=params["mmproj"],
    )


def model_flags(preset_help: str, *, template: str) -> list[click.Parameter]:
    """What ``chat`` and ``serve`` load, and how. template: the default template, in words."""
    return [
        click.Argument(["artifact"], metavar="ARTIFACT|FILE.gguf", shell_complete=complete_model),
        click.Option(
            ["--preset"],
            type=click.Choice(PRESETS),
            default="auto",
            show_default=True,
            help=preset_help,
        ),
        setting(
            "--chat-template",
            metavar="NAME|FILE",
            instead=template,
            help="Chat template: stock, system, system-in-user, systemgemma2, or a file.",
            complete=complete_template,
        ),
        click.Option(
            ["--context"],
            type=int,
            metavar="N",
            help="Tokens of a conversation.  [default: the preset's]",
        ),
        click.Option(
            ["--device"], metavar="cpu|cuda|mps", help="Where to compute.  [default: the fastest]"
        ),
        click.Option(
            ["--mmproj"],
            metavar="FILE|none",
            help="File of vision and audio towers of a GGUF.  [default: the artifact's]",
        ),
        threads_flag(),
    ]


@click.command(
    "chat",
    epilog="""\b
Examples:
  gemquant chat gemma-3-1b-it-Q4_K_M.gguf
  gemquant chat my-gemma --preset memory --system 'Answer in one sentence.'
  echo 'Why is the sky blue?' | gemquant chat my-gemma --seed 1 --max-tokens 100
  echo 'What is this?' | gemquant chat gemma-3-4b-it-gguf --image photo.jpg""",
)
@flags(
    *model_flags("How much memory a conversation may use.", template="the artifact's"),
    setting("--system", metavar="TEXT", help="System message."),
    click.Option(
        ["--image"],
        multiple=True,
        metavar="FILE",
        help="PNG, JPEG, or WAV to hear, with the first question; repeatable. For a GGUF with its "
        "mmproj file.",
    ),
    setting("--max-tokens", type=int, default=1024, metavar="N", help="Longest answer."),
    setting(
        "--temperature",
        type=float,
        default=1.0,
        metavar="X",
        help="Sampling temperature; 0 is greedy.",
    ),
    setting("--top-p", type=float, default=0.95, metavar="X", help="Nucleus sampling threshold."),
    setting(
        "--top-k",
        type=int,
        default=64,
        metavar="N",
        help="Sample from the N most likely tokens; 0 for all.",
    ),
    click.Option(
        ["--seed"], type=int, metavar="N", help="Seed, for the same answer.  [default: random]"
    ),
    *output_flags(),
)
@click.pass_context
def command(ctx: click.Context, /, **params: Any) -> None:
    """Chat with an artifact in the terminal.

    GGUF files run in llama.cpp (extra gguf), other artifacts in transformers. A piped question is
    answered once, on stdout.

    \b
    preset          keys and values  context  activations in transformers
    exact           f32              8192     float32
    speed           f16              8192     bfloat16, compiled on NVIDIA GPUs
    memory          q8_0             4096     bfloat16
    memory_extreme  q4_0             2048     bfloat16
    auto            the first of speed, memory, memory_extreme that fits in free memory
    """  # noqa: D301 - \b is Click's mark for lines that stay as they are
    from gemquant.formats.gguf.find import check_place
    from gemquant.runtimes.sampling import Sampling

    problems = problems_of(ctx)
    typed = sys.stdin.isatty()
    names = ("temperature", "top_p", "top_k", "seed", "max_tokens")
    sampling = Sampling(**{name: params[name] for name in names if params[name] is not None})
    problems += sampling.problems()
    threads = threads_of(params, problems)
    if typed and params["as_json"]:
        problems.append(
            UsageError("--json: prints the answer to a piped question; stdin is a terminal.")
        )
    question = "" if typed else _piped(problems)
    media = _media(params["image"], problems)
    refuse(problems)
    check_place(params["artifact"])  # before torch is loaded

    from gemquant.runtimes.chat.load import load_chat_model
    from gemquant.runtimes.chat.media import SENSES
    from gemquant.runtimes.chat.session import Session

    senses = {SENSES[each["type"]] for each in media}
    request, system = replace(chat_request(params, threads), senses=senses), params["system"]
    opening: list[Message] = [{"role": "user", "content": "Hello"}]
    if system is not None:
        opening = [{"role": "system", "content": system}, *opening]
    with reporter(quiet=params["quiet"]) as progress:
        progress.start(f"loading {request.model}", 0)
        model, choice = load_chat_model(request, opening, progress)
        name = f"{choice.preset.name} ({'auto: ' if request.preset == 'auto' else ''}"
        progress.note(f"{model.software}; context {model.context}")
        progress.note(f"preset {name}{choice.reason})")
    session = Session(model, sampling, system, media)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it ends an answer, then the program
    if typed:
        _converse(session)
    else:
        _answer_once(session, question, as_json=params["as_json"])


def _media(files: Sequence[str], problems: list[GemquantError]) -> list[dict[str, Any]]:
    """Images and sounds as parts of a message."""
    from gemquant.runtimes.chat.media import MAX_MEDIA, LimitError, image_part

    if len(files) > MAX_MEDIA:
        problems.append(UsageError(f"--image: given {len(files)} times; at most {MAX_MEDIA}."))
        return []
    parts = []
    for name in files:
        try:
            parts.append(image_part(UntrustedFile(user_path(name), _MAX_IMAGE_BYTES).bytes()))
        except LimitError as error:
            problems.append(UsageError(f"--image {name}: {error}."))
        except GemquantError as error:
            problems.append(UsageError(f"--image {error.message}", hint=error.hint))
    return parts


def _piped(problems: list[GemquantError]) -> str:
    try:
        text = sys.stdin.read(LONGEST_INPUT + 1)
    except UnicodeDecodeError as error:
        problems.append(UsageError(f"standard input: not UTF-8: {error}."))
        return ""
    if len(text) > LONGEST_INPUT:
        problems.append(UsageError(f"standard input: more than {LONGEST_INPUT} characters."))
    if not text.strip():
        problems.append(
            UsageError(
                "standard input holds no question.",
                hint="echo 'Why is the sky blue?' | gemquant chat ARTIFACT",
            )
        )
    return text


def _answer_once(session: Session, question: str, *, as_json: bool) -> None:
    from gemquant.cli.render import print_json

    pieces: list[str] = []
    started = time.monotonic()
    completed = session.ask(question, pieces.append if as_json else _show)
    if not as_json:
        echo()
    if not completed:
        raise KeyboardInterrupt
    if as_json:
        seconds = time.monotonic() - started
        print_json({"answer": "".join(pieces), "pieces": len(pieces), "seconds": seconds})


def _converse(session: Session) -> None:
    """Read questions until there are no more."""
    from gemquant.runtimes.chat.session import ContextFullError

    with contextlib.suppress(ImportError):  # Windows has it built into its terminal
        import readline  # noqa: F401 - gives input() its history and its editing keys

    echo("Type !help for commands.", err=True)
    while True:
        try:
            question = input("> ").strip()
        except EOFError:
            echo()
            return
        except KeyboardInterrupt:
            echo("\nType !quit or press Ctrl-D to leave.", err=True)
            continue
        if question == "!quit":
            return
        if question == "!new":
            session.restart()
            echo("New conversation.", err=True)
        elif question == "!help":
            echo(HELP)
        elif question.startswith("!"):
            echo(f"{question.split()[0]}: no such command. {HELP}", err=True)
        elif question:
            try:
                completed = session.ask(question, _show)
                echo("" if completed else " […]")
            except ContextFullError as error:
                echo(f"{error.message}. Type !new to start another conversation.", err=True)


def _show(piece: str) -> None:
    echo(piece, nl=False)
    sys.stdout.flush()
