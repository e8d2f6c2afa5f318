"""The engine: streaming, text, stop strings, reuse, many users at once, interruption, and its end."""

from __future__ import annotations

import asyncio
import copy
import gc
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, closing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bee_integrations
from bee_integrations.constraints import Regex
from bee_integrations.engine import Engine, GenerationParams, Step
from bee_integrations.errors import EngineClosedError, ModelFormatError, ParameterError
from bee_integrations.text.tokenizer import StreamDecoder

QUESTION = [{"role": "user", "content": "Name three colours of the rainbow."}]
ENDLESS = GenerationParams(temperature=1.0, seed=1)  # on the model of that name
LONG_S = 60.0  # no test takes as long; a bound for what would otherwise hang


@pytest.fixture
def prompt(engine: Engine) -> str:
    return engine.render_chat(QUESTION)


def text_of(steps: list[Step]) -> str:
    return "".join(step.text for step in steps)


def tokens_of(steps: list[Step]) -> tuple[int, ...]:
    return tuple(token for step in steps for token in step.tokens)


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another thread does."""
    end = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.002)


# ---- what a generation gives -----------------------------------------------------------------------------------------


def test_it_knows_its_model(engine: Engine, model_path: Path, drafter_path: Path) -> None:
    assert engine.model_path == model_path
    assert engine.drafter_path == drafter_path
    assert engine.n_ctx == engine.info["n_ctx"] == 1024
    assert engine.info["n_threads"] == 2
    assert engine.info["n_vocab"] == engine.tokenizer.n_vocab == 49152
    assert engine.info["library_version"] == bee_integrations.__version__


def test_progress_of_loading(tiny_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    told: list[tuple[int, int]] = []
    with Engine(tiny_path, progress=lambda done, total: told.append((done, total))) as engine:
        total = engine.info["weight_bytes"]
    assert len(told) > 5
    assert told == sorted(told)
    assert told[-1] == (total, total)
    assert {of for _, of in told} == {total}
    with caplog.at_level("INFO", "bee_integrations.engine"), Engine(tiny_path):
        assert "GB of weights" in caplog.messages[-1]


@pytest.mark.parametrize("progress", [0, "yes", []])
def test_progress_must_be_a_function(tiny_path: Path, progress: Any) -> None:
    with pytest.raises(ParameterError, match=r"progress is .*; it must be a function of two numbers, or None"):
        Engine(tiny_path, progress=progress)


@pytest.mark.parametrize("share_prefixes", [None, 0, "no"])
def test_share_prefixes_must_be_true_or_false(tiny_path: Path, share_prefixes: Any) -> None:
    with pytest.raises(ParameterError, match=r"share_prefixes is .*; it must be True or False"):
        Engine(tiny_path, share_prefixes=share_prefixes)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("enough")])
def test_progress_can_end_the_loading(tiny_path: Path, error: BaseException) -> None:
    calls = 0

    def progress(done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise error

    with pytest.raises(error if isinstance(error, type) else type(error)):
        Engine(tiny_path, progress=progress)
    assert calls == 3


def test_what_stands_against_the_text_ends_the_loading(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, told = threading.Event(), []

    def read(*_: Any) -> None:
        assert begun.wait(LONG_S)
        raise ModelFormatError("no vocabulary")

    def progress(done: int, total: int) -> None:
        told.append((done, total))
        begun.set()
        time.sleep(0.05)

    monkeypatch.setattr(Engine, "_read_text_side", read)
    with pytest.raises(ModelFormatError, match="no vocabulary"):
        Engine(tiny_path, progress=progress)
    done, total = told[-1]
    assert done < total


def test_steps_add_up(engine: Engine, prompt: str) -> None:
    params = GenerationParams(max_tokens=24)
    steps = list(engine.generate(prompt, params))
    whole = engine.complete(prompt, params)
    assert (text_of(steps), tokens_of(steps)) == (whole.text, whole.tokens)
    assert len(whole.tokens) == 24
    assert whole.finish_reason == "length"
    assert [step.finish_reason for step in steps[:-1]] == [None] * (len(steps) - 1)
    assert all(step.stats is None for step in steps[:-1])
    assert all(step.tokens for step in steps)
    assert engine.tokenizer.decode(whole.tokens) == whole.text


def test_text_and_its_tokens_are_the_same_prompt(engine: Engine, prompt: str) -> None:
    params = GenerationParams(max_tokens=12)
    ids = engine.encode_prompt(prompt)
    first = engine.complete(prompt, params)
    assert first.tokens == engine.complete(ids, params).tokens
    assert first.tokens == engine.complete(np.array(ids), params).tokens


def test_a_stop_token_ends_it_and_is_not_text(engine: Engine) -> None:
    prompt = engine.render_chat([{"role": "user", "content": "Say only the word: yes"}])
    done = engine.complete(prompt, GenerationParams(max_tokens=300))
    assert done.finish_reason == "stop"
    assert done.stop_text is None
    assert done.tokens[-1] in engine.tokenizer.stop_token_ids
    assert "<|im_end|>" not in done.text
    assert done.stats.output_tokens == len(done.tokens)


@pytest.mark.parametrize("speculation", ["off", "dflash"])
def test_statistics(engine: Engine, prompt: str, speculation: str) -> None:
    engine.forget()
    stats = engine.complete(prompt, GenerationParams(max_tokens=40, speculation=speculation, seed=7)).stats
    assert stats.prompt_tokens == len(engine.encode_prompt(prompt))
    assert stats.reused_tokens == 0
    assert stats.output_tokens == 40
    assert stats.speculation == speculation
    assert stats.seed == 7
    assert sum(stats.logit_paths.values()) == stats.cycles == sum(stats.accepted_histogram)
    assert sum(stats.drafted_histogram) == sum(stats.drafter_histogram) == stats.cycles
    assert sum(k * n for k, n in enumerate(stats.drafted_histogram)) == stats.drafted_tokens
    assert sum(k * n for k, n in enumerate(stats.drafter_histogram)) == stats.drafted_tokens - stats.copied_tokens
    assert sum(k * n for k, n in enumerate(stats.accepted_histogram)) == stats.accepted_tokens
    assert 1 + stats.cycles + stats.accepted_tokens == stats.output_tokens  # the prompt's last pass gives the first
    assert stats.tokens_per_cycle == pytest.approx(1 / (1 - stats.accepted_share))
    assert stats.time_to_first_token_s >= stats.prefill_seconds > 0
    assert stats.decode_seconds > 0
    assert (stats.drafted_tokens > 0) == (stats.accepted_tokens > 0) == (speculation == "dflash")
    assert json.loads(json.dumps(stats.as_dict()))["tokens_per_cycle"] == stats.tokens_per_cycle


def test_a_drawn_seed_is_reported_and_repeats_the_text(tiny: Engine) -> None:
    params = {"temperature": 1.0, "max_tokens": 30}
    first, second = (tiny.complete("abc", GenerationParams(**params)) for _ in range(2))
    assert first.stats.seed != second.stats.seed
    assert first.tokens != second.tokens
    assert tiny.complete("abc", GenerationParams(**params, seed=first.stats.seed)).tokens == first.tokens


def test_it_ends_where_the_context_does(tiny: Engine) -> None:
    prompt = [5] * (tiny.n_ctx - 10)
    for speculation in ("off", "dflash"):
        for seed in range(5):
            done = tiny.complete(prompt, GenerationParams(temperature=1.0, seed=seed, speculation=speculation))
            assert done.finish_reason == "length" or done.tokens[-1] in tiny.tokenizer.stop_token_ids
            assert len(done.tokens) <= 11


def test_broken_characters_are_never_split(tiny: Engine) -> None:
    for seed in range(20):
        params = GenerationParams(temperature=1.0, seed=seed, max_tokens=120)
        steps = list(tiny.generate("héé", params))
        decoder = StreamDecoder(tiny.tokenizer)
        tokens = [token for token in tokens_of(steps) if token not in tiny.tokenizer.stop_token_ids]
        whole = "".join(decoder.push([token]) for token in tokens)
        rest = decoder.flush()
        assert whole + rest == tiny.tokenizer.decode(tokens)
        assert text_of(steps) == whole + (rest if steps[-1].finish_reason == "stop" else "")


@pytest.mark.parametrize("speculation", ["off", "copy", "dflash"])
def test_a_cut_in_the_middle_of_a_character_ends_before_it(tiny: Engine, speculation: str) -> None:
    """A model that says the four bytes of a bee again and again."""
    bee = "\N{HONEYBEE}".encode()
    say = GenerationParams(constraint=Regex("(\N{HONEYBEE})*"), speculation=speculation, logit_bias={bee[0]: 100.0})
    for n in range(1, 10):
        done = tiny.complete("Hi", replace(say, max_tokens=n))
        assert list(done.tokens) == [bee[at % 4] for at in range(n)]
        assert done.text == "\N{HONEYBEE}" * (n // 4)
        assert done.finish_reason == "length"
        stopped = tiny.complete("Hi", replace(say, max_tokens=n, stop=("\N{HONEYBEE}" * 2,)))
        assert stopped.text == ("" if n >= 8 else done.text)


# ---- stop strings ----------------------------------------------------------------------------------------------------


def test_stop_strings_across_tokens(engine: Engine, prompt: str) -> None:
    free = engine.complete(prompt, GenerationParams(max_tokens=48))
    pieces = [engine.tokenizer.decode([token]) for token in free.tokens]
    # Every string that begins in one token and ends in the next, cut off by its neighbours.
    for index in range(4, 12):
        stop = pieces[index][-2:] + pieces[index + 1][:2]
        for speculation in ("off", "dflash"):
            params = GenerationParams(max_tokens=48, stop=(stop,), speculation=speculation)
            stopped = engine.complete(prompt, params)
            assert stopped.text == free.text[: free.text.index(stop)]
            assert stopped.stop_text == stop
            assert stopped.finish_reason == "stop"
            assert stopped.tokens == free.tokens[: len(stopped.tokens)]
            # No token beyond the one that completed the stop string.
            assert stop not in engine.tokenizer.decode(stopped.tokens[:-1])
            assert stop in engine.tokenizer.decode(stopped.tokens)


def test_a_stop_string_that_never_comes_changes_nothing(engine: Engine, prompt: str) -> None:
    free = engine.complete(prompt, GenerationParams(max_tokens=32))
    held = engine.complete(prompt, GenerationParams(max_tokens=32, stop=(free.text[-3:] + "\0", "never said")))
    assert (held.text, held.tokens, held.stop_text) == (free.text, free.tokens, None)


# ---- sessions --------------------------------------------------------------------------------------------------------


def test_the_next_turn_reads_only_what_is_new(engine: Engine) -> None:
    params = GenerationParams(max_tokens=20)
    engine.forget()
    messages = [*QUESTION]
    first = engine.complete(engine.render_chat(messages), params)
    messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "And another one?"}]
    prompt = engine.render_chat(messages)
    second = engine.complete(prompt, params)
    assert second.stats.reused_tokens >= first.stats.prompt_tokens
    engine.forget()
    again = engine.complete(prompt, params)
    assert again.stats.reused_tokens == 0
    assert again.tokens == second.tokens


def test_conversations_side_by_side_keep_their_caches(tiny: Engine) -> None:
    tiny.forget()
    prompts = {name: name * 40 for name in "xyz"}
    params = GenerationParams(max_tokens=8)
    for text in prompts.values():
        assert tiny.complete(text, params).stats.reused_tokens == 0
    for text in prompts.values():
        stats = tiny.complete(text + "!", params).stats
        assert stats.reused_tokens >= stats.prompt_tokens - 2


# ---- beginnings that requests share ----------------------------------------------------------------------------------

BEGINNING = "a beginning that all of them have, " * 4


def test_conversations_that_begin_alike_keep_their_caches(tiny_path: Path) -> None:
    """One that begins as a longer one does not take its cache away, but gets a new session, or the oldest."""
    long, short, other = BEGINNING + "x" * 300, BEGINNING + "y", "z" * 40
    params = GenerationParams(max_tokens=4)
    for before in ([long, short], [other, long, short]):
        with Engine(tiny_path, threads=1, n_parallel=2) as engine:
            for text in before:
                engine.complete(text, params)
            for text in (long, short):
                stats = engine.complete(text + "!", params).stats
                assert stats.reused_tokens >= stats.prompt_tokens - 2


def test_a_request_takes_over_what_another_one_has_read(endless: Engine) -> None:
    endless.forget()
    params = GenerationParams(max_tokens=100, temperature=1.0, seed=3)
    common = len(endless.encode_prompt(BEGINNING))
    with closing(endless.generate(BEGINNING + "one", replace(params, max_tokens=60000))) as running:
        next(running)
        found = endless.complete(BEGINNING + "two", params)
    assert found.stats.reused_tokens == found.stats.shared_tokens >= common - 1
    again = endless.complete(BEGINNING + "two", params)
    assert (again.tokens, again.stats.shared_tokens) == (found.tokens, 0)
    endless.forget()
    assert endless.complete(BEGINNING + "two", params).tokens == found.tokens


@pytest.mark.parametrize("kv_cache", ["f16", "q8_0"])
def test_sharing_changes_no_answer(kv_cache: str, tiny_path: Path) -> None:
    """Greedy and sampled, with drafts and without: tokens and log-probabilities."""

    def job(engine: Engine, index: int) -> Any:
        mode = ("off", "auto", "dflash", "copy")[index % 4]
        params = GenerationParams(
            temperature=index % 3 * 0.7, seed=index, max_tokens=20, logprobs=True, top_logprobs=3, speculation=mode
        )
        answer = engine.complete(f"{BEGINNING}{index}", params)
        shared.append(answer.stats.shared_tokens)
        return answer.tokens, answer.logprobs

    found, shared = [], list[int]()
    for shares in (False, True):
        with (
            Engine(tiny_path, threads=1, kv_cache=kv_cache, share_prefixes=shares) as engine,
            ThreadPoolExecutor(8) as pool,
        ):
            found.append(list(pool.map(job, [engine] * 16, range(16))))
        assert any(shared) == shares
    assert found[0] == found[1]


# ---- many at once ----------------------------------------------------------------------------------------------------


def test_threads_get_what_they_would_get_alone(tiny: Engine) -> None:
    def job(seed: int) -> tuple[int, ...]:
        mode = ("off", "dflash")[seed % 2]
        params = GenerationParams(temperature=seed % 3 * 0.7, seed=seed, max_tokens=60, speculation=mode)
        return tiny.complete(f"prompt {seed % 5}", params).tokens

    alone = [job(seed) for seed in range(24)]
    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(job, range(24))) == alone


def test_default_pair_side_by_side(engine: Engine) -> None:
    def job(index: int) -> tuple[int, ...]:
        text = ("The capital of France is", "1, 2, 3, 4,", "Once upon a time")[index % 3]
        return engine.complete(text, GenerationParams(max_tokens=16)).tokens

    alone = [job(index) for index in range(3)]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(job, range(6))) == alone * 2


def test_more_requests_than_places_wait_their_turn(tiny_path: Path) -> None:
    with Engine(tiny_path, threads=1, n_parallel=2) as engine:
        order: list[int] = []
        params = GenerationParams(max_tokens=60, temperature=1.0, seed=4)
        running = [engine.generate(str(index), params) for index in range(5)]
        first = [next(running[0]), next(running[1])]
        assert all(step.tokens for step in first)

        def finish(index: int) -> None:
            list(running[index])
            order.append(index)

        threads = [threading.Thread(target=finish, args=(index,)) for index in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG_S)
        assert sorted(order) == [0, 1, 2, 3, 4]


async def collect(steps: AsyncIterator[Step]) -> list[Step]:
    return [step async for step in steps]


async def test_async_gives_the_same(tiny: Engine) -> None:
    params = [GenerationParams(temperature=1.0, seed=seed, max_tokens=40) for seed in range(6)]
    results = await asyncio.gather(*(collect(tiny.agenerate("hello", each)) for each in params))
    for steps, each in zip(results, params, strict=True):
        assert tokens_of(steps) == tiny.complete("hello", each).tokens
        assert steps[-1].stats is not None


async def test_the_event_loop_keeps_turning(engine: Engine, prompt: str) -> None:
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    ticking = asyncio.ensure_future(turn())
    long = prompt * 10
    n_steps = len(await collect(engine.agenerate(long, GenerationParams(max_tokens=8))))
    ticking.cancel()
    # Reading the prompt and every step takes a pass over the model, in which a free loop turns many times.
    assert turns > 20 * n_steps


def test_several_event_loops_at_once(tiny: Engine) -> None:
    params = GenerationParams(temperature=1.0, seed=9, max_tokens=50)
    expected = tiny.complete("loop", params).tokens

    def run_loop(_: int) -> tuple[int, ...]:
        return tokens_of(asyncio.run(collect(tiny.agenerate("loop", params))))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run_loop, range(8))) == [expected] * 8


# ---- interruption ----------------------------------------------------------------------------------------------------


def active(engine: Engine) -> int:
    """Requests that the scheduler's thread is working on, as it sees them between two passes."""
    scheduler = engine._scheduler
    return scheduler.call(lambda handle: len([r for r in scheduler._active if not r.cancelled]))


