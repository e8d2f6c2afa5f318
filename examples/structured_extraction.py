"""An order, read out of a customer's message into a Pydantic object: always valid, whatever the model says.

python examples/structured_extraction.py "Please send 3 lamps to Ada Lovelace in London. It is urgent."
"""

from __future__ import annotations

import sys
from typing import Literal

from langchain_core.prompts import ChatPromptTemplate
from pydantic import BaseModel, Field

from bee_integrations.langchain import ChatBee

MESSAGE = (
    "Hello, this is Maria Keller. Please send us 12 notebooks and 4 fountain pens, to the office at Hafenstrasse 9 in "
    "Hamburg. We need them by Friday!"
)
PROMPT = ChatPromptTemplate.from_messages([("human", "Read the order out of this message as JSON:\n\n{message}")])


class Item(BaseModel):
    article: str = Field(max_length=40)
    quantity: int = Field(ge=1, le=1000)


class Order(BaseModel):
    """An order of a customer."""

    customer: str = Field(max_length=40)
    city: str = Field(max_length=40)
    items: list[Item] = Field(min_length=1, max_length=3)
    priority: Literal["normal", "urgent"]


def main() -> None:
    message = " ".join(sys.argv[1:]) or MESSAGE
    chain = PROMPT | ChatBee(max_tokens=200).with_structured_output(Order, include_raw=True)
    answer = chain.invoke({"message": message})
    order = answer["parsed"]
    print(order.model_dump_json(indent=2))
    speculation = answer["raw"].response_metadata["speculation"]
    print(f"{speculation['tokens_per_cycle']:.1f} tokens per cycle, logit paths {speculation['logit_paths']}")


if __name__ == "__main__":
    main()
