"""A LlamaIndex agent that looks something up with one tool and then acts with another.

python examples/llama_index_agent.py [Rome]
"""

from __future__ import annotations

import asyncio
import sys

from llama_index.core.agent.workflow import FunctionAgent, ToolCallResult
from llama_index.core.tools import FunctionTool

from bee_integrations.llama_index import Bee

WEATHER = {"Oslo": "Snow, minus 8 degrees.", "Paris": "Rain all day, 12 degrees.", "Rome": "Sunshine, 31 degrees."}


def weather(city: str) -> str:
    """Look up the weather in a city."""
    return WEATHER.get(city, "Nobody knows.")


def book(city: str, days: int) -> str:
    """Book a hotel in a city for some days."""
    return f"Booked {days} days in {city}."


async def main() -> None:
    # A model this small does not know which tool comes when. Here the first step is to look up, and what comes after it
    # is to book, whose result is the answer; the arguments are the model's, and always of the right types.
    agent = FunctionAgent(
        llm=Bee(max_tokens=80, tool_choice="book"),
        tools=[FunctionTool.from_defaults(weather), FunctionTool.from_defaults(book, return_direct=True)],
        initial_tool_choice="weather",
    )
    city = " ".join(sys.argv[1:]) or "Paris"
    question = f"How is the weather in {city}? Book a hotel there for 3 days."
    print(question)
    run = agent.run(question)
    async for event in run.stream_events():
        if isinstance(event, ToolCallResult):
            print(f"  {event.tool_name}({event.tool_kwargs}) -> {event.tool_output}")
    print(await run)


if __name__ == "__main__":
    asyncio.run(main())
