"""GLM's keys and values in tags, which several others write as well."""

from ..description import Description

__all__ = ["GLM", "HUNYUAN"]

GLM = Description(
    name="glm",
    models="GLM 4.5 to 4.7, Ling 3, Laguna, Spark 2.5",
    call="<tool_call>$name⏎$parameters⏎</tool_call>",
    between="⏎",
    parameter="<arg_key>$key</arg_key>⏎<arg_value>$value</arg_value>⏎",
    marks=("<arg_key>", "<arg_value>", "<tool_call>"),
)
HUNYUAN = Description(
    name="hunyuan3",
    models="Hunyuan 3",
    calls="<tool_calls:opensource>⏎$calls⏎</tool_calls:opensource>",
    call="<tool_call:opensource>$name<tool_sep:opensource>⏎$parameters⏎</tool_call:opensource>",
    between="⏎",
    parameter="<arg_key:opensource>$key</arg_key:opensource>⏎<arg_value:opensource>$value</arg_value:opensource>⏎",
    marks=("arg_key", "tool_sep", "opensource"),
)
