"""The `bee` command: get models, list and run them, look into GGUF files, measure, and train drafters.

Answers and JSON go to stdout; progress, statistics and errors to stderr. Exit codes: 0, 1 for an error of Bee (one line
says what is wrong), 2 for wrong usage, 130 when interrupted.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TransferSpeedColumn,
)

from . import __version__
from .errors import BeeError, ParameterError, TemplateError

if TYPE_CHECKING:
    from .bench import BenchOptions
    from .engine.engine import Engine, GenerationParams, Statistics, Step

__all__ = ["app", "main"]

# The commands import the engine themselves: `bee --help` and `bee pull` need no library and no model.
app = typer.Typer(
    name="bee",
    help="Local GGUF models with lossless DFlash speculative decoding.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_EXIT_ERROR = 1
_EXIT_INTERRUPTED = 130
_NONE = "none"
_TABLE_WIDTH = 160

P = ParamSpec("P")
R = TypeVar("R")


def main() -> None:
    """Run the command line and exit."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character is no reason to stop
    try:
        app()
    except KeyboardInterrupt:  # between commands, as while modules are imported
        sys.exit(_EXIT_INTERRUPTED)


def _errors() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True)


def _progress(*columns: ProgressColumn) -> Progress:
    """A progress display on stderr that leaves nothing behind; none where stderr is not a terminal."""
    console = _errors()
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _reports_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Turn an error of Bee into one red line, and Ctrl-C into its exit code; anything else is a bug and shows."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except BeeError as error:
            message = " ".join(str(error).split()) or type(error).__name__
            _errors().print(f"error: {message}", style="bold red", markup=False)
            raise typer.Exit(_EXIT_ERROR) from error
        except KeyboardInterrupt:
            _errors().print("\ninterrupted", style="yellow")
            raise typer.Exit(_EXIT_INTERRUPTED) from None

    return wrapped


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"bee {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


# ---- options that several commands share -------------------------------------------------------------------------

