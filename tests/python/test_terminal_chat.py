"""A conversation in a terminal: what is asked, what is remembered, and what the commands do."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_model
from rich.console import Console

from bee_integrations.chat import terminal
from bee_integrations.chat.parameters import BeeParameters
from bee_integrations.chat.reply import Piece
from bee_integrations.chat.request import ChatRequest
from bee_integrations.chat.terminal import TerminalChat
from bee_integrations.engine import Engine
from bee_integrations.errors import ContextLengthError
from bee_integrations.generation import Step
from bee_integrations.tools.tool_format import Event, Reasoning, Text

Asked = list[tuple[list[tuple[str, str]], BeeParameters]]


class Answers:
    """Stands in for requests: keeps what is asked, and answers with the next of its events."""

    def __init__(self, *answers: tuple[Event, ...] | BaseException) -> None:
        self.answers = list(answers)
        self.asked: Asked = []

    def of_chat(self, engine: Engine, parameters: BeeParameters, messages: list[dict[str, Any]]) -> Answers:
        self.asked.append(([(message["role"], message["content"]) for message in messages], parameters))
        return self

    def pieces(self) -> Iterator[Piece]:
        answer = self.answers.pop(0) if self.answers else (Text("again"),)
        if isinstance(answer, BaseException):
            raise answer
        for event in answer:
            if isinstance(event, BaseException):
                raise event
            yield Piece((event,), Step("", (1,)))


@pytest.fixture
def talk(tiny: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a chat over lines with prepared answers; gives what was asked, stdout, and what went to stderr."""

    def run(lines: str, *answers: Any, **options: Any) -> tuple[Asked, str, str]:
        prepared = Answers(*answers)
        monkeypatch.setattr(terminal, "ChatRequest", prepared)
        errors = io.StringIO()
        chat = TerminalChat(tiny, BeeParameters(), Console(file=errors, width=500), **options)
        chat.run(io.StringIO(lines))
        return prepared.asked, capsys.readouterr().out, errors.getvalue()

    return run


def conversation(asked: Asked, index: int = -1) -> list[tuple[str, str]]:
    return asked[index][0]


def test_a_conversation_is_remembered(talk: Any) -> None:
    asked, output, _ = talk("one\n\ntwo\n", (Text("1"),), (Text("2"), Text("!")), system="be short")
    assert conversation(asked) == [("system", "be short"), ("user", "one"), ("assistant", "1"), ("user", "two")]
    assert output == "1\n2!\n"


def test_thinking_is_shown_apart_and_not_remembered(talk: Any) -> None:
    asked, output, errors = talk("one\ntwo\n", (Reasoning("hm [b]hm"), Text("1")))
    assert output == "1\nagain\n"
    assert "hm [b]hm" in errors
    assert conversation(asked) == [("user", "one"), ("assistant", "1"), ("user", "two")]


def test_texts_of_several_lines(talk: Any) -> None:
    asked, _, _ = talk('"""a\n\nb"""\n"""one"""\n"""\n/bye\n"""\n"""never ended\nx')
    assert [text for role, text in conversation(asked) if role == "user"] == ["a\n\nb", "one", "/bye", "never ended\nx"]


def test_a_text_that_begins_with_a_slash(talk: Any) -> None:
    asked, _, errors = talk("//bye now\n/nope\n")
    assert conversation(asked) == [("user", "/bye now")]
    assert "there is no command /nope" in errors


@pytest.mark.parametrize("word", ["/bye", "/exit", "/quit", "/bye   "])
def test_leaving(talk: Any, word: str) -> None:
    asked, output, _ = talk(f"{word}\nhello\n")
    assert (asked, output) == ([], "")


