"""A benchmark's results as a picture: what passes cost, and the speed of each prompt."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ModelFileError, ParameterError

__all__ = ["check_plotting", "plot_report"]

_COLOURS = {"off": "#8a9199", "auto": "#d98e04", "dflash": "#7a4fb5", "copy": "#2a8f6d", "peer": "#3567a8"}
_PEER_STYLES = (("#3567a8", "s-"), ("#7a4fb5", "^-"), ("#2a8f6d", "D-"))


def check_plotting() -> None:
    """Raises ParameterError where matplotlib is not installed: better before a long measurement than after it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ParameterError(
            "a picture needs matplotlib, which is not installed: pip install 'bee-integrations[plot]'"
        ) from error


def plot_report(report: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Draw the passes and the prompts that the report has, or those of its shapes.

    Raises ParameterError where matplotlib is missing or there is nothing to draw, ModelFileError where the file cannot
    be written.
    """
    check_plotting()
    from matplotlib.figure import Figure

    if "shapes" in report:
        figure = Figure(figsize=(12, 0.2 + 4.6 * math.ceil(len(report["shapes"]) / 3)), layout="constrained")
        _draw_shapes(figure, report["shapes"])
    else:
        if not (report["passes"] or report["rows"]):
            raise ParameterError("there is nothing to draw: the results have neither passes nor answers")
        figure = Figure(figsize=(12, 0.2 + 4.6 * (bool(report["passes"]) + bool(report["rows"]))), layout="constrained")
        _draw_model(figure, report)
    try:
        figure.savefig(Path(path), dpi=150)
    except (OSError, ValueError) as error:  # a name whose ending matplotlib does not know is a ValueError
        raise ModelFileError(f"the picture cannot be written to {os.fspath(path)}: {error}") from error


def _draw_model(figure: Any, report: Mapping[str, Any]) -> None:
    upper = lower = figure  # or a part of it
    if report["passes"] and report["rows"]:
        upper, lower = figure.subfigures(2, 1)
    if report["passes"]:
        panels = upper.subplots(1, len(report["passes"]), squeeze=False)[0]
        for axes, passes in zip(panels, report["passes"], strict=True):
            _draw_passes(axes, passes, report["peer"])
    if report["rows"]:
        _draw_prompts(lower.subplots(), report)


def _draw_shapes(figure: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """A panel for each shape and context."""
    n_columns = min(3, len(rows))
    panels = figure.subplots(math.ceil(len(rows) / n_columns), n_columns, squeeze=False).flat
    for axes, row in zip(panels, rows, strict=False):
        peers = zip(row["peers"].items(), _PEER_STYLES, strict=False)
        lines = [(peer["pass_ms"], name, colour, style) for (name, peer), (colour, style) in peers]
        lines.append((row["pass_ms"], "Bee", _COLOURS["auto"], "o-"))
        lines.append((row["bound_ms"], "bound", "#444444", "--"))
        _draw_lines(axes, lines, f"{row['shape']} after {row['context']} tokens")
    for axes in panels:  # those that are left
        axes.set_axis_off()


def _draw_passes(axes: Any, passes: Mapping[str, Any], peer: Mapping[str, Any] | None) -> None:
    lines = [(passes["pass_ms"], "Bee", _COLOURS["auto"], "o-"), (passes["bound_ms"], "bound", "#444444", "--")]
    lines.append((passes["cached_bound_ms"], "bound, with what caches keep", "#999999", ":"))
    if passes["peer_pass_ms"]:
        lines.insert(0, (passes["peer_pass_ms"], peer["name"] if peer else "peer", _COLOURS["peer"], "s-"))
    _draw_lines(axes, lines, f"One pass after {passes['context']} tokens of context")


def _draw_lines(axes: Any, lines: Sequence[tuple[Mapping[str, float], str, str, str]], title: str) -> None:
    """Milliseconds by the tokens of a pass, each line with its label, colour and style."""
    from matplotlib.ticker import LogLocator, NullLocator

    for values, label, colour, style in lines:
        axes.plot([int(rows) for rows in values], list(values.values()), style, color=colour, label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=10)
    counts = max((values for values, *_ in lines), key=len)
    axes.set_xticks([int(rows) for rows in counts], list(counts))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("tokens in the pass")
    axes.set_ylabel("ms")
    axes.set_title(title, loc="left", fontsize=11)
    _tidy(axes)


def _draw_prompts(axes: Any, report: Mapping[str, Any]) -> None:
    rows = report["rows"]
    contenders = list(dict.fromkeys((row["engine"], row["speculation"]) for row in rows))
    prompts = list(dict.fromkeys(row["prompt"] for row in rows))
    speeds = {(row["engine"], row["speculation"], row["prompt"]): row["decode_tokens_per_s"] or 0.0 for row in rows}
    width = 0.8 / len(contenders)
    for index, (engine, mode) in enumerate(contenders):
        axes.bar(
            [position + (index - (len(contenders) - 1) / 2) * width for position in range(len(prompts))],
            [speeds[engine, mode, prompt] for prompt in prompts],
            width,
            color=_COLOURS[mode if engine == "bee" else "peer"],
            label=f"Bee, {mode}" if engine == "bee" else engine,
        )
    axes.set_xticks(range(len(prompts)), prompts, rotation=40, ha="right", fontsize=8)
    axes.set_xlim(-0.6, len(prompts) - 0.4)
    axes.set_ylabel("tokens/s")
    axes.set_title("Decoding by prompt", loc="left", fontsize=11)
    _tidy(axes)


def _tidy(axes: Any) -> None:
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncols=4 if len(axes.patches) else 1)
