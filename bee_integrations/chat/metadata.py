"""What is reported about an answer besides its text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import __version__
from ..engine.engine import Engine, Statistics, Step

__all__ = ["finish_reason", "response_metadata", "token_usage"]


def finish_reason(last: Step, has_calls: bool) -> str:
    """The reason of an answer's last step in OpenAI's words."""
    return "tool_calls" if has_calls and last.finish_reason == "stop" else str(last.finish_reason)


def token_usage(stats: Statistics) -> dict[str, int]:
    """Counts of tokens: "input", "output", "total", "reused" of the input, and "reasoning" of the output."""
    return {
        "input": stats.prompt_tokens,
        "output": stats.output_tokens,
        "total": stats.prompt_tokens + stats.output_tokens,
        "reused": stats.reused_tokens,
        "reasoning": stats.reasoning_tokens,
    }


def response_metadata(engine: Engine, last: Step) -> dict[str, Any]:
    """What is known about an answer besides its text: plain numbers, strings and dictionaries."""
    metadata: dict[str, Any] = {
        "model_name": engine.model_name,
        "model_provider": "bee",
        "finish_reason": last.finish_reason,
        "system_fingerprint": _fingerprint(engine.info),
        "device": engine.info["device"],
    }
    if engine.sampling:
        metadata["model_sampling"] = dict(engine.sampling)  # counts where nobody gave another
    if last.closed:
        metadata["closed"] = True
    if last.not_enforced:
        metadata["not_enforced"] = list(last.not_enforced)
    if last.fault is not None:
        metadata["fault"] = last.fault
    if last.stop_text is not None:
        metadata["stop_sequence"] = last.stop_text
    stats = last.stats
    if stats is not None:
        metadata["seed"] = stats.seed
        metadata["speculation"] = {
            "mode": stats.speculation,
            "tokens_per_cycle": stats.tokens_per_cycle,
            "draft_acceptance": stats.draft_acceptance,
            "accepted_share": stats.accepted_share,
            "cycles": stats.cycles,
            "drafted_tokens": stats.drafted_tokens,
            "accepted_tokens": stats.accepted_tokens,
            "copied_tokens": stats.copied_tokens,
            "copied_accepted": stats.copied_accepted,
            "forced_tokens": stats.forced_tokens,
            "logit_paths": dict(stats.logit_paths),
        }
        metadata["speed"] = {
            "prefill_tokens_per_s": stats.prefill_tokens_per_s,
            "decode_tokens_per_s": stats.decode_tokens_per_s,
            "time_to_first_token_s": stats.time_to_first_token_s,
        }
    return metadata


def _fingerprint(info: Mapping[str, Any]) -> str:
    # Versions, instruction sets and cards may round differently; within one of each, equal requests give equal texts.
    card = [] if info["device"] == "cpu" else str(info["device_name"]).split()
    return "-".join(["bee", __version__, info["instruction_set"], *card])