Model = Annotated[str | None, typer.Option("--model", "-m", help="A name (docs/models.md) or a GGUF file.")]
Drafter = Annotated[
    str, typer.Option(help="A DFlash or MTP GGUF file or name, 'auto' (what belongs to the model) or 'none'.")
]
NCtx = Annotated[int | None, typer.Option("--n-ctx", help="Tokens of context, prompt and answer together.")]
Threads = Annotated[int | None, typer.Option("--threads", "-t", help="CPU threads; all cores if left out.")]
Device = Annotated[
    str, typer.Option(help="'cpu', 'cuda', or 'auto': the card where there is one and the model fits, else the CPU.")
]
KvCache = Annotated[
    str,
    typer.Option(help="How keys and values are remembered: 'f16', or 'q8_0': in 8 bits, in about half the memory."),
]
InstructionSet = Annotated[
    str | None,
    typer.Option(help="Force 'avx512', 'avx2' or 'portable', and with 'auto' the CPU; the best one here if left out."),
]
PackedCache = Annotated[
    bool | None,
    typer.Option(
        "--packed-cache/--no-packed-cache",
        help="Keep packed weights in the cache directory, or that of BEE_PACKED_CACHE, for the next start; see "
        "'bee packed'. What BEE_PACKED_CACHE says if left out.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def _drafter(value: str) -> str | None:
    return None if value.lower() == _NONE else value


# ---- pull --------------------------------------------------------------------------------------------------------


@app.command()
@_reports_errors
def pull(
    name: Annotated[
        str | None, typer.Argument(help="A name, such as hf:owner/repo:Q4_K_M; the default model if left out.")
    ] = None,
    force: Annotated[bool, typer.Option(help="Download a registered model even if it is here.")] = False,
) -> None:
    """Get a model by its name, the newest there is, and check its SHA-256. Prints its path, and why that file."""
    from .models import registry as models

    name = name or models.DEFAULT_MODEL
    with _bytes_progress() as report:
        if name.partition(":")[0] in models.PLACES:
            located = models.locate_model(name, refresh=True, progress=report)
        else:
            path = models.pull(name, progress=report, force=force)
            located = models.Located(path, name, "registry", note=models.REGISTRY[name].license_note)
    if located.note is not None:
        _errors().print(located.note, style="dim", markup=False)
    typer.echo(str(located.path))


@contextmanager
def _bytes_progress() -> Iterator[Callable[[int, int, str], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with _progress(*columns) as progress:
        tasks: dict[str, Any] = {}

        def report(done: int, total: int, stage: str) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total or None)
            progress.update(tasks[stage], completed=done, total=total or None)

        yield report


# ---- run ---------------------------------------------------------------------------------------------------------


@app.command()
@_reports_errors
def run(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME] [PROMPT]",
            help="A model's name, or what to answer ('-' reads it from stdin), or both. A name alone opens a chat.",
        ),
    ],
    model: Model = None,
    drafter: Drafter = "auto",
    speculation: Annotated[
        str,
        typer.Option(
            help="'auto' drafts what pays, 'dflash' whole blocks, 'mtp' what the model's own block predicts, "
            "'copy' what the text says already, 'off' nothing; the answer is the same."
        ),
    ] = "auto",
    draft_length: Annotated[int | None, typer.Option(help="Drafted tokens per cycle.")] = None,
    system: Annotated[str | None, typer.Option("--system", "-s", help="The system message.")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as it stands, without chat template.")
    ] = False,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", "-n", help="Tokens to generate at most.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this string. May be given several times.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 always takes the most likely token. This and others: the model's own, or 0.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample from that many tokens; 0 is off.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample from that much probability; 1 is off.")] = None,
    min_p: Annotated[
        float | None, typer.Option(help="Drop tokens less likely than that share of the best; 0 is off.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same answer. Drawn if left out.")] = None,
    n_ctx: NCtx = None,
    threads: Threads = None,
    device: Device = "auto",
    kv_cache: KvCache = "f16",
    instruction_set: InstructionSet = None,
    packed_cache: PackedCache = None,
    as_json: Json = False,
) -> None:
    """Answer a prompt: the text as it comes, then one line of statistics on stderr. With a name alone, open a chat."""
    from .engine.engine import GenerationParams

    model, prompt = _model_and_prompt(words, model)
    given: dict[str, Any] = {"speculation": speculation, "draft_length": draft_length, "max_tokens": max_tokens}
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed}
    given |= {name: value for name, value in sampling.items() if value is not None}
    given |= {"stop": tuple(stop)} if stop else {}
    GenerationParams(**given)  # says what makes no sense before a model is loaded
    if raw and system is not None:
        raise ParameterError("--raw gives the model the prompt as it stands, so there is no place for --system")
    if prompt is None and (raw or as_json):
        raise ParameterError("--raw and --json are for one prompt: give it behind the model's name")
    text = None if prompt is None else _prompt_text(prompt)
    with _opened(
        model,
        drafter=_drafter(drafter),
        n_ctx=n_ctx,
        threads=threads,
        device=device,
        kv_cache=kv_cache,
        instruction_set=instruction_set,
        packed_cache=packed_cache,
    ) as engine:
        if text is None:
            _chat(engine, given, system)
            return
        params = engine.own_params(**given)
        tokens = _prompt_tokens(engine, text, system, raw)
        last, output = _answer(engine, tokens, params, echo=not as_json)
    stats = last.stats
    assert stats is not None, "the last step carries the statistics"
    if as_json:
        answer = {
            "model": engine.model_name,
            "device": engine.info["device"],
            "text": output["text"],
            "tokens": output["tokens"],
            "finish_reason": last.finish_reason,
            "statistics": stats.as_dict(),
        }
        typer.echo(json.dumps(answer, ensure_ascii=False))
    else:
        line = _statistics_line(stats, last.finish_reason, _place(engine))
        _errors().print(line, style="dim", markup=False)


def _model_and_prompt(words: list[str], model: str | None) -> tuple[str | None, str | None]:
    """NAME, PROMPT or both, and --model: the model and the prompt, which is None for a chat."""
    if len(words) > 2:
        raise typer.BadParameter("give a model's name and a prompt at most, and put the prompt in quotes")
    if model is None and (len(words) == 2 or _is_model(words[0])):
        return words[0], words[1] if len(words) == 2 else None
    if len(words) == 2:
        raise typer.BadParameter("the model is given twice, as an argument and as --model")
    return model, words[0]


