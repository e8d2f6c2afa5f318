"""Templates of strangers: limits of time and memory that hold, a process that goes on, helpers that come and go.

BEE_HOSTILE_TEMPLATES=500 tries that many programs of the grammar below instead of a few.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_model
from gguf_document import text
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from bee_integrations import Engine, GenerationParams
from bee_integrations.errors import TemplateError
from bee_integrations.text import template_process
from bee_integrations.text.chat_template import ChatTemplate
from bee_integrations.text.template_rendering import MAX_MEMORY
from bee_integrations.text.template_shape import is_bounded

USER = [{"role": "user", "content": "Hi"}]
# Not bounded by its shape: it renders in a helper.
ECHO = "{% set n = namespace(x=messages[0].content) %}{{ n.x }}"
NESTED = (
    "{% set n = namespace(x=[1], y=[1]) %}"
    "{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% set n.y = [n.y, n.y] %}{% endfor %}"
)
FOREVER = NESTED + "{{ n.x == n.y }}"


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A second of processor time is enough to tell; and no helper of another test."""
    monkeypatch.setattr(template_process, "MAX_SECONDS", 1)
    template_process.close_helpers()
    yield
    template_process.close_helpers()


def idle_pid() -> int:
    (helper,) = template_process._idle
    return int(helper._process.pid)


# ---- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_the_kernel_holds_the_limits() -> None:
    ChatTemplate(ECHO).render(USER)
    status = Path(f"/proc/{idle_pid()}")
    limits = {line[:25].strip(): line[26:].split()[0] for line in (status / "limits").read_text().splitlines()}
    mapped, resident = (int(pages) * resource.getpagesize() for pages in (status / "statm").read_text().split()[:2])
    assert int(limits["Max cpu time"]) <= 1 + 1 + 1  # the limit, what it had used, whole seconds
    assert int(limits["Max address space"]) - (mapped - resident) <= MAX_MEMORY + (8 << 20)
    assert limits["Max file size"] == "0"


@pytest.mark.parametrize(
    "source",
    [
        FOREVER,
        NESTED + "{{ raise_exception(n.x) }}",
        NESTED + "{{ [n.x, n.y] | sort }}",
        "{% set n=namespace(x=(1,)) %}{% for i in range(60) %}{% set n.x=(n.x,n.x) %}{% endfor %}{{ {n.x:1} }}",
        "{% set l=range(99999)|list %}{% for i in range(99000) %}{% if -1 in l %}{% endif %}{% endfor %}",
        '{% set a=("f"*7000000)|int(0,16) %}{% set b=("f"*3000001)|int(0,16) %}{{ (a//b)%7 }}',
    ],
)
def test_time_ends(source: str) -> None:
    with pytest.raises(TemplateError, match=r"was stopped.*: it takes more than 1 seconds of processor time"):
        ChatTemplate(source).render(USER)


@pytest.mark.parametrize(
    "source",
    [
        '{{ "a".encode().zfill(9000000000)|length }}',
        '{{ ("a"*1000000).translate({97:"b"*1000000}) }}',
        "{% set l=namespace(x=[]) %}{% for i in range(900) %}{% set l.x = l.x + [range(99999)|list] %}{% endfor %}",
        "".join(f'{{% set x{i}="a"*7999999 ~ "{i}" %}}' for i in range(500)),
    ],
)
def test_memory_ends(source: str) -> None:
    with pytest.raises(
        TemplateError, match=r"256 MB of memory|nested too deeply|more than 8000000|more than 400000000"
    ):
        ChatTemplate(source).render(USER)


def test_other_requests_go_on(tmp_path: Path) -> None:
    document = tiny_model.model()
    document.metadata["tokenizer.chat_template"] = text(FOREVER)
    failures: list[Exception] = []

    def render() -> None:
        try:
            engine.render_chat(USER)
        except TemplateError as error:
            failures.append(error)

    with Engine(document.write(tmp_path / "hostile.gguf"), drafter=None, threads=1) as engine:
        thread = threading.Thread(target=render)
        thread.start()
        for _ in range(3):  # would wait for ever if that comparison kept the interpreter
            assert engine.complete([1, 2, 3], GenerationParams(max_tokens=5)).tokens
        thread.join()
    assert len(failures) == 1


