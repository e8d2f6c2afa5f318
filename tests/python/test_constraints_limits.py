"""No constraint runs without end: what takes too long or too much memory to compile is ended, and says so."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import bee_integrations
from bee_integrations.constraints import Choice, Constraint, Grammar, GrammarCompiler, JsonSchema, Regex
from bee_integrations.constraints import trial as trial_module
from bee_integrations.constraints.harmless import (
    is_harmless_regex,
    is_harmless_rules,
    is_harmless_schema,
    may_force_for_ever,
)
from bee_integrations.errors import ConstraintError
from bee_integrations.models.file import ModelFile
from bee_integrations.text.tokenizer import Tokenizer

# What once ran for ever or took all memory: each is compiled, or refused with a reason, and never more than that.
HOSTILE: dict[str, Constraint] = {
    "greedy terminals": Grammar("start: /1+/ /1+/"),
    "greedy terminals behind a choice": Grammar('start: "x" /1+/ /1+/ | "y"'),
    "named greedy terminals": Grammar("start: A B\nA: /(ab)+/\nB: /(ab)+/ | A"),
    "terminals put together": Grammar('start: A A\nA: "1"+'),
    "intersected terminals": Grammar("start: A A\nA: /[12]+/ & /[13]+/"),
    "rules without an end": Grammar('start: "a" start'),
    "a rule without an end": Grammar('start: "x" | "y" loop\nloop: ("a" loop)+'),
    "two ends of ones": Grammar('root ::= r r\nr ::= "1"+', "gbnf"),
    "two ends of blanks": Grammar('root ::= ws ws "x"\nws ::= [ ]+', "gbnf"),
    "a large prime": JsonSchema({"type": "integer", "multipleOf": 1299709}, strict=True),
    "a larger prime": JsonSchema({"type": "integer", "multipleOf": 1000000007}, strict=True),
    "a prime of a fraction": JsonSchema({"type": "number", "multipleOf": 0.0000104729}, strict=True),
    "several primes": JsonSchema(
        {"type": "integer", "allOf": [{"multipleOf": n} for n in (97, 101, 103)]}, strict=True
    ),
    "primes in turns": JsonSchema(
        {"properties": {f"p{n}": {"type": "integer", "multipleOf": n} for n in (9973, 9967, 9949, 9941)}}, strict=True
    ),
    "a product of unions": JsonSchema(
        {"allOf": [{"anyOf": [{"required": [f"p{n}{v}"]} for v in range(5)]} for n in range(12)]}
    ),
    "many states": Regex("(a|b)*a(a|b){60}"),
    "many states twice": JsonSchema({"type": "string", "pattern": "^((a|b)*a(a|b){20}|(b|c)*c(b|c){20}){3}$"}),
    "long texts": JsonSchema({"type": "string", "pattern": "^(.*a.{2000}|b.{1000,2000}){300}$"}),
    "nested counts": Regex("((a{90}b{0,90}){90}c?){90}"),
    "a long certain text": Regex("a{10000}"),
    "large choices": Choice(tuple(f"{n:05d}" * 3 for n in range(10_000))),
}


@pytest.fixture(scope="module")
def tokenizer(model_path: Path) -> Tokenizer:
    with ModelFile(model_path) as file:
        return Tokenizer.from_model_file(file)


@pytest.mark.parametrize("name", HOSTILE)
def test_compiling_ends(tokenizer: Tokenizer, name: str) -> None:
    compiler = GrammarCompiler(tokenizer)
    with contextlib.suppress(ConstraintError):
        matcher = compiler.compile(HOSTILE[name]).matcher()
        matcher.forced(15)
        assert not matcher.finished
    # The compiler is of use after that.
    assert compiler.compile(Choice(("yes", "no"))).matcher().closing_text() == "no"


LIMITED = """
import resource, sys
from bee_integrations.constraints import GrammarCompiler
from bee_integrations.errors import ConstraintError
from bee_integrations.models.file import ModelFile
from bee_integrations.text.tokenizer import Tokenizer
from test_constraints_limits import HOSTILE
with ModelFile(sys.argv[1]) as file:
    compiler = GrammarCompiler(Tokenizer.from_model_file(file))
compiler.compile(next(constraint for name, constraint in HOSTILE.items() if name == "many states"))
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + (512 << 20), held + (512 << 20)))
for constraint in HOSTILE.values():
    try:
        compiler.compile(constraint)
    except ConstraintError:
        pass