def _is_model(word: str) -> bool:
    """Whether a single word names a model, and is no prompt."""
    from .models import registry as models

    place, colon, rest = word.partition(":")
    if word in models.REGISTRY or (place in models.PLACES and colon and rest and not any(map(str.isspace, rest))):
        return True
    with suppress(OSError, ValueError):
        path = Path(word).expanduser()
        return (path.suffix.lower() == ".gguf" and path.is_file()) or any(path.glob("*.gguf"))
    return False


def _chat(engine: Engine, given: dict[str, Any], system: str | None) -> None:
    from .chat.parameters import BeeParameters
    from .chat.terminal import TerminalChat

    stop = {"stop": list(given["stop"])} if "stop" in given else {}
    chat = TerminalChat(
        engine,
        BeeParameters(**given | stop),
        _errors(),
        system=system,
        describe=lambda stats, reason: _statistics_line(stats, reason, _place(engine)),
    )
    chat.run(sys.stdin)


@contextmanager
def _opened(model: str | None, **arguments: Any) -> Iterator[Engine]:
    """An engine for one command; a registered model that is not here yet is downloaded, with progress."""
    from .engine.engine import Engine
    from .models import registry as models

    with _bytes_progress() as report:
        located = models.locate_model(model, progress=report)
    with _bytes_progress() as report:
        engine = Engine(
            located, n_parallel=1, progress=lambda done, total: report(done, total, "loading weights"), **arguments
        )
    with engine:
        yield engine


def _prompt_text(prompt: str) -> str:
    if prompt != "-":
        text = prompt
    else:
        try:
            text = sys.stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise ParameterError(f"stdin is not UTF-8 text ({error})") from error
    if not text.strip():
        raise ParameterError("the prompt is empty; give some text, or '-' and text on stdin")
    return text


def _prompt_tokens(engine: Engine, text: str, system: str | None, raw: bool) -> list[int]:
    if raw:
        return engine.encode_prompt(text)
    if engine.chat_template is None:
        raise TemplateError(f"{engine.model_name} has no chat template; use --raw to have it continue the prompt")
    messages = [] if system is None else [{"role": "system", "content": system}]
    return engine.encode_prompt(engine.render_chat([*messages, {"role": "user", "content": text}]))


def _answer(engine: Engine, tokens: list[int], params: GenerationParams, *, echo: bool) -> tuple[Step, dict[str, Any]]:
    """Generate to the end; the last step, and the text and tokens of all."""
    pieces: list[str] = []
    generated: list[int] = []
    with closing(engine.generate(tokens, params)) as steps:
        for step in steps:
            pieces.append(step.text)
            generated += step.tokens
            if echo and step.text:
                typer.echo(step.text, nl=False)
                sys.stdout.flush()
    text = "".join(pieces)
    if echo and not text.endswith("\n"):
        typer.echo()
    return step, {"text": text, "tokens": generated}


def _place(engine: Engine) -> str | None:
    """The card that it ran on, or why not; None where there is none."""
    if engine.info["device"] != "cpu":
        return f"on {engine.info['device_name']}"
    note = engine.info["device_note"]
    return f"on the CPU ({note})" if note else None


def _statistics_line(stats: Statistics, finish_reason: str | None, place: str | None) -> str:
    parts = [
        f"{stats.output_tokens} tokens ({finish_reason}), {stats.decode_tokens_per_s:.0f} tokens/s",
        f"prompt {stats.prompt_tokens} tokens, first token after {stats.time_to_first_token_s:.2f} s",
    ]
    if stats.speculation == "off":
        parts.append("no speculation")
    else:
        parts.append(
            f"{stats.speculation}: {stats.tokens_per_cycle:.2f} tokens per cycle, "
            f"draft acceptance {stats.draft_acceptance:.0%}, accepted share {stats.accepted_share:.0%}"
        )
    parts.append(f"seed {stats.seed}")
    if place is not None:
        parts.append(place)
    return "; ".join(parts)


