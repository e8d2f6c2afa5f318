"""The `bee` command: what it prints where, its exit codes, and that errors are one line."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf_document as gguf
import pytest
import tiny_model

import bee_integrations
from bee_integrations import cli
from bee_integrations.engine import Engine, GenerationParams

PROMPT = "Say something."
N_TOKENS = 12


class Bee:
    """Runs a command line in this process."""

    def __init__(self, capture: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> None:
        self._capture = capture
        self._patch = patch

    def __call__(self, *arguments: str | Path, stdin: bytes = b"") -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        self._patch.setattr(sys, "argv", ["bee", *map(str, arguments)])
        self._patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        self._capture.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        code = ended.value.code
        return int(code or 0), *self._capture.readouterr()

    def json(self, *arguments: str | Path, stdin: bytes = b"") -> dict[str, Any]:
        """The object that a successful command with --json prints."""
        code, output, errors = self(*arguments, "--json", stdin=stdin)
        assert (code, errors) == (0, "")
        value = json.loads(output)
        assert isinstance(value, dict)
        return value

    def refuses(self, *arguments: str | Path, stdin: bytes = b"") -> str:
        """The one line on stderr of a command that ends with exit code 1."""
        code, output, errors = self(*arguments, stdin=stdin)
        assert (code, output) == (1, "")
        assert errors.startswith("error: ")
        assert errors.count("\n") == 1, f"one line was expected: {errors}"
        return errors


@pytest.fixture
def bee(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Bee:
    return Bee(capsys, monkeypatch)


@pytest.fixture
def run_tiny(tiny_path: Path) -> list[str]:
    """Arguments that run the tiny model for a few tokens."""
    return ["run", "--model", str(tiny_path), "--threads", "1", "--max-tokens", str(N_TOKENS)]


def chat(engine: Engine, text: str, system: str | None = None) -> str:
    messages = [] if system is None else [{"role": "system", "content": system}]
    return engine.render_chat([*messages, {"role": "user", "content": text}])


# ---- run -------------------------------------------------------------------------------------------------------------


def test_run_prints_the_answer_and_one_line_of_statistics(bee: Bee, run_tiny: list[str], tiny: Engine) -> None:
    expected = tiny.complete(chat(tiny, PROMPT), GenerationParams(max_tokens=N_TOKENS))
    code, output, errors = bee(*run_tiny, PROMPT)
    assert code == 0
    assert output.rstrip("\n") == expected.text.rstrip("\n")
    assert output.endswith("\n")
    assert errors.startswith(f"{len(expected.tokens)} tokens ({expected.finish_reason}), ")
    assert "tokens per cycle" in errors
    assert errors.count("\n") == 1


def test_run_json_has_text_tokens_and_statistics(bee: Bee, run_tiny: list[str], tiny: Engine) -> None:
    expected = tiny.complete(chat(tiny, PROMPT), GenerationParams(max_tokens=N_TOKENS))
    answer = bee.json(*run_tiny, PROMPT)
    assert answer["text"] == expected.text
    assert answer["tokens"] == list(expected.tokens)
    assert answer["finish_reason"] == expected.finish_reason
    assert answer["statistics"]["output_tokens"] == len(expected.tokens)
    assert answer["statistics"]["speculation"] == "dflash+copy"


def test_run_without_speculation_or_drafter_gives_the_same_tokens(bee: Bee, run_tiny: list[str]) -> None:
    drafted = bee.json(*run_tiny, PROMPT, "--draft-length", "3")
    plain = bee.json(*run_tiny, PROMPT, "--speculation", "off")
    alone = bee.json(*run_tiny, PROMPT, "--drafter", "none")
    assert drafted["statistics"]["drafted_tokens"] > 0
    assert plain["statistics"]["drafted_tokens"] == 0
    assert alone["statistics"]["drafted_tokens"] == alone["statistics"]["copied_tokens"]
    assert drafted["tokens"] == plain["tokens"] == alone["tokens"]


def test_run_says_when_nothing_was_drafted(bee: Bee, run_tiny: list[str]) -> None:
    assert "no speculation" in bee(*run_tiny, PROMPT, "--speculation", "off")[2]


def test_run_hands_sampling_parameters_on(bee: Bee, run_tiny: list[str], tiny: Engine) -> None:
    params = GenerationParams(max_tokens=N_TOKENS, temperature=1.5, top_k=40, top_p=0.9, min_p=0.01, seed=11)
    sampling = ["--temperature", "1.5", "--top-k", "40", "--top-p", "0.9", "--min-p", "0.01", "--seed", "11"]
    answer = bee.json(*run_tiny, PROMPT, *sampling)
    assert answer["tokens"] == list(tiny.complete(chat(tiny, PROMPT), params).tokens)
    assert answer["statistics"]["seed"] == 11
    assert answer["tokens"] != bee.json(*run_tiny, PROMPT)["tokens"]


def test_run_reads_the_prompt_from_stdin(bee: Bee, run_tiny: list[str]) -> None:
    assert bee.json(*run_tiny, "-", stdin=PROMPT.encode())["tokens"] == bee.json(*run_tiny, PROMPT)["tokens"]


def test_run_uses_the_chat_template_with_a_system_message(bee: Bee, run_tiny: list[str], tiny: Engine) -> None:
    answer = bee.json(*run_tiny, PROMPT, "--system", "Be brief.")
    assert answer["statistics"]["prompt_tokens"] == len(tiny.encode_prompt(chat(tiny, PROMPT, "Be brief.")))


def test_run_raw_uses_no_chat_template(bee: Bee, run_tiny: list[str], tiny: Engine) -> None:
    answer = bee.json(*run_tiny, PROMPT, "--raw")
    assert answer["statistics"]["prompt_tokens"] == len(tiny.encode_prompt(PROMPT))


def test_run_stops_before_each_of_several_stop_strings(bee: Bee, run_tiny: list[str]) -> None:
    text = bee.json(*run_tiny, PROMPT)["text"]
    wanted = text[4]
    answer = bee.json(*run_tiny, PROMPT, "--stop", "never there", "--stop", wanted)
    assert answer["text"] == text[: text.index(wanted)]
    assert answer["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperature", "-1"], "temperature"),
        (["--speculation", "sometimes"], "speculation"),
        (["--raw", "--system", "Be brief."], "--system"),
        (["--drafter", "missing.gguf"], "missing.gguf"),
        (["--n-ctx", "-1"], "n_ctx"),
        (["--n-ctx", "4"], "context"),
        (["--instruction-set", "mmx"], "mmx"),
    ],
)
def test_run_refuses_bad_options_in_one_line(bee: Bee, run_tiny: list[str], arguments: list[str], message: str) -> None:
    assert message in bee.refuses(*run_tiny, PROMPT, *arguments)


def test_run_refuses_prompts_that_are_none(bee: Bee, run_tiny: list[str]) -> None:
    assert "empty" in bee.refuses(*run_tiny, "  ")
    assert "empty" in bee.refuses(*run_tiny, "-")
    assert "UTF-8" in bee.refuses(*run_tiny, "-", stdin=b"\xff\xfe")


def test_run_refuses_a_missing_model_and_a_drafter_as_model(bee: Bee, tiny_path: Path) -> None:
    assert "missing.gguf" in bee.refuses("run", PROMPT, "--model", "missing.gguf")
    assert "drafter" in bee.refuses("run", PROMPT, "--model", tiny_path.with_name("tiny.dflash.gguf"))


def test_run_without_a_chat_template_points_to_raw(bee: Bee, tmp_path: Path) -> None:
    document = tiny_model.model()
    del document.metadata["tokenizer.chat_template"]
    path = document.write(tmp_path / "plain.gguf")
    assert "--raw" in bee.refuses("run", PROMPT, "--model", path)
    assert bee.json("run", PROMPT, "--model", path, "--raw", "--max-tokens", "3")["tokens"]


def test_an_interrupted_run_exits_with_130(tiny_path: Path) -> None:
    arguments = ["run", PROMPT, "--model", str(tiny_path), "--temperature", "1", "--seed", "1", "--threads", "1"]
    # The tiny model answers faster than anybody could interrupt it: here every step waits to be read.
    program = (
        "import signal, sys, time\nfrom bee_integrations import cli, engine\n"
        # A shell that starts the tests in the background has children ignore the signal.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "steps = engine.Engine.generate\n"
        "def slowly(self, prompt, params=None):\n"
        "    for step in steps(self, prompt, params):\n        yield step\n        time.sleep(0.2)\n"
        f"engine.Engine.generate = slowly\nsys.argv = ['bee', *{arguments!r}]\ncli.main()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(bee_integrations.__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)  # the answer has begun
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in errors


# ---- info ------------------------------------------------------------------------------------------------------------


def test_info_json_describes_a_model(bee: Bee, tiny_path: Path) -> None:
    report = bee.json("info", tiny_path, "--n-ctx", "128")
    assert (report["runnable"], report["reason"], report["kind"]) == (True, None, "target")
    assert report["architecture"] == "llama"
    assert report["n_layer"] == tiny_model.N_LAYER
    assert report["bytes"] == tiny_path.stat().st_size
    shapes = {tensor["name"]: tensor["shape"] for tensor in report["tensors"]}
    assert shapes["token_embd.weight"] == [tiny_model.N_EMBD, len(tiny_model.VOCABULARY)]
    assert sum(entry["tensors"] for entry in report["tensor_types"]) == len(report["tensors"])
    assert report["metadata"]["tokenizer.ggml.tokens"]["length"] == len(tiny_model.VOCABULARY)


def test_info_says_which_form_tools_take_and_why(bee: Bee, tiny_path: Path) -> None:
    assert bee.json("info", tiny_path)["tools"] == {
        "format": "generic",
        "reason": "the template knows no calls, so the system message describes the tools",
    }
    assert "Tools: generic (the template knows no calls, so" in bee("info", tiny_path)[1]


def test_info_counts_the_memory_of_weights_and_context(bee: Bee, tiny_path: Path) -> None:
    short, long = (bee.json("info", tiny_path, "--n-ctx", n)["memory"] for n in ("100", "300"))
    assert long["cache_bytes"] == 3 * short["cache_bytes"] > 0
    assert short["total_bytes"] == short["weight_bytes"] + short["cache_bytes"]
    assert bee.json("info", tiny_path)["memory"]["n_ctx"] == tiny_model.N_CTX_TRAIN


def test_info_names_the_blocks_that_are_left_out(bee: Bee, tiny_path: Path, tmp_path: Path) -> None:
    document = gguf.read(tiny_path)
    document.metadata["llama.block_count"] = gguf.integer(tiny_model.N_LAYER + 1)
    document.metadata["llama.nextn_predict_layers"] = gguf.integer(1)
    document.tensors[f"blk.{tiny_model.N_LAYER}.nextn.enorm.weight"] = document.tensors["output_norm.weight"]
    path = document.write(tmp_path / "predicting.gguf")
    left_out = bee.json("info", path)["left_out"]
    assert left_out == {
        "first_block": tiny_model.N_LAYER, "blocks": 1, "tensors": 1, "bytes": 4 * tiny_model.N_EMBD,
    }  # fmt: skip
    assert f"Left out: blk.{tiny_model.N_LAYER}" in bee("info", path)[1]
    assert bee.json("info", tiny_path)["left_out"] is None


def _unknown_type(path: Path) -> None:
    """Another number in the place of a tensor's type."""
    content = bytearray(path.read_bytes())
    name = b"blk.1.ffn_up.weight"
    at = content.index(name) + len(name) + 4 + 2 * 8
    content[at : at + 4] = (138).to_bytes(4, "little")
    path.write_bytes(content)


