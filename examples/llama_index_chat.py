"""A LlamaIndex chat engine on a local model.

python examples/llama_index_chat.py
"""

from __future__ import annotations

from llama_index.core.chat_engine import SimpleChatEngine

from bee_integrations.llama_index import Bee

QUESTIONS = ["What is the largest planet?", "And the smallest?"]


def main() -> None:
    llm = Bee(max_tokens=80)
    engine = SimpleChatEngine.from_defaults(llm=llm, system_prompt="Answer in one sentence.")
    for question in QUESTIONS:
        print(f"> {question}")
        for text in engine.stream_chat(question).response_gen:
            print(text, end="", flush=True)
        print("\n")
    print(f"{llm.metadata.model_name}, {llm.metadata.context_window} tokens of context")


if __name__ == "__main__":
    main()
