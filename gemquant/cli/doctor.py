"""``gemquant doctor``: what is installed, what works, and how to get the rest."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from gemquant.cli.flags import complete_target, flags, output_flags
from gemquant.errors import RuntimeMissingError

if TYPE_CHECKING:
    from gemquant.convert.doctor import Finding


@click.command(
    "doctor",
    epilog="""\b
Examples:
  gemquant doctor
  gemquant doctor --target rk3588
  gemquant doctor --target rk3588 --board ssh://rock@rock-5b.local
  gemquant doctor --board adb:0123456789ABCDEF
  gemquant doctor --json""",
)
@flags(
    click.Option(
        ["--target"],
        metavar="NAME",
        shell_complete=complete_target,
        help="Say what is needed to convert for this NPU instead: rk3588 and its like.",
    ),
    click.Option(
        ["--board"],
        metavar="ssh://USER@HOST[:PORT]|adb:SERIAL",
        help="Look at a board instead: NPU driver, runtime, memory, clocks, temperatures.",
    ),
    *output_flags(),
)
def command(*, target: str | None, board: str | None, as_json: bool, quiet: bool) -> None:
    """Check what is installed and working, and how to install the rest.

    Versions of all that gemquant needs, the kernels in use, the runtimes that run artifacts, the
    devices. A warning is something missing that not everybody needs, with the command that brings
    it; a problem is something installed that does not work. Exits with 8 if there is a problem.

    A board is asked through this system's ssh or adb, without a password and with its host key
    known; nothing is written there.
    """
    from gemquant.cli import render
    from gemquant.convert.doctor import examine

    del quiet  # there is no progress to silence
    findings = _board(board, target) if board else []
    if target is not None:
        findings = [*_target(target), *findings]
    elif board is None:
        findings = examine()
    if as_json:
        render.print_json([dataclasses.asdict(finding) for finding in findings])
    else:
        _print(findings)
    broken = [finding for finding in findings if finding.state == "problem"]
    if broken:
        names = ", ".join(finding.name for finding in broken)
        raise RuntimeMissingError(
            f"Installed, but not as it must be: {names}.", hint=broken[0].command
        )


def _target(name: str) -> list[Finding]:
    from gemquant.core.targets import load_target
    from gemquant.rockchip.doctor import examine_target

    return examine_target(load_target(name))


def _board(address: str, target: str | None) -> list[Finding]:
    from gemquant.core.targets import load_target
    from gemquant.rockchip.board_connection import BoardAddress
    from gemquant.rockchip.doctor import examine_board

    chip = None if target is None else load_target(target)
    return examine_board(BoardAddress.parse(address), chip)


def _print(findings: list[Finding]) -> None:
    from gemquant.cli import render

    listing = render.table("", "", "found", "for")
    listing.show_header = False
    for finding in findings:
        listing.add_row(finding.state, finding.name, finding.found, finding.purpose)
    commands = [
        f"{finding.name}: {finding.command}" for finding in findings if finding.command is not None
    ]
    render.print_tables(listing, *(["", "To have what is missing:", *commands] if commands else []))
