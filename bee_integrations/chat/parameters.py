"""The arguments that the LLM classes of both frameworks share, with their checks and their overrides per call."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal, get_args

from pydantic import BaseModel, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from ..constraints.compiler import Constraint
from ..engine.engine import Engine, GenerationParams, check_arguments
from ..errors import BeeError, ParameterError
from ..models.registry import DEFAULT_MODEL
from ..models.sampling_defaults import FIELDS as SAMPLING_FIELDS
from ..parameter_checks import INT32_MAX, integer
from .argument_words import own_arguments
from .model_header import known_header
from .response_format import constraint_of, in_openai_words

__all__ = ["BeeParameters", "stored_constraint"]

# Two ways to say what the answer must look like; a call's takes the place of the object's.
_ANSWER_FORMS = frozenset({"constraint", "response_format"})
# Fields of LangChain's and LlamaIndex's classes that change no answer when they come with a call.
_SAY_NOTHING = frozenset({"streaming", "verbose"})


class BeeParameters(BaseModel):
    """Which model runs, and how. Mixed into the LLM classes; on its own it is the sum of an object and a call."""

    model: str = DEFAULT_MODEL
    """A registered name or the path of a GGUF file. None: the default model, downloaded on first use."""
    drafter: str | None = "auto"
    """The drafter, DFlash or the model's block that predicts further tokens ("mtp-*.gguf"): a path, "auto" (the one
    that belongs to the model, if any) or None."""
    speculation: Literal["auto", "dflash", "mtp", "copy", "off"] = "auto"
    """"auto" drafts what pays, "dflash" a whole block every cycle, "mtp" what a block of the model's own predicts,
    "copy" what the text so far repeats, "off" nothing. The text is the same."""
    draft_length: int | None = None
    """Drafted tokens per cycle; None leaves it to the engine."""
    n_ctx: int | None = None
    """Tokens of context, prompt and answer together; None takes what the model was trained for, at most 8192, and 0
    all of that."""
    threads: int | None = None
    """CPU threads; None takes the cores that this process may use."""
    device: str = "auto"
    """Where the model runs: "cuda", "cpu", or "auto": the card where there is one and the model fits, else the CPU."""
    kv_cache: str = "f16"
    """How keys and values are remembered: "f16", or "q8_0": in 8 bits, which takes about half the memory and changes
    answers a little."""
    packed_cache: bool | str | None = None
    """A directory where packed weights are kept, so that the model opens at once the next time; True: the cache
    directory's. None: as the environment variable BEE_PACKED_CACHE says."""
    temperature: float = 0.0
    """0 always takes the most likely token; higher values take more varied ones. Where this, another parameter of
    sampling or `stop` is not given, what the model's file or place says counts (`Engine.sampling`)."""
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
    """The same in OpenAI's words: `{"type": "json_object"}`, or `{"type": "json_schema", "json_schema": {...}}`; a JSON
    schema or a Pydantic class will do."""
    close_constraint: bool = False
    """Complete an answer that `max_tokens` cuts off under its constraint, so that it is valid all the same."""
    tool_format: str | None = None
    """How the model is told of tools and writes calls ("hermes", "mistral", ...); None: as its chat template says."""
    enable_thinking: bool | None = None
    """Switches a model's thinking through its chat template; None leaves that to the template."""
    reasoning_effort: str | None = None
    """How much a model thinks that knows "low", "medium" and "high"; goes to the chat template."""
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
    parse_special: bool = False
    """Read the texts of control tokens ("<|im_end|>") in users' and tools' messages as those tokens. By default they
    are text, so that nobody who writes a message can end it, or begin another."""

    @model_validator(mode="before")
    @classmethod
    def _accept_names(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        fields = cls.model_fields
        arguments = own_arguments(values, fields)
        # None is the default, also where no answer can be made with None itself.
        return {name: value for name, value in arguments.items() if value is not None or _takes_none(fields[name])}

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

    @field_validator("response_format", mode="before")
    @classmethod
    def _openai_words(cls, asked: Any) -> Any:
        return in_openai_words(asked)

    @model_validator(mode="after")
    def _in_range(self) -> BeeParameters:
        check_arguments(n_ctx=self.n_ctx, threads=self.threads, device=self.device, kv_cache=self.kv_cache)
        self._check_context()
        _ = self.generation  # checks its values
        if self.reasoning_budget is not None:
            integer("reasoning_budget", self.reasoning_budget, 0, INT32_MAX, note=" (None: no bound)")
        return self

    def _check_context(self) -> None:
        """Tell a context that the model was not trained for now, where the file is here, and not when it is loaded."""
        known = None if self.n_ctx is None else known_header(self.model)
        if self.n_ctx is not None and known is not None and self.n_ctx > known.n_ctx_train:
            integer("n_ctx", self.n_ctx, 1, known.n_ctx_train, note=", what the model was trained for")

    @cached_property
    def generation(self) -> GenerationParams:
        """The part that concerns a generation, as the engine takes it, built once when the arguments are checked. For
        those of a call (`for_call`): an object's fields may have changed since. Raises ParameterError."""
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

    @property
    def left_to_the_model(self) -> frozenset[str]:
        """Parameters of sampling that nobody gave."""
        given = {name for name in self.model_fields_set if getattr(self, name) is not None}
        return SAMPLING_FIELDS - given

    def generation_for(self, engine: Engine) -> GenerationParams:
        """As `generation`, with the model's own sampling (`Engine.sampling`) in the place of what nobody gave."""
        own = {name: value for name, value in engine.sampling.items() if name in self.left_to_the_model}
        return replace(self.generation, **own) if own else self.generation

    def asked_constraint(self) -> Constraint | None:
        """`constraint`, or what `response_format` says. Raises ParameterError."""
        asked = constraint_of(self.response_format)
        if asked is not None and self.constraint is not None:
            raise ParameterError("constraint and response_format are both given; give one of them")
        return asked if self.constraint is None else self.constraint

    def parameters(self) -> dict[str, Any]:
        """The arguments of `BeeParameters` alone, whatever class they are mixed into."""
        return {name: getattr(self, name) for name in BeeParameters.model_fields}

    def stored_parameters(self) -> dict[str, Any]:
        """As `parameters`, with a constraint in the form of `stored_constraint`, and None for sampling that is left to
        the model."""
        own = dict.fromkeys(self.left_to_the_model)
        return self.parameters() | own | {"constraint": stored_constraint(self.constraint)}

    def for_call(self, stop: list[str] | None, overrides: Mapping[str, Any]) -> BeeParameters:
        """The parameters of one call: `overrides` win, under any name that the constructor takes.

        Raises `ParameterError` for unknown names and values out of range.
        """
        # What nobody gave stays so: it may be the model's own.
        values = {name: value for name, value in self.parameters().items() if name in self.model_fields_set}
        if stop is not None:
            values["stop"] = stop
        changed = own_arguments(self._of_calls(overrides), BeeParameters.model_fields)
        if "model" in changed and "drafter" not in changed and self.drafter is not None:
            values["drafter"] = "auto"  # the object's drafter belongs to the object's model
        if any(changed.get(name) is not None for name in _ANSWER_FORMS):
            values |= dict.fromkeys(_ANSWER_FORMS)  # the call's takes the place of the object's
        try:
            return BeeParameters.model_validate(values | changed)
        except ValidationError as error:
            raise _parameter_error(error) from error

    def _of_calls(self, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """`overrides` without what says nothing; what belongs to the object alone is named."""
        for name in overrides.keys() & (type(self).model_fields.keys() - BeeParameters.model_fields.keys()):
            if overrides[name] is not None and name not in _SAY_NOTHING:
                kind = type(self).__name__
                raise ParameterError(f"{name!r} belongs to the object, not to a call: give it as {kind}({name}=...)")
        own = type(self).model_fields
        return {
            name: value for name, value in overrides.items() if name in BeeParameters.model_fields or name not in own
        }


def stored_constraint(constraint: Constraint | None) -> dict[str, Any] | None:
    """A constraint as a dictionary that JSON can hold; `BeeParameters(constraint=...)` takes it."""
    return None if constraint is None else dict(to_jsonable_python(constraint))


def _takes_none(field: FieldInfo) -> bool:
    kind = field.annotation
    return kind is Any or type(None) in get_args(kind)


def _path_text(path: Any) -> Any:
    return os.fspath(path) if isinstance(path, os.PathLike) else path


def _parameter_error(error: ValidationError) -> BeeError:
    """Our own error where a check of ours raised it, otherwise pydantic's findings in one line."""
    findings = error.errors(include_url=False)
    for finding in findings:
        cause = finding.get("ctx", {}).get("error")
        if isinstance(cause, BeeError):
            return cause
    return ParameterError("; ".join(f"{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in findings))
