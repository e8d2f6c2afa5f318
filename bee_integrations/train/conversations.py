"""Training data: conversations that the target holds with itself, through the engine that will verify the drafts.

The target samples a question in the user's turn and answers it greedily in the same session, so that the answer's
prompt is mostly in the cache already. Tokens and tapped features go to shards as they come; nothing is run again for
training.
"""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.synchronize
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import BeeError, UnsupportedModelError
from ..models.file import ModelFile
from ..text.chat_template import ChatTemplate, plain_text
from ..text.tokenizer import Tokenizer
from .pool import GREEDY, Pool, Sampling
from .questions import HeldOut, opening
from .shards import Conversation, Conversations, ShardWriter, to_bfloat16

_MARK = "QUESTION"
LOOP_CHECK_EVERY = 8
LONGEST_LOOP = 40
SHORTEST_ANSWER = 6


@dataclass(frozen=True)
class ConversationParams:
    """How much to generate, and how. Generation ends at whichever limit comes first."""

    answer_tokens: int = 2_000_000
    minutes: float | None = None
    processes: int = 1
    """Each has its own engine with one thread, which makes more tokens a second than one engine with many."""
    sessions: int = 32
    """In each process, stepped together."""
    question_length: int = 96
    answer_length: int = 256
    """Tokens at most."""
    temperature: float = 1.0
    top_p: float = 0.9
    """Of the questions."""
    seed: int = 0


class Frame:
    """A target's tokenizer and the chat template around a single question.

    A target without a template goes on with plain text: it samples the rest of a beginning and then continues greedily.
    """

    def __init__(self, model: Path) -> None:
        with ModelFile(model) as file:
            self.tokenizer = Tokenizer.from_model_file(file)
            self._template = ChatTemplate.from_model_file(file, self.tokenizer)
        self._before, found, self._after = self._render([{"role": "user", "content": _MARK}]).partition(_MARK)
        if not found:
            raise UnsupportedModelError(f"the chat template of {model} does not show the user's message as it is")

    def question_start(self, opening: str) -> list[int]:
        """The prompt after which the target writes the rest of the user's turn."""
        return self._encode(self._before + opening)

    def prompt(self, question: str) -> list[int]:
        """The prompt after which the target answers."""
        return self._encode(self._before + question + self._after)

    def chat(self, messages: list[dict[str, str]]) -> list[int]:
        """The prompt for any messages."""
        return self._encode(self._render(messages))

    def _render(self, messages: list[dict[str, str]]) -> str:
        return self._template.render(messages) if self._template else plain_text(messages)

    def _encode(self, text: str) -> list[int]:
        bos = self._template.bos_token if self._template else None
        return self.tokenizer.encode(text, add_special=not (bos and text.startswith(bos)))


class Writer:
    """Holds conversations in the sessions of one pool, one after another in each, and stores them."""

    def __init__(
        self, model: Path, taps: Sequence[int], folder: Path, params: ConversationParams, held_out: HeldOut, seed: str
    ) -> None:
        self._frame = Frame(model)
        self._params, self._held_out, self._rng = params, held_out, random.Random(seed)
        n_ctx = len(self._frame.prompt("")) + params.question_length + params.answer_length + 64
        stop = sorted(self._frame.tokenizer.stop_token_ids)
        self._pool = Pool(model, taps, n_sessions=params.sessions, n_ctx=n_ctx, stop_tokens=stop)
        self._stop = frozenset(stop)
        self._n_ctx = n_ctx
        self._prompts: dict[int, list[int]] = {}
        self._outputs: dict[int, list[int]] = {}
        self._questions: dict[int, str] = {}
        """The opening while the question is being written; absent while it is answered."""
        self._asked: set[str] = set()
        self.shard = ShardWriter(folder, self._pool.feature_width)
        for slot in range(params.sessions):
            self._ask(slot)

    def step(self) -> None:
        """One pass for all sessions."""
        for slot, tokens, finished in self._pool.step():
            output = self._outputs[slot]
            output += tokens
            if slot in self._questions:
                if finished:
                    self._asked_in_full(slot)
            elif finished:
                self._store(slot, len(output))
            elif tokens and len(output) % LOOP_CHECK_EVERY == 0 and (kept := loop_start(output)):
                self._store(slot, kept)

    def close(self) -> None:
        self._pool.close()
        self.shard.close()

    def _ask(self, slot: int) -> None:
        start: list[int] = []
        while not start:  # without template and beginning token, the model needs a word to go on from
            self._questions[slot] = opening(self._rng)
            start = self._frame.question_start(self._questions[slot])
        params = self._params
        sampling = Sampling(params.temperature, params.top_p, self._rng.getrandbits(64))
        self._begin(slot, start, params.question_length, sampling)

    def _asked_in_full(self, slot: int) -> None:
        written = [token for token in self._outputs[slot] if token not in self._stop]
        question = (self._questions.pop(slot) + self._frame.tokenizer.decode(written, continues=True)).strip()
        prompt = self._frame.prompt(question)
        room = len(prompt) + self._params.answer_length <= self._n_ctx
        if not room or len(question.split()) < 2 or question in self._asked or self._held_out.resembles(question):
            self._ask(slot)
            return
        self._asked.add(question)
        self._begin(slot, prompt, self._params.answer_length, GREEDY)

    def _begin(self, slot: int, prompt: list[int], max_tokens: int, sampling: Sampling) -> None:
        self._prompts[slot], self._outputs[slot] = prompt, []
        self._pool.begin(slot, prompt, max_tokens, sampling)

    def _store(self, slot: int, kept: int) -> None:
        if kept >= SHORTEST_ANSWER:
            prompt = self._prompts[slot]
            tokens = prompt + self._outputs[slot][:kept]
            self.shard.add(tokens, len(prompt), self._pool.features(slot, len(tokens) - 1))
        self._ask(slot)


