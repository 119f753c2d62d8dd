"""Templates that ask for too much, or for what they may not have: a clean error, soon."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gemquant.errors import CalibrationError, CheckpointError
from gemquant.models import template_child, template_process
from gemquant.models.chat import ChatTemplate, check_template, choose_template, render
from gemquant.models.chat_templates import VARIANTS, ChatFormat
from gemquant.models.template_process import (
    ExhaustedError,
    Limits,
    RefusedError,
    Renderer,
    RenderingError,
)

SMALL = Limits(memory_bytes=96 * 2**20, cpu_seconds=1, seconds=20.0, longest=100_000)
TALK = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good morning."}]
BIG = "3000000000"

MEMORY = {
    "text repeated": "{{ ('a' * 10**10) | length }}",
    "bytes repeated": "{{ ('a'.encode() * 10**10) | length }}",
    "list repeated": "{{ ([1] * 10**10) | length }}",
    "doubling by ~": "{% set n = namespace(x='xxxx') %}{% for i in range(40) %}"
    "{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x | length }}",
    "doubling by +": "{% set n = namespace(x=[1, 2]) %}{% for i in range(40) %}"
    "{% set n.x = n.x + n.x %}{% endfor %}",
    "center": "{{ 'a' | center(" + BIG + ") | length }}",
    "center of a method": "{{ 'a'.center(" + BIG + ") | length }}",
    "ljust": "{{ 'a'.ljust(" + BIG + ") | length }}",
    "rjust": "{{ 'a'.rjust(" + BIG + ") | length }}",
    "zfill": "{{ 'a'.zfill(" + BIG + ") | length }}",
    "expandtabs": "{{ '\\t'.expandtabs(2000000000) | length }}",
    "format's width": "{{ '{:>" + BIG + "}'.format('a') | length }}",
    "format's precision": "{{ '{:.2147483000f}'.format(1.5) | length }}",
    "% width": "{{ ('%" + BIG + "d' % 1) | length }}",
    "format filter": "{{ ('%2000000000d' | format(1)) | length }}",
    "join": "{{ (['a'] * 4000) | join('b' * 4000000) | length }}",
    "replace": "{{ ('a' * 4000000) | replace('a', 'b' * 4000) | length }}",
    "translate": "{{ ('a' * 4000000).translate({97: 'b' * 4000}) | length }}",
    "indent": "{{ ('\\n' * 4000000) | indent(4000, true, true) | length }}",
    "batch": "{{ [1] | batch(" + BIG + ", 0) | list | length }}",
    "tojson's indent": "{{ [[1]] | tojson(indent=2000000000) | length }}",
    "to_bytes": "{{ (1).to_bytes(" + BIG + ", 'big') | length }}",
    "set block": "{% set x %}{% for i in range(100000) %}{% for j in range(100) %}"
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa{% endfor %}{% endfor %}{% endset %}",
    "sum of lists": "{{ ([['a' * 1000] * 1000] * 100000) | sum(start=[]) | length }}",
    "list of a range": "{% set n = namespace(x=[]) %}{% for i in range(200) %}"
    "{% set n.x = n.x + (range(100000) | list) %}{% endfor %}",
    "folded constant": "{{ ('a' | center(" + BIG + ")) | length }}{% if false %}{% endif %}",
}
TIME = {
    "nested ranges": "{% for i in range(100000) %}{% for j in range(100000) %}"
    "{% for k in range(100000) %}{% endfor %}{% endfor %}{% endfor %}",
    "square of a long number": "{% set n = namespace(x=9**999) %}{% for i in range(64) %}"
    "{% set n.x = n.x * n.x %}{% endfor %}",
    "power": "{{ 9 ** 999999999 }}",
    "cycler": "{% set c = cycler(1, 2) %}{% for i in range(100000) %}"
    "{% for j in range(100000) %}{% set x = c.next() %}{% endfor %}{% endfor %}",
    "slice": "{{ [1] | slice(" + BIG + ") | list | length }}",
    "lipsum": "{{ lipsum(n=100000, html=false, min=1000, max=1001) | length }}",
    "fan of macros": "{% macro a() %}x{% endmacro %}"
    + "".join(
        f"{{% macro {new}() %}}{{% for i in range(1000) %}}{{{{ {old}() }}}}{{% endfor %}}"
        "{% endmacro %}"
        for old, new in ("ab", "bc", "cd")
    )
    + "{{ d() }}",
}
DEPTH = {
    "macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "two macros": "{% macro f() %}{{ g() }}{% endmacro %}{% macro g() %}{{ f() }}{% endmacro %}"
    "{{ f() }}",
    "recursive loop": "{% for x in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}",
    "parentheses": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "lists": "{{ " + "[" * 3000 + "]" * 3000 + " }}",
    "ifs": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "fors": "{% for i in [1] %}" * 30 + "{% endfor %}" * 30,
    "elifs": "{% if 0 %}" + "{% elif 0 %}" * 5000 + "{% endif %}",
    "sums": "{{ 1" + "+1" * 20000 + " }}",
    "nots": "{{ " + "not " * 5000 + "1 }}",
    "filters": "{{ 1" + "|int" * 5000 + " }}",
    "attributes": "{{ x" + ".y" * 5000 + " }}",
}
LONG = {
    "output": "{% for i in range(99999) %}{% for j in range(99) %}xxxxxx{% endfor %}{% endfor %}",
}
BROKEN = {
    "no attribute": "{{ [1] | indent }}",
    "no such index": "{{ '{}'.format() }}",
    "no such key": "{{ {'a': 1}.pop('b') }}",
    "not a number": "{{ 'a' | int('b') + 1 }}",
    "long literal": "{{ " + "1" * 5000 + " }}",
    "infinite literal": "{{ 1e400 | int }}",
    "division": "{{ 1 // 0 }}",
    "argument twice": "{{ dict(a=1, a=2) }}",
    "parameter twice": "{% macro f(a, a) %}{% endmacro %}",
    "break outside": "{% break %}",
    "continue in a macro": "{% for i in [1] %}{% macro f() %}{% continue %}{% endmacro %}"
    "{% endfor %}",
    "unknown filter": "{{ 1 | nothing }}",
    "unknown tag": "{% nothing %}",
    "open generation": "{% generation %}",
    "include": "{% include 'a' %}",
    "import": "{% import '/etc/passwd' as a %}",
    "extends": "{% extends 'a' %}",
    "undefined called": "{{ nothing() }}",
}
ESCAPES = {
    "class": "{{ messages.__class__.__mro__ }}",
    "class by attr": "{{ (messages | attr('__class__')).__mro__ }}",
    "class by item": "{{ ''['__class__']['__mro__'] }}",
    "class by format": "{{ '{0.__class__.__mro__}'.format(1) }}",
    "class by format_map": "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "class by map": "{{ [messages] | map(attribute='__class__') | first }}",
    "globals of cycler": "{{ cycler.__init__.__globals__ }}",
    "globals of raise_exception": "{{ raise_exception.__globals__ }}",
    "globals of strftime_now": "{{ strftime_now.__globals__.sys }}",
    "frame": "{{ (messages | map('upper')).gi_frame.f_builtins }}",
    "mutation": "{{ messages.append(1) }}",
    "underscored namespace": "{% set n = namespace(_a=1) %}{{ n }}",
    "underscored by update": "{% set n = namespace({'__class__': 1}) %}{{ n }}",
}


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    with closing(Renderer("chat", SMALL)) as small:
        yield small


def fails(renderer: Renderer, source: str) -> RenderingError:
    with pytest.raises(RenderingError) as failure:
        renderer.render(source, {"messages": TALK})
    assert str(failure.value).isprintable()
    assert str(failure.value).strip()
    return failure.value


@pytest.mark.parametrize("name", sorted(MEMORY))
def test_memory_is_limited(renderer: Renderer, name: str):
    failure = fails(renderer, MEMORY[name])
    assert isinstance(failure, ExhaustedError)
    assert str(failure) in {
        "it needs more than 96 MiB of memory",
        "it takes more than 1 s of processor time",
    }


@pytest.mark.parametrize("name", sorted(TIME))
def test_time_is_limited(renderer: Renderer, name: str):
    failure = fails(renderer, TIME[name])
    assert isinstance(failure, ExhaustedError)
    assert str(failure) in {
        "it takes more than 1 s of processor time",
        "it takes more than 20 s",
        "it needs more than 96 MiB of memory",
    }


@pytest.mark.parametrize("name", sorted(DEPTH))
def test_depth_is_limited(renderer: Renderer, name: str):
    failure = fails(renderer, DEPTH[name])
    assert str(failure) in {
        "it nests or calls itself too deeply",
        "too many nested parentheses",
        "too many statically nested blocks",
    }


@pytest.mark.parametrize("name", sorted(LONG))
def test_length_is_limited(renderer: Renderer, name: str):
    assert str(fails(renderer, LONG[name])) == "its output exceeds 100000 characters"


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_a_broken_template_is_an_error_of_one_line(renderer: Renderer, name: str):
    assert not isinstance(fails(renderer, BROKEN[name]), ExhaustedError)


@pytest.mark.parametrize("name", sorted(ESCAPES))
def test_nothing_leads_out_of_the_sandbox(renderer: Renderer, name: str):
    try:
        text = renderer.render(ESCAPES[name], {"messages": TALK})
    except ExhaustedError:
        raise
    except RenderingError:
        return
    assert text == ""  # undefined


def test_the_next_template_is_rendered_after_a_violation(renderer: Renderer):
    fails(renderer, MEMORY["text repeated"])
    assert renderer.render("{{ messages[0].content }}", {"messages": TALK}) == "Hello"


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_a_broken_template_is_as_broken_the_second_time(renderer: Renderer, name: str):
    once = str(fails(renderer, BROKEN[name]))
    assert renderer.render("{{ messages[1].content }}", {"messages": TALK}) == "Good morning."
    assert str(fails(renderer, BROKEN[name])) == once


def test_a_refusal_in_the_word_of_a_limit_stays_one(renderer: Renderer):
    with pytest.raises(RefusedError, match=r"^memory$"):
        renderer.render("{{ raise_exception('memory') }}", {})


def test_slow_templates_that_end_are_rendered(renderer: Renderer):
    assert renderer.render("{{ ('a.com ' * 2000) | urlize | length }}", {}) == "12000"


def test_terminal_escapes_in_a_reason_become_visible(renderer: Renderer):
    with pytest.raises(RefusedError, match=r"^\\x1b\]0;owned\\x07 and more$"):
        renderer.render("{{ raise_exception('\x1b]0;owned\x07\nand  more.') }}", {})


def test_the_clock_is_watched():
    # An idle loop: neither memory nor much processor time is what ends it.
    clock = Limits(cpu_seconds=600, seconds=0.3)
    with closing(Renderer("chat", clock)) as renderer:
        failure = fails(renderer, TIME["nested ranges"])
    assert str(failure) == "it takes more than 0.3 s"


def test_resident_memory_is_watched_where_the_kernel_has_no_limit(
    monkeypatch: pytest.MonkeyPatch,
):
    unlimited = template_process._PROGRAM.replace(
        "template_child.main", "template_child.limit_process = id; template_child.main"
    )
    monkeypatch.setattr(template_process, "_PROGRAM", unlimited)
    with closing(Renderer("chat", Limits(memory_bytes=96 * 2**20, cpu_seconds=600))) as renderer:
        failure = fails(renderer, MEMORY["set block"])
    assert str(failure) == "it needs more than 96 MiB of memory"


def test_nothing_of_the_environment_is_passed_on(
    renderer: Renderer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with closing(Renderer("chat", SMALL)) as fresh:
        assert fresh.render("a", {}) == "a"
        (child,) = children()
        if sys.platform == "linux":
            assert b"hf_secret" not in Path(f"/proc/{child}/environ").read_bytes()


def children() -> list[int]:
    """Processes of running renderers that this process started, by their threads."""
    found = []
    for thread in threading.enumerate():
        if thread.name == "template watch":
            process = thread._target.__self__  # type: ignore[attr-defined]
            found.append(process._popen.pid)
    return found[-1:]


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_no_process_is_left_after_a_violation_or_a_close():
    renderer = Renderer("chat", SMALL)
    renderer.render("a", {})
    (first,) = children()
    fails(renderer, MEMORY["zfill"])
    assert gone(first)
    renderer.render("a", {})
    (second,) = children()
    renderer.close()
    assert gone(second)
    del renderer
    gc.collect()  # a pipe left open would warn, and warnings are errors


def test_an_idle_process_ends_by_itself(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(template_process, "_SECONDS_IDLE", 0.1)
    with closing(Renderer("chat", SMALL)) as renderer:
        renderer.render("a", {})
        (child,) = children()
        end = time.monotonic() + 20
        while not gone(child) and time.monotonic() < end:
            time.sleep(0.02)
        assert gone(child)
        assert renderer.render("b", {}) == "b"


def test_the_process_ends_with_the_program(tmp_path: Path):
    # Killed: neither atexit nor any cleanup runs.
    program = (
        "import os, signal\n"
        "from gemquant.models.template_process import Renderer\n"
        "renderer = Renderer('chat')\n"
        "renderer.render('a', {})\n"
        "print(renderer._process._popen.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    child = int(done.stdout)
    end = time.monotonic() + 20
    while not gone(child) and time.monotonic() < end:
        time.sleep(0.02)
    assert gone(child)


def test_a_program_that_rendered_ends_quietly():
    program = (
        "from gemquant.models.chat import ChatTemplate, render\n"
        "print(render(ChatTemplate('{{ messages[0].content }}'), [{'content': 'Hello'}]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "Hello\n", "")


def test_many_threads_share_a_renderer():
    results: list[str] = []
    with closing(Renderer("chat", SMALL)) as renderer:

        def work(number: int) -> None:
            results.extend(renderer.render("{{ n }}", {"n": number}) for _ in range(20))

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(results) == [str(n) for n in range(4) for _ in range(20)]


def test_templates_beyond_the_most_start_another_process(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(template_process, "_MOST_TEMPLATES", 2)
    with closing(Renderer("chat", SMALL)) as renderer:
        assert [renderer.render(f"{n}", {}) for n in range(5)] == ["0", "1", "2", "3", "4"]


def test_values_that_json_lacks_become_text(renderer: Renderer):
    assert renderer.render("{{ a }}{{ b }}", {"a": Path("p"), "b": 1.5}) == "p1.5"


def test_values_that_are_too_long_are_an_error(renderer: Renderer):
    with pytest.raises(RenderingError, match="20000057 bytes of values are too many for it"):
        renderer.render("{{ a }}", {"a": "x" * 20_000_000})
    assert renderer.render("{{ a }}", {"a": 1}) == "1"


def test_values_that_nest_too_deeply_are_an_error(renderer: Renderer):
    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(RenderingError, match="cannot be passed"):
        renderer.render("{{ deep }}", {"deep": deep})


# ---------------------------------------------------------------- what users see


def test_a_violation_is_an_error_of_the_checkpoint():
    with pytest.raises(
        CheckpointError,
        match=r"^the chat template fails on a conversation: it needs more than 256 MiB of memory\.",
    ):
        render(ChatTemplate(MEMORY["center"]), TALK)


def test_a_refusal_stays_a_refusal():
    with pytest.raises(CalibrationError, match=r"roles user, assistant: no\."):
        render(ChatTemplate("{{ raise_exception('no.') }}"), TALK)


@pytest.mark.parametrize(
    "source", [DEPTH["parentheses"], DEPTH["ifs"], DEPTH["fors"], BROKEN["argument twice"]]
)
def test_a_file_that_cannot_be_compiled_is_refused_when_it_is_chosen(tmp_path: Path, source: str):
    file = tmp_path / "mine.jinja"
    file.write_text(source)
    with pytest.raises(
        CheckpointError, match=r"mine\.jinja: the chat template cannot be compiled: "
    ):
        choose_template(str(file), None, ChatFormat())


# ---------------------------------------------------------------- before llama.cpp

CONDITIONS = {
    "always": "true",
    "from two messages on": "messages | length > 1",
    "from three messages on": "messages | length > 2",
    "at thirty messages": "messages | length == 30",
    "from a hundred messages on": "messages | length > 100",
    "without messages": "not messages",
    "with a system message": "messages and messages[0].role == 'system'",
    "with tools": "tools",
    "without a prompt": "not add_generation_prompt",
    "with a tool's answer": "messages | selectattr('role', 'equalto', 'tool') | list",
    "with calls": "messages | selectattr('tool_calls', 'defined') | list",
    "with parts": "messages and messages[0].content is not string",
    "with documents": "documents",
    "with thoughts": "messages | selectattr('reasoning_content', 'defined') | list",
    "thinking": "enable_thinking",
    "not thinking": "enable_thinking is defined and not enable_thinking",
    "a word": "messages and 'sesame' in (messages[-1].content or '')",
    "a role": "messages and messages[-1].role == 'developer'",
}
BOMBS = {
    "recursion": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "memory": "{{ 'a' * 10**10 }}",
    "loop": TIME["nested ranges"],
    "range": "{% for i in range(10**9) %}{% endfor %}",
    "behind what is undefined": "{{ nothing.of.that }}{{ 'a' * 10**10 }}",
}


@pytest.mark.parametrize("condition", sorted(CONDITIONS))
def test_llama_cpp_never_sees_a_template_that_recurses(condition: str):
    source = f"{{% if {CONDITIONS[condition]} %}}{BOMBS['recursion']}{{% endif %}}Hello"
    with pytest.raises(
        CheckpointError, match=r"would exhaust llama\.cpp: it nests or calls itself"
    ):
        check_template(ChatTemplate(source))


@pytest.mark.parametrize("bomb", sorted(BOMBS))
def test_llama_cpp_never_sees_a_template_without_bounds(bomb: str):
    source = f"{{% if messages | length > 1 %}}{BOMBS[bomb]}{{% endif %}}Hello"
    with pytest.raises(CheckpointError, match=r"would exhaust llama\.cpp"):
        check_template(ChatTemplate(source))


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_gemmas_own_templates_pass(variant: str):
    check_template(ChatTemplate(VARIANTS[variant]))


def test_a_template_that_recurses_over_tools_passes():
    check_template(
        ChatTemplate(
            "{% macro f(x) %}{% if x is mapping %}{% for k in x %}{{ k }}{{ f(x[k]) }}{% endfor %}"
            "{% else %}{{ x }}{% endif %}{% endmacro %}"
            "{% for tool in tools or [] %}{{ f(tool) }}{% endfor %}"
        )
    )


def test_a_template_that_refuses_most_conversations_passes():
    check_template(ChatTemplate("{% if tools %}{{ raise_exception('no') }}{% endif %}{{ a.b.c }}"))


def test_the_program_imports_the_standard_library_and_jinja2_only():
    program = (
        f"import sys; sys.path += {template_process._import_folders()!r}\n"
        "import template_child\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True
    )
    foreign = set(done.stdout.split()) - set(sys.stdlib_module_names)
    assert foreign == {"__main__", "jinja2", "markupsafe", "template_child"}
    assert template_child.__name__ == "gemquant.models.template_child"
