"""A benchmark's results as Markdown, written to a file or into the marked part of one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ModelFileError
from .kv_quality import kv_quality_markdown
from .report import FIGURE_COLUMNS, describe_run, figure_cells, number
from .shapes import shapes_markdown
from .synthetic import synthetic_markdown

__all__ = ["BEGIN", "END", "markdown_of", "write_markdown"]

BEGIN = "<!-- bee bench: begin -->"
END = "<!-- bee bench: end -->"


def markdown_of(report: Mapping[str, Any]) -> str:
    """The figures, passes and speeds that the report has, each as a table."""
    if "synthetic" in report:
        return synthetic_markdown(report)
    if "shapes" in report:
        return shapes_markdown(report)
    if "kv_quality" in report:
        return kv_quality_markdown(report)
    parts = [describe_run(report).replace("; ", ";\n") + "."]
    if report["figures"]:
        cells = [_marked(figure) for figure in report["figures"]]
        parts.append(_table((*FIGURE_COLUMNS[:-1], "remark"), cells))
    for passes in report["passes"]:
        parts.append(f"One pass of the target after {passes['context']} tokens of context, in milliseconds:")
        parts.append(_pass_table(passes))
    if report["rows"]:
        parts.append("Decoding by prompt, tokens/s:")
        parts.append(_prompt_table(report["rows"], report["draft_bounds"]))
    return "\n\n".join(parts) + "\n"


def write_markdown(report: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the tables to a file. One that has a line BEGIN and after it a line END keeps all but what lies between.

    Raises ModelFileError where the file cannot be read or written.
    """
    file, text = Path(path), markdown_of(report)
    try:
        before = file.read_text(encoding="utf-8") if file.exists() else ""
        begin = before.find(BEGIN)
        end = before.find(END, begin)
        if 0 <= begin < end:
            text = f"{before[: begin + len(BEGIN)]}\n{text}{before[end:]}"
        file.write_text(text, encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFileError(f"the tables cannot be written to {os.fspath(path)}: {error}") from error


def _marked(figure: Mapping[str, Any]) -> list[str]:
    """A figure's cells; what was reached stands out where it is what is asked."""
    cells = list(figure_cells(figure))
    if figure["met"]:
        cells[3] = f"**{cells[3]}**"
    return cells


def _pass_table(passes: Mapping[str, Any]) -> str:
    drafts, peer, ratios = (passes[name] or {} for name in ("draft_ms", "peer_pass_ms", "peer_pass_ratios"))
    header = ["tokens", "bee", "of one token", "bound", "share of it", "with caches", "draft", "peer", "peer / bee"]
    rows = [
        [
            count,
            number(value, 2),
            number(value / passes["pass_ms"]["1"], 2),
            number(passes["bound_ms"][count], 2),
            f"{passes['bound_ms'][count] / value:.0%}",
            f"{passes['cached_bound_ms'][count] / value:.0%}",
            number(drafts.get(count), 2),
            number(peer.get(count), 2),
            number(ratios.get(count), 2),
        ]
        for count, value in passes["pass_ms"].items()
    ]
    return _table(header, rows)


def _prompt_table(rows: Sequence[Mapping[str, Any]], bounds: Sequence[Mapping[str, Any]]) -> str:
    contenders = list(dict.fromkeys((row["engine"], row["speculation"]) for row in rows))
    speeds = {(row["engine"], row["speculation"], row["prompt"]): row["decode_tokens_per_s"] for row in rows}
    cycles = {row["prompt"]: row["tokens_per_cycle"] for row in rows if row["speculation"] == "auto"}
    allowed = {bound["prompt"]: bound["bound"] for bound in bounds}
    header = ["prompt", *(" ".join(contender) for contender in contenders), "auto's tokens per cycle", "its bound"]
    return _table(
        header,
        [
            [
                prompt,
                *(number(speeds[engine, mode, prompt], 0) for engine, mode in contenders),
                number(cycles.get(prompt), 2),
                number(allowed.get(prompt), 2),
            ]
            for prompt in dict.fromkeys(row["prompt"] for row in rows)
        ],
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Numbers to the right; names, in the first column, and remarks to the left."""
    rules = ["---" if name == "remark" or not index else "---:" for index, name in enumerate(header)]
    lines = [header, rules, *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)