def test_closing_the_generator_stops_it(endless: Engine) -> None:
    steps = endless.generate("stop me", ENDLESS)
    next(steps)
    steps.close()
    assert active(endless) == 0
    assert len(endless.complete("next", GenerationParams(max_tokens=5)).tokens) == 5


def test_dropping_the_generator_stops_it(endless: Engine) -> None:
    steps = endless.generate("drop me", ENDLESS)
    next(steps)
    del steps
    gc.collect()
    assert active(endless) == 0


def test_an_exception_in_the_consumer_stops_it(endless: Engine) -> None:
    def consume() -> None:
        with closing(endless.generate("break me", ENDLESS)) as steps:
            for _ in steps:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        consume()
    assert active(endless) == 0


def test_a_generator_that_never_starts_costs_nothing(endless: Engine) -> None:
    before = active(endless)
    with closing(endless.generate("never", ENDLESS)):
        assert active(endless) == before == 0


def test_closing_while_the_prompt_is_read(engine: Engine) -> None:
    """The request is cancelled inside a pass; another one that shares the pass is not harmed."""
    long = engine.encode_prompt("word " * 900)
    expected = engine.complete("1, 2, 3,", GenerationParams(max_tokens=30)).tokens
    other = engine.generate("1, 2, 3,", GenerationParams(max_tokens=30))
    got = list(next(other).tokens)
    reader = threading.Thread(target=lambda: stop_early(engine, long))
    reader.start()
    for step in other:
        got += step.tokens
    reader.join(LONG_S)
    assert tuple(got) == expected
    assert active(engine) == 0