# A grammar of hostile programs: something grows, then something looks at all of it.
_GROW = [
    "{% set n.x = [n.x, n.x] %}",
    "{% set n.x = (n.x, n.x) %}",
    "{% set n.x = [n.x] %}",
    "{% set n.x = n.x ~ n.x %}",
    "{% set n.x = n.x + n.x %}",
    '{% set n.x = {"a": n.x, "b": n.x} %}',
    '{% set n.x = {"a": n.x}.items() %}',
    "{% set n.x = namespace(a=n.x, b=n.x) %}",
    "{% set n.x = n.x | string | forceescape %}",
    "{% set n.x = n.x * 3 %}",
    "{% set n.x = cycler(n.x, n.x) %}",
    "{% set n.x = range(9999) | list + [n.x] %}",
]
_SEED = ["[1]", "(1,)", "'a'", "'<&'", "7", "('f' * 100000) | int(0, 16)", "'ab'.encode()", "{'k': 1}", "1.5"]
_LOOK = [
    "n.x == n.y", "n.x in [n.y]", "[n.x, n.y] | sort", "{n.x: 1}", "n.x | string | length", "n.x | upper",
    "n.x | tojson", "'%s' % (n.x,)", "'{:>9999}'.format(n.x)", "[n.x, n.y] | unique | list", "raise_exception(n.x)",
    "n.x ~ ''", "n.x | join(n.x | string)", "n.x | center(9999)", "nothing[n.x].foo", "n.x | replace('a', n.x)",
    "n.x | groupby(0)", "n.x.zfill(999999999)", "n.x // 3 % 7", "n.x | batch(3) | list",
    "n.x | indent(9999)", "[n.x, n.y] | max",
]  # fmt: skip


@st.composite
def hostile_programs(draw: st.DrawFn) -> str:
    grow = "".join(draw(st.lists(st.sampled_from(_GROW), min_size=1, max_size=2)))
    seed = draw(st.sampled_from(_SEED))
    count = draw(st.sampled_from([5, 60, 2000, 90000]))
    looks = draw(st.lists(st.sampled_from(_LOOK), min_size=1, max_size=3))
    body = f"{{% for i in range({count}) %}}{grow}{grow.replace('n.x', 'n.y')}{{% endfor %}}"
    look = "".join(f"{{{{ {look} }}}}" for look in looks)
    repeat = draw(st.sampled_from(["{look}", "{{% for i in range(90000) %}}{look}{{% endfor %}}"])).format(look=look)
    return f"{{% set n = namespace(x={seed}, y={seed}) %}}{body}{repeat}"


