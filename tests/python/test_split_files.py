"""Split models: any part opens the whole, in the library, and what does not belong together is refused."""

from __future__ import annotations

from pathlib import Path

import gguf_document as gguf
import pytest
import tiny_model
from gguf_document import Document, Value

from bee_integrations import Engine, GenerationParams
from bee_integrations.errors import ModelFileError, ModelFormatError
from bee_integrations.models.file import ModelFile

N_PARTS = 3


def number(value: int, kind: int = gguf.UINT32) -> Value:
    return Value(kind, value)


def parts(*, empty_first: bool = False) -> list[Document]:
    """The tiny model in three parts, with the metadata in the first, as llama.cpp splits."""
    whole = tiny_model.model()
    names = list(whole.tensors)
    groups = [[], names[:9], names[9:]] if empty_first else [names[:5], names[5:9], names[9:]]
    documents = []
    for index, group in enumerate(groups):
        metadata = dict(whole.metadata) if index == 0 else {}
        metadata |= {"split.no": number(index), "split.count": number(N_PARTS)}
        metadata["split.tensors.count"] = number(len(names), gguf.INT32)
        documents.append(Document(metadata, {name: whole.tensors[name] for name in group}))
    return documents


def part_path(folder: Path, index: int) -> Path:
    return folder / f"tiny-{index + 1:05}-of-{N_PARTS:05}.gguf"


def write(folder: Path, documents: list[Document]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    return [document.write(part_path(folder, index)) for index, document in enumerate(documents)]


def answer(path: Path) -> tuple[int, ...]:
    with Engine(path, drafter=None, threads=1) as engine:
        return engine.complete([1, 2, 3], GenerationParams(max_tokens=20, temperature=1.0, seed=3)).tokens


@pytest.mark.parametrize("empty_first", [False, True])
def test_any_part_opens_the_whole(tmp_path: Path, empty_first: bool) -> None:
    whole = tiny_model.model().write(tmp_path / "whole.gguf")
    expected = answer(whole)
    paths = write(tmp_path / "split", parts(empty_first=empty_first))
    assert [answer(path) for path in paths] == [expected] * N_PARTS
    assert answer(tmp_path / "split") == expected  # a folder with one model
    with ModelFile(whole) as one, ModelFile(paths[1]) as split:
        assert {tensor.name for tensor in split.tensors} == {tensor.name for tensor in one.tensors}
        assert split.plan() == one.plan()
        assert split.architecture == "llama"
        assert split.size == sum(path.stat().st_size for path in paths)


def test_the_name_of_the_whole(tmp_path: Path) -> None:
    paths = write(tmp_path, parts())
    with Engine(paths[2], threads=1) as engine:
        assert engine.model_name == "tiny"


def test_a_drafter_beside_the_parts(tmp_path: Path) -> None:
    paths = write(tmp_path, parts())
    tiny_model.drafter().write(tmp_path / "tiny.dflash.gguf")
    with Engine(paths[1], threads=1) as engine:
        assert engine.drafter_path == tmp_path / "tiny.dflash.gguf"


@pytest.mark.parametrize("missing", range(N_PARTS))
def test_a_missing_part_is_named(tmp_path: Path, missing: int) -> None:
    paths = write(tmp_path, parts())
    paths[missing].unlink()
    for path in paths:
        with pytest.raises(ModelFileError, match=paths[missing].name if path != paths[missing] else "does not exist"):
            answer(path)


@pytest.mark.parametrize("damaged", range(N_PARTS))
def test_a_damaged_part_is_named(tmp_path: Path, damaged: int) -> None:
    paths = write(tmp_path, parts())
    paths[damaged].write_bytes(paths[damaged].read_bytes()[:-100])
    for path in paths:
        with pytest.raises(ModelFormatError, match=paths[damaged].name):
            answer(path)


def test_a_part_under_another_name(tmp_path: Path) -> None:
    paths = write(tmp_path, parts())
    renamed = paths[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(
        ModelFormatError, match=r"part 1 of 3 of a split model; its name must end in -00001-of-00003\.gguf"
    ):
        answer(renamed)
    renamed.rename(paths[0])
    paths[1].write_bytes(paths[2].read_bytes())
    with pytest.raises(ModelFormatError, match=r"tiny-00002-of-00003\.gguf: by its metadata it is part 3 of 3"):
        answer(paths[0])
    with pytest.raises(ModelFormatError, match=r"part 3 of 3 of a split model; its name must end in -00003"):
        answer(paths[1])


def test_parts_of_different_models(tmp_path: Path) -> None:
    documents = parts()
    documents[1].metadata["split.count"] = number(2)
    with pytest.raises(ModelFormatError, match="by its metadata it is part 2 of 2"):
        answer(write(tmp_path, documents)[0])


def test_a_tensor_in_two_parts(tmp_path: Path) -> None:
    documents = parts()
    documents[2].tensors |= dict([next(iter(documents[0].tensors.items()))])
    with pytest.raises(ModelFormatError, match=r"token_embd\.weight': the name occurs twice, in two parts"):
        answer(write(tmp_path, documents)[0])


def test_a_tensor_too_few(tmp_path: Path) -> None:
    documents = parts()
    documents[1].tensors.popitem()
    with pytest.raises(ModelFormatError, match="its parts have 20 tensors; there should be 21"):
        answer(write(tmp_path, documents)[0])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("split.no", number(3)),
        ("split.no", Value(gguf.STRING, "one")),
        ("split.count", number(2**32 - 1, gguf.UINT32)),
        ("split.count", Value(gguf.FLOAT32, 3.0)),
        ("split.tensors.count", number(-1, gguf.INT32)),
    ],
)
def test_numbers_that_make_no_sense(tmp_path: Path, key: str, value: Value) -> None:
    documents = parts()
    documents[0].metadata[key] = value
    with pytest.raises(ModelFormatError, match=key):
        answer(write(tmp_path, documents)[0])


@pytest.mark.parametrize("count", [0, 1])
def test_a_model_in_one_part(tmp_path: Path, count: int) -> None:
    document = tiny_model.model()
    document.metadata |= {"split.no": number(0), "split.count": number(count)}
    assert answer(document.write(tmp_path / "merged.gguf")) == answer(tiny_model.model().write(tmp_path / "m.gguf"))