def stop_early(engine: Engine, prompt: list[int]) -> None:
    async def cancelled() -> None:
        task = asyncio.ensure_future(collect(engine.agenerate(prompt, GenerationParams(max_tokens=50))))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())


async def test_cancelling_the_task_stops_it(endless: Engine) -> None:
    started = asyncio.Event()

    async def consume() -> None:
        async with aclosing(endless.agenerate("cancel me", ENDLESS)) as steps:
            async for _ in steps:
                started.set()

    task = asyncio.ensure_future(consume())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert active(endless) == 0
    assert len(tokens_of(await collect(endless.agenerate("next", GenerationParams(max_tokens=5))))) == 5


async def test_a_timeout_stops_it(endless_path: Path) -> None:
    with Engine(endless_path, threads=1, n_ctx=65536, n_parallel=1) as engine:
        busy = engine.generate("busy", ENDLESS)
        next(busy)
        with pytest.raises(asyncio.TimeoutError):  # waits in the queue
            await asyncio.wait_for(collect(engine.agenerate("wait", ENDLESS)), 0.05)
        busy.close()
        assert active(engine) == 0


def test_a_loop_that_is_gone_frees_the_place(endless: Engine) -> None:
    loop = asyncio.new_event_loop()
    steps = endless.agenerate("gone", ENDLESS)
    loop.run_until_complete(steps.__anext__())
    loop.close()  # nobody closes the generator, and no task is cancelled
    until(lambda: active(endless) == 0)
    with pytest.raises(StopIteration):  # closing it late does no harm
        steps.aclose().send(None)


