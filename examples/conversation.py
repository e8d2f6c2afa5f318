"""A conversation in the terminal. Each turn processes only what is new; an empty line ends it.

python examples/conversation.py
"""

from __future__ import annotations

from langchain_core.messages import AIMessageChunk, BaseMessage, HumanMessage

from bee_integrations.langchain import ChatBee


def main() -> None:
    chat = ChatBee(max_tokens=200, temperature=0.7, min_p=0.05)
    history: list[BaseMessage] = []
    while question := read("> "):
        history.append(HumanMessage(question))
        try:
            history.append(streamed(chat, history))
        except KeyboardInterrupt:  # stop this answer, keep the conversation
            history.pop()
            print(" ... stopped")


def streamed(chat: ChatBee, history: list[BaseMessage]) -> AIMessageChunk:
    """Print an answer as it comes and return the whole of it."""
    answer = AIMessageChunk(content="")
    for chunk in chat.stream(history):
        print(chunk.text, end="", flush=True)
        answer = answer + chunk
    usage = answer.usage_metadata
    if usage:
        reused = usage.get("input_token_details", {}).get("cache_read", 0)
        print(f"\n[{usage['output_tokens']} tokens; {reused} of {usage['input_tokens']} prompt tokens were known]")
    return answer


def read(prompt: str) -> str:
    try:
        return input(prompt).strip()
    except (EOFError, KeyboardInterrupt):
        print()
        return ""


if __name__ == "__main__":
    main()
