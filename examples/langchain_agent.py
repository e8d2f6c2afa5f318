"""A LangChain agent that uses two tools before it answers.

python examples/langchain_agent.py [Rome]

Needs the package langchain.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated, Any

from langchain.agents import create_agent
from langchain.agents.middleware import ModelRequest, ModelResponse, wrap_model_call
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import BaseTool, tool
from pydantic import Field

from bee_integrations.langchain import ChatBee

WEATHER = {"Oslo": "snow, -8 degrees", "Paris": "rain, 12 degrees", "Rome": "sunshine, 31 degrees"}


@tool
def get_weather(city: str) -> str:
    """Look up the weather in a city."""
    return WEATHER.get(city, "unknown")


@tool
def find_hotel(city: str, nights: Annotated[int, Field(ge=1, le=14)]) -> str:
    """Find a free hotel in a city."""
    return f"Hotel Central in {city}, {nights} nights, 90 euros a night"


@wrap_model_call
def each_tool_once(request: ModelRequest, handler: Callable[[ModelRequest], ModelResponse]) -> ModelResponse:
    """A model this small does not know when it has asked enough: it must use each tool once, and then answer. Which
    tool it takes first, and the arguments, are its own."""
    used = {message.name for message in request.messages if isinstance(message, ToolMessage)}
    left = [one for one in request.tools if isinstance(one, BaseTool) and one.name not in used]
    return handler(request.override(tools=left, tool_choice="any" if left else None))


def main() -> None:
    city = " ".join(sys.argv[1:]) or "Rome"
    agent = create_agent(
        ChatBee(max_tokens=80),
        tools=[get_weather, find_hotel],
        system_prompt="You are a travel agent. Answer in one short sentence.",
        middleware=[each_tool_once],
    )
    question = f"I want to spend 3 nights in {city}. How is the weather there, and where can I stay?"
    print(question)
    inputs: Any = {"messages": [{"role": "user", "content": question}]}
    for update in agent.stream(inputs, stream_mode="updates"):
        for state in update.values():
            for message in state["messages"]:
                report(message)


def report(message: Any) -> None:
    if isinstance(message, ToolMessage):
        print(f"    -> {message.content}")
    elif isinstance(message, AIMessage):
        for call in message.tool_calls:
            print(f"  {call['name']}({', '.join(f'{name}={value!r}' for name, value in call['args'].items())})")
        if message.text:
            print(message.text)


if __name__ == "__main__":
    main()
