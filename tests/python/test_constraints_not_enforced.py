"""Keywords that no grammar enforces, as chats show them: in metadata, in a check of the answer, in invalid calls."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from pydantic import BaseModel

from bee_integrations import ChatBee
from bee_integrations.errors import ConstraintError

# No text is without a text's length, which no grammar can tell.
NEVER = {"type": "string", "maxLength": 12, "not": {"minLength": 0}}
LISTS = {"type": "object", "properties": {"list": NEVER}, "required": ["list"], "additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "keep", "description": "Keeps a list.", "parameters": LISTS}}


@pytest.fixture
def chat(model_path: Any) -> ChatBee:
    return ChatBee(model=str(model_path), max_tokens=400)


def form(strict: bool) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "lists", "schema": LISTS, "strict": strict}}


def test_an_answer_is_checked_against_what_was_loosened(chat: ChatBee) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metadata = chat.invoke("Some numbers.", response_format=form(strict=False)).response_metadata
    assert metadata["not_enforced"] == ["/properties/list/not"]
    assert metadata["finish_reason"] == "stop"
    assert metadata["fault"].startswith("/list: ")


def test_an_answer_without_such_keywords_has_no_such_metadata(chat: ChatBee) -> None:
    metadata = chat.invoke("Yes or no?", response_format={"type": "boolean"}).response_metadata
    assert "not_enforced" not in metadata
    assert "fault" not in metadata


def test_strictness_is_a_refusal_with_path_and_tool(chat: ChatBee) -> None:
    with pytest.raises(ConstraintError, match=r"^/properties/list: .*'not'"):
        chat.invoke("Some numbers.", response_format=form(strict=True))
    with pytest.raises(ConstraintError, match=r"the tool 'keep': /properties/list: .*'not'"):
        chat.bind_tools([TOOL], strict=True).invoke("Hi")


def test_a_call_that_violates_what_was_loosened_is_invalid(chat: ChatBee) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        answer = chat.bind_tools([TOOL], tool_choice="any").invoke("Keep some numbers.")
    assert answer.tool_calls == []
    assert "should not be valid" in str(answer.invalid_tool_calls[0]["error"])


def test_one_harmless_keyword_does_not_stop_a_chat(chat: ChatBee) -> None:
    headers = {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "string"}}
    parameters = {"type": "object", "properties": {"headers": headers}, "additionalProperties": False}
    tool = {"type": "function", "function": {"name": "fetch", "description": "Fetches.", "parameters": parameters}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answer = chat.bind_tools([tool]).invoke("Hi", max_tokens=10)
    assert "not_enforced" not in answer.response_metadata


def test_sets_of_pydantic_are_taken(chat: ChatBee) -> None:
    class Labels(BaseModel):
        tags: set[int]

    with pytest.warns(UserWarning, match="/properties/tags/uniqueItems"):
        chat.with_structured_output(Labels).bind(close_constraint=True).invoke("Some tags.", max_tokens=40)
