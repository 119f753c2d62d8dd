"""The hand-written pages name files that exist, and commands that the program has."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from gemquant.cli import cli

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "ci").glob("*.md"), *(ROOT / "docs").glob("*.md")],
)
FOLDERS = "gemquant|targets|tests|ci|calib_data|docs"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_is_named_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(rf"`((?:{FOLDERS})/[^` ]*)`", text)
    linked = [
        target
        for target in re.findall(r"\]\(([^)# ]+)[^)]*\)", text)
        if not target.startswith(("http", "mailto"))
    ]
    missing = [path for path in named if "…" not in path and not list(ROOT.glob(path.rstrip("/")))]
    missing += [path for path in linked if not (page.parent / path).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_in_a_shell_block_exists(page: Path) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    context = click.Context(cli, info_name="gemquant")
    unknown = []
    for line in lines:
        words = re.findall(r"(?:^|[|&] )gemquant ([a-z0-9-]+)([^#|&]*)", line)
        for name, arguments in words:
            command = cli.get_command(context, name)
            if command is None:
                unknown += [] if name == "clipped" else [name]  # the example of a plug-in
                continue
            rest = re.sub(r"--arg \S+", "", arguments)  # those of another program
            flags = {flag for p in command.params for flag in (*p.opts, *p.secondary_opts)}
            unknown += [f"{name} {f}" for f in re.findall(r" (-[-a-z]+)", rest) if f not in flags]
    assert unknown == []