INTERRUPTED = """
import os, signal, sys, threading
from bee_integrations.engine import Engine, GenerationParams
with Engine(sys.argv[1], threads=1, n_ctx=65536) as engine:
    params = GenerationParams(temperature=1.0, seed=1)
    interrupts = 0
    for wait in range(10):
        try:
            for number, step in enumerate(engine.generate("interrupt me", params)):
                if number == wait:
                    os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            interrupts += 1
        assert engine._scheduler.call(lambda handle: len(engine._scheduler._active)) <= 1
    assert len(engine.complete("go on", GenerationParams(max_tokens=5)).tokens) == 5
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        while True:
            engine.complete("while it waits for a pass", params)
    except KeyboardInterrupt:
        interrupts += 1
    print("interrupts", interrupts, "then", len(engine.complete("go on", GenerationParams(max_tokens=5)).tokens))
"""


def run_script(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=LONG_S, check=False)


def test_control_c(endless_path: Path) -> None:
    done = run_script(INTERRUPTED, str(endless_path))
    assert done.stdout == "interrupts 11 then 5\n", done.stderr
    assert done.returncode == 0


# ---- the end ---------------------------------------------------------------------------------------------------------


def test_a_closed_engine_says_so(endless_path: Path) -> None:
    engine = Engine(endless_path, threads=1, n_ctx=65536)
    steps = engine.generate("running", ENDLESS)
    next(steps)
    assert not engine.closed
    engine.close()
    engine.close()
    assert engine.closed
    with pytest.raises(EngineClosedError, match="closed"):
        list(steps)
    with pytest.raises(EngineClosedError, match="closed"):
        engine.complete("too late")
    with pytest.raises(EngineClosedError):
        engine.evaluate([1])


