"""Training of drafters, on a tiny target with random weights. Left out where PyTorch or gguf is not installed."""

from __future__ import annotations

import itertools
import json
import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tiny_model
from gguf_document import text

torch = pytest.importorskip("torch", reason="training needs the extra 'train'")
pytest.importorskip("gguf", reason="training needs the extra 'train'")

from rich.console import Console  # noqa: E402
from test_drafter_reference import Weights, reference_logits  # noqa: E402

from bee_integrations.engine import Engine, GenerationParams  # noqa: E402
from bee_integrations.errors import (  # noqa: E402
    DrafterMismatchError,
    ModelFileError,
    ModelFormatError,
    ParameterError,
)
from bee_integrations.train import fit as fit_module  # noqa: E402
from bee_integrations.train.batches import Batches, as_tensor, coverage, draft_vocabulary  # noqa: E402
from bee_integrations.train.command import spread_taps, train  # noqa: E402
from bee_integrations.train.conversations import ConversationParams, answers, generate, loop_start  # noqa: E402
from bee_integrations.train.drafter import Drafter, Places, Plan  # noqa: E402
from bee_integrations.train.evaluate import measure, simulate  # noqa: E402
from bee_integrations.train.export import export  # noqa: E402
from bee_integrations.train.fit import LOG, Checkpoint, FitParams, fit  # noqa: E402
from bee_integrations.train.loss import draft_loss  # noqa: E402
from bee_integrations.train.questions import HeldOut, opening  # noqa: E402
from bee_integrations.train.shards import Conversation, Conversations, ShardWriter, to_bfloat16  # noqa: E402
from bee_integrations.train.target import Target, to_neox  # noqa: E402

