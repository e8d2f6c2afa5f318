"""The jinja2 environment that chat templates run in: sandboxed, and bounded in time and memory.

A chat template comes with a model file, that is from a stranger. jinja2's sandbox keeps it from reaching Python;
what it leaves open is exhaustion: loops inside loops, and values that double at every step. So every loop and call
draws on a budget of steps, and everything that makes text longer draws on a budget of characters, before the text
is made. That ends most hostile templates early, and names the line. It is no guarantee: what compares, hashes or prints
nested values is not seen here. The guarantee is the process that templates of strangers run in (template_process.py).
"""

from __future__ import annotations

import contextlib
import contextvars
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, cast

import jinja2
import jinja2.ext
import jinja2.filters
from jinja2 import nodes
from jinja2.nodes import EvalContext
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

__all__ = ["BoundedEnvironment", "LimitError", "limits"]

MAX_TEXT = 8_000_000  # characters of one value, and of the whole result
MAX_STEPS = 1_000_000  # iterations; a call counts as CALL_STEPS of them
CALL_STEPS = 10
LOOK_STEPS = 100  # between two looks at the clock, which is slow
LOOK_TEXT = 10_000  # characters, likewise
MAX_WORK = 400_000_000  # characters of all values made on the way
MAX_SECONDS = 10.0  # of processor time: a backstop for what the other limits do not see
MAX_NUMBER_BITS = 4096
MAX_WIDTH = 10_000  # of padding, indentation and number formats


class LimitError(Exception):
    """The template would take more time or memory than any real one needs."""


class _Budget:
    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._steps = MAX_STEPS
        self._work = MAX_WORK
        self._next_look = MAX_STEPS
        # The thread's own time, so that a busy machine does not make templates fail.
        self._deadline = time.thread_time() + seconds

    def step(self, count: int) -> None:
        self._steps -= count
        if self._steps < 0:
            raise LimitError(f"it takes more than {MAX_STEPS} steps; it probably loops without end")
        if self._steps < self._next_look:
            self._next_look = self._steps - LOOK_STEPS
            self._look_at_the_clock()

    def _look_at_the_clock(self) -> None:
        if time.thread_time() > self._deadline:
            raise LimitError(f"it takes more than {self._seconds:.0f} seconds of processor time")

    def text(self, characters: int) -> None:
        if characters > MAX_TEXT:
            raise LimitError(f"it makes a value of more than {MAX_TEXT} characters")
        self._work -= characters
        if characters > LOOK_TEXT:
            self._look_at_the_clock()
        if self._work < 0:
            raise LimitError(f"it makes more than {MAX_WORK} characters of text on the way to its result")


_BUDGET: contextvars.ContextVar[_Budget | None] = contextvars.ContextVar("bee_template_budget", default=None)


@contextlib.contextmanager
def limits(seconds: float = MAX_SECONDS) -> Iterator[_Budget]:
    """A fresh budget for one rendering; seconds of processor time."""
    budget = _Budget(seconds)
    token = _BUDGET.set(budget)
    try:
        yield budget
    finally:
        _BUDGET.reset(token)


def _charge_text(characters: int) -> None:
    budget = _BUDGET.get()
    if budget is not None:  # None: jinja2 folds constants while it compiles; those are bounded by the source
        budget.text(characters)
    elif characters > MAX_TEXT:
        raise LimitError(f"it makes a value of more than {MAX_TEXT} characters")


def _charge_steps(count: int) -> None:
    budget = _BUDGET.get()
    if budget is not None:
        budget.step(count)


def _text_size(value: Any) -> int:
    """Characters of str(value), about; containers may share members, so that their text is far larger than they are."""
    size = 0
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            size += len(item)
        elif isinstance(item, Mapping):
            pending.extend(item.keys())
            pending.extend(item.values())
            size += len(item)
        elif isinstance(item, (list, tuple, set, frozenset)):
            pending.extend(item)
            size += len(item)
        else:
            size += 8
        if size > MAX_TEXT or len(pending) > MAX_TEXT:
            return MAX_TEXT + 1
    return size


def _charge_value(value: Any) -> Any:
    """Refuse a value whose text would be too long; otherwise the value itself."""
    if isinstance(value, str):
        _charge_text(len(value))
    else:
        _charge_text(_text_size(value))
    return value


