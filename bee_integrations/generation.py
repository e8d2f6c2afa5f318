"""What a generation takes and what it gives: parameters, steps, statistics."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import MISSING, InitVar, asdict, dataclass, field, fields
from typing import Any

from .constraints.compiler import Constraint
from .errors import ParameterError
from .parameter_checks import INT32_MAX, boolean, control_texts, integer, logit_bias, real, stop_strings

__all__ = ["Completion", "GenerationParams", "Statistics", "Step", "TokenLogprob"]

_MAX_DRAFT_LENGTH = 15  # BEE_MAX_BLOCK - 1
_MAX_TEMPERATURE = 100.0
_MAX_SEED = 2**64 - 1
_MAX_TOP_LOGPROBS = 20  # BEE_MAX_TOP_LOGPROBS
_SPECULATION = ("auto", "dflash", "mtp", "copy", "off")
_DERIVED = ("tokens_per_cycle", "draft_acceptance", "accepted_share", "prefill_tokens_per_s", "decode_tokens_per_s")


class _EarlierName(frozenset[str]):
    """Markers as they are read under their earlier name."""


@dataclass(frozen=True)
class GenerationParams:
    """How to generate. None is the default of every field. Raises ParameterError, which names the field and its range,
    for values that make no sense."""

    temperature: float = 0.0
    """0 takes the most likely token; otherwise 0 to 100."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 is off."""
    top_p: float = 1.0
    """Then keep the most likely tokens that reach this probability together; 1 is off."""
    min_p: float = 0.0
    """Then drop tokens less likely than `min_p` times the most likely one; 0 is off."""
    seed: int | None = None
    """0 to 2**64 - 1. None draws one at random, which the statistics report."""
    max_tokens: int | None = None
    """At least 1. None: until the model ends or the context is full."""
    repetition_penalty: float = 1.0
    """Divides the logits of tokens that stand among the last `penalty_window` ones (multiplies negative ones); 1 is
    off."""
    frequency_penalty: float = 0.0
    """Takes this much of a token's logit for each time it stands there."""
    presence_penalty: float = 0.0
    """Takes this much of a token's logit if it stands there at all."""
    penalty_window: int = 64
    """Tokens that the penalties look back over, prompt included; -1 is all of them."""
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    """Added to the logits of these tokens: -1000 to 1000."""
    logprobs: bool = False
    """Report the log-probability of each token, as the model has it before penalties, biases, grammar and sampling."""
    top_logprobs: int = 0
    """With `logprobs`, also those of so many most likely tokens in its place: 0 to 20."""
    stop: tuple[str, ...] = ()
    """Strings that end the generation and are not part of its text."""
    constraint: Constraint | None = None
    """What the answer must look like: a JSON schema, a regular expression, a grammar, a choice."""
    close_constraint: bool = False
    """Complete an answer that `max_tokens` cuts off under its constraint with the shortest text that is found. Its
    finish reason remains "length"."""
    markers: frozenset[str] = frozenset()
    """Control tokens that the text spells, where others are left out of it, for who reads them."""
    speculation: str = "auto"
    """Where drafts come from; the tokens are the same. "auto": each cycle what pays most on this machine and text: the
    drafter if there is one, a copy of what followed the last tokens where they stood before, or nothing. "dflash": a
    whole block of the drafter every cycle; there must be one. "mtp": as many drafts as the block makes which the
    model's own file has for that; "auto" uses it where there is no drafter. "copy": copies alone, when they pay.
    "off": nothing."""
    draft_length: int | None = None
    """Fixes the drafts per cycle where there is a source for them: 0 to the drafter's block size - 1, or to 15 where no
    drafter is asked. With "auto" only the source is then chosen. Without effect where speculation is "off"."""
    spoken_controls: InitVar[Collection[str] | None] = None
    """`markers` under their earlier name."""

    def __post_init__(self, spoken_controls: Collection[str] | None) -> None:
        set_field = object.__setattr__  # the class is frozen; this is its constructor
        # `dataclasses.replace` hands over what it reads under the earlier name, which says nothing new.
        read_back = spoken_controls is None or isinstance(spoken_controls, _EarlierName)
        for one in fields(self):
            if getattr(self, one.name) is None and one.default is not None:  # None stands for every default
                set_field(self, one.name, {} if one.default is MISSING else one.default)
        set_field(self, "temperature", real("temperature", self.temperature, 0.0, _MAX_TEMPERATURE))
        set_field(self, "top_k", integer("top_k", self.top_k, 0, INT32_MAX, note=" (0: off)"))
        set_field(self, "top_p", real("top_p", self.top_p, 0.0, 1.0, open_low=True, note=" (1: off)"))
        set_field(self, "min_p", real("min_p", self.min_p, 0.0, 1.0, note=" (0: off)"))
        if self.seed is not None:
            set_field(self, "seed", integer("seed", self.seed, 0, _MAX_SEED))
        if self.max_tokens is not None:
            set_field(self, "max_tokens", integer("max_tokens", self.max_tokens, 1, INT32_MAX))
        repetition = real("repetition_penalty", self.repetition_penalty, 0.0, 100.0, open_low=True, note=" (1: off)")
        set_field(self, "repetition_penalty", repetition)
        for name in ("frequency_penalty", "presence_penalty"):
            set_field(self, name, real(name, getattr(self, name), -100.0, 100.0, note=" (0: off)"))
        set_field(self, "penalty_window", integer("penalty_window", self.penalty_window, -1, INT32_MAX))
        set_field(self, "logit_bias", logit_bias(self.logit_bias))
        for name in ("logprobs", "close_constraint"):
            set_field(self, name, boolean(name, getattr(self, name)))
        if self.constraint is not None and not isinstance(self.constraint, Constraint):
            raise ParameterError(
                f"constraint is a {type(self.constraint).__name__}; it must be a JsonSchema, Regex, Grammar or Choice "
                "of bee_integrations.constraints"
            )
        set_field(self, "markers", control_texts(self.markers if read_back else spoken_controls))
        set_field(self, "top_logprobs", integer("top_logprobs", self.top_logprobs, 0, _MAX_TOP_LOGPROBS))
        if self.top_logprobs and not self.logprobs:
            raise ParameterError(f"top_logprobs is {self.top_logprobs}, but logprobs is off: switch it on")
        set_field(self, "stop", stop_strings(self.stop))
        if self.speculation not in _SPECULATION:
            raise ParameterError(
                f"speculation is {self.speculation!r}; it must be one of {', '.join(map(repr, _SPECULATION))}"
            )
        if self.draft_length is not None:
            set_field(self, "draft_length", integer("draft_length", self.draft_length, 0, _MAX_DRAFT_LENGTH))


