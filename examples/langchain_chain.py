"""A LangChain chain that streams from a local model, and what speculation did for it.

python examples/langchain_chain.py "Why do bees dance?"
"""

from __future__ import annotations

import sys

from langchain_core.messages import AIMessage
from langchain_core.prompts import ChatPromptTemplate

from bee_integrations.langchain import ChatBee

PROMPT = ChatPromptTemplate.from_messages([("system", "You are a friendly teacher."), ("human", "{question}")])


def main() -> None:
    question = " ".join(sys.argv[1:]) or "Why do bees dance?"
    chain = PROMPT | ChatBee(max_tokens=200)
    chunk = AIMessage("")
    for chunk in chain.stream({"question": question}):
        print(chunk.text, end="", flush=True)
    report(chunk)


def report(last: AIMessage) -> None:
    """Print what the last chunk of a stream knows about the whole answer."""
    usage, metadata = last.usage_metadata, last.response_metadata
    speculation, speed = metadata["speculation"], metadata["speed"]
    print(f"\n\n{metadata['model_name']}: ended by {metadata['finish_reason']!r}")
    print(f"tokens: {usage['input_tokens']} in, {usage['output_tokens']} out" if usage else "tokens: not counted")
    print(
        f"speed: {speed['decode_tokens_per_s']:.0f} tokens/s, first token after {speed['time_to_first_token_s']:.3f} s"
    )
    print(
        f"speculation ({speculation['mode']}): {speculation['tokens_per_cycle']:.2f} tokens per cycle, "
        f"{speculation['draft_acceptance']:.0%} of the drafts accepted, "
        f"{speculation['accepted_share']:.0%} of the answer drafted"
    )


if __name__ == "__main__":
    main()
