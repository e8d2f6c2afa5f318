"""Where the references of a JSON schema lead: by pointer, by anchor, and by `$id`, which changes the base.

What stands in `const`, `enum`, `examples` and `default` is data: no anchor and no identifier.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

__all__ = ["References", "escaped"]

_DATA = frozenset({"const", "default", "enum", "examples"})
_NAMED = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"})


class References:
    """The places in a document."""

    def __init__(self, document: Any) -> None:
        self._document = document
        self._bases: dict[str, str] = {}  # pointers of schemas with an identifier, and the absolute one
        self._roots: dict[str, str] = {"": ""}  # absolute identifiers, and the pointer
        self._anchors: dict[tuple[str, str], str] = {}  # (identifier, anchor)
        self._walk(document, "", "")
        self._roots.setdefault(self._bases.get("", ""), "")

    def target(self, reference: str, pointer: str) -> str | None:
        """The pointer that a reference at a place means; None where it leads out of the document. Raises LookupError
        and ValueError where it leads nowhere."""
        address, fragment = urldefrag(urljoin(self._base(pointer), reference))
        if reference.startswith("#"):
            address, fragment = self._base(pointer), reference[1:]
        root = self._roots.get(address)
        if root is None:
            return None
        fragment = unquote(fragment)
        target = root + fragment if not fragment or fragment.startswith("/") else self._anchors[address, fragment]
        self.find(target)
        return target

    def find(self, pointer: str) -> Any:
        """What stands at a pointer. Raises LookupError and ValueError where nothing does."""
        node = self._document
        for step in pointer.split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if not isinstance(node, (dict, list)):
                raise LookupError(step)
            node = node[int(step)] if isinstance(node, list) else node[step]
        return node

    def _base(self, pointer: str) -> str:
        while pointer not in self._bases and pointer:
            pointer = pointer.rpartition("/")[0]
        return self._bases.get(pointer, "")

    def _walk(self, node: Any, pointer: str, base: str) -> None:
        if isinstance(node, list):
            for index, part in enumerate(node):
                self._walk(part, f"{pointer}/{index}", base)
            return
        if not isinstance(node, dict):
            return
        identity = node.get("$id")
        if isinstance(identity, str):
            if identity.startswith("#"):  # draft 7 wrote anchors so
                self._anchors.setdefault((base, identity[1:]), pointer)
            else:
                base = urldefrag(urljoin(base, identity))[0]
                self._bases[pointer] = base
                self._roots.setdefault(base, pointer)
        for word in ("$anchor", "$dynamicAnchor"):
            if isinstance(node.get(word), str):
                self._anchors.setdefault((base, node[word]), pointer)
        for key, value in node.items():
            if key in _NAMED and isinstance(value, dict):
                for name, part in value.items():
                    self._walk(part, f"{pointer}/{escaped(key)}/{escaped(name)}", base)
            elif key not in _DATA:
                self._walk(value, f"{pointer}/{escaped(key)}", base)


def escaped(name: str) -> str:
    """A key as JSON pointers write it."""
    return name.replace("~", "~0").replace("/", "~1")