# ---- info --------------------------------------------------------------------------------------------------------


@app.command()
@_reports_errors
def info(
    file: Annotated[str, typer.Argument(help="A GGUF file, or the name of a model that is here.")],
    n_ctx: NCtx = None,
    device: Annotated[
        str | None, typer.Option(help="Plan the memory of this device: 'cuda', 'cpu', or 'auto', as 'bee run' has it.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="With --device: that much memory, such as 24GiB, and not what is free there.")
    ] = None,
    drafter: Drafter = "auto",
    kv_cache: KvCache = "f16",
    as_json: Json = False,
) -> None:
    """What is in a GGUF file, whether it can run here and why not, and the memory that takes."""
    from .engine.device_plan import check_device, parse_size
    from .models import registry as models
    from .models.report import describe_model_file, print_model_report

    if device is not None:
        check_device(device)
    elif memory is not None:
        raise ParameterError("--memory is that of a device: give --device cuda with it")
    report = describe_model_file(
        models.resolve_model(file, download=False),
        n_ctx,
        device=device,
        memory=None if memory is None else parse_size(memory),
        drafter=_drafter(drafter),
        kv_cache=kv_cache,
    )
    if as_json:
        typer.echo(json.dumps(report, ensure_ascii=False))
    else:
        print_model_report(report, Console(highlight=False))


# ---- models and rm -----------------------------------------------------------------------------------------------


@app.command("models")
@_reports_errors
def list_models(
    folders: Annotated[list[Path] | None, typer.Argument(help="Look in these folders and below, too.")] = None,
    as_json: Json = False,
) -> None:
    """The models on this machine, of all places: whether they run here, and which drafter goes with them."""
    from .models.listing import found_models, print_models

    entries = found_models(folders or [])
    if as_json:
        typer.echo(json.dumps({"models": entries}, ensure_ascii=False))
    elif entries:
        console = Console(highlight=False)
        print_models(entries, console if console.is_terminal else Console(highlight=False, width=_TABLE_WIDTH))
    else:
        _errors().print("there are no models here yet; 'bee pull' gets the default one")


@app.command("rm")
@_reports_errors
def remove(name: Annotated[str, typer.Argument(help="A registered model.")]) -> None:
    """Remove a model from the cache directory. Models in stores that others share are theirs to remove."""
    from .models.listing import remove_model
    from .models.memory import size_text

    freed = remove_model(name)
    _errors().print(f"{name} is removed; {size_text(freed)} are free again", style="dim")


# ---- packed ------------------------------------------------------------------------------------------------------


@app.command()
@_reports_errors
def packed(
    remove: Annotated[bool, typer.Option("--remove", help="Remove them all.")] = False,
    directory: Annotated[
        Path | None, typer.Option(help="Of another directory than BEE_PACKED_CACHE, or that of the cache.")
    ] = None,
) -> None:
    """The files of packed weights (--packed-cache), with their sizes."""
    from .models.memory import size_text
    from .models.packed import packed_directory, packed_files, remove_packed_files

    place = packed_directory(directory) or packed_directory(True)
    assert place is not None
    files = list(packed_files(place))
    for file in files:
        typer.echo(f"{size_text(file.size):>10}  {file.path.name}")
    if remove:
        _errors().print(f"{size_text(remove_packed_files(place))} are free again", style="dim")
    else:
        _errors().print(f"{size_text(sum(file.size for file in files))} in {place}", style="dim", markup=False)


# ---- bench -------------------------------------------------------------------------------------------------------


@app.command()
@_reports_errors
def bench(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the results to this file.")] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Write the tables to this file, or into the marked part of it.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw passes and speeds into this file (needs matplotlib).")] = None,
    figures: Annotated[bool, typer.Option("--figures", help="Measure the figures that Bee is meant to reach.")] = False,
    rows: Annotated[
        str | None, typer.Option(help="Only these groups of figures, comma-separated, as: decode,passes,load.")
    ] = None,
    earlier: Annotated[
        Path | None,
        typer.Option("--from", help="Show these earlier results; with --rows, measure those anew in their place."),
    ] = None,
    synthetic: Annotated[
        str | None,
        typer.Option(
            help="Measure shapes without a model, with random weights: qwen3-8b, llama-3.1-8b, dense-27b, ..."
        ),
    ] = None,
    shapes: Annotated[
        str | None,
        typer.Option(
            help="Measure files of such shapes with random weights, which a peer can open, too: qwen3-1.7b, "
            "qwen3-1.7b:IQ4_XS, ..."
        ),
    ] = None,
    contexts: Annotated[
        str, typer.Option(help="With --shapes: tokens before the measured passes, comma-separated.")
    ] = "256",
    kv_quality: Annotated[
        str | None,
        typer.Option(
            help="Compare keys and values in 8 bits with float16, by the perplexity of these texts (files, "
            "comma-separated) and greedy answers."
        ),
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help='A JSON list of {"name", "messages"}.')] = None,
    speculation: Annotated[
        str | None,
        typer.Option(help="Modes, comma-separated: off, dflash, copy, auto. 'off,dflash', or 'off,auto' for figures."),
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", help="Tokens per answer at most.")] = 200,
    repeats: Annotated[int, typer.Option(help="Answers per prompt and mode.")] = 3,
    threads: Threads = None,
    peer: Annotated[
        str | None,
        typer.Option(
            "--peer",
            "--peers",
            help="Measure 'llama-cpp-python' as well, on the same file; with --shapes also 'ik-llama' and 'openvino', "
            "comma-separated, each as PEER or PEER=FOLDER.",
        ),
    ] = None,
    peer_path: Annotated[Path | None, typer.Option(help="The folder to import peers from.")] = None,
    avx2_peer_path: Annotated[
        Path | None, typer.Option(help="The same for a peer built without AVX-512, to compare AVX2 with.")
    ] = None,
    model: Model = None,
    drafter: Drafter = "auto",
    n_ctx: NCtx = None,
    device: Device = "auto",
    kv_cache: KvCache = "f16",
    instruction_set: InstructionSet = None,
) -> None:
    """Measure passes and answers, with and without speculation, and a peer beside them."""
    from .bench import BenchOptions

    if synthetic is not None:
        if model is not None or earlier is not None or rows is not None or figures or peer is not None:
            raise ParameterError("--synthetic measures no model, figures or peer: leave those options out")
        _check_outputs(json_file, markdown, None)
        report = _synthetic_report(_names(synthetic) or (), device, threads, instruction_set, kv_cache)
        _write_bench(report, json_file, markdown, None)
        return
    if shapes is not None:
        if model is not None or earlier is not None or rows is not None or figures or device == "cuda":
            raise ParameterError("--shapes measures no model or figures, and the CPU alone: leave those options out")
        _check_outputs(json_file, markdown, plot)
        report = _shapes_report(
            _names(shapes) or (),
            _names(peer) or (),
            peer_path,
            _numbers(contexts),
            threads,
            instruction_set,
            kv_caches=_names(kv_cache) or (),
            rounds=repeats,
        )
        _write_bench(report, json_file, markdown, plot)
        return
    if kv_quality is not None:
        if earlier is not None or rows is not None or figures or peer is not None or plot is not None:
            raise ParameterError("--kv-quality measures no figures or peer: leave those options out")
        _check_outputs(json_file, markdown, None)
        report = _kv_quality_report(
            _names(kv_quality) or (), model, prompts, max_tokens, device, threads, instruction_set
        )
        _write_bench(report, json_file, markdown, None)
        return
    options = BenchOptions(
        model=model,
        drafter=_drafter(drafter),
        prompts=prompts,
        speculation=_names(speculation),
        figures=_figure_groups(figures, rows),
        max_tokens=max_tokens,
        repeats=repeats,
        threads=threads,
        n_ctx=n_ctx,
        device=device,
        peer=None if peer is None or peer.lower() == _NONE else peer,
        peer_path=peer_path,
        avx2_peer_path=avx2_peer_path,
        instruction_set=instruction_set,
        kv_cache=kv_cache,
    )
    _check_outputs(json_file, markdown, plot)
    report = _bench_report(options, earlier, anew=rows is not None)
    _write_bench(report, json_file, markdown, plot)
    if report["summary"]["same_text_in_all_modes"] is False:
        raise typer.Exit(_EXIT_ERROR)


