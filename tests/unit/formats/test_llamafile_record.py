from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemquant.errors import UsageError
from gemquant.formats.llamafile_record import arguments_file, is_plain


def test_plain_arguments_stand_one_to_a_line_before_the_users():
    assert arguments_file(["-m", "/zip/gemma.gguf", "--server", "-c", "8192"]) == (
        b"-m\n/zip/gemma.gguf\n--server\n-c\n8192\n...\n"
    )


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))))
def test_a_shell_reads_back_what_was_given(arguments: list[str]):
    assert shlex.split(arguments_file(arguments).decode()) == [*arguments, "..."]


@pytest.mark.parametrize(
    "argument", ["", "...", "a b", "it's", '"', "$HOME", "#1", "a\\nb", "a\nb"]
)
def test_what_the_runtime_would_interpret_is_not_plain(argument: str):
    assert not is_plain(argument)


@pytest.mark.parametrize("argument", ["-ngl", "999", "/zip/a.gguf", "--host=::1", "./a", "ä"])
def test_ordinary_arguments_are_plain(argument: str):
    assert is_plain(argument)


def test_a_nul_byte_is_refused():
    with pytest.raises(UsageError, match="NUL"):
        arguments_file(["a\0b"])
