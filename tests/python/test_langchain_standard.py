"""LangChain's standard tests, on the default model.

The suite skips by itself what a model does not claim to do; for ChatBee that is

- images, PDF, sound and video, in messages and in tool messages (`supports_*_inputs`, `supports_*_tool_message`), and
  Anthropic's content blocks (`supports_anthropic_inputs`): the models read text only;
- recorded HTTP traffic (`enable_vcr_tests`): there is none to record;
- arguments from environment variables (`init_from_env_params`): ChatBee reads none.

The default model is small. What the suite leaves to a model's wit is settled by constraint: answers of a schema that
`max_tokens` would cut off are completed (`close_constraint`), and where the suite binds a tool without demanding a call
and waits for one, the call is demanded (`_CallsTools`).

One test needs help: `test_serdes` loads with `allowed_objects="all"`, which LangChain's loader takes to mean the
classes of a table inside langchain-core, and no class of another package. ChatBee is put into that table while the
unit tests run. Users name the class, `load(stored, allowed_objects=[ChatBee], valid_namespaces=["bee_integrations"])`,
as test_langchain.py does.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.load.load import Reviver
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from bee_integrations.langchain import ChatBee
from bee_integrations.models import DEFAULT_MODEL

THINKING_TEMPLATE = """\
{%- for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endfor %}
{{- '<|im_start|>assistant\n<think>\n' }}"""


class TestChatBeeUnit(ChatModelUnitTests):
    """Construction, tracing parameters and serialisation; no model is loaded."""

    @pytest.fixture(autouse=True)
    def _known_to_the_loader(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loader = sys.modules[Reviver.__module__]
        path = tuple(ChatBee.lc_id())
        monkeypatch.setitem(loader.ALL_SERIALIZABLE_MAPPINGS, path, path)
        monkeypatch.setattr(loader, "_default_class_paths_cache", {}, raising=False)

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatBee

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": DEFAULT_MODEL}


class TestChatBeeIntegration(ChatModelIntegrationTests):
    """Real answers of the default model."""

    path: Path

    @pytest.fixture(autouse=True)
    def _model(self, model_path: Path, tmp_path: Path) -> None:
        # A second name for the same file, so that the name that a call overrides can be told apart.
        self.path = tmp_path / "smollm2.gguf"
        self.path.symlink_to(model_path)

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatBee

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": self.path, "n_ctx": 1024, "threads": 1, "max_tokens": 60, "close_constraint": True}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return DEFAULT_MODEL

    @property
    def supported_usage_metadata_details(self) -> Any:
        details = ["cache_read_input", "reasoning_output"]
        return {"invoke": details, "stream": details}

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> Any:
        """The second of two equal requests finds its prompt in the cache."""
        model = ChatBee(**self.chat_model_params)
        model.invoke("What do bees eat in winter?")
        return _answer(model, "What do bees eat in winter?", stream)

    def invoke_with_reasoning_output(self, *, stream: bool = False) -> Any:
        """A template that opens a span of thinking, and a budget that closes it."""
        thinking = {"chat_template": THINKING_TEMPLATE, "reasoning_span": "<think>", "reasoning_budget": 8}
        answer = _answer(ChatBee(**self.chat_model_params, **thinking), "What do bees eat in winter?", stream)
        assert answer.usage_metadata["output_token_details"]["reasoning"] > 0
        return answer

    @pytest.fixture
    def model(self, request: Any) -> BaseChatModel:
        """As the suite's own, but for the test that needs a call and demands none."""
        made = _CallsTools if request.node.originalname == "test_agent_loop" else ChatBee
        return made(**(self.standard_chat_model_params | self.chat_model_params | getattr(request, "param", {})))


class _CallsTools(ChatBee):
    """Calls one of its tools at every turn, unless told otherwise."""

    def bind_tools(self, tools: Sequence[Any], *, tool_choice: Any = None, **kwargs: Any) -> Any:
        return super().bind_tools(tools, tool_choice=tool_choice or "any", **kwargs)


def _answer(model: ChatBee, question: str, stream: bool) -> Any:
    if not stream:
        return model.invoke(question)
    chunks = list(model.stream(question))
    return sum(chunks[1:], start=chunks[0])
