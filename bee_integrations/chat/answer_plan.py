"""What an answer may say: its thinking, and the grammar of its calls or of its value."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..constraints.compiler import CompiledGrammar, Constraint, GrammarCompiler, JsonSchema
from ..constraints.phases import AnswerPhases, LazyGrammar, Thinking
from ..engine.engine import Engine
from ..errors import ParameterError
from ..text.tokenizer import Tokenizer
from ..tools.tool_format import ToolFormat
from . import reasoning
from .parameters import BeeParameters
from .reasoning import ReasoningSpan
from .tool_use import ToolUse

__all__ = ["answer_plan"]


def answer_plan(
    engine: Engine,
    parameters: BeeParameters,
    use: ToolUse,
    style: ToolFormat | None,
    span: ReasoningSpan | None,
    prompt: str,
) -> AnswerPhases | None:
    """The phases of an answer to `prompt`, with the control tokens that its readers look for; None where it may say
    anything, in one phase.

    style: how it may call the tools of `use`; None where it cannot. Raises ParameterError and ConstraintError.
    """
    constraint = parameters.generation.constraint
    rules = _Rules(engine.grammars, style, use)
    grammar = rules.from_the_start(constraint)
    plan = AnswerPhases(
        grammar=grammar,
        lazy=rules.in_wait() if use.callable_tools and grammar is None else None,
        thinking=_thinking(span, prompt, parameters.reasoning_budget, bound=grammar is not None),
        markers=_markers(engine.tokenizer, style, span),
    )
    return None if plan == AnswerPhases() else plan


def _thinking(span: ReasoningSpan | None, prompt: str, budget: int | None, *, bound: bool) -> Thinking | None:
    if span is None:
        return None
    opened = reasoning.begins_open(span, prompt)
    # A prompt that closes an empty span has switched the thinking off.
    if not opened and prompt.rstrip().endswith(span.end.rstrip()):
        return None
    return Thinking(span, opened, demanded=bound, budget=budget)


def _markers(tokenizer: Tokenizer, style: ToolFormat | None, span: ReasoningSpan | None) -> frozenset[str]:
    sought = [*(style.markers if style else ()), *((span.begin, span.end) if span else ())]
    return frozenset(text for text in tokenizer.special_tokens if any(text in marker for marker in sought))


@dataclass(frozen=True)
class _Rules:
    """The grammar of answers that call tools, or are the value of a constraint."""

    grammars: GrammarCompiler
    format: ToolFormat | None
    use: ToolUse

    def from_the_start(self, constraint: Constraint | None) -> CompiledGrammar | None:
        """What holds from the answer's first token: demanded calls, a value, or the one or the other."""
        if self.use.demanded or (constraint is not None and self.format is not None):
            strict = isinstance(constraint, JsonSchema) and constraint.strict
            return self.grammars.compile_rules(self._calls_or_value(constraint), strict=strict)
        return None if constraint is None else self.grammars.compile(constraint)

    def in_wait(self) -> LazyGrammar:
        """The rules of a call that the model may begin."""
        assert self.format is not None
        # A model that has called waits for the result: what follows a call is another one, or the end.
        rules, triggers = [self._call_rules()], []
        for index, trigger in enumerate(self.format.triggers_for(self.use.callable_tools)):
            rules.append(f"rest_{index}: {trigger.rule}{self._more_calls()}")
            triggers.append(replace(trigger, rule=f"rest_{index}"))
        return LazyGrammar(tuple(triggers), "\n".join(rules), self.format.ends_thinking)

    def _calls_or_value(self, constraint: Constraint | None) -> str:
        """Rules of an answer that is calls, or a value of the schema where no call is demanded."""
        assert self.format is not None
        literal = self.grammars.literal
        kinds, rules = [], []
        if self.use.callable_tools:
            kinds.append(f"({self.format.first_call(self.use.callable_tools, literal)}){self._more_calls()}")
            rules.append(self._call_rules())
        if constraint is not None and not self.use.demanded:
            if not isinstance(constraint, JsonSchema):
                raise ParameterError(
                    "where there are tools, or answers have channels, the answer can be constrained by a JSON schema "
                    f"alone, not by a {type(constraint).__name__}"
                )
            opening = f"{literal(self.format.answer_opening)} " if self.format.answer_opening else ""
            kinds.append(f"{opening}value")
            rules.append(f"value: %json {constraint.text}")
        return "\n".join([f"start: {' | '.join(kinds)}", *rules])

    def _more_calls(self) -> str:
        assert self.format is not None
        if not self.use.parallel or self.format.ends_turn:
            return ""
        return f' ("\\n" {self.grammars.literal(self.format.trigger)} after_trigger)*'

    def _call_rules(self) -> str:
        assert self.format is not None
        return self.format.call_rules(self.use.callable_tools, self.grammars.literal, parallel=self.use.parallel)
