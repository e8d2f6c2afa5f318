"""Chats: what both frameworks' classes ask of the engine, from messages to a reply.

    parameters, messages, tools  ->  prompt, answer plan  ->  request  ->  reply, metadata

The names below are imported on first use: rooms beneath this one read thinking, which lies here.
"""

from __future__ import annotations

import importlib
from typing import Any

_ROOMS = {
    "Answer": "text_request",
    "ChatRequest": "request",
    "HeldEngines": "held_engines",
    "Piece": "reply",
    "Reply": "reply",
    "ReplyCall": "reply",
    "Request": "text_request",
    "ToolUse": "tool_use",
    "arun_all": "text_request",
    "chat_prompt": "prompt",
    "chat_text": "prompt",
    "finish_reason": "metadata",
    "has_template": "prompt",
    "response_metadata": "metadata",
    "run_all": "text_request",
    "template_source": "prompt",
    "token_usage": "metadata",
    "tool_format": "prompt",
}

__all__ = [*_ROOMS]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_ROOMS[name]}", __name__), name)
