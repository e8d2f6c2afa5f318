"""Generations end with whoever asked for them: a process that was forked, a batch that Ctrl-C strikes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler

from bee_integrations.engine import GenerationParams
from bee_integrations.langchain import ChatBee

# In the child, each of these goes on with what the parent began; the alarm ends one that hangs.
FORKED = """
import asyncio, os, signal, sys
from bee_integrations.chat.parameters import BeeParameters
from bee_integrations.chat.text_request import Request
from bee_integrations.engine import Engine, GenerationParams
from bee_integrations.errors import EngineClosedError

engine = Engine(sys.argv[1], threads=1, n_ctx=65536)
params = GenerationParams(max_tokens=60000, seed=1)


def in_child(name, do):
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        try:
            do()
            os._exit(1)
        except EngineClosedError as error:
            os._exit(0 if "fork" in str(error) else 2)
        except BaseException as error:
            print(name, repr(error), flush=True)
            os._exit(3)
    status = os.waitpid(child, 0)[1]
    assert status == 0, (name, status)


steps = engine.generate([1, 2, 3], params)
next(steps)
in_child("generate", lambda: list(steps))
steps.close()

timed = Request(engine, "abc", params, timeout=1000).steps()
next(timed)
in_child("generate within a time", lambda: list(timed))
timed.close()


async def iterate():
    steps = engine.agenerate([1, 2, 3], params)
    await steps.__anext__()
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        try:
            async for _ in steps:
                pass
            os._exit(1)
        except EngineClosedError:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    await steps.aclose()


async def wait():
    # The child's loop goes on with a task that waits.
    async def consume():
        async for _ in engine.agenerate([1, 2, 3], params):
            pass

    task = asyncio.ensure_future(consume())
    await asyncio.sleep(0.2)
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        try:
            await task
            os._exit(1)
        except EngineClosedError:
            os._exit(0)
    assert await asyncio.to_thread(os.waitpid, child, 0) == (child, 0)
    task.cancel()


asyncio.run(iterate())
asyncio.run(wait())
engine.close()
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_that_goes_on_iterating_is_told(endless_path: Path) -> None:
    run = [sys.executable, "-c", FORKED, str(endless_path)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=200, check=False)
    assert done.stdout.endswith("done\n"), done.stdout + done.stderr


class Ends(BaseCallbackHandler):
    """Interrupts the main thread once answers are on their way, and counts those that come to their end."""

    def __init__(self, n_begun: int) -> None:
        self.whole = 0
        self._left = n_begun
        self._lock = threading.Lock()

    def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
        with self._lock:
            self._left -= 1
            if self._left == 0:
                threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()

    def on_llm_end(self, *args: Any, **kwargs: Any) -> None:
        self.whole += 1


@pytest.fixture
def endless_chat(endless_path: Path) -> Iterator[ChatBee]:
    with_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    chat = ChatBee(model=str(endless_path), threads=1, n_ctx=65536, chat_template=with_template)
    yield chat
    chat.engine.close()


@pytest.mark.parametrize("timeout", [None, 1000.0])
@pytest.mark.parametrize("ask", [ChatBee.batch, lambda chat, *given: list(ChatBee.batch_as_completed(chat, *given))])
def test_ctrl_c_in_a_batch_cancels_its_answers(
    endless_chat: ChatBee, ask: Callable[..., Any], timeout: float | None
) -> None:
    ends = Ends(3)
    chat = endless_chat.model_copy(update={"timeout": timeout})
    with pytest.raises(KeyboardInterrupt):
        ask(chat, ["a", "b", "c"], {"callbacks": [ends]})
    # Nothing of it runs any more: what comes next does not wait for 65,000 tokens.
    assert len(endless_chat.engine.complete([1], GenerationParams(max_tokens=3)).tokens) == 3
    assert ends.whole == 0


def test_a_batch_gives_answers_and_errors_as_before(endless_chat: ChatBee) -> None:
    texts = [message.content for message in endless_chat.batch(["a", "b", "c"], max_tokens=4)]
    assert texts == [endless_chat.invoke(text, max_tokens=4).content for text in "abc"]
    assert dict(endless_chat.batch_as_completed(["a", "b"], max_tokens=4)).keys() == {0, 1}
    with pytest.raises(ValueError, match="max_tokens"):
        endless_chat.batch(["a", "b"], max_tokens=-7)
    first, second = endless_chat.batch(["a", "b"], max_tokens=-7, return_exceptions=True)
    assert isinstance(first, ValueError)
    assert isinstance(second, ValueError)


def test_closing_a_batch_cancels_the_rest(endless_chat: ChatBee) -> None:
    answers = endless_chat.batch_as_completed(["a", "b"], [{}, {"configurable": {}}], stop=["\n"])
    del answers  # nothing was begun
    begun = endless_chat.batch_as_completed(["a", "b"], max_tokens=40)
    next(begun)
    begun.close()  # type: ignore[attr-defined]
    assert endless_chat.invoke("c", max_tokens=2).content is not None
