"""Kimi: K2 writes arguments as JSON behind an id of its own, K3 opens and closes everything with the same markers."""

from ..description import Description

__all__ = ["KIMI_K2", "KIMI_K3"]

KIMI_K2 = Description(
    name="kimi_k2",
    models="Kimi K2",
    calls="<|tool_calls_section_begin|>⏎$calls⏎<|tool_calls_section_end|>",
    call="<|tool_call_begin|>functions.$name:$index<|tool_call_argument_begin|>$arguments<|tool_call_end|>",
    between="⏎",
    bare=True,
    marks=("<|tool_call_begin|>", "<|tool_call_argument_begin|>"),
)
KIMI_K3 = Description(
    name="kimi_k3",
    models="Kimi K3",
    calls="<|open|>tools<|sep|>⏎$calls⏎<|close|>tools<|sep|>",
    call='<|open|>call tool="$name" index="$number"<|sep|>⏎$parameters⏎<|close|>call<|sep|>',
    between="⏎",
    parameter='<|open|>argument key="$key" type="$type"<|sep|>$value<|close|>argument<|sep|>⏎',
    hidden=("<|open|>response<|sep|>", "<|close|>response<|sep|>", "<|close|>message<|sep|>", "<|end_of_msg|>"),
    answer_opening="<|open|>response<|sep|>",
    marks=("open_tag('tools')", "<|open|>", "<|sep|>"),
)
