"""A LangChain chain streams an answer from a local model: with DFlash speculative decoding, and again without.

The two texts must be the same, token for token; only the speed differs. Both answer some more times, in turn, and the
medians are compared: one short answer alone tells more of the machine's mood than of the engine. Run by `make demo`.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from statistics import median
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.prompts import ChatPromptTemplate

from bee_integrations.errors import TemplateError
from bee_integrations.langchain import ChatBee

QUESTION = "Write a Python function that returns the n-th Fibonacci number, and show how to call it."
REPEATS = 4
PLAIN_TEMPLATE = "{% for message in messages %}{{ message.content }}\n\n{% endfor %}"
PROMPT = ChatPromptTemplate.from_messages([("system", "You are a helpful assistant."), ("human", "{question}")])


@dataclass
class Answer:
    """A streamed text, and what the model reported about it."""

    text: str
    output_tokens: int
    metadata: dict[str, Any]


class FinalMessage(BaseCallbackHandler):
    """Keeps the model's message: the chain's parser hands on its text alone."""

    message: AIMessage

    def on_llm_end(self, response: LLMResult, **kwargs: Any) -> None:
        generation = response.generations[0][0]
        assert isinstance(generation, ChatGeneration)
        assert isinstance(generation.message, AIMessage)
        self.message = generation.message


def main() -> int:
    arguments = _arguments()
    settings = {
        "model": arguments.model,
        "drafter": arguments.drafter,
        "threads": arguments.threads,
        "max_tokens": arguments.max_tokens,
    }
    try:
        ChatBee(**settings).invoke("Hello", max_tokens=8)  # loads the model, so that no timing includes it
    except TemplateError:
        settings["chat_template"] = PLAIN_TEMPLATE  # a model that was never taught to chat goes on with the text
    drafting, plain = ChatBee(**settings, speculation="auto"), ChatBee(**settings, speculation="off")
    for llm in (drafting, plain):
        llm.invoke("Hello", max_tokens=8)

    print(f"Question: {arguments.question}\n\n==== DFlash on\n")
    with_dflash = stream_answer(drafting, arguments.question)
    print("\n==== speculation off\n")
    without = stream_answer(plain, arguments.question)
    measure_in_turn([(drafting, with_dflash), (plain, without)], arguments.question)

    print("\n====\n")
    print_figures("DFlash on", with_dflash)
    print_figures("speculation off", without)
    return compare(with_dflash, without)


def stream_answer(llm: ChatBee, question: str) -> Answer:
    """Print an answer as it comes out of a chain."""
    chain = PROMPT | llm | StrOutputParser()
    final = FinalMessage()
    text = ""
    for piece in chain.stream({"question": question}, config={"callbacks": [final]}):
        print(piece, end="", flush=True)
        text += piece
    print()
    usage = final.message.usage_metadata
    assert usage is not None
    return Answer(text, usage["output_tokens"], final.message.response_metadata)


def measure_in_turn(answered: list[tuple[ChatBee, Answer]], question: str) -> None:
    """Answer again, unseen, and put the median speed in place of the first one's."""
    speeds: list[list[float]] = [[answer.metadata["speed"]["decode_tokens_per_s"]] for _, answer in answered]
    for _ in range(REPEATS):
        for known, (llm, _) in zip(speeds, answered, strict=True):
            message = (PROMPT | llm).invoke({"question": question})
            known.append(message.response_metadata["speed"]["decode_tokens_per_s"])
    for known, (_, answer) in zip(speeds, answered, strict=True):
        answer.metadata["speed"]["decode_tokens_per_s"] = median(known)


def print_figures(title: str, answer: Answer) -> None:
    """Speed, and how drafting did."""
    speed, drafted = answer.metadata["speed"], answer.metadata["speculation"]
    print(
        f"{title}: {answer.output_tokens} tokens at {speed['decode_tokens_per_s']:.1f} tokens/s; "
        f"tokens per cycle {drafted['tokens_per_cycle']:.2f}, "
        f"draft_acceptance {drafted['draft_acceptance']:.1%}, accepted_share {drafted['accepted_share']:.1%}"
    )


def compare(with_dflash: Answer, without: Answer) -> int:
    """The exit code: 1 where speculation changed the text."""
    if with_dflash.text != without.text:
        print("\n*** ERROR: the two texts differ. Speculation must never change the output. ***", file=sys.stderr)
        return 1
    ratio = with_dflash.metadata["speed"]["decode_tokens_per_s"] / without.metadata["speed"]["decode_tokens_per_s"]
    print(f"\nThe two texts are the same. With DFlash it decoded at {ratio:.2f} times the speed of plain decoding.")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--model", default=None, help="a registered name or a GGUF file")
    parser.add_argument("--drafter", default="auto", help="a DFlash GGUF file")
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--threads", type=int, default=None)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