setattr(GenerationParams, "spoken_controls", property(lambda self: _EarlierName(self.markers)))  # noqa: B010


@dataclass(frozen=True)
class Statistics:
    """Counts and times of one request. A cycle is one pass of the target over the last token and its drafts."""

    prompt_tokens: int
    reused_tokens: int  # of the prompt, found in a cache
    shared_tokens: int  # of those, found in the caches of other sessions than the request's
    output_tokens: int
    reasoning_tokens: int  # of the output, those of a span of thinking that the answer's phases know of
    cycles: int
    drafted_tokens: int  # proposed to the target
    accepted_tokens: int  # of those, kept
    copied_tokens: int  # of the drafted ones, those that were copied from the text
    copied_accepted: int  # of those, kept
    forced_tokens: int  # of the drafted ones, those that a constraint forced; the others are the drafter's
    logit_paths: dict[str, int]  # cycles per path: "reduced", "masked", "full"
    accepted_histogram: tuple[int, ...]  # [k]: cycles that accepted k drafts
    drafted_histogram: tuple[int, ...]  # [k]: cycles that verified k drafts, whatever their source
    drafter_histogram: tuple[int, ...]  # [k]: cycles for which the drafter's model drafted k; [0]: it did not run
    prefill_seconds: float
    decode_seconds: float
    phase_seconds: float  # of both: masks, and whatever else decides which tokens may follow
    time_to_first_token_s: float  # since the request was made, waiting for its turn included
    seed: int
    speculation: str  # the sources in force: "dflash", "mtp", "copy", two as "dflash+copy" or "mtp+copy", or "off"

    @property
    def steering_seconds(self) -> float:
        """`phase_seconds` under its earlier name."""
        return self.phase_seconds

    @property
    def tokens_per_cycle(self) -> float:
        """Tokens that one cycle yielded on average; 1 without speculation, 0 before the first cycle."""
        return _ratio(self.cycles + self.accepted_tokens, self.cycles)

    @property
    def draft_acceptance(self) -> float:
        """Accepted over proposed drafts; 0 where there were none."""
        return _ratio(self.accepted_tokens, self.drafted_tokens)

    @property
    def accepted_share(self) -> float:
        """Accepted drafts over all tokens that cycles yielded."""
        return _ratio(self.accepted_tokens, self.cycles + self.accepted_tokens)

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prompt tokens that were processed, per second."""
        return _ratio(self.prompt_tokens - self.reused_tokens, self.prefill_seconds)

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens that cycles yielded, per second."""
        return _ratio(self.cycles + self.accepted_tokens, self.decode_seconds)

    def as_dict(self) -> dict[str, Any]:
        """Fields and derived figures, ready for JSON."""
        values = asdict(self) | {name: getattr(self, name) for name in _DERIVED}
        for name in ("accepted_histogram", "drafted_histogram", "drafter_histogram"):
            values[name] = list(values[name])
        return values


@dataclass(frozen=True)
class TokenLogprob:
    """A token, the logarithm of its probability, and the most likely tokens in its place with theirs."""

    token: int
    text: str  # of this token alone; parts of characters are U+FFFD
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()


@dataclass(frozen=True)
class Step:
    """What one pass brought."""

    text: str  # new text, whole characters; may be ""
    tokens: tuple[int, ...]  # new tokens, a stop token included
    finish_reason: str | None = None  # "stop" or "length" on the last step
    stop_text: str | None = None  # the stop string that ended the generation; not part of the text
    stats: Statistics | None = None  # on the last step
    logprobs: tuple[TokenLogprob, ...] = ()  # of the tokens, where asked for
    closed: bool = False  # the end of the text completes a constraint, and the model did not say it
    bound: bool = False  # the tokens were chosen under the whole grammar of the answer, or of its calls
    not_enforced: tuple[str, ...] = ()  # on the last step: JSON pointers of keywords that no grammar could keep
    fault: str | None = None  # on the last step: what the answer violates of those; None where it was not to be checked


@dataclass(frozen=True)
class Completion:
    """A whole generation."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: str
    stats: Statistics
    stop_text: str | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    closed: bool = False


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else 0.0