def loop_start(tokens: Sequence[int]) -> int:
    """Where to cut an answer that has begun to repeat itself, 0 where it has not.

    It has when its last 24 tokens (or two periods) are those of one period of at most 40 tokens before. The first copy
    and one repetition stay.
    """
    n = len(tokens)
    for period in range(1, LONGEST_LOOP + 1):
        repeated = max(2 * period, 24)
        if n >= repeated + period and tokens[n - repeated :] == tokens[n - repeated - period : n - period]:
            return n - repeated + period
    return 0


def generate(
    model: Path,
    folder: Path,
    taps: Sequence[int],
    params: ConversationParams,
    *,
    held_out: HeldOut | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> int:
    """Add conversations under `folder` until there are enough; returns the number of answer tokens.

    Goes on where an earlier call ended or was interrupted. `on_progress` is called every few seconds with the number of
    answer tokens and of conversations.
    """
    held_out = held_out or HeldOut.bundled()
    stop = multiprocessing.get_context("spawn").Event()
    workers = [
        multiprocessing.get_context("spawn").Process(
            target=_work, args=(index, model, taps, folder, params, held_out, stop), daemon=True
        )
        for index in range(params.processes)
    ]
    for worker in workers:
        worker.start()
    try:
        _watch(folder, params, workers, on_progress)
    finally:
        stop.set()
        for worker in workers:
            worker.join()
    if failed := [worker.exitcode for worker in workers if worker.exitcode]:
        raise BeeError(f"{len(failed)} of {len(workers)} generating processes failed; their messages are above")
    return stored_answer_tokens(folder)


def stored_answer_tokens(folder: Path) -> int:
    """Answer tokens of all conversations under a folder."""
    return Conversations(folder, 1).n_answer_tokens


def answers(
    model: Path, taps: Sequence[int], prompts: Path, *, max_tokens: int = 200, threads: int = 1
) -> list[tuple[str, Conversation]]:
    """The target's greedy answers to the prompts of a JSON file, with their features and names."""
    frame = Frame(model)
    entries = [(p["name"], frame.chat(p["messages"])) for p in json.loads(prompts.read_text(encoding="utf-8"))]
    n_ctx = max(len(prompt) for _, prompt in entries) + max_tokens + 16
    stop = sorted(frame.tokenizer.stop_token_ids)
    outputs: list[list[int]] = [[] for _ in entries]
    found: dict[int, Conversation] = {}
    with Pool(model, taps, n_sessions=len(entries), n_ctx=n_ctx, threads=threads, stop_tokens=stop) as pool:
        for slot, (_, prompt) in enumerate(entries):
            pool.begin(slot, prompt, max_tokens)
        while len(found) < len(entries):
            for slot, tokens, finished in pool.step():
                outputs[slot] += tokens
                if finished:
                    prompt = entries[slot][1]
                    ids = np.array(prompt + outputs[slot], np.int32)
                    features = to_bfloat16(pool.features(slot, len(ids) - 1)).reshape(len(ids) - 1, -1)
                    found[slot] = Conversation(ids, len(prompt), features)
    return [(name, found[slot]) for slot, (name, _) in enumerate(entries)]


def _watch(
    folder: Path,
    params: ConversationParams,
    workers: Sequence[multiprocessing.process.BaseProcess],
    on_progress: Callable[[int, int], None] | None,
) -> None:
    end = time.monotonic() + 60 * params.minutes if params.minutes is not None else float("inf")
    while time.monotonic() < end and any(worker.is_alive() for worker in workers):
        time.sleep(1.0)
        conversations = Conversations(folder, 1)
        if on_progress is not None:
            on_progress(conversations.n_answer_tokens, len(conversations))
        if conversations.n_answer_tokens >= params.answer_tokens or any(worker.exitcode for worker in workers):
            return


def _work(
    index: int,
    model: Path,
    taps: Sequence[int],
    folder: Path,
    params: ConversationParams,
    held_out: HeldOut,
    stop: multiprocessing.synchronize.Event,
) -> None:
    # Ctrl-C reaches the whole process group; the parent answers it for all, so that no shard is cut off.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    shard = folder / f"worker-{index}"
    stored = len(Conversations(shard.parent, 1)) if shard.exists() else 0
    writer = Writer(model, taps, shard, params, held_out, seed=f"{params.seed}-{index}-{stored}")
    parent = multiprocessing.parent_process()
    try:
        while not stop.is_set() and parent is not None and parent.is_alive():
            writer.step()
    finally:
        writer.close()
