"""Several answers at once in an event loop, and one that is cancelled half-way.

python examples/async_streaming.py
"""

from __future__ import annotations

import asyncio

from bee_integrations.langchain import ChatBee

QUESTIONS = ["Name a red fruit.", "Name a fast animal.", "Name a cold place.", "Name a loud instrument."]


async def answer(chat: ChatBee, question: str) -> None:
    """Print an answer when it is complete; the engine works on all of them side by side."""
    text = "".join([chunk.text async for chunk in chat.astream(question)])
    print(f"{question} {text.strip()}")


async def impatient(chat: ChatBee) -> None:
    """Leave a long answer after twenty pieces: the engine stops within one pass and is free for the next request."""
    task = asyncio.current_task()
    assert task is not None
    pieces = 0
    async for chunk in chat.astream("Write a long story about the sea.", max_tokens=1000):
        print(chunk.text, end="", flush=True)
        pieces += 1
        if pieces == 20:
            task.cancel()


async def main() -> None:
    chat = ChatBee(max_tokens=40)
    await asyncio.gather(*(answer(chat, question) for question in QUESTIONS))
    try:
        await asyncio.create_task(impatient(chat))
    except asyncio.CancelledError:
        print(" ... cancelled")
    await answer(chat, "Are you still there?")


if __name__ == "__main__":
    asyncio.run(main())
