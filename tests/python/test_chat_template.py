"""Prompts equal the reference renderings; templates cannot escape, exhaust the process, or fail without a line."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from bee_integrations.errors import BeeError, ParameterError, TemplateError
from bee_integrations.models.file import ModelFile
from bee_integrations.text.chat_template import ChatTemplate
from bee_integrations.text.tokenizer import Tokenizer

TESTS = Path(__file__).resolve().parent.parent
GOLDEN: dict[str, Any] = json.loads((TESTS / "golden" / "text" / "chats.json").read_text())
REFERENCE = TESTS / "reference"
USER = [{"role": "user", "content": "Hi"}]


def fixed_date(pattern: str) -> str:
    return str(GOLDEN["date"])


@pytest.fixture(scope="module")
def default_template(model_path: Path) -> ChatTemplate:
    with ModelFile(model_path) as file:
        template = ChatTemplate.from_model_file(file, Tokenizer.from_model_file(file))
    assert template is not None
    return template


# ---- reference renderings -----------------------------------------------------------------------------


def test_default_model_equals_the_reference(default_template: ChatTemplate) -> None:
    source_digest = hashlib.sha256(json.dumps(default_template.source).encode()).hexdigest()
    assert source_digest == GOLDEN["template_sha256"]
    for chat, expected in zip(GOLDEN["chats"], GOLDEN["rendered"], strict=True):
        if expected is None:
            with pytest.raises(TemplateError, match="line"):
                default_template.render(**chat)
        else:
            assert default_template.render(**chat) == expected


# The reference's `tojson` refuses what `map` gives. Here it is a list, as where the template is from.
TAKES_ITERATORS = {"llama-cpp-deepseek-r1.jinja"}
# They loop over tools that the reference does not give them. Here they get an empty list.
TOOLS_ALONE = {
    "Cohere2MoE.jinja", "CohereForAI-c4ai-command-r-plus-tool_use.jinja",
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use.jinja", "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use.jinja",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use.jinja",
}  # fmt: skip


def rendered_or_none(template: ChatTemplate, chat: dict[str, Any]) -> str | None:
    try:
        return template.render(**chat, strftime_now=fixed_date)
    except TemplateError:
        return None


@pytest.mark.skipif(
    not (REFERENCE / "archive.sha256").is_file(), reason="needs third-party chat templates: run 'make reference'"
)
@pytest.mark.parametrize("name", sorted(GOLDEN["templates"]))
def test_third_party_templates_equal_the_reference(name: str) -> None:
    source = (REFERENCE / "templates" / name).read_text(encoding="utf-8")
    template = ChatTemplate(source, "<|bos|>", "<|eos|>")
    for chat, expected in zip(GOLDEN["chats"], GOLDEN["templates"][name], strict=True):
        if expected is None and name in TAKES_ITERATORS and chat.get("tools"):
            text = template.render(**chat, strftime_now=fixed_date)
            assert all(tool["function"]["name"] in text for tool in chat["tools"])
        elif expected is None and name in TOOLS_ALONE and not chat.get("tools"):
            assert rendered_or_none(template, chat) == rendered_or_none(template, {**chat, "tools": []})
        elif expected is None:
            with pytest.raises(TemplateError, match="line"):
                template.render(**chat, strftime_now=fixed_date)
        else:
            text = template.render(**chat, strftime_now=fixed_date)
            assert hashlib.sha256(text.encode()).hexdigest()[:16] == expected


# ---- conventions --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ bos_token }}|{{ eos_token }}", "<s>|</s>"),
        ("{% for m in messages %}\n  {% if true %}\n[{{ m.role }}]\n  {% endif %}\n{% endfor %}", "[user]\n"),
        ("{{ {'b': '<é>', 'a': [1, none]} | tojson }}", '{"b": "<é>", "a": [1, null]}'),
        ("{{ {'a': 1} | tojson(indent=2) }}", '{\n  "a": 1\n}'),
        (
            "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}"
            "{{ i }}{% endfor %}",
            "013",
        ),
        ("{% generation %}{{ 1 + 1 }}{% endgeneration %}", "2"),
        ("{% for m in messages %}{{ loop.index }}{{ loop.first }}{{ loop.length }}{% endfor %}", "1True1"),
        (
            "{% for r in messages | map(attribute='role') %}{{ loop.last }}{{ loop.length }}{{ r }}{% endfor %}",
            "True1user",
        ),
        ("{{ 'abcd'[1:] }}{{ 'abcd'[:-1] }}{{ 'abcd'[::-1] }}{{ 'abcd'[1] }}", "bcdabcdcbab"),
        ("{{ 'a' ~ 1 ~ none ~ undefined_name }}", "a1None"),
        ("{{ '%s-%d' % ('x', 3) }}{{ '{}!'.format(4) }}{{ 'a,b'.split(',') | join('+') }}", "x-34!a+b"),
        ("{{ tools is none }}{{ tools is defined }}{{ documents is none }}", "TrueTrueTrue"),
        ("{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f(1) }}{% set y %}z{% endset %}{{ y }}", "<1>z"),
        ("{% for a in [[1, [2]]] recursive %}{{ a if a is number else loop(a) }}{% endfor %}", "12"),
        ("{% for k, v in {'x': 1}.items() %}{{ k }}={{ v }}{% else %}none{% endfor %}", "x=1"),
        ("{% for x in messages if x.role == 'nobody' %}{{ x }}{% else %}none{% endfor %}", "none"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{{ extra }}", "given"),
    ],
)
def test_conventions(source: str, expected: str) -> None:
    assert ChatTemplate(source, "<s>", "</s>").render(USER, extra="given") == expected


def test_messages_are_not_changed() -> None:
    messages = [{"role": "user", "content": "Hi", "list": [1]}]
    with pytest.raises(TemplateError, match="append"):
        ChatTemplate("{{ messages[0].list.append(2) }}").render(messages)
    with pytest.raises(TemplateError, match="pop"):
        ChatTemplate("{{ messages[0].pop('role') }}").render(messages)
    assert messages == [{"role": "user", "content": "Hi", "list": [1]}]


def test_missing_tokens_are_empty() -> None:
    assert ChatTemplate("[{{ bos_token }}{{ eos_token }}]", None, None).render(USER) == "[]"


def test_a_template_that_knows_chats_with_tools_alone() -> None:
    template = ChatTemplate("{% for tool in tools %}{{ tool }};{% endfor %}{{ messages[0].content }}")
    assert template.render(USER, tools=["one"]) == f"one;{USER[0]['content']}"
    assert template.render(USER) == USER[0]["content"]
    broken = ChatTemplate("{% for tool in tools %}{% endfor %}{{ raise_exception('no tools, no chat') }}")
    with pytest.raises(TemplateError, match="'NoneType' object is not iterable"):  # what was wrong first
        broken.render(USER)


# ---- errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a\n{% if %}", "invalid at line 2: Expected an expression"),
        ("{% unknown %}", "invalid at line 1: .*unknown"),
        ("{% for x in y %}", "invalid at line 1: .*endfor"),
        ("{{ 1 | no_such_filter }}", "invalid at line 1: .*no_such_filter"),
        ("{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}", "nested too deeply"),
        ("{% if 1 %}" * 5_000 + "{% endif %}" * 5_000, "nested too deeply"),
        (" " * 1_000_001, "1000001 characters; at most 1000000"),
    ],
)
def test_invalid_sources_name_the_line(source: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        ChatTemplate(source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("\n\n{{ raise_exception('Roles must\n alternate') }}", "rejects these messages at line 3: Roles must alter"),
        ("a\nb {{ foo.bar }}", "failed at line 2: 'foo' is undefined"),
        ("{{ 1 / 0 }}", "failed at line 1: division by zero"),
        ("{{ messages + 1 }}", "failed at line 1: .*list"),
        ("{% macro f() %}\n{{ nothing.here }}\n{% endmacro %}\n\n{{ f() }}", "failed at line 2"),
        ("{{ messages | tojson(indent='x' * 3) }}{{ undefined_name() }}", "failed at line 1"),
        ("{{ raise_exception | tojson }}", "failed at line 1: .*not JSON serializable"),
        ("{% include 'other' %}", "failed at line 1"),
        ("{% import '/etc/passwd' as secrets %}", "failed at line 1"),
        ("{{ strftime_now('%100000000Y') }}", "failed at line 1: strftime_now"),
    ],
)
def test_failures_name_the_line(source: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        ChatTemplate(source).render(USER)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__class__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__globals__['os'] }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ '{0.__class__.__mro__}'.format(1) }}",
        "{{ ('' | attr('__class__')).__mro__ }}",
        "{{ [''] | map(attribute='__class__') | list | first | string | upper }}{{ ''.__class__() }}",
    ],
)
def test_templates_cannot_reach_python(source: str) -> None:
    # jinja2 answers a forbidden attribute with an undefined value: it prints as nothing, and using it is an error.
    try:
        text = ChatTemplate(source).render(USER)
    except TemplateError:
        text = ""
    assert text == ""


LAUGHS = "{% set a = ['ha'] %}" + "{% set a = [a, a, a, a, a, a, a, a] %}" * 12
LONG = "{% set b = 'abcdefgh' * 900000 %}"


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) | map('string') %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for x in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}",
        "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "{% set n = namespace(x='aaaa') %}{% for i in range(99) %}{% set y %}{{ n.x }}{{ n.x }}{% endset %}"
        "{% set n.x = y %}{% endfor %}",
        "{{ 'a' * 1000000000 }}",
        "{{ [1] * 1000000000 }}",
        "{{ 9 ** (9 ** 9) }}",
        "{% set n = namespace(x=9) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
        "{{ 'a' | center(1000000000) }}",
        "{{ 'a'.ljust(1000000000) }}",
        "{{ '\t'.expandtabs(1000000000) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (1000000000, 1) }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ '{:{w}}'.format(1, w=1000000000) }}",
        "{{ 'a' | indent(1000000000, true) }}",
        "{{ [[1]] | tojson(indent=1000000000) }}",
        "{{ [1] | batch(1000000000, 0) | list }}",
        "{{ [1] | slice(1000000000) | list }}",
        LAUGHS + "{{ a }}",
        LAUGHS + "{{ a | tojson }}",
        LAUGHS + "{{ a | string }}",
        LAUGHS + "{{ '' ~ a }}",
        LAUGHS + "{{ '%s' % (a,) }}",
        LONG + "{{ ([b] * 1000) | join }}",
        LONG + "{{ range(99999) | map('default', b) | map('replace', 'x', b) | join(b) }}",
        LONG + "{{ b.replace('a', b) }}",
        LONG + "{{ b | replace('a', b) }}",
        LONG + "{{ b.join([b, b, b]) }}",
        LONG + "{% set n = namespace(l=[]) %}{% for i in range(9999) %}{% set n.l = n.l + [b | upper] %}{% endfor %}",
        LONG + "{% set n = namespace(l=[]) %}{% for i in range(9999) %}{% set n.l = n.l + [b[1:]] %}{% endfor %}",
        LONG + "{% set n = namespace(l=[]) %}{% for i in range(9999) %}{% set n.l = n.l + [b.title()] %}{% endfor %}",
        LONG + "{% for i in range(9999) %}{{ b }}{% endfor %}",
    ],
)
def test_templates_cannot_exhaust_the_process(source: str) -> None:
    with pytest.raises(TemplateError, match="was stopped"):
        ChatTemplate(source).render(USER)


def test_a_long_conversation_stays_within_the_limits(default_template: ChatTemplate) -> None:
    messages = [{"role": ("user", "assistant")[i % 2], "content": "word " * 2_000} for i in range(500)]
    text = default_template.render(messages)
    assert text.count("<|im_start|>") == 502
    assert len(text) > 5_000_000


def test_budgets_are_per_rendering_and_per_thread() -> None:
    template = ChatTemplate("{% for i in range(60000) %}{% for j in [1, 2, 3, 4] %}{% endfor %}{% endfor %}ok")
    results: list[str | BaseException] = []

    def render() -> None:
        try:
            results.extend(template.render(USER) for _ in range(3))
        except BeeError as error:
            results.append(error)

    threads = [threading.Thread(target=render) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == ["ok"] * 12


@pytest.mark.parametrize("messages", ["Hi", {"role": "user"}, None, ["Hi"], [("user", "Hi")]])
def test_messages_of_the_wrong_shape_are_refused(messages: Any) -> None:
    with pytest.raises(ParameterError, match="expected a"):
        ChatTemplate("{{ messages }}").render(messages)
