"""``gemquant serve``: a GGUF behind an OpenAI-compatible API."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import click

from gemquant.cli.chat import chat_request, model_flags
from gemquant.cli.flags import flag, flags, output_flags, path_flag
from gemquant.cli.settings import problems_of, threads_of
from gemquant.core.progress import reporter
from gemquant.errors import UsageError, echo

if TYPE_CHECKING:
    from gemquant.runtimes.chat.serving import Serving

SECONDS_TO_FINISH = 5.0
"""For requests that run when the server is stopped."""


@click.command(
    "serve",
    epilog="""\b
Examples:
  gemquant serve gemma-3-1b-it-Q4_K_M.gguf --port 8080
  gemquant serve my-gemma --parallel 8 --context 4096 --preset memory
  gemquant serve my-gemma --host 0.0.0.0 --public --api-key-file key.txt""",
)
@flags(
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
    flag("--public", "Let other machines connect."),
    click.Option(
        ["--allow-host"],
        multiple=True,
        metavar="NAME",
        help="Host name under which clients reach this server; repeatable. This machine's own "
        "names and, with --public, addresses need none.",
    ),
    path_flag(
        "--api-key-file", "File with the key that clients must send.  [default: $GEMQUANT_API_KEY]"
    ),
    click.Option(
        ["--parallel"],
        type=int,
        default=4,
        show_default=True,
        metavar="N",
        help="Conversations at once, each with its own context; more wait.",
    ),
    *model_flags(
        "How much memory each conversation may use; see `gemquant chat --help`.",
        template="the file's; system-in-user if it has none",
    ),
    *output_flags(),
)
@click.pass_context
def command(ctx: click.Context, /, **params: Any) -> None:
    """Serve a GGUF behind an OpenAI-compatible API.

    llama.cpp's server (extra gguf) answers at /v1/chat/completions, /v1/completions and /v1/models,
    on this machine only. --host with --public lets other machines connect; they must send the key
    in $GEMQUANT_API_KEY or --api-key-file. Ctrl-C or SIGTERM gives running answers five seconds; a
    second one ends them.
    """
    from gemquant.cli.render import print_json
    from gemquant.runtimes.chat.serving import (
        MAX_PARALLEL,
        Address,
        address_problems,
        read_key,
        serve,
    )

    problems = problems_of(ctx)
    request = chat_request(params, threads_of(params, problems))
    parallel = params["parallel"]
    if not 1 <= parallel <= MAX_PARALLEL:
        problems.append(UsageError(f"--parallel {parallel}: must be from 1 to {MAX_PARALLEL}."))
    address = Address(params["host"], params["port"], params["public"], params["allow_host"])
    key = problems.attempt(lambda: read_key(params["api_key_file"]))
    if key.succeeded:
        problems += address_problems(address, key.value)
    problems.refuse()
    with reporter(quiet=params["quiet"]) as progress:
        progress.start(f"loading {request.model}", 0)
        serving = serve(request, address, key=key.value, parallel=parallel, progress=progress)
        progress.note(f"preset {serving.choice.preset.name}: {serving.choice.reason}")
        if not address.loopback:
            progress.note("caution: plain HTTP; put a TLS proxy in front of it")
    if params["as_json"]:
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
        echo(f"{serving.model} at {serving.url}; Ctrl-C stops")
    sys.stdout.flush()
    _wait(serving, quiet=params["quiet"])


def _wait(serving: Serving, *, quiet: bool) -> NoReturn:
    """Wait for a signal, then for running requests; a second signal ends those too."""
    from gemquant.runtimes.chat.serving import wait_until_idle

    stopping, hurrying = threading.Event(), threading.Event()

    def on_signal(_signal: int, _frame: FrameType | None) -> None:
        (hurrying if stopping.is_set() else stopping).set()

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    stopping.wait()
    finished = wait_until_idle(serving, seconds=SECONDS_TO_FINISH, give_up=hurrying)
    if not quiet:
        echo("stopped" if finished else "stopped; answers were cut short", err=True)
    sys.stdout.flush()
    sys.stderr.flush()
    serving.guard.close()
    # The interpreter's exit would free what llama.cpp's threads still read.
    os._exit(0)
