"""A conversation in a terminal: history, thinking shown apart, and commands that begin with "/"."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from ..engine.engine import Engine
from ..errors import BeeError, ContextLengthError, ParameterError
from ..tools.tool_format import Reasoning, Text
from .messages import chat_message
from .parameters import BeeParameters
from .reply import Reply
from .request import ChatRequest

__all__ = ["TerminalChat"]

_PROMPT, _MORE, _QUOTES = ">>> ", "... ", '"""'
# What /set may change: all that concerns an answer, and nothing that would need another engine.
_FIXED = {"model", "drafter", "n_ctx", "threads", "device", "kv_cache", "packed_cache", "constraint", "response_format",
          "timeout", "logprobs", "top_logprobs", "chat_template", "chat_template_kwargs", "tool_format",
          "logit_bias"}  # fmt: skip


class TerminalChat:
    """One conversation. Answers go to stdout, thinking and everything else to `console`, which is stderr's."""

    def __init__(
        self,
        engine: Engine,
        parameters: BeeParameters,
        console: Console,
        *,
        system: str | None = None,
        describe: Callable[[Any, str | None], str] | None = None,
    ) -> None:
        """describe: the line of statistics for the last step's `Statistics` and finish reason, which /verbose shows."""
        self._engine = engine
        self._parameters = parameters
        self._console = console
        self._system = system
        self._describe = describe
        self._verbose = False
        self._messages: list[dict[str, Any]] = []
        self._commands: dict[str, tuple[Callable[[str], bool | None], str, str]] = {
            "/?": (self._help, "", "this list; also /help"),
            "/bye": (lambda _: True, "", "end the chat; also /exit, /quit and Ctrl-D"),
            "/clear": (self._clear, "", "forget the conversation"),
            "/retry": (self._retry, "", "answer the last message once more"),
            "/undo": (self._undo, "", "take the last message and its answer back"),
            "/system": (self._set_system, "[TEXT]", "set the system message, or show it"),
            "/set": (
                self._set,
                "[NAME VALUE]",
                "set a parameter (/set temperature 0.7), or show what is set",
            ),
            "/think": (lambda _: self._think(True), "", "let the model think"),
            "/nothink": (lambda _: self._think(False), "", "let it answer at once"),
            "/show": (self._show, "", "the model and the length of the conversation"),
            "/save": (self._save, "FILE", "write the conversation to a JSON file"),
            "/load": (self._load, "FILE", "read it from there"),
            "/verbose": (self._toggle_verbose, "", "show statistics behind answers, or no longer"),
        }
        self._others = {"/help": "/?", "/exit": "/bye", "/quit": "/bye"}

    def run(self, lines: TextIO) -> None:
        """Talk until the end of the lines, or /bye. Ctrl-C ends an answer, and between answers says how to leave."""
        self._note(f'{self._engine.model_name}: /? lists commands, """ begins and ends a text of several lines')
        while (line := self._line(lines, _PROMPT)) is not None:
            if line.startswith(_QUOTES):
                self._ask(self._quoted(lines, line[len(_QUOTES) :]))
            elif line.startswith("//"):
                self._ask(line[1:])
            elif not line.startswith("/"):
                self._ask(line)
            elif self._command(line):
                return

    # ---- reading -----------------------------------------------------------------------------------------------------

    def _quoted(self, lines: TextIO, first: str) -> str:
        gathered = [first]
        while not gathered[-1].endswith(_QUOTES) and (line := self._line(lines, _MORE)) is not None:
            gathered.append(line)
        return "\n".join(gathered).removesuffix(_QUOTES).strip("\n")

    def _line(self, lines: TextIO, prompt: str) -> str | None:
        """The next line, or None at the end."""
        while True:
            try:
                if lines is sys.stdin and lines.isatty():
                    with contextlib.suppress(ImportError):
                        import readline  # noqa: F401 - gives `input` editing and history
                    return input(prompt)
                line = lines.readline()
                return line.rstrip("\n") if line else None
            except EOFError:
                return None
            except KeyboardInterrupt:
                self._note("\nCtrl-D or /bye ends the chat")

    # ---- answering ---------------------------------------------------------------------------------------------------

    def _ask(self, text: str) -> None:
        if not text.strip():
            return
        self._messages.append(chat_message("user", text))
        if not self._answer():
            self._messages.pop()

    def _answer(self) -> bool:
        """Answer the conversation, and add the answer to it. False, and it is as before: nothing was answered."""
        system = [] if self._system is None else [chat_message("system", self._system)]
        reply = Reply()
        try:
            request = ChatRequest.of_chat(self._engine, self._parameters, [*system, *self._messages])
            self._stream(request, reply)
        except ContextLengthError as error:
            self._fail(f"{error}; /clear forgets the conversation")
        except BeeError as error:
            self._fail(str(error))
        except KeyboardInterrupt:
            self._note("\n(interrupted)")
        if not reply.text:
            return False
        # Thinking of earlier turns is not shown to the model again, as its makers have it.
        self._messages.append(chat_message("assistant", reply.text))
        return True

    def _stream(self, request: ChatRequest, reply: Reply) -> None:
        thinking = False
        with closing(request.pieces()) as pieces:
            for piece in pieces:
                reply.add(piece)
                for event in piece.events:
                    if isinstance(event, Reasoning) and event.text:
                        thinking = True
                        self._console.print(event.text, style="dim italic", markup=False, end="", soft_wrap=True)
                    elif isinstance(event, Text) and event.text:
                        if thinking:
                            self._console.print("\n")
                            thinking = False
                        sys.stdout.write(event.text)
                        sys.stdout.flush()
        sys.stdout.write("\n")
        sys.stdout.flush()
        if self._verbose and self._describe is not None:
            self._note(self._describe(reply.last.stats, reply.last.finish_reason))

    # ---- commands ----------------------------------------------------------------------------------------------------

    def _command(self, line: str) -> bool | None:
        """Obey a command; true: the chat ends."""
        name, _, argument = line.strip().partition(" ")
        command = self._commands.get(self._others.get(name, name))
        if command is None:
            self._fail(f"there is no command {name}; /? lists them, and // begins a text with a slash")
            return None
        try:
            return command[0](argument.strip())
        except BeeError as error:
            self._fail(str(error))
        except (OSError, ValueError, RecursionError) as error:
            self._fail(f"{name}: {error}")
        return None

    def _help(self, _: str) -> None:
        for name, (_call, argument, meaning) in self._commands.items():
            self._note(f"  {f'{name} {argument}':<20} {meaning}")

    def _clear(self, _: str) -> None:
        self._messages.clear()

    def _undo(self, _: str) -> None:
        while self._messages and self._messages.pop()["role"] != "user":
            pass

    def _retry(self, _: str) -> None:
        if not any(message["role"] == "user" for message in self._messages):
            raise ParameterError("there is nothing to answer yet")
        earlier = list(self._messages)
        while self._messages[-1]["role"] != "user":
            self._messages.pop()
        if not self._answer():
            self._messages = earlier

    def _set_system(self, text: str) -> None:
        if text:
            self._system = text
        self._note(f"system: {self._system or 'none'}")

    def _set(self, words: str) -> None:
        name, _, value = words.partition("=" if " " not in words else " ")
        if not name:
            defaults = BeeParameters()
            for field in sorted(set(BeeParameters.model_fields) - _FIXED):
                if getattr(self._parameters, field) != getattr(defaults, field):
                    self._note(f"  {field} {json.dumps(getattr(self._parameters, field), default=str)}")
            return
        if name in _FIXED:
            raise ParameterError(f"{name} cannot be changed in a chat; begin another one")
        self._parameters = self._parameters.for_call(None, {name: _value(value.strip())})

    def _think(self, wanted: bool) -> None:
        self._parameters = self._parameters.for_call(None, {"enable_thinking": wanted})

    def _show(self, _: str) -> None:
        info = self._engine.info
        self._note(f"  model    {self._engine.model_name} ({info['architecture']}), {self._engine.model_path}")
        self._note(f"  drafter  {info['drafter_note'] or 'none'}")
        self._note(f"  context  {info['n_ctx']} tokens, on {info['device_name'] or info['device']}")
        self._note(f"  so far   {len(self._messages)} messages")

    def _save(self, file: str) -> None:
        if not file:
            raise ParameterError("/save needs the name of a file")
        content = {"system": self._system, "messages": self._messages}
        Path(file).expanduser().write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")

    def _load(self, file: str) -> None:
        content = json.loads(Path(file).expanduser().read_text(encoding="utf-8"))
        messages = content.get("messages") if isinstance(content, dict) else None
        if not isinstance(messages, list) or not all(_is_message(message) for message in messages):
            raise ParameterError(f"{file} holds no conversation that /save wrote")
        system = content.get("system")
        self._system = system if isinstance(system, str) else None
        self._messages = [chat_message(message["role"], message["content"]) for message in messages]

    def _toggle_verbose(self, _: str) -> None:
        self._verbose = not self._verbose

    # ---- printing ----------------------------------------------------------------------------------------------------

    def _note(self, text: str) -> None:
        self._console.print(text, style="dim", markup=False, highlight=False)

    def _fail(self, text: str) -> None:
        self._console.print(f"error: {' '.join(text.split())}", style="bold red", markup=False, highlight=False)


def _value(text: str) -> Any:
    """A value as people write it: JSON where it is that, otherwise the words themselves."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _is_message(message: Any) -> bool:
    return (
        isinstance(message, dict)
        and message.get("role") in ("user", "assistant", "system")
        and isinstance(message.get("content"), str)
    )
