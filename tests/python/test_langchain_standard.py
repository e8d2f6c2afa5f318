"""LangChain's standard tests, on the default model.

The suite skips by itself what a model does not claim to do; for ChatBee that is

- tools (`has_tool_calling`, `has_tool_choice`) and structured output, JSON mode included
(`has_structured_output`,
  `supports_json_mode`): ChatBee has neither `bind_tools` nor `with_structured_output`;
- images, PDF, sound and video, in messages and in tool messages (`supports_*_inputs`,
`supports_*_tool_message`), and
  Anthropic's content blocks (`supports_anthropic_inputs`): the models read text only;
- recorded HTTP traffic (`enable_vcr_tests`): there is none to record;
- arguments from environment variables (`init_from_env_params`): ChatBee reads none.

One test needs help: `test_serdes` loads with `allowed_objects="all"`, which LangChain's loader takes to mean the
classes of a table inside langchain-core, and no class of another package. ChatBee is put into that table while the
unit tests run. Users name the class, `load(stored, allowed_objects=[ChatBee], valid_namespaces=["bee_integrations"])`,
as test_langchain.py does.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.load.load import Reviver
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from bee_integrations.langchain import ChatBee
from bee_integrations.models import DEFAULT_MODEL


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
        return {"model": self.path, "n_ctx": 512, "threads": 1, "max_tokens": 24}

    @property
    def model_override_value(self) -> str:
        return DEFAULT_MODEL

    @property
    def supported_usage_metadata_details(self) -> Any:
        return {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> Any:
        """The second of two equal requests finds its prompt in the cache."""
        model = ChatBee(**self.chat_model_params)
        model.invoke("What do bees eat in winter?")
        if not stream:
            return model.invoke("What do bees eat in winter?")
        chunks = list(model.stream("What do bees eat in winter?"))
        return sum(chunks[1:], start=chunks[0])
