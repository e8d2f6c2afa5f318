"""Families that write parameters as tags which are named like what they hold."""

from ..description import Description, Values

__all__ = ["MINICPM5", "MINIMAX_M2", "MINIMAX_M3", "MUSE", "QWEN3_CODER", "SEED"]

MINICPM5 = Description(
    name="minicpm5",
    models="MiniCPM 5",
    call='<function name="$name">⏎$parameters⏎</function>',
    between="⏎",
    parameter='<param name="$key">$value</param>⏎',
    quotes=("<![CDATA[", "]]>"),
    marks=('<function name="', '<param name="'),
)
MINIMAX_M2 = Description(
    name="minimax_m2",
    models="MiniMax M2",
    calls="<minimax:tool_call>⏎$calls⏎</minimax:tool_call>",
    call='<invoke name="$name">⏎$parameters⏎</invoke>',
    between="⏎",
    parameter='<parameter name="$key">$value</parameter>⏎',
    marks=("minimax:tool_call", "<invoke name="),
)
MINIMAX_M3 = Description(
    name="minimax_m3",
    models="MiniMax M3",
    calls="]<]minimax[>[<tool_call>⏎$calls⏎]<]minimax[>[</tool_call>",
    call=']<]minimax[>[<invoke name="$name">⏎$parameters⏎]<]minimax[>[</invoke>',
    between="⏎",
    parameter="]<]minimax[>[<$key>$value]<]minimax[>[</$key>⏎",
    values=Values.NESTED,
    marks=("]<]minimax[>[", "invoke name="),
)
MUSE = Description(
    name="muse",
    models="Muse Glimmer",
    call=' to=$name<|message|><atem:function_calls>⏎<atem:invoke name="$name">⏎$parameters⏎</atem:invoke>⏎'
    "</atem:function_calls>",
    between="<|eom|><|start|>assistant",
    parameter='<atem:parameter name="$key">$value</atem:parameter>⏎',
    named_trigger=True,
    hidden=("<|start|>assistant", " to=user<|message|>", "<|eom|>", "<|eot|>"),
    interrupts=False,
    answer_opening=" to=user<|message|>",
    marks=("atem:function_calls", "<|message|>"),
)
QWEN3_CODER = Description(
    name="qwen3_coder",
    models="Qwen3-Coder, Qwen3.5, Nemotron 3 Nano, Step 3.5",
    calls="<tool_call>⏎$calls⏎</tool_call>",
    each=True,
    call="<function=$name>\n$parameters⏎</function>",
    between="⏎",
    parameter="<parameter=$key>\n$value\n</parameter>⏎",
    bare=True,
    marks=("<tool_call>", "<function=", "<parameter="),
)
SEED = Description(
    name="seed_oss",
    models="Seed OSS",
    calls="<seed:tool_call>⏎$calls⏎</seed:tool_call>",
    each=True,
    call="<function=$name>⏎$parameters⏎</function>",
    between="⏎",
    parameter="<parameter=$key>$value</parameter>⏎",
    marks=("<seed:tool_call>", "<parameter="),
)
