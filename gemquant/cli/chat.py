"""``gemquant chat``: talk with an artifact in the terminal."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from gemquant.cli.flags import output_flags
from gemquant.cli.progress import reporter
from gemquant.cli.settings import problems_of, setting, threads_of
from gemquant.errors import GemquantError, UsageError, refuse

if TYPE_CHECKING:
    from gemquant.core.progress import Progress
    from gemquant.runtimes.chat.engine import Message
    from gemquant.runtimes.chat.opening import Opened, Wanted
    from gemquant.runtimes.chat.sampling import Sampling
    from gemquant.runtimes.chat.session import Session

PRESETS = ("auto", "exact", "speed", "memory", "memory_extreme")
HELP = """\
!new    begin a new conversation
!help   this list
!quit   leave; so does Ctrl-D
Ctrl-C  stop an answer; what was said of it stays in the conversation"""
LONGEST_INPUT = 4_000_000
"""Characters read from a pipe."""


class ChatCommand(click.Command):
    """Opens the engine, then answers one piped question or many typed ones."""

    def invoke(self, ctx: click.Context) -> None:
        """Run the command."""
        from gemquant.runtimes.chat.opening import Wanted, open_engine
        from gemquant.runtimes.chat.session import Session

        given = ctx.params
        typed = sys.stdin.isatty()
        sampling = _sampling(given)
        problems = problems_of(ctx)
        problems += sampling.problems()
        threads = threads_of(given, problems)
        if typed and given["as_json"]:
            problems.append(
                UsageError("--json: prints the answer to a question from a pipe; none is here.")
            )
        question = "" if typed else _piped(problems)
        refuse(problems)
        wanted = Wanted(
            model=given["artifact"],
            preset=given["preset"],
            threads=threads,
            chat_template=given["chat_template"],
            context=given["context"],
            device=given["device"],
        )
        system = given["system"]
        with reporter(quiet=given["quiet"]) as progress:
            opened = open_engine(wanted, _opening(system))
            _introduce(opened, wanted, progress)
        session = Session(opened.engine, sampling, system)
        try:
            if typed:
                _converse(session)
            else:
                _answer_once(session, question, as_json=given["as_json"])
        finally:
            opened.engine.close()


def _sampling(given: dict[str, Any]) -> Sampling:
    from gemquant.runtimes.chat.sampling import Sampling

    names = ("temperature", "top_p", "top_k", "seed", "max_tokens")
    return Sampling(**{name: given[name] for name in names if given[name] is not None})


def _opening(system: str | None) -> list[Message]:
    """The messages that a template must accept."""
    before: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    return [*before, {"role": "user", "content": "Hello"}]


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


def _introduce(opened: Opened, wanted: Wanted, progress: Progress) -> None:
    preset = opened.choice.preset
    chosen = f"{preset.name} (auto: " if wanted.preset == "auto" else f"{preset.name} ("
    progress.note(f"{opened.engine.description}; context {opened.engine.context}")
    progress.note(f"preset {chosen}{opened.choice.reason})")


def _answer_once(session: Session, question: str, *, as_json: bool) -> None:
    from gemquant.cli.render import print_json

    if not as_json:
        finished = session.ask(question, _say)
        click.echo()
        if not finished:
            raise KeyboardInterrupt
        return
    pieces: list[str] = []
    began = time.monotonic()
    if not session.ask(question, pieces.append):
        raise KeyboardInterrupt
    seconds = time.monotonic() - began
    print_json({"answer": "".join(pieces), "pieces": len(pieces), "seconds": seconds})


def _converse(session: Session) -> None:
    """Read questions until there are no more."""
    from gemquant.runtimes.chat.engine import ContextFullError

    with contextlib.suppress(ImportError):  # Windows has it built into its terminal
        import readline  # noqa: F401 - gives input() its history and its editing keys

    click.echo("!help lists what else can be typed.", err=True)
    while True:
        try:
            question = input("> ").strip()
        except EOFError:
            click.echo()
            return
        except KeyboardInterrupt:
            click.echo("\n!quit or Ctrl-D leaves.", err=True)
            continue
        if question == "!quit":
            return
        if question == "!new":
            session.restart()
            click.echo("A new conversation.", err=True)
        elif question == "!help":
            click.echo(HELP)
        elif question.startswith("!"):
            click.echo(f"{question.split()[0]}: no such command. {HELP}", err=True)
        elif question:
            try:
                finished = session.ask(question, _say)
                click.echo("" if finished else " […]")
            except ContextFullError as error:
                click.echo(f"{error.message}. !new begins another conversation.", err=True)


def _say(piece: str) -> None:
    click.echo(piece, nl=False)
    sys.stdout.flush()


command = ChatCommand(
    "chat",
    params=[
        click.Argument(["artifact"], metavar="ARTIFACT|FILE.gguf"),
        click.Option(
            ["--preset"],
            type=click.Choice(PRESETS),
            default="auto",
            show_default=True,
            help="What a conversation may cost in memory.",
        ),
        setting("--system", metavar="TEXT", help="Words for the system role."),
        setting(
            "--chat-template",
            metavar="NAME|FILE",
            instead="the artifact's",
            help="Chat template: stock, system, system-in-user, systemgemma2, or a file.",
        ),
        setting("--max-tokens", type=int, default=1024, metavar="N", help="Longest answer."),
        setting(
            "--temperature",
            type=float,
            default=1.0,
            metavar="X",
            help="How freely tokens are drawn; 0 takes the likeliest.",
        ),
        setting(
            "--top-p",
            type=float,
            default=0.95,
            metavar="X",
            help="Draw from the likeliest tokens that have this probability together.",
        ),
        setting(
            "--top-k",
            type=int,
            default=64,
            metavar="N",
            help="Draw from so many tokens at most; 0 for all.",
        ),
        click.Option(
            ["--seed"], type=int, metavar="N", help="Draw alike each time.  [default: any]"
        ),
        click.Option(
            ["--context"],
            type=int,
            metavar="N",
            help="Tokens of a conversation.  [default: the preset's]",
        ),
        click.Option(
            ["--device"],
            metavar="cpu|cuda|mps",
            help="Where to compute.  [default: the fastest]",
        ),
        setting("--threads", type=int, instead="physical cores", metavar="N", help="Threads."),
        *output_flags(),
    ],
    help="""Talk with an artifact in the terminal.

    GGUF files run in llama.cpp (extra gguf), other artifacts in transformers. A question from a
    pipe is answered once, on stdout.

    \b
    preset          keys and values  context  activations in transformers
    exact           f32              8192     float32
    speed           f16              8192     bfloat16, compiled on NVIDIA GPUs
    memory          q8_0             4096     bfloat16
    memory_extreme  q4_0             2048     bfloat16
    auto            the first of speed, memory, memory_extreme that fits in free memory""",
    epilog="""\b
Examples:
  gemquant chat gemma-3-1b-it-Q4_K_M.gguf
  gemquant chat my-gemma --preset memory --system 'Answer in one sentence.'
  echo 'Why is the sky blue?' | gemquant chat my-gemma --seed 1 --max-tokens 100""",
)