@pytest.mark.parametrize("what", ["architecture", "type that the library lacks", "type of tomorrow", "tensor", "key"])
def test_info_names_what_is_missing_in_one_line(bee: Bee, tmp_path: Path, what: str) -> None:
    document = tiny_model.model()
    name = "blk.1.ffn_up.weight"
    said = f"tensor '{name}' "
    if what == "architecture":
        document.metadata["general.architecture"] = gguf.text("rwkv7")
        said = "architecture 'rwkv7' cannot be run; the library runs "
    elif what == "type that the library lacks":
        document.tensors[name] = gguf.Stored.zeros("I16", (96, 64))
        said += "has type I16 (25), which cannot be run; the types that can are F32, "
    elif what == "type of tomorrow":
        said += "has type unknown (138), which cannot be run; the types that can are F32, "
    elif what == "tensor":
        del document.tensors[name]
        said += "is missing"
    else:
        del document.metadata["llama.block_count"]
        said = "metadata 'llama.block_count' is missing"
    path = document.write(tmp_path / "odd.gguf")
    if what == "type of tomorrow":
        _unknown_type(path)
    code, output, _ = bee("info", path)
    assert code == 0
    (line,) = [line for line in output.splitlines() if "cannot run here" in line]
    assert said in line
    assert output.splitlines()[-1] == line