def test_closing_wakes_those_who_wait(endless_path: Path) -> None:
    engine = Engine(endless_path, threads=1, n_ctx=65536, n_parallel=1)
    busy = engine.generate("busy", ENDLESS)
    next(busy)
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            engine.complete("queued", ENDLESS)
        except EngineClosedError as error:
            errors.append(error)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    until(lambda: engine._scheduler.call(lambda handle: len(engine._scheduler._waiting)) == 3)
    engine.close()
    for thread in threads:
        thread.join(LONG_S)
    assert len(errors) == 3


def test_an_engine_that_nobody_holds_is_collected(endless_path: Path) -> None:
    engine = Engine(endless_path, threads=1, n_ctx=65536)
    engine.complete("used", GenerationParams(max_tokens=5))
    with closing(engine.generate("used", ENDLESS)) as steps:
        next(steps)
    thread, reference = engine._scheduler._thread, weakref.ref(engine)
    del engine, steps
    gc.collect()
    assert reference() is None
    thread.join(LONG_S)
    assert not thread.is_alive()


def test_engines_are_shared(tiny_path: Path) -> None:
    first = Engine.shared(tiny_path, threads=1)
    assert Engine.shared(str(tiny_path), threads=1) is first
    assert Engine.shared(tiny_path, threads=1, drafter=tiny_path.with_name("tiny.dflash.gguf")) is first
    other = Engine.shared(tiny_path, threads=1, drafter=None)
    assert other is not first
    assert other.drafter_path is None
    with ThreadPoolExecutor(4) as pool:
        assert len({id(engine) for engine in pool.map(lambda _: Engine.shared(tiny_path, threads=1), range(8))}) == 1
    first.close()
    fresh = Engine.shared(tiny_path, threads=1)
    assert fresh is not first
    assert not fresh.closed
    fresh.close()
    other.close()


