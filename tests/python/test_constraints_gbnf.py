"""GBNF means what it means to llama.cpp: every text that some derivation spells, and no other."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from test_constraints import Speaker, speaker  # noqa: F401  # a fixture

from bee_integrations.constraints import Grammar
from bee_integrations.errors import ConstraintError

EXAMPLES = int(os.environ.get("BEE_GBNF_EXAMPLES", "60"))  # many more find rarer faults
ALPHABET = "ab\n"
LONGEST = 4  # characters of the texts that are tried

# ---- a recogniser that tries everything ----------------------------------------------------------------------------
# A grammar is a dictionary from names to expressions: ("chars", text), ("rule", name), ("seq", parts), ("alt", parts),
# ("times", part, least, most or None).


def language(rules: dict[str, tuple], longest: int) -> set[str]:
    """All texts of `root` up to a length: the least sets that fulfil the rules."""
    known: dict[str, set[str]] = {name: set() for name in rules}

    def of(expr: tuple) -> set[str]:
        kind = expr[0]
        if kind == "chars":
            return set(expr[1])
        if kind == "rule":
            return known[expr[1]]
        if kind == "alt":
            return set().union(*map(of, expr[1]))
        if kind == "seq":
            texts = {""}
            for part in expr[1]:
                texts = joined(texts, of(part))
            return texts
        _, part, least, most = expr
        texts, found, item = {""}, set(), of(part)
        for count in range(least + longest + 1 if most is None else most + 1):
            found |= texts if count >= least else set()
            texts = joined(texts, item)
        return found

    def joined(left: set[str], right: set[str]) -> set[str]:
        return {one + other for one in left for other in right if len(one + other) <= longest}

    while True:
        better = {name: of(expr) for name, expr in rules.items()}
        if better == known:
            return known["root"]
        known.update(better)


def written(expr: tuple) -> str:
    """An expression in GBNF."""
    kind = expr[0]
    if kind == "chars":
        inside = expr[1].replace("\n", "\\n")
        return f'"{inside}"' if len(expr[1]) == 1 else "." if len(expr[1]) == len(ALPHABET) else f"[{inside}]"
    if kind == "rule":
        return str(expr[1])
    if kind == "alt":
        return f"({' | '.join(map(written, expr[1]))})"
    if kind == "seq":
        return f"({' '.join(map(written, expr[1]))})" if expr[1] else '""'
    _, part, least, most = expr
    sign = {(0, None): "*", (1, None): "+", (0, 1): "?"}.get(
        (least, most), f"{{{least},{'' if most is None else most}}}"
    )
    return written(part) + sign


def gbnf(rules: dict[str, tuple]) -> str:
    return "\n".join(f"{name} ::= {written(expr)}" for name, expr in rules.items())


NAMES = ("root", "b", "a-b", "A-b", "start")
LEAVES = st.one_of(
    st.sampled_from(["a", "b", "\n", "ab", ALPHABET]).map(lambda text: ("chars", text)),
    st.sampled_from(NAMES).map(lambda name: ("rule", name)),
)
EXPRESSIONS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, min_size=0, max_size=3).map(lambda parts: ("seq", tuple(parts))),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: ("alt", tuple(parts))),
        st.tuples(inner, st.sampled_from([(0, None), (1, None), (0, 1), (2, 2), (0, 2), (1, 3), (2, None)])).map(
            lambda pair: ("times", pair[0], *pair[1])
        ),
    ),
    max_leaves=6,
)
GRAMMARS = st.fixed_dictionaries(dict.fromkeys(NAMES, EXPRESSIONS))
TEXTS = [""]
for _ in range(LONGEST):
    TEXTS += [text + char for text in TEXTS if len(text) == len(TEXTS[-1]) for char in ALPHABET]


def accepted(speaker: Speaker, grammar: Grammar) -> set[str]:  # noqa: F811
    """The texts up to a length that a grammar allows, byte by byte."""
    state = speaker.compiler.compile(grammar)._bytes.deep_copy()
    found: set[str] = set()

    def go_on(text: str) -> None:
        if state.is_accepting():
            found.add(text)
        for char in ALPHABET if len(text) < LONGEST else "":
            if state.try_consume_tokens([speaker.tokenizer.n_vocab + ord(char)]):
                go_on(text + char)
                assert state.rollback(1)

    go_on("")
    assert not state.is_error(), state.get_error()
    return found


@settings(
    max_examples=EXAMPLES,
    phases=[Phase.generate],
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    print_blob=False,
)
@given(rules=GRAMMARS)
def test_random_grammars_have_their_language(speaker: Speaker, rules: dict[str, tuple]) -> None:  # noqa: F811
    grammar = Grammar(gbnf(rules), syntax="gbnf")
    texts = language(rules, LONGEST)
    try:
        found = accepted(speaker, grammar)
    except ConstraintError as error:
        empty = "admits nothing" in str(error) and not language(rules, LONGEST + 2)
        # Of what is very ambiguous, a mask of all tokens may be too dear.
        if not empty and "Too many items" not in str(error):
            pytest.fail(f"{gbnf(rules)}: {error}")
    else:
        assert found == texts, gbnf(rules)
        for text in sorted(texts)[-2:]:
            try:
                assert speaker.takes(grammar, text), (gbnf(rules), text)
            except ConstraintError as error:  # as above
                if "Too many items" not in str(error):
                    raise


ARITHMETIC = r"""root  ::= (expr "=" ws term "\n")+
expr  ::= term ([-+*/] term)*
term  ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z] [a-z0-9_]* ws
num   ::= [0-9]+ ws
ws    ::= [ \t\n]*
"""  # llama.cpp's arithmetic.gbnf

LANGUAGES: dict[str, tuple[str, list[str], list[str]]] = {
    "twice the same": ('root ::= r r\nr ::= "1"+', ["11", "111"], ["", "1", "12"]),
    "blanks twice": ('root ::= ws ws "x"\nws ::= [ ]+', ["  x", "    x"], [" x", "x", "  "]),
    "either length": ('root ::= x x\nx ::= "a" | "aa"', ["aa", "aaa", "aaaa"], ["a", "aaaaa"]),
    "the shorter one": ('root ::= x "b"\nx ::= "a" | "ab"', ["ab", "abb"], ["a", "abbb", "b"]),
    "a suffix of a word": ('root ::= word "ing"\nword ::= [a-z]+', ["going", "inging"], ["ing", "go"]),
    "a suffix of a word, nested": (
        'root ::= word "ing" | "(" root ")"\nword ::= [a-z]+', ["going", "((inging))"], ["(going", "ing"],
    ),
    "a line": ('root ::= [^\\n]+ "\\n"', ["a line\n", "\t\n"], ["\n", "two\nlines\n"]),
    "names": ("root ::= (a-b | a_b)\na-b ::= \"x\"\na_b ::= \"y\"", ["x", "y"], ["", "xy"]),
    "names by case": ('root ::= Ab aB\nAb ::= "x"\naB ::= "y"', ["xy"], ["xx", "yx"]),
    "a rule called start": ('root ::= "a" start\nstart ::= "b" | "c" root', ["ab", "acab"], ["b", "ac"]),
    "names of numbers": ('root ::= 1 2\n1 ::= "x"\n2 ::= "y"', ["xy"], ["x"]),
    "any character": ('root ::= "a" . "b"', ["a\nb", "axb", "aéb", "a😀b"], ["ab", "axxb"]),
    "repeated nothing": ('root ::= (x*)* "y"\nx ::= "a"*', ["y", "aay"], ["", "a"]),
    "left recursion": ('root ::= root "a" | "b"', ["b", "baa"], ["a", "ab"]),
    "both recursions": ('root ::= root root | "a"', ["a", "aaaa"], ["", "b"]),
    "palindromes": ('root ::= "a" root "a" | "b" root "b" | ""', ["", "abba", "aabbaa"], ["ab", "aba"]),
    "brackets": ('root ::= ("(" root ")")*', ["", "()(())"], ["(", ")(", "())"]),
    "counted": ('root ::= ("a" "b"?){2,3} "b"{2}', ["aabb", "ababbb", "aaabb"], ["abb", "aab", "aaaabb"]),
    "counted from": ("root ::= [0-9]{3,}", ["123", "1234567"], ["12"]),
    "escapes": (r'root ::= "\x41\u00e9\U0001F600\"\\" [\]\-a\[]', ['Aé😀"\\]', 'Aé😀"\\-', 'Aé😀"\\['], ['Aé😀"\\b']),
    "a dash at the end": ("root ::= [a-c-]+", ["a-c", "b"], ["d"]),
    "arithmetic": (
        ARITHMETIC,
        ["x = 1\n", "a=b\n", "(a +1) *c = 3 \n\nx2=y_1\n", "a\n=\nb\n\n"],
        ["1 1=2\n", "=1\n", "(a=1\n", "x = 1", "A=1\n"],
    ),
    "over several lines": (
        'root ::= # the first\n  "a" |\n  "b" ( # c\n "c"\n | "d" )\n\n\nx ::= "e"', ["a", "bc", "bd"], ["b", "e"],
    ),
    "defined twice": ('root ::= x\nx ::= "a"\nx ::= "b"', ["b"], ["a"]),
    "an alternative without an end": ('root ::= "a" | "b" more\nmore ::= "c" more', ["a"], ["b", "bc"]),
    "an empty rule": ('root ::= "a" nothing "b"\nnothing ::=', ["ab"], ["a"]),
    "carriage returns": ('root ::= x\r\nx ::= "a"\r\n', ["a"], ["b"]),
}  # fmt: skip


@pytest.mark.parametrize("name", LANGUAGES)
def test_languages(speaker: Speaker, name: str) -> None:  # noqa: F811
    source, texts, others = LANGUAGES[name]
    grammar = Grammar(source, syntax="gbnf")
    for text in texts:
        assert speaker.takes(grammar, text), text
    for text in others:
        assert not speaker.takes(grammar, text), text


def test_control_tokens_in_gbnf(speaker: Speaker) -> None:  # noqa: F811
    end = speaker.tokenizer.token_id("<|im_end|>")
    matcher = speaker.start(Grammar(f'root ::= "a" <[{end}]> "b" <|im_end|>', syntax="gbnf"))
    assert speaker.say(matcher, "a")
    assert matcher.consume(end)
    assert speaker.say(matcher, "b")
    assert not matcher.accepting
    assert matcher.consume(end)
    assert matcher.accepting


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "line 1: there is no rule 'root'"),
        ('root ::= "a" missing', "line 1: there is no rule 'missing'"),
        ('root ::= "a"\nb ::= (\n"c"\n', "line 4: expected '\\)'"),
        ('root ::= "a\n', "line 2: expected a character"),
        ('root = "a"', "line 1: expected '::=', not '= "),
        ('root ::= "a" }', "line 1: expected the end of the line, not '}'"),
        ('root ::= "\\q"', "line 1: .*no escape"),
        ('root ::= "\\x4"', "line 1: .*2 hexadecimal digits"),
        ('root ::= "\\U00110000"', "line 1: .*8 hexadecimal digits"),
        ('root ::= "a"{3,2}', "line 1: .*fewer times"),
        ('root ::= "a"{99999}', "line 1: .*10,000 times"),
        ("root ::= [b-a]", "line 1: the range b-a is empty"),
        ("root ::= []", "line 1: .*no character"),
        ('root ::= "a"\n\nx ::= * "b"', "line 3: expected the end of the line"),
        ('\nroot ::= x\nx ::= "a" y\ny ::= "b" x', "line 2: it admits nothing"),
        ("root ::= !<|im_end|>", "line 1: .*by its number"),
    ],
)
def test_refused_gbnf(speaker: Speaker, source: str, message: str) -> None:  # noqa: F811
    with pytest.raises(ConstraintError, match=f"^the grammar, {message}"):
        speaker.compiler.compile(Grammar(source, syntax="gbnf"))


ALL = " | ".join(["x", *(f'"{m % 10}" r{m}' for m in range(60))])
HUGE = {
    "many rules that use all": "\n".join(["root ::= r0", 'x ::= "x"'] + [f"r{n} ::= {ALL}" for n in range(60)]),
    "many overlapping terminals": "root ::= " + "|".join(f'[a-z]* "{n}" [a-z]* root' for n in range(2_000)) + '| "x"',
    "doubling": "\n".join(["root ::= r0"] + [f"r{n} ::= r{n + 1} r{n + 1}" for n in range(200)] + ['r200 ::= "a"']),
    "deep brackets": "root ::= " + "(" * 5_000,
    "a chain": "\n".join(["root ::= r0"] + [f"r{n} ::= r{n + 1}" for n in range(9_000)] + ['r9000 ::= "a"']),
    "a chain, the other way": "\n".join(
        ['r9000 ::= "a"'] + [f'r{n} ::= "b" r{n + 1} | "c"' for n in reversed(range(9_000))] + ["root ::= r0"]
    ),
    "a long literal": 'root ::= "' + "a" * 2_000 + '"',
    "long counts": 'root ::= (("a"{100} "b"?){100} "c"){100}',
}  # fmt: skip


@pytest.mark.parametrize("name", HUGE)
def test_huge_grammars_end(speaker: Speaker, name: str) -> None:  # noqa: F811
    try:
        speaker.start(Grammar(HUGE[name], syntax="gbnf")).forced(15)
    except ConstraintError as error:
        assert len(str(error)) < 300  # noqa: PT017  # either is right


def test_grammars_of_llama_cpp(speaker: Speaker) -> None:  # noqa: F811
    folder = Path(__file__).resolve().parent.parent / "reference" / "grammars"
    found = sorted(folder.glob("*.gbnf"))
    if not found:
        pytest.skip("needs third-party grammars: run 'make reference'")
    for path in found:
        speaker.start(Grammar(path.read_text(encoding="utf-8"), syntax="gbnf"))