@settings(
    max_examples=int(os.environ.get("BEE_HOSTILE_TEMPLATES", "8")),
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(hostile_programs())
def test_programs_of_a_grammar(source: str) -> None:
    template_process.close_helpers()
    here, there = time_used(resource.RUSAGE_SELF), time_used(resource.RUSAGE_CHILDREN)
    with contextlib.suppress(TemplateError):  # the only thing that it may raise
        assert isinstance(ChatTemplate(source).render(USER), str)
    template_process.close_helpers()
    # What the kernel counted: a second to compile and one to render, each up to a second later, and starting Python.
    assert time_used(resource.RUSAGE_CHILDREN) - there < 6
    assert time_used(resource.RUSAGE_SELF) - here < 2


def time_used(who: int) -> float:
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


# ---- what goes in and out --------------------------------------------------------------------------------------------


def test_values_arrive_as_they_are() -> None:
    source = (
        "{% set n = namespace() %}{{ a }}|{{ b | tojson }}|{{ c is none }}|{{ d }}|{{ e[0] }}|{{ f.g }}|"
        "{{ '\\ud800' in h }}"
    )
    template = ChatTemplate(source)
    values = {"a": 1.5, "b": {"x": [True, "é"]}, "c": None, "d": (1, "2"), "e": b"ab", "f": {"g": 2**70}, "h": "\ud800"}
    assert template.render(USER, **values) == f'1.5|{{"x": [true, "é"]}}|True|(1, \'2\')|97|{2**70}|True'
    assert ChatTemplate(ECHO).render([{"content": "a\ud800b" * 100_000}]) == "a\ud800b" * 100_000


def test_functions_of_the_caller_are_called_here() -> None:
    template = ChatTemplate("{% set n = namespace() %}{{ now('%Y', zone=[1]) }}{{ now('x', zone=2) }}")
    calls: list[Any] = []

    def now(pattern: str, zone: Any) -> str:
        calls.append((pattern, zone, os.getpid()))
        return f"<{pattern}>"

    assert template.render(USER, now=now) == "<%Y><x>"
    assert calls == [("%Y", [1], os.getpid()), ("x", 2, os.getpid())]

    def fails(*args: Any, **kwargs: Any) -> str:
        raise RuntimeError("no clock here")

    with pytest.raises(TemplateError, match="failed at line 1: no clock here"):
        template.render(USER, now=fails)
    assert template.render(USER, now=now) == "<%Y><x>"


def test_values_that_cannot_be_handed_over() -> None:
    with pytest.raises(TemplateError, match="cannot be given these messages"):
        ChatTemplate(ECHO).render([{"role": "user", "content": threading.Lock()}])
    assert ChatTemplate(ECHO).render(USER) == "Hi"


def test_errors_are_the_same_in_a_helper() -> None:
    template = ChatTemplate(
        "{% set n = namespace(x=0) %}\n{% if x %}{{ raise_exception('no!') }}{% endif %}\n{{ a.b }}"
    )
    with pytest.raises(TemplateError, match="rejects these messages at line 2: no!"):
        template.render(USER, x=1)
    with pytest.raises(TemplateError, match="failed at line 3: 'a' is undefined"):
        template.render(USER)
    with pytest.raises(TemplateError, match="invalid at line 2"):
        ChatTemplate("{% set n = namespace() %}\n{% if %}")


# ---- helpers come and go ---------------------------------------------------------------------------------------------


def test_a_helper_is_used_again() -> None:
    template = ChatTemplate(ECHO)
    first = idle_pid()
    assert [template.render(USER) for _ in range(5)] == ["Hi"] * 5
    assert idle_pid() == first


def test_a_helper_that_died_is_replaced() -> None:
    template = ChatTemplate(ECHO)
    pid = idle_pid()
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert template.render(USER) == "Hi"
    assert idle_pid() != pid


def test_a_helper_that_grew_is_not_used_again() -> None:
    grown = ChatTemplate(
        "{% set n = namespace(x=[]) %}{% for i in range(20) %}{% set n.x = n.x + [b[i:]] %}{% endfor %}"
    )
    assert grown.render(USER, b="x" * 7_500_000) == ""
    assert ChatTemplate(ECHO).render(USER) == "Hi"


def test_threads_have_helpers_of_their_own() -> None:
    template = ChatTemplate(ECHO)
    results: list[str] = []

    def render(name: str) -> None:
        results.extend(template.render([{"role": "user", "content": name}]) for _ in range(20))

    threads = [threading.Thread(target=render, args=(str(index),)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [str(index) for index in range(4) for _ in range(20)]
    assert len(template_process._idle) <= 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fork_has_helpers_of_its_own() -> None:
    template = ChatTemplate(ECHO)
    pid = idle_pid()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, template.render([{"role": "user", "content": "child"}]).encode())
            template_process.close_helpers()
        finally:
            os._exit(0)
    os.close(writing)
    assert os.read(reading, 100) == b"child"
    os.close(reading)
    os.waitpid(child, 0)
    assert template.render(USER) == "Hi"
    assert idle_pid() == pid


def test_an_interrupt_ends_the_helper() -> None:
    template = ChatTemplate(FOREVER)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            template.render(USER)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not template_process._idle
    assert ChatTemplate(ECHO).render(USER) == "Hi"


@pytest.mark.parametrize("how", ["file", "stdin"])
def test_a_script_needs_no_guard(tmp_path: Path, how: str) -> None:
    package = Path(template_process.__file__).parents[2]
    script = (
        f"import sys; sys.path.insert(0, {str(package)!r})\n"
        "from bee_integrations.text.chat_template import ChatTemplate\n"
        f"print(ChatTemplate({ECHO!r}).render([{{'content': 'once'}}]))\n"
    )
    path = tmp_path / "script.py"
    path.write_text(script)
    done = subprocess.run(
        [sys.executable, str(path) if how == "file" else "-"], input=script, capture_output=True, text=True, timeout=120
    )
    assert (done.stdout, done.returncode) == ("once\n", 0), done.stderr


def test_no_process_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(TemplateError, match=r"process of its own, and none starts: .*No such file"):
        ChatTemplate(ECHO)
    monkeypatch.setattr(sys, "executable", "/bin/true")
    with pytest.raises(TemplateError, match="ended with status 0"):
        ChatTemplate(ECHO)


def test_a_program_without_python(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(sys, "executable", None)
    assert ChatTemplate(ECHO).render(USER) == "Hi"
    assert "cannot start Python" in caplog.text


# ---- what needs no helper --------------------------------------------------------------------------------------------


@pytest.fixture
def no_helper(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Callable[..., Any]:
        raise AssertionError("it went to a helper")

    monkeypatch.setattr(template_process, "run", refuse)


@pytest.mark.usefixtures("no_helper")
def test_plain_templates_stay_here() -> None:
    assert "Hi" in ChatTemplate(tiny_model.TEMPLATE).render(USER)


@pytest.mark.parametrize(
    ("bounded", "source"),
    [
        (True, "{% for m in messages %}{% for k, v in m.items() %}{{ k + v | trim }}{% endfor %}{% endfor %}"),
        (True, "{% set s = messages[0]['content'] %}{% for m in messages[1:] %}{{ s ~ m.content }}{% endfor %}"),
        (
            True,
            "{% if m.role not in ['user'] or loop.index0 % 2 == 0 %}{{ raise_exception('x') }}{% endif %}",
        ),
        (True, "{{ (messages[0].content | trim).split('</think>')[-1].lstrip('\\n') if tools is not none }}"),
        (False, "{% for a in b %}{% for c in b %}{% for d in b %}{% endfor %}{% endfor %}{% endfor %}"),
        (False, "{% for a in b recursive %}{{ loop(a) }}{% endfor %}"),
        (False, "{% set n = namespace(x=1) %}"),
        (False, "{% set ns.x = 1 %}"),
        (False, "{% macro f() %}{% endmacro %}"),
        (False, "{{ 'a' * 9 }}"),
        (False, "{{ 2 ** 9 }}"),
        (False, "{{ '%9d' % 2 }}"),
        (False, "{{ range(9) }}"),
        (False, "{{ x.replace('a', x) }}"),
        (False, "{{ x | replace('a', x) }}"),
        (False, "{{ x.join(x) }}"),
        (False, "{{ x | sort }}"),
        (False, "{{ x | tojson(indent=9) }}"),
        (False, "{{ [x, x] }}"),
        (False, "{% set a %}{{ a }}{{ a }}{% endset %}"),
        (False, "{% set a = a + a %}" * 5),
        (False, "{% set a = a ~ a ~ a ~ a ~ a ~ a %}"),
        (False, "{% include 'a' %}"),
        (False, "{% block a %}{% endblock %}"),
        (False, "{{ self.a() }}"),
        (False, "{{ x.__class__() }}"),
        (False, "{{ x" + " " * 10_000 + "}}"),
        (False, "{% if %}"),
    ],
)
def test_the_shape_of_a_template(bounded: bool, source: str) -> None:
    assert is_bounded(source) is bounded