def test_info_says_what_cannot_run_and_why(bee: Bee, tiny_path: Path, tmp_path: Path) -> None:
    document = tiny_model.model()
    document.metadata["general.architecture"] = gguf.text("mamba")
    path = document.write(tmp_path / "mamba.gguf")
    report = bee.json("info", path)
    assert not report["runnable"]
    assert "mamba" in report["reason"]
    code, output, _ = bee("info", path)
    assert code == 0
    assert "cannot run here" in " ".join(output.split())
    document = tiny_model.model()
    document.metadata["tokenizer.ggml.model"] = gguf.text("bert")
    vocabulary = bee.json("info", document.write(tmp_path / "bert.gguf"))
    assert not vocabulary["runnable"]
    assert "'bert'" in vocabulary["reason"]
    too_long = bee.json("info", tiny_path, "--n-ctx", "100000")
    assert not too_long["runnable"]
    assert str(tiny_model.N_CTX_TRAIN) in too_long["reason"]


def test_info_recognises_a_drafter(bee: Bee, tiny_path: Path) -> None:
    path = tiny_path.with_name("tiny.dflash.gguf")
    assert bee.json("info", path)["kind"] == "drafter"
    assert "drafter" in bee("info", path)[1]


def test_info_prints_no_control_characters_of_a_file(bee: Bee, tmp_path: Path) -> None:
    document = tiny_model.model()
    document.metadata["general.name"] = gguf.text("evil \x1b]0;title\x07 [red]name")
    code, output, _ = bee("info", document.write(tmp_path / "evil.gguf"))
    assert code == 0
    assert "\x1b" not in output
    assert "\x07" not in output
    assert "[red]name" in output


