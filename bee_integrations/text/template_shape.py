"""Templates whose cost their shape bounds: they need no process of their own.

Most plain chat formats are a loop over the messages with a few conditions. Where a template has nothing but that, its
values cannot grow beyond a few times its messages, and its time not beyond messages times messages, so that the
limits of template_sandbox.py hold. Everything else, and everything that this page does not know, runs in a helper.
"""

from __future__ import annotations

import jinja2
from jinja2 import nodes

from .template_sandbox import BoundedEnvironment

__all__ = ["is_bounded"]

_MAX_SOURCE = 10_000  # characters
_MAX_NESTED_LOOPS = 2
_MAX_GROWING_VALUES = 4  # each at most doubles the largest value there is

_PLAIN_NODES = (
    nodes.Template,
    nodes.Output,
    nodes.TemplateData,
    nodes.Name,
    nodes.Getattr,
    nodes.Getitem,
    nodes.Slice,
    nodes.If,
    nodes.CondExpr,
    nodes.Compare,
    nodes.Operand,
    nodes.And,
    nodes.Or,
    nodes.Not,
    nodes.Neg,
    nodes.Concat,
    nodes.Add,
    nodes.Break,
    nodes.Continue,
)
_FILTERS = {"capitalize", "count", "first", "last", "length", "lower", "string", "title", "tojson", "trim", "upper"}
_METHODS = {"endswith", "get", "items", "keys", "lower", "lstrip", "rstrip", "split", "startswith", "strip", "upper"}
_FUNCTIONS = {"raise_exception", "strftime_now"}


def is_bounded(source: str) -> bool:
    """Whether a template is one of the plain ones. False for what is no template at all."""
    if len(source) > _MAX_SOURCE:
        return False
    try:
        tree = BoundedEnvironment().parse(source)
        return _plain(tree, 0) and sum(_growing(assignment) for assignment in tree.find_all(nodes.Assign)) <= (
            _MAX_GROWING_VALUES
        )
    except (jinja2.TemplateError, RecursionError):
        return False


def _growing(assignment: nodes.Assign) -> int:
    return sum(len(node.nodes) - 1 if isinstance(node, nodes.Concat) else 1
               for node in assignment.find_all((nodes.Add, nodes.Concat)))  # fmt: skip


def _plain(node: nodes.Node, loops: int) -> bool:
    if isinstance(node, nodes.For):
        loops += 1
        if node.recursive or loops > _MAX_NESTED_LOOPS:
            return False
    elif isinstance(node, nodes.Tuple):  # of a loop over items()
        return node.ctx == "store" and all(isinstance(item, nodes.Name) for item in node.items)
    elif isinstance(node, nodes.List):
        return all(isinstance(item, nodes.Const) for item in node.items)
    elif not _plain_leaf(node):
        return False
    return all(_plain(child, loops) for child in node.iter_child_nodes())


def _plain_leaf(node: nodes.Node) -> bool:
    if isinstance(node, nodes.Const):
        return isinstance(node.value, (str, bool, int, type(None)))
    if isinstance(node, nodes.Assign):
        return isinstance(node.target, nodes.Name)  # and no attribute of a namespace, which lives from loop to loop
    if isinstance(node, nodes.Mod):  # of numbers; of text it is a format
        return isinstance(node.left, nodes.Getattr) and isinstance(node.right, nodes.Const)
    if isinstance(node, nodes.Filter):
        return node.name in _FILTERS and node.node is not None and _no_arguments(node)
    if isinstance(node, nodes.Test):
        return _constant_arguments(node)
    if isinstance(node, nodes.Call):
        return _plain_call(node)
    return isinstance(node, _PLAIN_NODES)


def _plain_call(node: nodes.Call) -> bool:
    if isinstance(node.node, nodes.Name):
        return node.node.name in _FUNCTIONS and len(node.args) == 1 and not (node.kwargs or node.dyn_args)
    return isinstance(node.node, nodes.Getattr) and node.node.attr in _METHODS and _constant_arguments(node)


def _constant_arguments(node: nodes.Call | nodes.Test | nodes.Filter) -> bool:
    plain = all(isinstance(argument, (nodes.Const, nodes.Name)) for argument in node.args)
    return plain and not (node.kwargs or node.dyn_args or node.dyn_kwargs)


def _no_arguments(node: nodes.Filter) -> bool:
    return not (node.args or node.kwargs or node.dyn_args or node.dyn_kwargs)
