"""DeepSeek: R1 writes its arguments in a fence of JSON, V3.1 without one, V3.2 and V4 as tags of their own markup."""

from ..description import Description

__all__ = ["DEEPSEEK_DSML", "DEEPSEEK_R1", "DEEPSEEK_V3_1"]

_CALLS = "<｜tool▁calls▁begin｜>$calls<｜tool▁calls▁end｜>"

DEEPSEEK_R1 = Description(
    name="deepseek_r1",
    models="DeepSeek R1, V3 and their distillations",
    calls=_CALLS.replace("$calls", "$calls⏎"),
    call="<｜tool▁call▁begin｜>function<｜tool▁sep｜>$name\n```json\n$arguments\n```⏎<｜tool▁call▁end｜>",
    between="⏎",
    bare=True,
    loose_json=True,
    marks=("<｜tool▁calls▁begin｜>", "```json"),
)
DEEPSEEK_V3_1 = Description(
    name="deepseek_v3_1",
    models="DeepSeek V3.1",
    calls=_CALLS,
    call="<｜tool▁call▁begin｜>$name<｜tool▁sep｜>$arguments<｜tool▁call▁end｜>",
    bare=True,
    marks=("<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>"),
    unlike=("```json",),
)
_DSML = Description(
    name="deepseek_v3_2",
    models="DeepSeek V3.2",
    calls="<｜DSML｜function_calls>⏎$calls⏎</｜DSML｜function_calls>",
    call='<｜DSML｜invoke name="$name">⏎$parameters⏎</｜DSML｜invoke>',
    between="⏎",
    parameter='<｜DSML｜parameter name="$key" string="$is_text">$value</｜DSML｜parameter>⏎',
    marks=("｜DSML｜", "function_calls>"),
)
DEEPSEEK_DSML = (
    _DSML,
    Description(
        name="deepseek_v4",
        models="DeepSeek V4",
        calls=_DSML.calls.replace("function_calls", "tool_calls"),
        call=_DSML.call,
        between=_DSML.between,
        parameter=_DSML.parameter,
        marks=("｜DSML｜", "tool_calls>"),
        unlike=("function_calls>",),
    ),
)