def _charge_width(*widths: Any) -> None:
    for width in widths:
        if isinstance(width, int) and abs(width) > MAX_WIDTH:
            raise LimitError(f"it asks for a width of {width}; at most {MAX_WIDTH} are possible")
        if isinstance(width, str):
            _charge_text(len(width))


def _charge_format(pattern: Any, values: Any) -> None:
    """Before formatting: widths hide in the pattern or, as "*" and nested fields, in the values."""
    text = str(pattern)
    if re.search(r"\d{5,}", text):
        raise LimitError(f"a format asks for a width of more than {MAX_WIDTH}")
    members = list(values.values()) if isinstance(values, Mapping) else values
    members = members if isinstance(members, (list, tuple)) else [members]
    if "*" in text or re.search(r"\{[^{}]*\{", text):
        _charge_width(*members)
    fields = text.count("%") + text.count("{")
    _charge_text(len(text) + fields * max((_text_size(member) for member in members), default=0))


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """jinja2 as Hugging Face's chat templates expect it, within limits. Render inside `limits()`."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[jinja2.ext.loopcontrols, _GenerationTag],
            finalize=_charge_value,
            cache_size=0,
        )
        # Heavy in themselves, and of no use in a prompt.
        for name in ("urlize", "striptags", "wordwrap", "pprint", "xmlattr"):
            self.filters.pop(name, None)
        self.globals.pop("lipsum", None)
        self.filters["tojson"] = _tojson
        self.filters["join"] = _join
        self.filters = {name: _charged(f, _FILTER_GUARDS.get(name)) for name, f in self.filters.items()}

    def compile_source(self, source: str, filename: str) -> Any:
        """Code of a template whose loops, macros and concatenations draw on the budget."""
        tree = _Metering().visit(self._parse(source, None, filename))
        tree.set_environment(self)
        return self.compile(tree, filename=filename)

    def concat(self, parts: Iterable[str]) -> str:
        """jinja2 joins the output of macros and blocks with this."""
        pieces = list(parts)
        _charge_text(sum(map(len, pieces)))
        return "".join(pieces)

    def join_values(self, *values: Any) -> str:
        """The operator "~"."""
        _charge_text(sum(map(_text_size, values)))
        return "".join(map(str, values))

    def slice_of(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        """value[start:stop:step]"""
        result = value[start:stop:step]
        if isinstance(result, Sized):
            _charge_text(len(result))
        return result

    def counted(self, iterable: Any) -> Any:
        """The iterable of a for-loop, its length charged."""
        if isinstance(iterable, Sized):
            _charge_steps(len(iterable) + 1)
            return iterable
        return _count_each(iterable)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Every call of a template: counted, and methods that make long text are checked before."""
        _charge_steps(CALL_STEPS)
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            _check_str_method(owner, getattr(__obj, "__name__", ""), args, kwargs)
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Operators that can make large values, checked before."""
        if operator == "%" and isinstance(left, str):
            _charge_format(left, right)
        elif operator == "+" and isinstance(left, (str, list, tuple)) and isinstance(right, Sized):
            _charge_text(len(left) + len(right))
        elif operator == "*":
            _check_product(left, right)
        elif operator == "**":
            _check_power(left, right)
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """str.format, checked before."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def checked(*args: Any, **kwargs: Any) -> str:
            _charge_format(value.__self__, [*args, *kwargs.values()])
            return wrapped(*args, **kwargs)

        return checked


class _Metering(NodeTransformer):
    """Puts the budget's calls where jinja2 offers no hook."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802
        self.generic_visit(node)
        node.iter = _environment_call("counted", [cast(nodes.Expr, node.iter)], node.lineno)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:  # noqa: N802
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        bounds = [bound or nodes.Const(None) for bound in (node.arg.start, node.arg.stop, node.arg.step)]
        return _environment_call("slice_of", [node.node, *bounds], node.lineno)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Call:  # noqa: N802
        self.generic_visit(node)
        return _environment_call("join_values", node.nodes, node.lineno)


def _environment_call(name: str, arguments: Sequence[nodes.Expr], line: int) -> nodes.Call:
    function = nodes.EnvironmentAttribute(name, lineno=line)
    return nodes.Call(function, list(arguments), [], None, None, lineno=line)


class _GenerationTag(jinja2.ext.Extension):
    """{% generation %}...{% endgeneration %} marks the answer for training; here its content counts alone."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """The content between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _count_each(iterable: Iterable[Any]) -> Iterator[Any]:
    for item in iterable:
        _charge_steps(1)
        yield item