def _synthetic_report(
    shapes: tuple[str, ...], device: str, threads: int | None, instruction_set: str | None, kv_cache: str
) -> dict[str, Any]:
    from .bench.synthetic import SyntheticOptions, run_synthetic

    options = SyntheticOptions(
        shapes, device=device, threads=threads, instruction_set=instruction_set, kv_cache=kv_cache
    )
    with _step_progress() as report_step:
        return run_synthetic(options, report_step)


def _shapes_report(
    shapes: tuple[str, ...],
    peers: tuple[str, ...],
    peer_path: Path | None,
    contexts: tuple[int, ...],
    threads: int | None,
    instruction_set: str | None,
    *,
    kv_caches: tuple[str, ...],
    rounds: int,
) -> dict[str, Any]:
    from .bench.shapes import ShapesOptions, run_shapes

    options = ShapesOptions(
        shapes,
        peers=peers,
        peer_path=peer_path,
        contexts=contexts,
        threads=threads,
        instruction_set=instruction_set,
        kv_caches=kv_caches,
        rounds=rounds,
    )
    with _step_progress() as report_step:
        return run_shapes(options, report_step)


def _kv_quality_report(
    texts: tuple[str, ...],
    model: str | None,
    prompts: Path | None,
    max_tokens: int,
    device: str,
    threads: int | None,
    instruction_set: str | None,
) -> dict[str, Any]:
    from .bench.kv_quality import KvQualityOptions, run_kv_quality

    options = KvQualityOptions(
        texts,
        model=model,
        prompts=prompts,
        max_tokens=max_tokens,
        threads=threads,
        instruction_set=instruction_set,
        device=device,
    )
    with _step_progress() as report_step:
        return run_kv_quality(options, report_step)


