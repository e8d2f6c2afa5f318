"""What `ChatBee.with_structured_output` consists of: a schema in LangChain's forms as JSON schema, and parsers that
take whole answers alone."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import BaseMessage
from langchain_core.output_parsers import BaseOutputParser, JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.outputs import Generation
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel

from .chat.response_format import wrapped_schema
from .constraints.json_schema import read_schema, schema_text
from .constraints.pydantic_schema import class_schema
from .constraints.strict_schema import closed
from .errors import ConstraintError, ParameterError

__all__ = ["answer_parser", "call_parser", "json_mode_format", "response_format", "tool_of", "traced_schema"]

# ---- schemas ---------------------------------------------------------------------------------------------------------


def json_schema(schema: Any) -> dict[str, Any]:
    """The JSON schema of a Pydantic class, a TypedDict, a function's description, or one that is given as such.

    Raises ParameterError for what is none of these, and ConstraintError, with the path, for what cannot be enforced.
    """
    found = _json_schema(schema)
    read_schema(schema_text(found))
    return found


def _json_schema(schema: Any) -> dict[str, Any]:
    if _is_pydantic(schema):
        # LangChain's own conversion resolves references, and loses what refers to itself.
        found = class_schema(schema) if issubclass(schema, BaseModel) else schema.schema()
        return {"title": schema.__name__, **found}
    if isinstance(schema, Mapping):
        wrapped = wrapped_schema(schema)
        if wrapped is not None:  # as OpenAI has it in its response_format
            name, inner, _ = wrapped
            return {"title": name, **inner}
        if "function" not in schema and "name" not in schema and "toolSpec" not in schema:
            return dict(schema)
    try:
        return convert_to_json_schema(schema)
    except Exception as error:  # of whatever kind the conversion of a stranger's class raises
        raise ParameterError(f"{schema!r} is no schema of a structured output: {error}") from error


def response_format(schema: Any, strict: bool | None = None) -> dict[str, Any]:
    """OpenAI's words for an answer of that schema. Raises as `json_schema`."""
    found = json_schema(schema)
    named = {"name": str(found.get("title", "answer")), "schema": closed(found)}
    return {"type": "json_schema", "json_schema": named if strict is None else named | {"strict": strict}}


def json_mode_format(schema: Any, strict: bool | None = None) -> dict[str, Any]:
    """OpenAI's words for a JSON object, of that schema if it can be enforced: an answer that is not of it would not
    parse. Raises ParameterError for what is no schema."""
    if schema is None:
        return {"type": "json_object"}
    try:
        return response_format(schema, strict)
    except ConstraintError:
        return {"type": "json_object"}


def tool_of(schema: Any) -> dict[str, Any]:
    """A function whose arguments are of that schema. Raises as `json_schema`, and ParameterError for one without a
    name."""
    found = dict(json_schema(schema))
    name, description = found.pop("title", None), found.pop("description", "")
    if not isinstance(name, str) or not name:
        raise ParameterError("a schema that is to be a function needs a name: give it a top-level 'title'")
    function = {"name": name, "description": description, "parameters": closed(found)}
    return {"type": "function", "function": function}


def traced_schema(schema: Any) -> Any:
    """The schema in the form in which LangChain's tracers read it."""
    try:
        return convert_to_openai_tool(schema)
    except Exception:
        return schema  # one that is no function, such as a list's


def _is_pydantic(schema: Any) -> bool:
    return isinstance(schema, type) and is_basemodel_subclass(schema)


# ---- parsers ---------------------------------------------------------------------------------------------------------


def call_parser(schema: Any, name: str) -> BaseOutputParser[Any]:
    """Reads the first call of the tool `name` that was made of the schema."""
    if _is_pydantic(schema):
        return PydanticToolsParser(tools=[schema], first_tool_only=True)
    return JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)


def answer_parser(schema: Any) -> BaseOutputParser[Any]:
    """Reads an answer that is JSON as a Pydantic object, or as what JSON makes of it."""
    return _WholePydantic(pydantic_object=schema) if _is_pydantic(schema) else _WholeJson()


class _WholeJson(JsonOutputParser):
    """JSON that is complete. LangChain's parser completes what was cut off, so that it looks like an answer."""

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        if not partial:
            _check_whole(result[0].text)
        return super().parse_result(result, partial=partial)

    def _transform(self, input: Iterator[str | BaseMessage]) -> Iterator[Any]:
        text: list[str] = []
        yield from super()._transform(_noted(part, text) for part in input)
        _check_whole("".join(text))

    async def _atransform(self, input: AsyncIterator[str | BaseMessage]) -> AsyncIterator[Any]:
        text: list[str] = []
        async for value in super()._atransform(_noted(part, text) async for part in input):
            yield value
        _check_whole("".join(text))


class _WholePydantic(_WholeJson, PydanticOutputParser[Any]):
    """The same as a Pydantic object."""


def _noted(part: str | BaseMessage, text: list[str]) -> str | BaseMessage:
    text.append(part if isinstance(part, str) else part.text)
    return part


def _check_whole(text: str) -> None:
    try:
        json.loads(text, strict=False)
    except ValueError as error:
        raise OutputParserException(
            f"the answer is no complete JSON ({error}); was it cut off by max_tokens? It is: {text}", llm_output=text
        ) from error
