"""What a benchmark comes to: medians, ratios, and the tables that `bee bench` prints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .contenders import median_of

__all__ = ["FIGURE_COLUMNS", "describe_run", "figure_cells", "number", "print_report", "summarise"]


def _mean_of(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


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


def summarise(rows: Sequence[Mapping[str, Any]], passes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians over prompts (means for what drafting did), ratios of the contenders on the same prompts, and of passes
    over a pass over one token."""
    columns: dict[tuple[str, str], _Column] = {}
    for row in rows:
        key = (row["engine"], row["speculation"])
        columns.setdefault(key, _Column(*key)).rows[row["prompt"]] = dict(row)
    ordered = list(columns.values())
    return {
        "contenders": [_averages(column) for column in ordered],
        "speed_ratios": _speed_ratios(ordered),
        "same_text_in_all_modes": _same_text([column for column in ordered if column.engine == "bee"]),
        "pass_cost": {
            str(entry["context"]): {rows: value / entry["pass_ms"]["1"] for rows, value in entry["pass_ms"].items()}
            for entry in passes
        },
    }


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


def describe_run(report: Mapping[str, Any]) -> str:
    """Files, machine, threads and peer in one line."""
    drafter, peer = report["drafter"], report["peer"]
    limits, settings = report["limits"], report["settings"]
    parts = [
        f"{report['model']['file']}, drafter {drafter['file'] if drafter else 'none'}",
        _place(report),
        f"it reads {limits['read_bytes_per_s'] / 1e9:.1f} GB/s from memory, "
        f"{limits['reread_bytes_per_s'] / 1e9:.1f} GB/s where it rereads as much as the weights, "
        f"and does {limits['multiply_adds_per_s'] / 1e9:.0f} G 8-bit multiply-adds/s",
        f"{settings['prompts']} prompts, at most {settings['max_tokens']} tokens an answer, "
        f"{settings['repeats']} rounds",
    ]
    if peer is not None:
        parts.append(f"{peer['name']} {peer['version']}{'' if peer['repacked'] else ', its weights not repacked'}")
    return "; ".join(parts)


def _place(report: Mapping[str, Any]) -> str:
    machine, card = report["machine"], report.get("device")
    cores = f"{machine['cpu']}, {report['threads']} of {machine['cores']} cores"
    return f"{cores}, {report['instruction_set']}" if card is None else f"on {card}, beside {cores}"


def print_report(report: Mapping[str, Any], console: Console) -> None:
    """The figures, the passes, the contenders and their ratios as tables: what was measured of them."""
    console.print(describe_run(report), highlight=False)
    if report["figures"]:
        console.print(_figure_table(report["figures"]))
    for passes in report["passes"]:
        console.print(_pass_table(passes))
    if report["rows"]:
        _print_answers(report["summary"], console)


def _print_answers(summary: Mapping[str, Any], console: Console) -> None:
    console.print(_contender_table(summary["contenders"]))
    for ratio in summary["speed_ratios"]:
        console.print(
            f"{ratio['of']} over {ratio['over']}: decoding {number(ratio['decode_tokens_per_s'], 2)}x, "
            f"prompts {number(ratio['prefill_tokens_per_s'], 2)}x",
            highlight=False,
        )
    if summary["same_text_in_all_modes"]:
        console.print("Every prompt has the same text in all modes.")
    elif summary["same_text_in_all_modes"] is False:
        console.print("[bold red]The texts of the modes differ.[/bold red] Speculation must not change them.")


FIGURE_COLUMNS = ("figure", "bee", "against", "reached", "asked", "share of bound", "")


def figure_cells(figure: Mapping[str, Any]) -> tuple[str, ...]:
    """A figure as text, by FIGURE_COLUMNS."""
    unit, asked = figure["unit"], figure["asked"]
    digits = 0 if unit == "MB" else 1 if unit == "tokens/s" else 2
    ours, rival = (
        "" if figure[name] is None else f"{figure[name]:.{digits}f} {unit}".strip() for name in ("ours", "rival")
    )
    if unit == "s":  # the figure is the time itself
        ours, rival = "", ""
    suffix = " s" if unit == "s" else ""
    return (
        figure["name"],
        ours,
        rival,
        "" if figure["reached"] is None else f"{figure['reached']:.2f}{suffix}",
        "" if asked is None else f"{'<= ' if figure['at_most'] else ''}{asked:.2f}{suffix}",
        "" if figure["bound_share"] is None else f"{figure['bound_share']:.0%}",
        figure["note"],
    )


def _figure_table(figures: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="Figures", title_justify="left")
    for index, name in enumerate(FIGURE_COLUMNS):
        table.add_column(name, justify="right" if 0 < index < 6 else "left", no_wrap=not index)
    colours = {True: "green", False: "red", None: ""}
    for figure in figures:
        table.add_row(*map(escape, figure_cells(figure)), style=colours[figure["met"]])
    return table


def _pass_table(passes: Mapping[str, Any]) -> Table:
    drafts, peer = passes["draft_ms"], passes["peer_pass_ms"]
    table = Table(title=f"One pass of the target after {passes['context']} tokens of context", title_justify="left")
    for name in ("tokens", "ms", "of one token", "bound ms", "share of it", "with caches"):
        table.add_column(name, justify="right")
    if drafts:
        table.add_column("draft ms", justify="right")
    if peer:
        table.add_column("peer ms", justify="right")
        table.add_column("peer / bee", justify="right")
    for rows, value in passes["pass_ms"].items():
        bound, cached = passes["bound_ms"][rows], passes["cached_bound_ms"][rows]
        cells = [rows, number(value, 2), number(value / passes["pass_ms"]["1"], 2)]
        cells += [number(bound, 2), f"{bound / value:.0%}", f"{cached / value:.0%}"]
        if drafts:
            cells.append(number(drafts.get(rows), 2))
        if peer:
            cells += [number(peer[rows], 2), number(passes["peer_pass_ratios"][rows], 2)]
        table.add_row(*cells)
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
        numbers = [number(contender[name], digits) for name, _, digits in _COLUMNS]
        table.add_row(contender["engine"], contender["speculation"], *numbers)
    return table


def number(value: float | None, digits: int) -> str:
    """A value for a table; "-" for one that does not exist."""
    return "-" if value is None else f"{value:.{digits}f}"