def _names(value: str | None) -> tuple[str, ...] | None:
    return None if value is None else tuple(name.strip() for name in value.split(","))


def _numbers(value: str) -> tuple[int, ...]:
    try:
        return tuple(map(int, value.split(",")))
    except ValueError:
        raise ParameterError(f"--contexts is {value!r}; give numbers, comma-separated") from None


def _figure_groups(wanted: bool, rows: str | None) -> tuple[str, ...] | None:
    from .bench.figures import GROUPS

    if rows is None:
        return tuple(GROUPS) if wanted else None
    return _names(rows)


def _check_outputs(*files: Path | None) -> None:
    """Before a long measurement, not after it."""
    for file in files:
        if file is not None and not file.resolve().parent.is_dir():
            raise ParameterError(f"the results cannot be written to {file}: its directory does not exist")
    if files[-1] is not None:
        from .bench.plot import check_plotting

        check_plotting()


def _bench_report(options: BenchOptions, earlier: Path | None, *, anew: bool) -> dict[str, Any]:
    """The earlier results, or new ones, or new ones in place of some of the earlier."""
    from .bench import load_report, merge_figures, run_benchmark
    from .models import registry as models

    before = None if earlier is None else load_report(earlier)
    if before is not None and not anew:
        return before
    with _bytes_progress() as report_download:
        models.resolve_model(None if options.model is None else str(options.model), progress=report_download)
    with _step_progress() as report_step:
        report = run_benchmark(options, report_step)
    return report if before is None else merge_figures(before, report)


def _write_bench(report: dict[str, Any], json_file: Path | None, markdown: Path | None, plot: Path | None) -> None:
    from .bench.kv_quality import print_kv_quality
    from .bench.markdown import write_markdown
    from .bench.plot import plot_report
    from .bench.report import print_report
    from .bench.shapes import print_shapes
    from .bench.synthetic import print_synthetic

    # Files first: stdout may be a pipe that nobody reads to its end. Printing last, whatever became of them.
    try:
        if json_file is not None:
            json_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        if markdown is not None:
            write_markdown(report, markdown)
        if plot is not None:
            plot_report(report, plot)
    finally:
        console = Console()
        # A pipe has no width of its own: room for the tables.
        shown = {"synthetic": print_synthetic, "shapes": print_shapes, "kv_quality": print_kv_quality}
        show = next((printer for kind, printer in shown.items() if kind in report), print_report)
        show(report, console if console.is_terminal else Console(width=_TABLE_WIDTH))


