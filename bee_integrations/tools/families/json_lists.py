"""Families that write their calls as a list of JSON objects between two markers."""

from ..description import Description

__all__ = ["APERTUS", "APRIEL", "COHERE", "COMMAND_R_PLUS", "FIREFUNCTION", "GRANITE_3", "MINIMAX_M1", "NEMOTRON_V2"]

_CALL = '{"name": "$name", "arguments": $arguments}'

APERTUS = Description(
    name="apertus",
    models="Apertus",
    calls="<|tools_prefix|>[⏎$calls⏎]<|tools_suffix|>",
    call='{"$name": $arguments}',
    between=", ",
    marks=("<|tools_prefix|>", "<|tools_suffix|>"),
)
APRIEL = Description(
    name="apriel",
    models="Apriel 1.5 and 1.6",
    calls="<tool_calls>⏎[⏎$calls⏎]⏎</tool_calls>",
    call='{"name": "$name", "arguments": $arguments, "id": "$id"}',
    between=", ",
    keeps_ids=True,
    hidden=("[BEGIN FINAL RESPONSE]", "[END FINAL RESPONSE]"),
    marks=("<tool_calls>[", '"arguments"', '"id"'),
)
COHERE = Description(
    name="cohere",
    models="Command R7B, Command A",
    calls="<|START_ACTION|>[⏎$calls⏎]⏎<|END_ACTION|>",
    call='{"tool_call_id": "$index", "tool_name": "$name", "parameters": $arguments}',
    between=",⏎",
    keeps_ids=True,
    hidden=("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>"),
    marks=("<|START_ACTION|>", "tool_call_id"),
)
COMMAND_R_PLUS = Description(
    name="command_r_plus",
    models="Command R+",
    calls="Action:\n```json\n[⏎$calls⏎]⏎```",
    call='{⏎"tool_name": "$name",⏎"parameters": $arguments⏎}',
    between=",⏎",
    loose_json=True,
    marks=("\\nAction:\\n```json", "tool_name"),
)
FIREFUNCTION = Description(
    name="firefunction",
    models="Firefunction v2",
    calls="functools[⏎$calls⏎]",
    call=_CALL,
    between=", ",
    marks=("functools[",),
)
GRANITE_3 = Description(
    name="granite3",
    models="Granite 3",
    calls="<|tool_call|>⏎[⏎$calls⏎]",
    call=_CALL,
    between=", ",
    marks=("<|tool_call|>", "<|start_of_role|>"),
)
MINIMAX_M1 = Description(
    name="minimax_m1",
    models="MiniMax M1",
    calls="<tool_calls>⏎$calls⏎</tool_calls>",
    call=_CALL,
    between="\n",
    marks=("<tool_calls>", "<beginning_of_sentence>"),
)
NEMOTRON_V2 = Description(
    name="nemotron_v2",
    models="Nemotron Nano v2",
    calls="<TOOLCALL>⏎[⏎$calls⏎]⏎</TOOLCALL>",
    call=_CALL,
    between=", ",
    marks=("<TOOLCALL>", "</TOOLCALL>"),
)
