"""What an answer must look like: a JSON schema, a regular expression, a grammar, a choice."""

from .compiler import (
    Choice,
    CompiledGrammar,
    Constraint,
    Grammar,
    GrammarCompiler,
    JsonSchema,
    Matcher,
    Regex,
    json_object,
)

__all__ = [
    "Choice",
    "CompiledGrammar",
    "Constraint",
    "Grammar",
    "GrammarCompiler",
    "JsonSchema",
    "Matcher",
    "Regex",
    "json_object",
]
