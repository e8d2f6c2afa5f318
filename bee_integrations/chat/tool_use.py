"""The tools of a call of a chat class."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ParameterError
from ..tools.tool_format import Tool

__all__ = ["ToolUse"]


@dataclass(frozen=True)
class ToolUse:
    """The tools of a call, and whether they must be used. Raises ParameterError for tools that do not fit together."""

    tools: tuple[Tool, ...] = ()
    choice: str = "auto"
    """"auto": as the model likes; "any" ("required"): at least one call; "none": no call; or a tool's name."""
    parallel: bool = True
    """An answer may hold several calls, where the model's format knows that."""

    def __post_init__(self) -> None:
        names = [tool.name for tool in self.tools]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ParameterError(f"there are two tools with the name {twice!r}; give each a name of its own")
        if "" in names:
            raise ParameterError("a tool has no name")
        for tool in self.tools:
            kind = tool.parameters.get("type", "object")
            if kind != "object":
                raise ParameterError(
                    f"the parameters of the tool {tool.name!r} have the type {kind!r}; a schema of an object is needed"
                )
        known = ("auto", "any", "required", "none", *names)
        if self.choice not in known:
            raise ParameterError(f"tool_choice is {self.choice!r}; it must be one of {', '.join(map(repr, known))}")
        if self.choice not in ("auto", "none") and not self.tools:
            raise ParameterError(f"tool_choice is {self.choice!r}, but there are no tools")

    @property
    def callable_tools(self) -> tuple[Tool, ...]:
        """Those that the model may call."""
        if self.choice == "none":
            return ()
        named = tuple(tool for tool in self.tools if tool.name == self.choice)
        return named or self.tools

    @property
    def demanded(self) -> bool:
        """Whether the answer must hold a call."""
        return self.choice not in ("auto", "none")