def _check_power(base: Any, exponent: Any) -> None:
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * exponent > MAX_NUMBER_BITS:
        raise LimitError(f"it computes a number of more than {MAX_NUMBER_BITS} bits")


def _check_product(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        if left.bit_length() + right.bit_length() > MAX_NUMBER_BITS:
            raise LimitError(f"it computes a number of more than {MAX_NUMBER_BITS} bits")
        return
    for value, times in ((left, right), (right, left)):
        if isinstance(value, (str, list, tuple)) and isinstance(times, int):
            _charge_text(len(value) * max(times, 0))


def _check_str_method(text: str, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    values = [*args, *kwargs.values()]
    if method in ("center", "ljust", "rjust", "zfill"):
        _charge_width(*values[:1])
    elif method == "expandtabs":
        _charge_width(*values)
        _charge_text(len(text) + text.count("\t") * max([8, *(v for v in values if isinstance(v, int))]))
    elif method == "replace" and len(values) >= 2:
        _check_replace(text, values[0], values[1])
    elif method == "join" and values:
        _check_join(values[0], text)
    elif not method.startswith(("is", "startswith", "endswith", "find", "rfind", "index", "rindex", "count")):
        _charge_text(len(text))


# The guards and filters below name their parameters as jinja2 does, because templates may pass them by name.


def _check_replace(s: Any, old: Any, new: Any, count: Any = None) -> None:
    text, old_text, new_text = str(s), str(old), str(new)
    _charge_text(len(text) + (text.count(old_text) if old_text else len(text) + 1) * len(new_text))


def _check_join(values: Any, separator: Any) -> None:
    if isinstance(values, (list, tuple, str, Mapping)):
        _charge_text(_text_size(values) + len(values) * len(str(separator)))


def _check_indent(s: Any, width: Any = 4, first: Any = False, blank: Any = False) -> None:
    _charge_width(width)
    columns = len(width) if isinstance(width, str) else int(width)
    _charge_text(len(str(s)) + (str(s).count("\n") + 1) * columns)


def _check_format(value: Any, *args: Any, **kwargs: Any) -> None:
    _charge_format(value, [*args, *kwargs.values()])


_FILTER_GUARDS: dict[str, Callable[..., None]] = {
    "batch": lambda value, linecount, fill_with=None: _charge_width(linecount),
    "center": lambda value, width=80: _charge_width(width),
    "format": _check_format,
    "indent": _check_indent,
    "replace": _check_replace,
    "slice": lambda value, slices, fill_with=None: _charge_width(slices),
    "string": lambda value: _charge_text(_text_size(value)),
}


@jinja2.pass_eval_context
def _join(eval_ctx: EvalContext, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    members = list(value)  # it may be a generator, whose sizes are not known before
    _check_join(members, d)
    return jinja2.filters.sync_do_join(eval_ctx, members, d, attribute)


def _charged(function: Callable[..., Any], guard: Callable[..., None] | None) -> Callable[..., Any]:
    """A filter with its guard before and its result charged after."""
    passes_context = hasattr(function, "jinja_pass_arg")

    def charged(*args: Any, **kwargs: Any) -> Any:
        if guard is not None:
            guard(*args[1 if passes_context else 0 :], **kwargs)
        result = function(*args, **kwargs)
        if isinstance(result, (str, list)):
            _charge_text(len(result))
        return result

    if passes_context:
        charged.jinja_pass_arg = function.jinja_pass_arg  # type: ignore[attr-defined]
    return charged


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as models saw it in training: not escaped for HTML, and other scripts as they are."""
    _charge_width(indent)
    if isinstance(value, Iterator):  # what `map` gives: other implementations of Jinja have a list there
        value = list(value)
    _charge_text(_text_size(value) * (1 if indent is None else 1 + int(indent)))
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