def test_clear_undo_and_retry(talk: Any) -> None:
    asked, _, errors = talk("/retry\none\n/retry\ntwo\n/undo\nthree\n/clear\n/undo\nfour\n", (Text("1"),), (Text("I"),))
    assert "nothing to answer yet" in errors
    assert [conversation(asked, i) for i in range(5)] == [
        [("user", "one")],
        [("user", "one")],
        [("user", "one"), ("assistant", "I"), ("user", "two")],
        [("user", "one"), ("assistant", "I"), ("user", "three")],
        [("user", "four")],
    ]


def test_parameters(talk: Any) -> None:
    lines = (
        "/set temperature 0.7\n/set seed=5\n/set stop END OF\n/set\n/nothink\n/system be nice\nhello\n/set warmth 3\n"
    )
    asked, _, errors = talk(lines + "/set temperature hot\n/set n_ctx 100\n/think\nmore\n")
    first, second = asked[0][1], asked[1][1]
    assert (first.temperature, first.seed, first.stop, first.enable_thinking) == (0.7, 5, ["END OF"], False)
    assert (second.temperature, second.enable_thinking) == (0.7, True)
    assert conversation(asked, 0)[0] == ("system", "be nice")
    assert "  temperature 0.7\n" in errors
    assert "warmth" in errors
    assert "n_ctx cannot be changed in a chat" in errors
    assert errors.count("error: ") == 3


def test_errors_leave_the_conversation_as_it_was(talk: Any) -> None:
    asked, output, errors = talk("one\ntwo\nthree\n", (Text("1"),), ContextLengthError("too\nlong"))
    assert conversation(asked) == [("user", "one"), ("assistant", "1"), ("user", "three")]
    assert "error: too long; /clear forgets the conversation" in errors
    assert output == "1\nagain\n"


def test_ctrl_c_ends_an_answer_and_keeps_what_there_is(talk: Any) -> None:
    asked, _, errors = talk("one\ntwo\nthree\n", (Text("half"), KeyboardInterrupt()), KeyboardInterrupt())
    assert conversation(asked) == [("user", "one"), ("assistant", "half"), ("user", "three")]
    assert errors.count("(interrupted)") == 2


def test_save_and_load(talk: Any, tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    talk(f"one\n/save {file}\n", (Text("é"),), system="s")
    assert json.loads(file.read_text())["messages"][1] == {"role": "assistant", "content": "é"}
    asked, _, _ = talk(f"/load {file}\ntwo\n")
    assert conversation(asked) == [("system", "s"), ("user", "one"), ("assistant", "é"), ("user", "two")]


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"messages": [1]}', '{"messages": [{"role": "x", "content": ""}]}', "[" * 100_000],
)
def test_files_that_hold_no_conversation(talk: Any, tmp_path: Path, content: str) -> None:
    file = tmp_path / "chat.json"
    file.write_text(content)
    asked, _, errors = talk(f"one\n/load {file}\n/load {tmp_path}\n/load {tmp_path}/none\n/save\ntwo\n")
    assert errors.count("error: ") == 4
    assert conversation(asked) == [("user", "one"), ("assistant", "again"), ("user", "two")]


def test_statistics_and_the_model(talk: Any, tiny: Engine) -> None:
    _, _, errors = talk("/verbose\none\n/verbose\ntwo\n/show\n/?\n", describe=lambda stats, reason: "STATISTICS")
    assert errors.count("STATISTICS") == 1
    assert str(tiny.model_path) in errors
    assert "/retry" in errors


def test_with_a_model(tiny: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    errors = io.StringIO()
    parameters = BeeParameters(max_tokens=5, seed=1)
    TerminalChat(tiny, parameters, Console(file=errors)).run(io.StringIO("hello\nmore\n"))
    output = capsys.readouterr().out
    expected = ChatRequest.of_chat(tiny, parameters, [{"role": "user", "content": "hello"}]).reply()
    assert output.startswith(expected.text)
    assert "error" not in errors.getvalue()
    assert tiny.chat_template.source == tiny_model.TEMPLATE  # type: ignore[union-attr]
