"""Arguments as people write them: names and values of other libraries in Bee's own words, or what to use instead.

A value means what it means in the library that the name comes from: `num_predict=-1` (Ollama), `max_tokens=-1`,
`seed=-1`, `n_ctx=0` (llama.cpp), `top_k=-1` (vLLM), `context_window=-1` (LlamaIndex).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from ..errors import ParameterError

__all__ = ["own_arguments", "unknown_name"]

# The same under another name: llama.cpp and its bindings, Ollama, OpenAI, Hugging Face, LlamaIndex.
_ALIASES = {
    "model_name": "model",
    "model_path": "model",
    "num_ctx": "n_ctx",
    "context_window": "n_ctx",
    "n_threads": "threads",
    "num_thread": "threads",
    "num_predict": "max_tokens",
    "n_predict": "max_tokens",
    "max_new_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "max_tokens_to_sample": "max_tokens",
    "stop_sequences": "stop",
    "repeat_penalty": "repetition_penalty",
    "repeat_last_n": "penalty_window",
    "request_timeout": "timeout",
    "thinking_budget": "reasoning_budget",
}

# Values that stand for something else there: no limit, off, drawn at random, what the machine has.
_NO_LIMIT: dict[int, int | None] = {
    -1: None,
    -2: None,
}  # Ollama's -2 fills the context, which is where an answer without limit ends
_VALUES: dict[str, dict[int, int | None]] = {
    "max_tokens": {-1: None},
    "num_predict": _NO_LIMIT,
    "n_predict": _NO_LIMIT,
    "top_k": {-1: 0},
    "seed": {-1: None},
    "threads": {0: None, -1: None},
    "n_threads": {0: None, -1: None},
    "num_thread": {0: None, -1: None},
    "context_window": {-1: 0},
    "thinking_budget": {-1: None},
}

# Taken and dropped: they change no answer of a model in this process. Servers, accounts and their transport, ...
_WITHOUT_EFFECT = frozenset(
    {
        "api_key", "openai_api_key", "api_token", "max_retries", "organization", "openai_organization", "user",
        "service_tier", "default_headers", "default_query", "headers", "http_client", "http_async_client",
        "client_kwargs", "sync_client_kwargs", "async_client_kwargs", "validate_model_on_init", "keep_alive",
        # ... what the answers' form brings anyway, ...
        "streaming", "stream", "stream_usage", "stream_options", "include_usage", "verbose", "cache_prompt",
        # ... and how llama.cpp uses memory and cards.
        "n_batch", "num_batch", "n_ubatch", "n_threads_batch", "use_mmap", "use_mlock", "f16_kv", "low_vram", "numa",
        "main_gpu", "offload_kqv", "flash_attn", "num_keep", "n_keep", "last_n_tokens_size", "vocab_only", "n_parts",
        "logits_all", "no_perf",
    }
)  # fmt: skip

# Taken where they say nothing, which is one of these values or None; otherwise named with what to use instead.
_TRUNCATIONS = "use temperature with top_k, top_p or min_p"
_SERVER = "the model runs in this process, and there is no server to name; model= takes a model's name or its file"
_FROM_FILE = "it is read from the model's file"
_LORA = "merge the adapter into the model, and give the merged file as model="
_ONE_ANSWER = "a call gives one answer; use batch, or call again with another seed"
_BY_TEMPLATE = "the model's chat template says it; give another one as chat_template= (Jinja source)"
_INSTEAD: dict[str, tuple[tuple[Any, ...], str]] = {
    "base_url": ((), _SERVER),
    "api_base": ((), _SERVER),
    "openai_api_base": ((), _SERVER),
    "host": ((), _SERVER),
    "model_url": ((), "download the file, and give its path as model="),
    "n": ((1,), _ONE_ANSWER),
    "best_of": ((1,), _ONE_ANSWER),
    "mirostat": ((0,), _TRUNCATIONS),
    "mirostat_mode": ((0,), _TRUNCATIONS),
    "mirostat_tau": ((5.0,), _TRUNCATIONS),
    "mirostat_eta": ((0.1,), _TRUNCATIONS),
    "tfs_z": ((1.0,), _TRUNCATIONS),
    "typical_p": ((1.0,), _TRUNCATIONS),
    "top_n_sigma": ((-1.0,), _TRUNCATIONS),
    "xtc_probability": ((0.0,), _TRUNCATIONS),
    "xtc_threshold": ((0.0, 0.1), _TRUNCATIONS),
    "dynatemp_range": ((0.0,), "use temperature"),
    "dry_multiplier": ((0.0,), "use repetition_penalty, frequency_penalty or presence_penalty"),
    "penalize_newline": ((False,), "use logit_bias"),
    "penalize_nl": ((False,), "use logit_bias"),
    "ignore_eos": ((False,), "use logit_bias with the ids of the end tokens"),
    "do_sample": ((), "use temperature: 0 takes the most likely token"),
    "num_beams": ((1,), "answers are sampled one token after the other; leave it out"),
    "echo": ((False,), "put the prompt before the answer yourself"),
    "suffix": (("",), "write the model's fill-in-the-middle tokens into the prompt of a text completion"),
    "lora_path": (("",), _LORA),
    "lora_base": (("",), _LORA),
    "rope_freq_base": ((0, 10000.0), _FROM_FILE),
    "rope_freq_scale": ((0, 1.0), _FROM_FILE),
    "kv_overrides": (({},), _FROM_FILE),
    "grammar_path": ((), "give the file's text as grammar="),
    "chat_format": ((), _BY_TEMPLATE),
    "template": (("",), _BY_TEMPLATE),
    "is_chat_model": ((), _BY_TEMPLATE),
    "is_function_calling_model": ((), _BY_TEMPLATE),
    "system": (("",), "begin the conversation with a system message"),
    "draft_model": ((), "give a DFlash drafter as drafter=; speculation='copy' drafts from the prompt"),
    "split_mode": ((), "a model runs on one card; choose by device="),
    "tensor_split": ((), "a model runs on one card; choose by device="),
}

# What these ask for is an argument of ours, and its name resembles theirs too little to be found by that.
_MEANT = {
    "temp": "temperature",
    "context_length": "n_ctx",
    "context_size": "n_ctx",
    "ctx_size": "n_ctx",
    "max_context_length": "n_ctx",
    "max_model_len": "n_ctx",
    "max_seq_len": "n_ctx",
    "num_threads": "threads",
    "cpu_threads": "threads",
    "cores": "threads",
    "gpu": "device",
    "gpu_layers": "device",
    "device_map": "device",
    "type_k": "kv_cache",
    "type_v": "kv_cache",
    "cache_type_k": "kv_cache",
    "cache_type_v": "kv_cache",
    "kv_cache_dtype": "kv_cache",
    "random_seed": "seed",
    "max_length": "max_tokens",
    "num_tokens": "max_tokens",
    "stop_words": "stop",
    "stop_tokens": "stop",
    "eos": "stop",
    "schema": "response_format",
    "output_schema": "response_format",
    "draft": "drafter",
    "speculative": "speculation",
    "regex": "constraint",
    "choices": "constraint",
    "tokenizer_config": "chat_template",
    "prompt_template": "chat_template",
    "path": "model",
    "filename": "model",
}

_TOOL_WORDS = frozenset({"tools", "tool_choice", "functions", "function_call", "parallel_tool_calls"})

# Dictionaries of further arguments: LangChain, LlamaIndex, Ollama, OpenAI.
_BAGS = frozenset({"additional_kwargs", "model_kwargs", "generate_kwargs", "options", "extra_body"})


def own_arguments(given: Mapping[str, Any], own: Collection[str]) -> dict[str, Any]:
    """`given` in the names of `own`. None stays None.

    Raises `ParameterError` for unknown names, with the one that was meant; for names whose values nothing of ours can
    stand for, with what to use instead; and for two names of one argument with different values.
    """
    arguments: dict[str, Any] = {}
    for word, value in given.items():
        name = str(word)
        for own_name, meant in _translated(name, value, own).items():
            if own_name in arguments and not _same(arguments[own_name], meant):
                raise ParameterError(f"{own_name!r} is given twice, the second time as {name!r}; give it once")
            arguments[own_name] = meant
    return arguments


def _translated(name: str, value: Any, own: Collection[str]) -> dict[str, Any]:
    """What one argument says in our own names; nothing where it has no effect."""
    meant = _standing_for(name, value)
    if name in own and not (name == "logprobs" and _is_whole(value)):
        return {name: meant}
    if _ALIASES.get(name) in own:
        return {_ALIASES[name]: meant}
    if name in _WITHOUT_EFFECT:
        return {}
    if name in _TRANSLATIONS:
        return {} if value is None else _TRANSLATIONS[name](name, value)
    if name in _BAGS:
        if value is not None and not isinstance(value, Mapping):
            raise ParameterError(f"{name} is {value!r}; it must be a dictionary of further arguments")
        return own_arguments(value or {}, own)
    if name in _INSTEAD:
        says_nothing, instead = _INSTEAD[name]
        if value is None or any(_same(value, nothing) for nothing in says_nothing):
            return {}
        raise ParameterError(f"there is no parameter {name!r}: {instead}")
    raise unknown_name(name, own)


def _standing_for(name: str, value: Any) -> Any:
    return _VALUES.get(name, {}).get(value, value) if _is_whole(value) else value


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _same(first: Any, second: Any) -> bool:
    try:
        return bool(first == second) and isinstance(first, bool) == isinstance(second, bool)
    except Exception:  # of values that cannot be compared, as arrays
        return False


# ---- arguments that ours say in another way --------------------------------------------------------------------------


def _gpu_layers(name: str, value: Any) -> dict[str, Any]:
    if not _is_whole(value):
        raise ParameterError(f"{name} is {value!r}; it must be a whole number. device= says where the model runs")
    # All layers run in one place: with "auto" on the card where the model fits there.
    return {"device": "cpu"} if value == 0 else {}


def _gbnf(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, str):
        raise ParameterError(
            f"{name} is a {type(value).__name__}; give the text of the grammar in GBNF, or constraint="
        )
    return {"constraint": {"source": value, "syntax": "gbnf"}} if value else {}


def _format(name: str, value: Any) -> dict[str, Any]:
    return {"response_format": value} if value else {}


def _json_schema(name: str, value: Any) -> dict[str, Any]:
    return {"constraint": {"schema": value}}


def _json_mode(name: str, value: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_object"}} if value else {}


def _thinking(name: str, value: Any) -> dict[str, Any]:
    """ChatOllama's `reasoning`, Ollama's `think`, OpenAI's and Anthropic's dictionaries."""
    if isinstance(value, bool):
        return {"enable_thinking": value}
    if isinstance(value, str):
        return {"reasoning_effort": value}
    if isinstance(value, Mapping) and isinstance(value.get("effort"), str):
        return {"reasoning_effort": value["effort"]}
    if isinstance(value, Mapping) and value.get("type") in ("enabled", "adaptive", "disabled"):
        on = value["type"] != "disabled"
        budget = {"reasoning_budget": value["budget_tokens"]} if on and "budget_tokens" in value else {}
        return {"enable_thinking": on, **budget}
    raise ParameterError(
        f"{name} is {value!r}; expected True or False, or 'low', 'medium' or 'high' where the model knows these. See "
        "enable_thinking, reasoning_effort, reasoning_budget and reasoning_span"
    )


def _numbered_logprobs(name: str, value: Any) -> dict[str, Any]:
    """OpenAI's completions and llama.cpp's bindings give the number of tokens in each place here."""
    return {"logprobs": True, "top_logprobs": value} if value else {"logprobs": False}


_TRANSLATIONS: dict[str, Callable[[str, Any], dict[str, Any]]] = {
    "n_gpu_layers": _gpu_layers,
    "num_gpu": _gpu_layers,
    "grammar": _gbnf,
    "format": _format,
    "json_schema": _json_schema,
    "json_mode": _json_mode,
    "reasoning": _thinking,
    "think": _thinking,
    "thinking": _thinking,
    "logprobs": _numbered_logprobs,
}


# ---- names that are none ---------------------------------------------------------------------------------------------


def unknown_name(name: str, own: Collection[str]) -> ParameterError:
    """The error for an argument that nobody knows, with the name that was probably meant."""
    if name in _TOOL_WORDS:
        return ParameterError(f"{name!r} cannot be given here: tools belong to a call of a chat class; bind them there")
    meant = _meant(name, own)
    return ParameterError(f"there is no parameter {name!r}" + (f"; did you mean {meant!r}?" if meant else ""))


def _meant(name: str, own: Collection[str]) -> str | None:
    """Our own argument that a wrong name resembles: "maxTokens", "top-p", "temprature", "penalty"."""
    plain = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).replace("-", "_").lower()
    words = {word: word for word in own} | {word: meant for word, meant in (_ALIASES | _MEANT).items() if meant in own}
    words |= dict.fromkeys(_TRANSLATIONS, "") | dict.fromkeys(_WITHOUT_EFFECT | _BAGS, "") | dict.fromkeys(_INSTEAD, "")
    near = [plain] if plain in words else difflib.get_close_matches(plain, words, n=1)
    if not near and len(plain) > 2:
        near = sorted(word for word in words if word.startswith(plain) or plain in word.split("_"))[:1]
    return (words[near[0]] or near[0]) if near else None
