"""The arguments that the LLM classes of both frameworks share, with their checks and their overrides per call."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ValidationError, field_validator, model_validator

from ..constraints.compiler import Constraint, JsonSchema, json_object
from ..engine.engine import GenerationParams, check_arguments
from ..errors import BeeError, ParameterError
from ..models.registry import DEFAULT_MODEL
from ..parameter_checks import INT32_MAX, integer

__all__ = ["BeeParameters"]

# Other libraries' words for our arguments.
_ALIASES = {
    "model_name": "model",
    "model_path": "model",
    "num_ctx": "n_ctx",
    "context_window": "n_ctx",
    "n_threads": "threads",
    "num_thread": "threads",
    "num_predict": "max_tokens",
    "max_new_tokens": "max_tokens",
    "stop_sequences": "stop",
    "repeat_penalty": "repetition_penalty",
    "repeat_last_n": "penalty_window",
}

# Of use for hosted models only; taken and dropped, so that code written for those needs no change.
_NOT_FOR_LOCAL_MODELS = frozenset({"api_key", "max_retries"})

_TOOL_WORDS = frozenset({"tools", "tool_choice", "functions"})


class BeeParameters(BaseModel):
    """Which model runs, and how. Mixed into the LLM classes; on its own it is the sum of an object and a call."""

    model: str = DEFAULT_MODEL
    """A registered name or the path of a GGUF file. None: the default model, downloaded on first use."""
    drafter: str | None = "auto"
    """The DFlash drafter: a path, "auto" (the one that belongs to the model, if any) or None."""
    speculation: Literal["auto", "dflash", "copy", "off"] = "auto"
    """"auto" drafts what pays, "dflash" a whole block every cycle, "copy" what the text so far repeats, "off" nothing.
    The text is the same."""
    draft_length: int | None = None
    """Drafted tokens per cycle; None leaves it to the engine."""
    n_ctx: int | None = None
    """Tokens of context, prompt and answer together; None takes what the model was trained for."""
    threads: int | None = None
    """CPU threads; None takes the cores that this process may use."""
    device: str = "auto"
    """Where the model runs: "cuda", "cpu", or "auto": the card where there is one and the model fits, else the CPU."""
    temperature: float = 0.0
    """0 always takes the most likely token; higher values take more varied ones."""
    top_k: int = 0
    """Sample from the `top_k` most likely tokens only; 0 is off."""
    top_p: float = 1.0
    """Sample from the most likely tokens that reach this probability together; 1 is off."""
    min_p: float = 0.0
    """Drop tokens less likely than `min_p` times the most likely one; 0 is off."""
    repetition_penalty: float = 1.0
    """Divides the logits of tokens that stand among the last `penalty_window` ones; 1 is off."""
    frequency_penalty: float = 0.0
    """Taken from a token's logit for each time it stands there; 0 is off."""
    presence_penalty: float = 0.0
    """Taken from a token's logit if it stands there at all; 0 is off."""
    penalty_window: int = 64
    """Tokens that the penalties look back over, prompt included; -1 is all of them."""
    logit_bias: dict[int, float] | None = None
    """Added to the logits of these tokens: -1000 to 1000."""
    logprobs: bool = False
    """Report the log-probabilities of the answer's tokens in the response's metadata."""
    top_logprobs: int = 0
    """With `logprobs`, also those of so many most likely tokens in each place: 0 to 20."""
    seed: int | None = None
    """The same seed, prompt and parameters give the same text. None draws one, which the metadata report."""
    max_tokens: int | None = None
    """Tokens to generate at most; None means until the model ends or the context is full."""
    stop: list[str] | None = None
    """Strings that end the generation; they are not part of the text."""
    constraint: Constraint | None = None
    """What the answer must look like: a JsonSchema, Regex, Grammar or Choice of `bee_integrations.constraints`."""
    response_format: dict[str, Any] | None = None
    """The same in OpenAI's words: `{"type": "json_object"}`, or `{"type": "json_schema", "json_schema": {...}}`."""
    close_constraint: bool = False
    """Complete an answer that `max_tokens` cuts off under its constraint, so that it is valid all the same."""
    tool_format: str | None = None
    """How the model is told of tools and writes calls ("hermes", "mistral", ...); None: as its chat template says."""
    enable_thinking: bool | None = None
    """Switches a model's thinking through its chat template; None leaves that to the template."""
    reasoning_span: str | tuple[str, str] | None = "auto"
    """What a model's thinking stands between: a tag such as "<think>", or two texts; "auto" asks the chat template, and
    None leaves the thinking in the text."""
    reasoning_budget: int | None = None
    """Tokens of thinking after which it is ended; None: as long as it takes."""
    timeout: float | None = None
    """Seconds after which a request is cancelled and TimeoutError raised; None waits as long as it takes."""
    chat_template: str | None = None
    """Source of a Jinja chat template, instead of the model's own."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Further variables for the chat template, such as `{"enable_thinking": False}` for Qwen 3."""

    @model_validator(mode="before")
    @classmethod
    def _accept_names(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        accepted: dict[str, Any] = {}
        for given, value in values.items():
            name = str(given) if given in cls.model_fields else _ALIASES.get(given, str(given))
            if name in accepted:
                raise ParameterError(f"{name!r} is given twice, the second time as {given!r}; give it once")
            if name in cls.model_fields:
                accepted[name] = value
            elif name not in _NOT_FOR_LOCAL_MODELS:
                raise ParameterError(_unknown(name, set(cls.model_fields) | set(_ALIASES)))
        return accepted

    @field_validator("model", mode="before")
    @classmethod
    def _default_model(cls, model: Any) -> Any:
        return DEFAULT_MODEL if model is None else _path_text(model)

    @field_validator("drafter", mode="before")
    @classmethod
    def _drafter_path(cls, drafter: Any) -> Any:
        return _path_text(drafter)

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop_string(cls, stop: Any) -> Any:
        return [stop] if isinstance(stop, str) else stop

    @field_validator("timeout", mode="after")
    @classmethod
    def _positive_timeout(cls, timeout: float | None) -> float | None:
        if timeout is not None and not timeout > 0:
            raise ParameterError(f"timeout is {timeout}, expected seconds greater than 0, or None")
        return timeout

    @model_validator(mode="after")
    def _in_range(self) -> BeeParameters:
        check_arguments(n_ctx=self.n_ctx, threads=self.threads, device=self.device)
        self.generation_params()
        if self.reasoning_budget is not None:
            integer("reasoning_budget", self.reasoning_budget, 0, INT32_MAX, note=" (None: no bound)")
        return self

    def generation_params(self) -> GenerationParams:
        """The part that concerns a generation, as the engine takes it. Raises ParameterError."""
        return GenerationParams(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            penalty_window=self.penalty_window,
            logit_bias=self.logit_bias or {},
            logprobs=self.logprobs,
            top_logprobs=self.top_logprobs,
            seed=self.seed,
            max_tokens=self.max_tokens,
            stop=tuple(self.stop or ()),
            constraint=self.asked_constraint(),
            close_constraint=self.close_constraint,
            speculation=self.speculation,
            draft_length=self.draft_length,
        )

    def asked_constraint(self) -> Constraint | None:
        """`constraint`, or what `response_format` says. Raises ParameterError."""
        asked = _constraint_of(self.response_format)
        if asked is not None and self.constraint is not None:
            raise ParameterError("constraint and response_format are both given; give one of them")
        return asked if self.constraint is None else self.constraint

    def parameters(self) -> dict[str, Any]:
        """The arguments of `BeeParameters` alone, whatever class they are mixed into."""
        return {name: getattr(self, name) for name in BeeParameters.model_fields}

    def for_call(self, stop: list[str] | None, overrides: Mapping[str, Any]) -> BeeParameters:
        """The parameters of one call: `overrides` win, under any name that the constructor takes.

        Raises `ParameterError` for unknown names and values out of range.
        """
        values = self.parameters()
        if stop is not None:
            values["stop"] = stop
        changed = {_ALIASES.get(name, name): value for name, value in overrides.items()}
        if "model" in changed and "drafter" not in changed and self.drafter is not None:
            values["drafter"] = "auto"  # the object's drafter belongs to the object's model
        try:
            return BeeParameters.model_validate(values | changed)
        except ValidationError as error:
            raise _parameter_error(error) from error


def _constraint_of(response_format: Mapping[str, Any] | None) -> Constraint | None:
    kind = "text" if response_format is None else response_format.get("type")
    if response_format is None or kind == "text":
        return None
    if kind == "json_object":
        return json_object()
    named = response_format.get("json_schema")
    schema = named.get("schema") if kind == "json_schema" and isinstance(named, Mapping) else None
    if not isinstance(schema, Mapping):
        raise ParameterError(
            f"response_format is {response_format!r}; expected {{'type': 'text'}}, {{'type': 'json_object'}} or "
            "{'type': 'json_schema', 'json_schema': {'name': ..., 'schema': {...}}}"
        )
    return JsonSchema(schema)


def _path_text(path: Any) -> Any:
    return os.fspath(path) if isinstance(path, os.PathLike) else path


def _unknown(name: str, known: set[str]) -> str:
    if name in _TOOL_WORDS:
        return f"{name!r} cannot be given here: tools belong to a call of a chat class; bind them there"
    near = difflib.get_close_matches(name, known, n=1)
    meant = f"; did you mean {_ALIASES.get(near[0], near[0])!r}?" if near else ""
    return f"there is no parameter {name!r}{meant}"


def _parameter_error(error: ValidationError) -> BeeError:
    """Our own error where a check of ours raised it, otherwise pydantic's findings in one line."""
    findings = error.errors(include_url=False)
    for finding in findings:
        cause = finding.get("ctx", {}).get("error")
        if isinstance(cause, BeeError):
            return cause
    return ParameterError("; ".join(f"{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in findings))
