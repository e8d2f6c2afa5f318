"""What several test files share: the default model and its drafter, an engine on them, and a tiny model."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_model

from bee_integrations.engine import Engine
from bee_integrations.models import default_model_path, resolve_drafter


def pytest_configure(config: pytest.Config) -> None:
    # A shell without job control starts background commands with SIGINT ignored, and their children inherit that: the
    # tests of Ctrl-C would wait for an interrupt that never comes.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # `make test` runs some processes at once. Each on a core of its own: the threads of one engine would else wait at
    # every barrier for one whose core another process has.
    worker = getattr(config, "workerinput", {}).get("workerid")
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


@pytest.fixture(scope="session")
def model_path() -> Path:
    """The default model; downloaded into the user's cache on first use."""
    return default_model_path()


@pytest.fixture(scope="session")
def drafter_path(model_path: Path) -> Path:
    """The drafter that belongs to the default model."""
    path = resolve_drafter("auto", model_path)
    assert path is not None, "the drafter of the default model is missing from the package"
    return path


@pytest.fixture(scope="session")
def engine(model_path: Path, drafter_path: Path) -> Iterator[Engine]:
    """The default pair, with little context and two threads; used by many tests, one after the other."""
    with Engine(model_path, drafter=drafter_path, n_ctx=1024, threads=2) as opened:
        yield opened


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights; its drafter lies beside it, where "auto" finds it."""
    directory = tmp_path_factory.mktemp("tiny")
    tiny_model.drafter().write(directory / "tiny.dflash.gguf")
    return tiny_model.model().write(directory / "tiny.gguf")


@pytest.fixture(scope="session")
def tiny(tiny_path: Path) -> Iterator[Engine]:
    """The tiny model with its drafter."""
    with Engine(tiny_path, threads=1) as opened:
        yield opened


@pytest.fixture(scope="session")
def endless_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose generations end with its context, 65,536 tokens, and with nothing else."""
    document = tiny_model.model(vocabulary=tiny_model.ENDLESS_VOCABULARY, n_ctx=65536)
    return document.write(tmp_path_factory.mktemp("endless") / "endless.gguf")


@pytest.fixture(scope="session")
def endless(endless_path: Path) -> Iterator[Engine]:
    """The endless model, for what is to be interrupted."""
    with Engine(endless_path, threads=1, n_ctx=65536) as opened:
        yield opened
