"""``gemquant serve``: a GGUF behind OpenAI's interface."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import click

from gemquant.cli.chat import PRESETS
from gemquant.cli.flags import output_flags
from gemquant.cli.progress import reporter
from gemquant.cli.settings import problems_of, setting, threads_of
from gemquant.errors import UsageError, refuse

if TYPE_CHECKING:
    from gemquant.runtimes.chat.serving import Serving

SECONDS_TO_FINISH = 5.0
"""That requests under way are given when the server is told to stop."""


class ServeCommand(click.Command):
    """Listens until SIGINT or SIGTERM."""

    def invoke(self, ctx: click.Context) -> None:
        """Run the command."""
        from gemquant.cli.render import print_json
        from gemquant.runtimes.chat.opening import Wanted
        from gemquant.runtimes.chat.serving import (
            MAX_PARALLEL,
            Address,
            address_problems,
            read_key,
            serve,
        )

        given = ctx.params
        problems = problems_of(ctx)
        threads = threads_of(given, problems)
        parallel = given["parallel"]
        if not 1 <= parallel <= MAX_PARALLEL:
            problems.append(UsageError(f"--parallel {parallel}: must be from 1 to {MAX_PARALLEL}."))
        address = Address(given["host"], given["port"], given["public"])
        key = problems.attempt(lambda: read_key(given["api_key_file"]))
        problems.attempt(lambda: refuse(address_problems(address, key.value)))
        problems.refuse()
        wanted = Wanted(
            model=given["artifact"],
            preset=given["preset"],
            threads=threads,
            chat_template=given["chat_template"],
            context=given["context"],
            device=given["device"],
        )
        with reporter(quiet=given["quiet"]) as progress:
            progress.note(f"loading {wanted.model}")
            serving = serve(wanted, address, key=key.value, parallel=parallel)
            progress.note(f"preset {serving.choice.preset.name}: {serving.choice.reason}")
            if not address.loopback:
                progress.note("caution: plain http; put a proxy with TLS before it")
        if given["as_json"]:
            print_json(
                {
                    "url": serving.url,
                    "model": serving.model,
                    "context": serving.context,
                    "parallel": serving.parallel,
                    "needs_key": key.value is not None,
                }
            )
        else:
            click.echo(f"{serving.model} at {serving.url}; Ctrl-C stops")
        sys.stdout.flush()
        _wait(serving, quiet=given["quiet"])


def _wait(serving: Serving, *, quiet: bool) -> NoReturn:
    """Wait for a signal, then for requests under way; a second signal ends those too."""
    from gemquant.runtimes.chat.serving import wait_until_idle

    stopping, hurrying = threading.Event(), threading.Event()

    def told(_signal: int, _frame: FrameType | None) -> None:
        (hurrying if stopping.is_set() else stopping).set()

    signal.signal(signal.SIGINT, told)
    signal.signal(signal.SIGTERM, told)
    stopping.wait()
    finished = wait_until_idle(serving, seconds=SECONDS_TO_FINISH, give_up=hurrying)
    if not quiet:
        click.echo("stopped" if finished else "stopped; answers were cut short", err=True)
    sys.stdout.flush()
    sys.stderr.flush()
    # The interpreter's own end would free what llama.cpp's threads still read.
    os._exit(0)


command = ServeCommand(
    "serve",
    params=[
        click.Argument(["artifact"], metavar="ARTIFACT|FILE.gguf"),
        click.Option(
            ["--port"],
            type=int,
            default=8080,
            show_default=True,
            metavar="N",
            help="Port to listen on; 0 for any.",
        ),
        click.Option(
            ["--host"],
            default="127.0.0.1",
            show_default=True,
            help="Address to listen on. One that other machines reach needs --public and a key.",
        ),
        click.Option(["--public"], is_flag=True, help="Let other machines ask."),
        click.Option(
            ["--api-key-file"],
            type=click.Path(dir_okay=False, path_type=Path),
            metavar="FILE",
            help="File with the key that clients must give.  [default: $GEMQUANT_API_KEY]",
        ),
        click.Option(
            ["--parallel"],
            type=int,
            default=4,
            show_default=True,
            metavar="N",
            help="Conversations at once, each with its own context; more wait.",
        ),
        click.Option(
            ["--preset"],
            type=click.Choice(PRESETS),
            default="auto",
            show_default=True,
            help="What each conversation may cost in memory; see `gemquant chat --help`.",
        ),
        click.Option(
            ["--context"],
            type=int,
            metavar="N",
            help="Tokens of a conversation.  [default: the preset's]",
        ),
        setting(
            "--chat-template",
            metavar="NAME|FILE",
            instead="the file's; system-in-user where it has none",
            help="Chat template: stock, system, system-in-user, systemgemma2, or a file.",
        ),
        click.Option(
            ["--device"], metavar="cpu|cuda|mps", help="Where to compute.  [default: the fastest]"
        ),
        setting("--threads", type=int, instead="physical cores", metavar="N", help="Threads."),
        *output_flags(),
    ],
    help="""Serve a GGUF behind OpenAI's interface.

    llama.cpp's own server (extra gguf) answers at /v1/chat/completions, /v1/completions and
    /v1/models, on this machine alone. --host with --public lets other machines ask; they must give
    the key in $GEMQUANT_API_KEY or --api-key-file. Ctrl-C or SIGTERM gives answers under way five
    seconds; a second one ends them.""",
    epilog="""\b
Examples:
  gemquant serve gemma-3-1b-it-Q4_K_M.gguf --port 8080
  gemquant serve my-gemma --parallel 8 --context 4096 --preset memory
  gemquant serve my-gemma --host 0.0.0.0 --public --api-key-file key.txt""",
)