@contextmanager
def _step_progress() -> Iterator[Callable[[int, int, str], None]]:
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with _progress(*columns) as progress:
        task = progress.add_task("loading", total=None)

        def report(done: int, total: int, label: str) -> None:
            progress.update(task, completed=done, total=total, description=label)

        yield report


# ---- train -------------------------------------------------------------------------------------------------------


@app.command()
@_reports_errors
def train(
    output: Annotated[Path | None, typer.Argument(help="The drafter's GGUF; in the folder if left out.")] = None,
    model: Model = None,
    folder: Annotated[
        Path, typer.Option(help="Data, checkpoint and log. Running again with the same folder goes on.")
    ] = Path("drafter-training"),
    prompts: Annotated[Path | None, typer.Option(help="Prompts to evaluate on and keep out of training.")] = None,
    generate_minutes: Annotated[float, typer.Option(help="How long to make data.")] = 25.0,
    answer_tokens: Annotated[int, typer.Option(help="Make no more data than this.")] = 2_000_000,
    fit_minutes: Annotated[float, typer.Option(help="How long to fit the drafter.")] = 30.0,
    processes: Annotated[int | None, typer.Option(help="One per core if left out.")] = None,
    n_layer: Annotated[int, typer.Option(help="Layers of the drafter.")] = 2,
    n_taps: Annotated[int, typer.Option(help="Layers of the target that it looks at.")] = 5,
    block_size: Annotated[int, typer.Option(help="Tokens of a block: the last one and its drafts.")] = 8,
    draft_vocabulary: Annotated[
        int, typer.Option(help="Tokens that it can draft: the most frequent of the generated answers.")
    ] = 16384,
    llama_cpp_output: Annotated[Path | None, typer.Option(help="Also write a file that llama.cpp can load.")] = None,
) -> None:
    """Train a DFlash drafter for a target with data of the target's own making (needs PyTorch)."""
    missing = [package for package in ("torch", "gguf") if importlib.util.find_spec(package) is None]
    if missing:
        raise ParameterError(
            f"training needs {' and '.join(missing)}, which is not installed: pip install 'bee-integrations[train]'"
        )
    from .train.command import train as run_training

    run_training(
        model,
        output,
        folder=folder,
        prompts=prompts,
        generate_minutes=generate_minutes,
        answer_tokens=answer_tokens,
        fit_minutes=fit_minutes,
        processes=processes,
        n_layer=n_layer,
        n_taps=n_taps,
        block_size=block_size,
        draft_vocabulary=draft_vocabulary,
        llama_cpp_output=llama_cpp_output,
        console=_errors(),
    )


@app.command("export-drafter")
@_reports_errors
def export_drafter(
    folder: Annotated[Path, typer.Argument(help="Where config.json and model.safetensors go.")],
    to: Annotated[str, typer.Option(help="The server that reads them: 'vllm' or 'sglang'.")],
    drafter: Annotated[
        str, typer.Option(help="A DFlash GGUF file, or 'auto': the one that belongs to the model.")
    ] = "auto",
    model: Model = None,
) -> None:
    """Write a drafter in the layout that vLLM or SGLang reads (docs/cluster.md). Prints the folder."""
    from .models import registry as models
    from .models.drafters import find_drafter
    from .train.server_export import export_for_server

    located = models.locate_model(model, download=False)
    found = find_drafter(drafter, located)
    if found.path is None:
        raise ParameterError(f"{located.name} has no drafter here ({found.note}): name its file with --drafter")
    exported = export_for_server(found.path, located.path, folder, to)
    _errors().print(f"start the server with: {exported.command}", style="dim", markup=False)
    typer.echo(str(exported.folder))


if __name__ == "__main__":
    main()