# Not RUSAGE_SELF, which counts what the process that began this one held, as that was this one's before its program.
(own,) = (int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print("compiled", max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))  # KiB
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of memory are Linux's")
def test_compiling_is_within_its_memory(model_path: Path) -> None:
    folders = [Path(__file__).resolve().parent, Path(bee_integrations.__file__).parents[1]]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))}
    ran = subprocess.run(
        [sys.executable, "-c", LIMITED, str(model_path)], capture_output=True, text=True, env=environment, check=False
    )
    said = ran.stdout.split()
    assert said[:1] == ["compiled"], ran.stderr[-2000:]
    assert int(said[1]) < 1 << 20


def test_a_helper_that_ends_is_replaced(tokenizer: Tokenizer) -> None:
    compiler = GrammarCompiler(tokenizer)
    compiler.compile(Regex("a{70}"))
    helper = trial_module._helper._process
    assert helper is not None
    helper.kill()
    helper.wait()
    assert compiler.compile(Regex("a{71}")).matcher().closing_text() == "a" * 71
    assert trial_module._helper._process is not helper


def test_several_threads_and_forks_share_the_helper(tokenizer: Tokenizer) -> None:
    compiler = GrammarCompiler(tokenizer)
    texts: dict[int, str] = {}

    def compile_one(count: int) -> None:
        texts[count] = compiler.compile(Regex(f"b{{{count}}}")).matcher().closing_text()

    threads = [threading.Thread(target=compile_one, args=(count,)) for count in range(70, 76)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {count: "b" * count for count in range(70, 76)}

    child = os.fork()
    if not child:
        fine = compiler.compile(Regex("c{70}")).matcher().closing_text() == "c" * 70
        os._exit(0 if fine else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    compile_one(77)
    assert texts[77] == "b" * 77


def test_without_a_helper_what_is_harmless_works(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_module, "_helper", trial_module._Helper())
    monkeypatch.setattr(sys, "executable", "")
    compiler = GrammarCompiler(tokenizer)
    assert compiler.compile(Regex("[0-9]{2}")).matcher()
    with pytest.raises(ConstraintError, match="a process of its own, which cannot be run"):
        compiler.compile(Regex("(a|b)*a(a|b){66}"))


def test_what_counts_as_harmless() -> None:
    assert is_harmless_regex("^[a-z]{2,8}$")
    assert not is_harmless_regex("a{65}")
    assert not is_harmless_regex("a{5}", *["b{5}"] * 4)
    assert not is_harmless_regex("x" * 201)
    assert is_harmless_schema({"type": "object", "properties": {"a": {"enum": ["x"]}, "b": {"multipleOf": 0.01}}})
    for schema in (
        {"items": {"multipleOf": 7919}},
        {"properties": {"a": {"pattern": "x{100}"}}},
        {"allOf": [{"anyOf": [{}]}]},
        {"anyOf": [{}], "oneOf": [{}]},
        {"$defs": {"d": {"minItems": 4000}}},
        {"properties": {f"p{n}": {} for n in range(600)}},
    ):
        assert not is_harmless_schema(schema), schema
    assert is_harmless_rules('start: "a{100}" (b | "c")? <[7]> // {x}\nb[lazy]: /[a-z]*/')
    for rules in ("start: A & B", "start: a{3}", "%import x", "start: /a{100}/", "start: " + '"a" ' * 10_000):
        assert not is_harmless_rules(rules), rules


@pytest.mark.parametrize(
    ("rules", "dangerous"),
    [
        ('start: "a+" /[a-z]+/ /\\d*/ /(?s:.)*x/ /./', False),
        ("start: word*\nword: /[^\\n]{2,}/", False),
        ("start: /1+/", True),
        ("start: /[1]+/", True),
        ("start: /(ab)*/", True),
        ("start: /a{2,}/", True),
        ('start: A\nA: "1"+', True),
        ('start: A\nA: /[12]/ & /[13]/', True),
        ("start: A\nA: /[0-9]/\n | B*\nB: /1/", True),
    ],
)  # fmt: skip
def test_which_terminals_may_repeat_without_an_alternative(rules: str, dangerous: bool) -> None:
    assert may_force_for_ever(rules) is dangerous
