"""What the rows of a benchmark come to: medians, ratios, and the tables that `bee bench` prints."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = ["median_of", "print_report", "summarise"]


def median_of(values: Iterable[float | None]) -> float | None:
    """The median of those that are known; None where none is."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _mean_of(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


# ---- summary -----------------------------------------------------------------------------------------------------


@dataclass
class _Column:
    """All rows of one contender, by prompt."""

    engine: str
    speculation: str
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.engine} {self.speculation}"


def summarise(rows: Sequence[Mapping[str, Any]], passes: Mapping[str, Any]) -> dict[str, Any]:
    """Medians over prompts (means for what drafting did), and ratios of the contenders on the same prompts."""
    columns: dict[tuple[str, str], _Column] = {}
    for row in rows:
        key = (row["engine"], row["speculation"])
        columns.setdefault(key, _Column(*key)).rows[row["prompt"]] = dict(row)
    ordered = list(columns.values())
    pass_ms = passes["pass_ms"]
    summary: dict[str, Any] = {
        "contenders": [_averages(column) for column in ordered],
        "speed_ratios": _speed_ratios(ordered),
        "pass_cost": {rows: value / pass_ms["1"] for rows, value in pass_ms.items()},
        "same_text_in_all_modes": _same_text([column for column in ordered if column.engine == "bee"]),
    }
    if "peer_pass_ms" in passes:
        summary["peer_pass_ratios"] = {rows: value / pass_ms[rows] for rows, value in passes["peer_pass_ms"].items()}
    return summary


def _averages(column: _Column) -> dict[str, Any]:
    rows = column.rows.values()
    result: dict[str, Any] = {
        "engine": column.engine,
        "speculation": column.speculation,
        "prompts": len(rows),
    }
    for name in ("prefill_tokens_per_s", "decode_tokens_per_s", "time_to_first_token_s"):
        result[name] = median_of(row[name] for row in rows)
    for name in ("tokens_per_cycle", "draft_acceptance", "accepted_share"):
        result[name] = _mean_of(row[name] for row in rows)
    return result


def _speed_ratios(columns: Sequence[_Column]) -> list[dict[str, Any]]:
    """Each contender over those before it and over the peer: the median of the ratios on the same prompts."""
    peers = [column for column in columns if column.engine != "bee"]
    ours = [column for column in columns if column.engine == "bee"]
    pairs = [(later, earlier) for index, later in enumerate(ours) for earlier in ours[:index]]
    pairs += [(column, peer) for peer in peers for column in ours]
    return [
        {
            "of": column.label,
            "over": base.label,
            **{
                name: median_of(_ratios(column, base, name)) for name in ("prefill_tokens_per_s", "decode_tokens_per_s")
            },
        }
        for column, base in pairs
    ]


def _ratios(column: _Column, base: _Column, name: str) -> list[float | None]:
    return [
        row[name] / base.rows[prompt][name] if row[name] and base.rows[prompt][name] else None
        for prompt, row in column.rows.items()
    ]


def _same_text(columns: Sequence[_Column]) -> bool | None:
    """Whether every mode gave the same text on every prompt; None where there is only one mode."""
    if len(columns) < 2:
        return None
    first, *others = columns
    return all(
        row["text_sha256"] is not None and row["text_sha256"] == other.rows[prompt]["text_sha256"]
        for other in others
        for prompt, row in first.rows.items()
    )


# ---- tables ------------------------------------------------------------------------------------------------------


def print_report(report: Mapping[str, Any], console: Console) -> None:
    """The passes, the contenders and their ratios as tables."""
    drafter = report["drafter"]
    machine = report["machine"]
    console.print(
        f"[bold]{report['model']['file']}[/bold], drafter {drafter['file'] if drafter else 'none'}; "
        f"{machine['cpu']}, {report['threads']} of {machine['cores']} cores, {report['instruction_set']}",
        highlight=False,
    )
    console.print(_pass_table(report))
    console.print(_contender_table(report["summary"]["contenders"]))
    for ratio in report["summary"]["speed_ratios"]:
        console.print(
            f"{ratio['of']} over {ratio['over']}: decoding {_number(ratio['decode_tokens_per_s'], 2)}x, "
            f"prompts {_number(ratio['prefill_tokens_per_s'], 2)}x",
            highlight=False,
        )
    if report["summary"]["same_text_in_all_modes"]:
        console.print("Every prompt has the same text in all modes.")
    elif report["summary"]["same_text_in_all_modes"] is False:
        console.print("[bold red]The texts of the modes differ.[/bold red] Speculation must not change them.")


def _pass_table(report: Mapping[str, Any]) -> Table:
    summary, peer, drafts = report["summary"], report.get("peer_pass_ms"), report["draft_ms"]
    table = Table(title="One pass of the target after 256 tokens of context", title_justify="left")
    for name in ("tokens", "ms", "of one token"):
        table.add_column(name, justify="right")
    if drafts:
        table.add_column("draft ms", justify="right")
    if peer:
        table.add_column("peer ms", justify="right")
        table.add_column("peer / bee", justify="right")
    for rows, value in report["pass_ms"].items():
        cells = [rows, _number(value, 2), _number(summary["pass_cost"][rows], 2)]
        if drafts:
            cells.append(_number(drafts.get(rows), 2))
        if peer:
            cells += [_number(peer[rows], 2), _number(summary["peer_pass_ratios"][rows], 2)]
        table.add_row(*cells)
    limit = report["limit"]
    table.caption = (
        f"limit: {limit['pass_ms']:.2f} ms to read {limit['bytes_per_pass'] / 1e6:.0f} MB "
        f"at {limit['memory_read_bytes_per_s'] / 1e9:.0f} GB/s"
    )
    table.caption_justify = "left"
    return table


_COLUMNS = (
    ("prefill_tokens_per_s", "prompt t/s", 0),
    ("decode_tokens_per_s", "t/s", 1),
    ("time_to_first_token_s", "first s", 3),
    ("tokens_per_cycle", "t/cycle", 2),
    ("draft_acceptance", "acceptance", 3),
    ("accepted_share", "share", 3),
)


def _contender_table(contenders: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="Answers, t = tokens; medians over prompts, means for drafting", title_justify="left")
    table.add_column("engine")
    table.add_column("mode")
    for _, title, _ in _COLUMNS:
        table.add_column(title, justify="right")
    for contender in contenders:
        numbers = [_number(contender[name], digits) for name, _, digits in _COLUMNS]
        table.add_row(contender["engine"], contender["speculation"], *numbers)
    return table


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
