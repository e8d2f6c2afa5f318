"""Writes what LangChain's `dumps` makes of chains with Bee's models: golden/stored/chains_NAME.json.

Chains that people have stored must load in every later version, so the files stay as they are; run this for a new
version's, under a new name: python tests/golden/make_stored_chains.py NAME
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from langchain_core.load import dumps
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

from bee_integrations.langchain import BeeLLM, ChatBee


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def chains() -> dict[str, Any]:
    """Chains with every way in which a model stands in one."""
    prompt = ChatPromptTemplate.from_messages([("system", "Be brief."), ("human", "{question}")])
    chat = ChatBee(model="x.gguf", drafter=None, temperature=0.5, seed=4, stop=["a", "b"], max_tokens=9, timeout=5.0)
    llm = BeeLLM(model="x.gguf", top_k=3, logit_bias={5: 1.5}, speculation="off")
    asked = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object", "properties": {}}}}
    return {
        "chain": prompt | chat | StrOutputParser(),
        "completion": llm,
        "bound": chat.bind(max_tokens=3, response_format=asked),
        "tools": chat.bind_tools([add], tool_choice="any"),
        "thinking": ChatBee(model="x.gguf", reasoning_span=("<a>", "</a>"), chat_template="{{ messages }}"),
    }


if __name__ == "__main__":
    folder = Path(__file__).parent / "stored"
    folder.mkdir(exist_ok=True)
    stored = {name: json.loads(dumps(chain)) for name, chain in chains().items()}
    text = json.dumps(stored, indent=1, ensure_ascii=False)
    (folder / f"chains_{sys.argv[1]}.json").write_text(text + "\n", encoding="utf-8")
