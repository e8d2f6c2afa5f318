"""The documentation's table of tool formats, made from what the formats say of themselves.

python -m bee_integrations.tools.formats_table docs/tools.md
"""

from __future__ import annotations

import sys
from pathlib import Path

from .described_format import DescribedFormat, written_calls
from .formats import FORMATS
from .tool_format import ToolFormat

__all__ = ["BEGIN", "END", "formats_table", "with_table"]

BEGIN, END = "<!-- the formats, by bee_integrations.tools.formats_table -->", "<!-- end of the formats -->"


def formats_table() -> str:
    """A row for each format: its name, who writes calls so, and a call."""
    rows = ["| format | models | a call |", "|---|---|---|"]
    for form in sorted(FORMATS, key=lambda one: (one.name == "generic", one.name)):
        rows.append(f"| `{form.name}` | {form.models} | {_code(_example(form))} |")
    return "\n".join(rows)


def _example(form: ToolFormat) -> str:
    if not isinstance(form, DescribedFormat):
        return form.example
    return written_calls(form.description, [("name", {"key": "value"}, "a1B2c3D4e")])


def _code(text: str) -> str:
    """Code in a cell of a table, on one line."""
    shown = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("\n", "&#9166;")
    return f"<code>{shown}</code>"


def with_table(page: str) -> str:
    """A page with the table between its two marks."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{formats_table()}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(with_table(path.read_text(encoding="utf-8")), encoding="utf-8")