TAPS = (0, 1)
BLOCK = 5
PLAN = Plan(n_layer=2, taps=TAPS, block_size=BLOCK, mask_token=tiny_model.VOCABULARY.index("<|im_start|>"))
WIDTH = len(TAPS) * tiny_model.N_EMBD
QUICK = FitParams(
    max_steps=6,
    conversations_per_step=2,
    anchors=8,
    block_lengths=(BLOCK, 3),
    draft_vocabulary=128,
    warm_up=2,
)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Held-out prompts, as a file."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.json"
    names = {"code-1": "Sort a list.", "code-2": "Reverse a word.", "chat-1": "How are you today?"}
    entries = [{"name": name, "messages": [{"role": "user", "content": content}]} for name, content in names.items()]
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def data(tiny_path: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations of the tiny target with itself."""
    folder = tmp_path_factory.mktemp("conversations")
    params = ConversationParams(answer_tokens=600, sessions=4, question_length=12, answer_length=40)
    stored = generate(tiny_path, folder, TAPS, params, held_out=HeldOut.from_file(prompts))
    assert stored >= 600
    return folder


@pytest.fixture
def conversations(data: Path) -> Conversations:
    return Conversations(data, WIDTH)


@pytest.fixture
def target(tiny_path: Path) -> Target:
    return Target(tiny_path)


def checkpoint_of(target: Target, conversations: Conversations, seed: int = 0) -> Checkpoint:
    """An untrained drafter with all that belongs to it."""
    torch.manual_seed(seed)
    rms = torch.rand(WIDTH) + 0.5
    drafter = Drafter(target.shape, PLAN)
    drafter.start_from(target, rms)
    vocabulary = torch.from_numpy(draft_vocabulary(conversations, target.shape.n_vocab, 128))
    return Checkpoint(PLAN, vocabulary, rms, drafter.state_dict())


def batches_of(target: Target, checkpoint: Checkpoint) -> Batches:
    embedding = torch.from_numpy(target.token_embedding)
    return Batches(embedding, checkpoint.vocabulary, 1 / checkpoint.feature_rms, PLAN.mask_token, random.Random(0))


# ---- data ----------------------------------------------------------------------------------------------------------


def test_bfloat16_is_rounded_as_pytorch_rounds() -> None:
    values = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    expected = torch.from_numpy(values).bfloat16()
    assert torch.equal(as_tensor(to_bfloat16(values)), expected)


def test_an_interrupted_shard_goes_on_where_its_index_ends(tmp_path: Path) -> None:
    features = np.arange(8, dtype=np.float32).reshape(2, 4)
    with ShardWriter(tmp_path / "a", 4) as writer:
        writer.add([5, 6, 7], 1, features)
    with open(tmp_path / "a" / "features.bin", "ab") as file:
        file.write(b"half a row")
    with open(tmp_path / "a" / "tokens.bin", "ab") as file:
        file.write(b"xy")
    with ShardWriter(tmp_path / "a", 4) as writer:
        assert (writer.n_conversations, writer.n_answer_tokens) == (1, 2)
        writer.add([1, 2, 3], 2, features + 8)
    first, second = Conversations(tmp_path, 4)
    assert first.tokens.tolist() == [5, 6, 7]
    assert (second.tokens.tolist(), second.answer_start) == ([1, 2, 3], 2)
    assert torch.equal(as_tensor(second.features).float(), torch.from_numpy(features) + 8)


def test_a_shard_refuses_features_of_another_length(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, 4) as writer, pytest.raises(ValueError, match="3 tokens need 2 rows"):
        writer.add([1, 2, 3], 1, np.zeros((3, 4), np.float32))


def test_conversations_are_what_the_engine_answers(data: Path, conversations: Conversations, tiny_path: Path) -> None:
    greedy = GenerationParams(max_tokens=40, speculation="off")
    with Engine(tiny_path, drafter=None, threads=1) as engine:
        for conversation in conversations[:4]:
            prompt, answer = np.split(conversation.tokens, [conversation.answer_start])
            assert engine.complete(prompt.tolist(), greedy).tokens[: len(answer)] == tuple(answer.tolist())


def test_generation_goes_on_and_adds_other_conversations(tiny_path: Path, prompts: Path, tmp_path: Path) -> None:
    held_out = HeldOut.from_file(prompts)
    params = ConversationParams(answer_tokens=150, sessions=2, question_length=12, answer_length=30)
    first = generate(tiny_path, tmp_path, TAPS, params, held_out=held_out)
    second = generate(tiny_path, tmp_path, TAPS, replace(params, answer_tokens=first + 100), held_out=held_out)
    assert second >= first + 100
    all_tokens = [tuple(conversation.tokens.tolist()) for conversation in Conversations(tmp_path, WIDTH)]
    # Two very short ones may be equal by chance; conversations that came again would be half of all.
    assert len(set(all_tokens)) > 0.99 * len(all_tokens)


def test_failing_generation_is_reported(prompts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Exception, match="1 of 1 generating processes failed"):
        generate(tmp_path / "none.gguf", tmp_path, TAPS, ConversationParams(), held_out=HeldOut.from_file(prompts))
    assert "none.gguf" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("tokens", "kept"),
    [
        (list(range(60)), 0),
        ([1, 2, 3] + [7] * 25, 5),
        ([9, 9] + [1, 2, 3, 4] * 8, 14),
        (list(range(30)) * 3, 60),
    ],
)
def test_loops_are_cut_after_one_repetition(tokens: list[int], kept: int) -> None:
    assert loop_start(tokens) == kept


def test_held_out_prompts_are_recognised() -> None:
    held_out = HeldOut(["Why do leaves change colour in autumn?"])
    assert held_out.resembles("why do leaves change colour in Autumn")
    assert held_out.resembles("Tell me: why do the leaves change their colour in autumn?")
    assert not held_out.resembles("Why do cats purr at night?")


def test_no_opening_is_a_bundled_prompt() -> None:
    held_out, rng = HeldOut.bundled(), random.Random(0)
    openings = {opening(rng) for _ in range(5000)}
    assert len(openings) > 2000
    assert not [text for text in openings if "{" in text or "}" in text]
    assert not [text for text in openings if text and held_out.resembles(text)]


def test_the_draft_vocabulary_holds_what_answers_use(conversations: Conversations) -> None:
    n_vocab = len(tiny_model.VOCABULARY)
    small, large = (draft_vocabulary(conversations, n_vocab, size) for size in (64, 1000))
    assert large.tolist() == list(range(n_vocab))
    assert (np.diff(small) > 0).all()
    assert coverage(conversations, large) == 1.0
    answer_tokens = np.concatenate([c.tokens[c.answer_start :] for c in conversations])
    assert coverage(conversations, small) == pytest.approx(np.isin(answer_tokens, small).mean())


# ---- the target's file ---------------------------------------------------------------------------------------------


def test_neox_order_gives_the_same_attention() -> None:
    # RoPE of neighbouring pairs on the file's rows equals RoPE of halves on the reordered rows, up to the same order.
    size, position = 8, 3
    weight = np.random.default_rng(0).standard_normal((2 * size, 5)).astype(np.float32)
    angle = position * 10000.0 ** (-np.arange(size // 2) / (size // 2))
    x = weight.sum(1).reshape(2, size)
    pairs = x.reshape(2, size // 2, 2)
    turned = np.stack(
        [
            pairs[..., 0] * np.cos(angle) - pairs[..., 1] * np.sin(angle),
            pairs[..., 1] * np.cos(angle) + pairs[..., 0] * np.sin(angle),
        ],
        axis=-1,
    )
    low, high = np.split(to_neox(weight, size).sum(1).reshape(2, size), 2, axis=1)
    neox = np.concatenate(
        [low * np.cos(angle) - high * np.sin(angle), high * np.cos(angle) + low * np.sin(angle)], axis=1
    )
    assert np.allclose(neox, turned.swapaxes(1, 2).reshape(2, size))


def test_bad_targets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="is not a file"):
        Target(tmp_path / "none.gguf")
    (tmp_path / "text.gguf").write_text("not a model at all, but long enough to be read as a header")
    with pytest.raises(ModelFormatError, match="not a readable GGUF file"):
        Target(tmp_path / "text.gguf")


@pytest.mark.parametrize(
    ("n_layer", "n_taps", "taps"),
    [(30, 5, (2, 9, 15, 21, 28)), (36, 5, (2, 10, 18, 26, 34)), (2, 5, (1,)), (4, 1, (2,))],
)
def test_taps_are_spread_over_the_layers(n_layer: int, n_taps: int, taps: tuple[int, ...]) -> None:
    assert spread_taps(n_layer, n_taps) == taps


# ---- the model -----------------------------------------------------------------------------------------------------


def test_a_block_depends_on_its_own_past_alone(target: Target, conversations: Conversations) -> None:
    checkpoint = checkpoint_of(target, conversations)
    drafter = checkpoint.drafter(target, torch.float32)
    places = batches_of(target, checkpoint).batch(conversations[:2], 6, BLOCK).places
    together = drafter(places)
    for row, place in itertools.product(range(2), range(6)):
        context = places.context[row : row + 1].clone()
        context[:, int(places.anchors[row, place]) :] = 99.0
        alone = drafter(
            Places(
                context,
                places.anchors[row : row + 1, place : place + 1],
                places.embeddings[row : row + 1, place : place + 1],
            )
        )
        assert torch.allclose(alone[0, 0], together[row, place], atol=1e-4)


@pytest.mark.parametrize("gain", [0.01, 1.0, 30.0])
def test_a_beginner_is_not_sure_of_anything(target: Target, gain: float, monkeypatch: pytest.MonkeyPatch) -> None:
    gains = np.full_like(target.output_norm, gain)
    monkeypatch.setattr(Target, "output_norm", gains)
    drafter = Drafter(target.shape, PLAN)
    drafter.start_from(target, torch.ones(WIDTH))
    hidden = torch.nn.functional.rms_norm(torch.randn(500, tiny_model.N_EMBD), (tiny_model.N_EMBD,))
    deviation = float((hidden * drafter.output_norm.detach() @ torch.from_numpy(target.head).T).std())
    untouched = float((hidden * torch.from_numpy(gains) @ torch.from_numpy(target.head).T).std())
    assert deviation == pytest.approx(min(untouched, 1.5), rel=0.1)


def test_the_loss_is_weighted_cross_entropy() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(700, 16, requires_grad=True)
    head, weights = torch.randn(40, 16), torch.rand(700)
    labels = torch.randint(-1, 40, (700,))
    loss = draft_loss(hidden, head, labels, weights)
    loss.backward()
    gradient, hidden.grad = hidden.grad, None
    each = torch.nn.functional.cross_entropy(hidden @ head.T, labels, ignore_index=-1, reduction="none")
    expected = (each * weights).sum()
    expected.backward()
    assert torch.allclose(loss, expected)
    assert torch.allclose(gradient, hidden.grad, atol=1e-5)


def test_labels_are_the_following_tokens(target: Target, conversations: Conversations) -> None:
    checkpoint = checkpoint_of(target, conversations)
    batch = batches_of(target, checkpoint).batch(conversations[:3], 5, BLOCK)
    vocabulary = checkpoint.vocabulary.tolist()
    for row, conversation in enumerate(conversations[:3]):
        tokens = conversation.tokens.tolist()
        for anchor, labels in zip(batch.places.anchors[row].tolist(), batch.labels[row].tolist(), strict=True):
            assert anchor >= conversation.answer_start - 1
            following = (tokens[anchor + 1 :] + [None] * BLOCK)[: BLOCK - 1]
            assert labels == [vocabulary.index(t) if t in vocabulary else -1 for t in following]


def test_exported_weights_draft_as_pytorch_does(
    target: Target, conversations: Conversations, tiny_path: Path, tmp_path: Path
) -> None:
    checkpoint = checkpoint_of(target, conversations)
    export(checkpoint, target, tmp_path / "drafter.gguf", name="test")
    conversation = conversations[0]
    place = len(conversation.tokens) - 2
    cut = Conversation(conversation.tokens[: place + 2], conversation.answer_start, conversation.features[: place + 1])
    batch = batches_of(target, checkpoint).batch([cut], None, BLOCK)
    with torch.no_grad():
        hidden = checkpoint.drafter(target, torch.float32)(batch.places)[0, -1, 1:]
    logits = (hidden @ torch.from_numpy(target.head)[checkpoint.vocabulary].T).double().numpy()
    features: npt.NDArray[np.float64] = as_tensor(cut.features[:place]).double().numpy()
    expected = reference_logits(
        Weights(tmp_path / "drafter.gguf"), Weights(tiny_path), features, int(cut.tokens[place]), BLOCK - 1
    )
    # The file's head is rounded to 4 bits: by a thirtieth of a block's range at most, half of that on average.
    assert np.abs(logits - expected).mean() < 0.3 * expected.std()


# ---- training ------------------------------------------------------------------------------------------------------


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / LOG).read_text().splitlines()]


def test_a_pattern_is_learnt(tiny_path: Path, target: Target, tmp_path: Path) -> None:
    # The tiny target's own answers are noise. Counting in a circle of 40 tokens is not, and needs no features.
    rng = np.random.default_rng(0)
    with ShardWriter(tmp_path / "data" / "0", WIDTH) as writer:
        for start in range(20):
            tokens = [(start + i) % 40 for i in range(60)]
            writer.add(tokens, 10, rng.standard_normal((59, WIDTH)).astype(np.float32))
    params = replace(QUICK, max_steps=300, conversations_per_step=4, learning_rate=5e-3)
    checkpoint = fit(tiny_path, tmp_path / "data", tmp_path / "fit", PLAN, params)
    assert losses(tmp_path / "fit")[-1] < 0.1 * losses(tmp_path / "fit")[0]
    (score,) = simulate(checkpoint, target, [("count", Conversations(tmp_path / "data", WIDTH)[0])], BLOCK - 1)
    assert score.tokens_per_cycle > 0.8 * BLOCK


def test_fitting_goes_on_from_its_checkpoint(tiny_path: Path, data: Path, tmp_path: Path) -> None:
    fit(tiny_path, data, tmp_path, PLAN, replace(QUICK, max_steps=3))
    again = fit(tiny_path, data, tmp_path, PLAN, QUICK)
    assert again.step == QUICK.max_steps
    assert again.blocks == QUICK.max_steps * QUICK.conversations_per_step * QUICK.anchors
    finished = fit(tiny_path, data, tmp_path, PLAN, QUICK)
    assert all(torch.equal(again.model[name], weight) for name, weight in finished.model.items())


def test_several_processes_keep_one_model(tiny_path: Path, data: Path, tmp_path: Path) -> None:
    checkpoint = fit(tiny_path, data, tmp_path, PLAN, replace(QUICK, processes=2))
    assert checkpoint.step == QUICK.max_steps
    assert checkpoint.blocks == QUICK.max_steps * QUICK.conversations_per_step * QUICK.anchors
    assert all(torch.isfinite(weight).all() for weight in checkpoint.model.values())


def choose_type(rank: int, port: int, folder: str) -> None:
    """One of two processes, of which each finds another type faster."""
    fit_module.faster_type = lambda: fit_module.COMPUTE_TYPES[rank]
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    (Path(folder) / str(rank)).write_text(str(fit_module.agreed_type(rank, 2)))
    torch.distributed.destroy_process_group()


def test_several_processes_compute_in_one_type(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(choose_type, (fit_module._free_port(), str(tmp_path)), nprocs=2)
    assert {(tmp_path / rank).read_text() for rank in "01"} == {"torch.float32"}


def test_fitting_needs_enough_conversations(tiny_path: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="a step takes 10000"):
        fit(tiny_path, data, tmp_path, PLAN, replace(QUICK, conversations_per_step=10_000))
    with pytest.raises(ParameterError, match="must be a multiple of the 3 processes"):
        fit(tiny_path, data, tmp_path, PLAN, replace(QUICK, processes=3))


def test_the_whole_command(tiny_path: Path, prompts: Path, tmp_path: Path) -> None:
    def run(**changes: object) -> object:
        arguments = {
            "folder": tmp_path / "work",
            "prompts": prompts,
            "answer_tokens": 3000,
            "fit_minutes": 0.05,
            "processes": 1,
            "block_size": BLOCK,
            "draft_vocabulary": 128,
            "console": Console(quiet=True),
        }
        return train(tiny_path, tmp_path / "out.gguf", **{**arguments, **changes})

    report = run(llama_cpp_output=tmp_path / "llama.gguf")
    assert report.answer_tokens >= 3000
    assert 0 < report.draft_vocabulary_coverage <= 1
    assert [score.prompt for score in report.scores] == ["code-1", "code-2", "chat-1"]
    assert report.tokens_per_cycle >= 1.0
    assert json.loads((tmp_path / "work" / "report.json").read_text())["categories"].keys() == {"code", "chat"}
    # A second call finds every stage done.
    again = run()
    assert (again.answer_tokens, again.blocks) == (report.answer_tokens, report.blocks)
    assert [score.cycles for score in again.scores] == [score.cycles for score in report.scores]
    with pytest.raises(ParameterError, match="name a new folder"):
        run(block_size=BLOCK + 1)
    with pytest.raises(ParameterError, match="fit_minutes is -1"):
        run(fit_minutes=-1)


def test_the_file_for_llama_cpp_has_the_vocabulary_as_well(
    target: Target, conversations: Conversations, tmp_path: Path
) -> None:
    checkpoint = checkpoint_of(target, conversations)
    export(checkpoint, target, tmp_path / "bee.gguf", name="test")
    export(checkpoint, target, tmp_path / "llama.gguf", name="test", for_llama_cpp=True)
    bee, llama = Weights(tmp_path / "bee.gguf"), Weights(tmp_path / "llama.gguf")
    assert "tokenizer.ggml.tokens" not in bee.metadata
    assert llama.metadata["tokenizer.ggml.tokens"] == tiny_model.VOCABULARY
    rows = torch.from_numpy(target.head)[checkpoint.vocabulary].numpy()
    for file in (bee, llama):
        assert np.abs(file["output.weight"] - rows).max() < np.ptp(rows) / 25  # a step of 4 bits is a fifteenth
    for key, value in bee.metadata.items():
        assert np.array_equal(llama.metadata[key], value), key


def test_a_drafter_for_another_vocabulary_is_refused(
    target: Target, conversations: Conversations, tmp_path: Path
) -> None:
    export(checkpoint_of(target, conversations), target, tmp_path / "drafter.gguf", name="test")
    other = list(tiny_model.VOCABULARY)
    other[0], other[1] = other[1], other[0]
    tiny_model.model(vocabulary=other).write(tmp_path / "other.gguf")
    with pytest.raises(DrafterMismatchError):
        Engine(tmp_path / "other.gguf", drafter=tmp_path / "drafter.gguf")


# ---- evaluation ----------------------------------------------------------------------------------------------------


def check_replaying(model: Path, data: Path, prompts: Path, folder: Path) -> None:
    # A trained drafter, so that some drafts are accepted. PyTorch works in bfloat16 and libbee in 8 bits, so single
    # drafts may differ.
    checkpoint = fit(model, data, folder, PLAN, replace(QUICK, max_steps=60))
    target = Target(model)
    export(checkpoint, target, folder / "drafter.gguf", name="test")
    replayed = simulate(checkpoint, target, answers(model, TAPS, prompts, max_tokens=60), BLOCK - 1)
    measured = measure(model, folder / "drafter.gguf", prompts, draft_length=BLOCK - 1, max_tokens=60)
    assert [score.output_tokens for score in replayed] == [score.output_tokens for score in measured]
    for ours, theirs in zip(replayed, measured, strict=True):
        assert abs(ours.cycles - theirs.cycles) <= 0.1 * theirs.cycles + 1


def test_replaying_counts_as_libbee_does(tiny_path: Path, data: Path, prompts: Path, tmp_path: Path) -> None:
    check_replaying(tiny_path, data, prompts, tmp_path)


def test_a_target_that_scales_its_embedding_and_has_no_template(prompts: Path, tmp_path: Path) -> None:
    document = tiny_model.model()
    del document.tensors["output.weight"], document.metadata["tokenizer.chat_template"]
    document.metadata = {key.replace("llama.", "gemma."): value for key, value in document.metadata.items()}
    document.metadata["general.architecture"] = text("gemma")
    model = document.write(tmp_path / "gemma.gguf")
    assert Target(model).shape.embedding_scale == math.sqrt(tiny_model.N_EMBD)
    params = ConversationParams(answer_tokens=600, sessions=4, question_length=12, answer_length=40)
    generate(model, tmp_path / "data", TAPS, params, held_out=HeldOut.from_file(prompts))
    check_replaying(model, tmp_path / "data", prompts, tmp_path)
    scale = Weights(tmp_path / "drafter.gguf").metadata["dflash.embedding_scale"]
    assert scale == math.sqrt(tiny_model.N_EMBD)