def test_engines_are_not_copied(tiny: Engine) -> None:
    for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="cannot be pickled"):
            duplicate(tiny)


EXITS = {
    "idle": "engine.complete('a', P(max_tokens=3))",
    "in a generation": "steps = engine.generate('a', P(temperature=1)); next(steps)",
    "with an error": "steps = engine.generate('a', P(temperature=1)); next(steps); 1 / 0",
    "from a thread": "threading.Thread(target=lambda: engine.complete('a', P(max_tokens=4))).start()",
}


@pytest.mark.parametrize("script", EXITS.values(), ids=EXITS)
def test_the_interpreter_exits(endless_path: Path, script: str) -> None:
    head = "import sys, threading\nfrom bee_integrations.engine import Engine, GenerationParams as P\n"
    done = run_script(head + "engine = Engine(sys.argv[1], threads=2, n_ctx=65536)\n" + script, str(endless_path))
    failed = "1 / 0" in script
    assert done.returncode == int(failed), done.stderr
    assert ("ZeroDivisionError" in done.stderr) == failed
    assert failed or done.stderr == ""


FORKED = """
import os, sys
from bee_integrations.engine import Engine, GenerationParams
from bee_integrations.errors import EngineClosedError
params = GenerationParams(max_tokens=4)
engine = Engine.shared(sys.argv[1], threads=2)
expected = engine.complete("fork", params).tokens
child = os.fork()
if child == 0:
    try:
        engine.complete("fork", params)
    except EngineClosedError as error:
        assert "fork" in str(error)
        assert Engine.shared(sys.argv[1], threads=2).complete("fork", params).tokens == expected
        sys.exit(7)
    sys.exit(1)
_, status = os.waitpid(child, 0)
assert engine.complete("fork", params).tokens == expected
print(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_is_told_and_may_open_its_own(tiny_path: Path) -> None:
    done = run_script(FORKED, str(tiny_path))
    assert done.stdout == "7\n", done.stderr


# ---- looking inside --------------------------------------------------------------------------------------------------


def test_logits_do_not_depend_on_the_passes(tiny: Engine) -> None:
    tokens = [1, 50, 7, 256, 30, 30, 2, 99, 100, 101]
    one_by_one = tiny.evaluate(tokens, rows_per_pass=1)
    assert one_by_one.shape == (10, 259)
    assert np.isfinite(one_by_one).all()
    for rows in (2, 3, 16):
        assert np.array_equal(tiny.evaluate(tokens, rows_per_pass=rows), one_by_one)


def test_greedy_takes_the_largest_logit(tiny: Engine) -> None:
    prompt = tiny.encode_prompt("greedy")
    tokens = list(tiny.complete(prompt, GenerationParams(max_tokens=20)).tokens)
    logits = tiny.evaluate(prompt + tokens)
    assert logits[len(prompt) - 1 : -1].argmax(axis=1).tolist() == tokens


def test_measuring_a_pass(tiny: Engine) -> None:
    pass_seconds, draft_seconds = tiny.measure(4, 16, 3)
    assert 0 < pass_seconds < LONG_S
    assert 0 < draft_seconds < LONG_S
    with pytest.raises(ParameterError, match="n_rows"):
        tiny.measure(0, 16, 3)


# ---- parameters ------------------------------------------------------------------------------------------------------


def test_numbers_of_other_libraries_are_numbers() -> None:
    values: dict[str, Any] = {"temperature": np.float32(0.5), "top_k": np.int64(3), "seed": np.uint64(2**64 - 1)}
    params = GenerationParams(**values, stop=["a", "b"])  # type: ignore[arg-type]
    assert params == GenerationParams(temperature=0.5, top_k=3, seed=2**64 - 1, stop=("a", "b"))
    assert all(type(value) in (int, float) for value in (params.temperature, params.top_k, params.seed))
    assert GenerationParams(stop="END").stop == ("END",)  # type: ignore[arg-type]


def test_without_a_drafter(tiny_path: Path) -> None:
    with Engine(tiny_path, threads=1, drafter=None) as engine:
        for mode, in_force in (("auto", "copy"), ("copy", "copy"), ("off", "off")):
            params = GenerationParams(max_tokens=3, speculation=mode, draft_length=4)
            assert engine.complete("a", params).stats.speculation == in_force
        assert engine.complete("a", GenerationParams(max_tokens=3, draft_length=0)).stats.speculation == "off"
        with pytest.raises(ParameterError, match=r"tiny\.dflash\.gguf"):
            engine.complete("a", GenerationParams(speculation="dflash"))


def test_signals_reach_the_process_while_it_generates(tiny: Engine) -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    try:
        for step in tiny.generate("signal", GenerationParams(max_tokens=40, temperature=1.0, seed=2)):
            os.kill(os.getpid(), signal.SIGUSR1)
            assert step.tokens
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen


def test_none_is_the_default_of_every_field() -> None:
    names = [one.name for one in fields(GenerationParams)]
    assert GenerationParams(**dict.fromkeys(names)) == GenerationParams()


def test_markers_under_their_earlier_name() -> None:
    params = GenerationParams(spoken_controls={"<a>"})
    assert params == GenerationParams(markers=frozenset({"<a>"}))
    assert params.spoken_controls == params.markers == {"<a>"}
    assert replace(params, seed=1).markers == {"<a>"}
    assert replace(params, markers=frozenset()).markers == frozenset()
    assert replace(params, spoken_controls={"<b>"}).markers == {"<b>"}
    with pytest.raises(ParameterError, match="markers is '<a>'"):
        GenerationParams(markers="<a>")  # type: ignore[arg-type]