def test_info_refuses_what_is_no_gguf_file(bee: Bee, tiny_path: Path, tmp_path: Path) -> None:
    truncated = tmp_path / "truncated.gguf"
    truncated.write_bytes(tiny_path.read_bytes()[:1000])
    assert "truncated.gguf" in bee.refuses("info", truncated)
    text = tmp_path / "text.gguf"
    text.write_text("hello")
    assert "GGUF" in bee.refuses("info", text)
    assert "missing.gguf" in bee.refuses("info", "missing.gguf")
    assert "n_ctx" in bee.refuses("info", tiny_path, "--n-ctx", "0")


# ---- pull and train --------------------------------------------------------------------------------------------------


def test_pull_prints_the_path_of_the_model(bee: Bee, model_path: Path) -> None:
    code, output, errors = bee("pull")
    assert (code, output, errors) == (0, f"{model_path}\n", "")


def test_pull_refuses_an_unknown_name_and_lists_the_known_ones(bee: Bee) -> None:
    message = bee.refuses("pull", "no-such-model")
    assert "no-such-model" in message
    assert "smollm2-135m-instruct" in message


def test_train_says_how_to_install_what_it_needs(bee: Bee, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    message = bee.refuses("train")
    assert "torch" in message
    assert "bee-integrations[train]" in message


def test_train_hands_its_options_on(bee: Bee, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: dict[str, Any] = {}
    command = ModuleType("bee_integrations.train.command")
    command.train = lambda model, output, **options: given.update(options, model=model, output=output)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, command.__name__, command)
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: object())
    code, _, _ = bee("train", tmp_path / "out.gguf", "--model", "m.gguf", "--fit-minutes", "1.5", "--block-size", "6")
    assert code == 0
    assert (given["model"], given["output"]) == ("m.gguf", tmp_path / "out.gguf")
    assert (given["fit_minutes"], given["block_size"]) == (1.5, 6)


# ---- usage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["run"], ["run", "hi", "--no-such-option"], ["no-such-command"], ["info"]])
def test_wrong_usage_exits_with_2(bee: Bee, arguments: list[str]) -> None:
    assert bee(*arguments)[0] == 2


def test_help_and_version(bee: Bee) -> None:
    assert bee("--version")[:2] == (0, f"bee {bee_integrations.__version__}\n")
    code, output, _ = bee("--help")
    assert code == 0
    assert all(command in output for command in ("pull", "run", "info", "bench", "train"))
