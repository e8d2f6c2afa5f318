"""Families with a form of their own that needs few words."""

from ..description import Description, Values

__all__ = ["FUNCTIONARY_3_1", "FUNCTIONARY_3_2", "GIGACHAT_3", "GIGACHAT_3_1", "LFM2", "SMOLLM3", "SOLAR"]

FUNCTIONARY_3_1 = Description(
    name="functionary_v3_1",
    models="Functionary 3.1",
    call="<function=$name>$arguments</function>",
    between="⏎",
    marks=("<function=", "</function>", "<|eom_id|>"),
)
FUNCTIONARY_3_2 = Description(
    name="functionary_v3_2",
    models="Functionary 3.2",
    call=">>>$name\n$arguments",
    named_trigger=True,
    prompt_end=">>>",
    hidden=(">>>all\n",),
    answer_opening="all\n",
    marks=(">>>${recipient}", ">>>all"),
)
GIGACHAT_3 = Description(
    name="gigachat3",
    models="GigaChat 3",
    calls="<|message_sep|>\n\nfunction call<|role_sep|>\n$calls",
    call='{"name": "$name", "arguments": $arguments}',
    parallel=False,
    marks=("function call", "<|role_sep|>", "<|message_sep|>"),
    unlike=("<|function_call|>",),
)
GIGACHAT_3_1 = Description(
    name="gigachat3_1",
    models="GigaChat 3.1",
    calls="<|function_call|>⏎$calls",
    call='{"name": "$name", "arguments": $arguments}',
    parallel=False,
    marks=("<|function_call|>", "<|message_sep|>"),
)
LFM2 = Description(
    name="lfm2",
    models="LFM2, LFM2.5",
    calls="<|tool_call_start|>[⏎$calls⏎]<|tool_call_end|>",
    call="$name($parameters)",
    between=", ",
    parameter="$key=$value",
    between_parameters=", ",
    values=Values.PYTHON,
    interrupts=False,
    marks=("List of tools: ", "<|im_start|>", "keep_past_thinking|||<|tool_list_start|>|||<|tool_call_start|>"),
)
SMOLLM3 = Description(
    name="smollm3",
    models="SmolLM 3",
    calls="<tool_call>⏎$calls⏎</tool_call>",
    each=True,
    call='{"name": "$name", "arguments": $arguments}',
    between="⏎",
    marks=("xml_tools", "<tool_call>"),
)
SOLAR = Description(
    name="solar",
    models="Solar Open",
    calls="<|tool_calls|>$calls",
    call="<|tool_call:begin|>$id<|tool_call:name|>$name<|tool_call:args|>$arguments<|tool_call:end|>",
    keeps_ids=True,
    hidden=("<|begin|>assistant", "<|content|>", "<|end|>", "<|flush|>", "<|calls|>"),
    answer_opening="<|content|>",
    marks=("<|tool_call:begin|>", "<|tool_call:args|>"),
)
