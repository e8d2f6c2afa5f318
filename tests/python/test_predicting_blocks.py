"""The block behind a model's layers that predicts a further token (MTP), in the model's file or in one of its own
("mtp-*.gguf"): its drafts against formulas in double precision, these against llama.cpp's logits
(tests/golden/families.npz), and what is no such block."""

from __future__ import annotations

import random
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from family_models import N_CTX, N_PREDICTED, N_VOCAB, PREDICTING, block_alone, tokens, without_block
from gguf_document import ARRAY, BOOL, STRING, Document, Stored, Value, integer
from test_families import (
    ERROR,
    GENERATIONS,
    VOCABULARY,
    assert_shared,
    drafter_for,
    engine,
    evaluate,
    generate,
    generate_together,
    golden,
    of_devices,
    session,
    spoken,
    target_of,
)

from bee_integrations import BeeLLM
from bee_integrations.engine.device_plan import plan_memory
from bee_integrations.engine.engine import Engine
from bee_integrations.errors import BeeError, DrafterMismatchError, ModelFormatError, UnsupportedModelError
from bee_integrations.generation import GenerationParams
from bee_integrations.library import check, ffi, lib, new_error
from bee_integrations.models.file import ModelFile

NAMES = tuple(PREDICTING)
LISTED = "qwen35-listed-predicting"
Numbers = npt.NDArray[np.float64]


# ---- what a block computes -------------------------------------------------------------------------------------------


def _normed(x: Numbers, gain: Numbers) -> Numbers:
    normed: Numbers = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * gain
    return normed


def _sigmoid(x: Numbers) -> Numbers:
    made: Numbers = 1 / (1 + np.exp(-x))
    return made


def _weights(scores: Numbers) -> Numbers:
    """Of positions [head, row, position] that come before a row, and of its own."""
    scores = np.where(np.tri(scores.shape[1], dtype=bool), scores, -np.inf)
    made: Numbers = np.exp(scores - scores.max(-1, keepdims=True))
    return made / made.sum(-1, keepdims=True)


class Block:
    """The block of a document, as formulas."""

    def __init__(self, document: Document) -> None:
        architecture = document.metadata["general.architecture"].content
        self.about = {key.removeprefix(f"{architecture}."): value.content for key, value in document.metadata.items()}
        self.tensors, self.place = document.tensors, f"blk.{self.about['block_count'] - 1}."

    def has(self, name: str) -> bool:
        return self.place + name in self.tensors

    def t(self, *names: str) -> Numbers:
        """The first of these that there is, of the block or of the whole."""
        places = [place + name for name in names for place in (self.place, "")]
        return np.asarray(next(self.tensors[at] for at in places if at in self.tensors).values(), np.float64)

    def product(self, x: Numbers, name: str) -> Numbers:
        made: Numbers = x @ self.t(f"{name}.weight").T + (self.t(f"{name}.bias") if self.has(f"{name}.bias") else 0)
        return made

    def turned(self, x: Numbers) -> Numbers:
        """Heads [position, head, size], in pairs of dimensions that lie half of those that turn apart, or side by side
        where heads share a row."""
        n = self.about["rope.dimension_count"]
        angles = np.arange(len(x))[:, None, None] * self.about["rope.freq_base"] ** (-np.arange(0, n, 2) / n)
        latent = self.has("attn_kv_a_mqa.weight")
        first, second = (slice(0, n, 2), slice(1, n, 2)) if latent else (slice(0, n // 2), slice(n // 2, n))
        out, a, b = x.copy(), x[..., first], x[..., second]
        out[..., first], out[..., second] = (
            a * np.cos(angles) - b * np.sin(angles),
            a * np.sin(angles) + b * np.cos(angles),
        )
        return out

    def latent_attention(self, h: Numbers) -> Numbers:
        """To rows that all heads share, in the form in which keys and values are decompressed."""
        n, heads, rank = len(h), self.about["attention.head_count"], self.about["attention.kv_lora_rank"]
        whole, rotated = self.about["attention.key_length_mla"], self.about["rope.dimension_count"]
        low = _normed(self.product(h, "attn_q_a"), self.t("attn_q_a_norm.weight"))
        q, rows = self.product(low, "attn_q_b").reshape(n, heads, whole), self.product(h, "attn_kv_a_mqa")
        row = _normed(rows[:, :rank], self.t("attn_kv_a_norm.weight"))
        keys = np.einsum("ir,hrk->ihk", row, self.t("attn_k_b.weight"))
        values = np.einsum("ir,hvr->ihv", row, self.t("attn_v_b.weight"))
        turned = self.turned(q[..., -rotated:]), self.turned(rows[:, None, rank:])[:, 0]
        scores = np.einsum("ihk,jhk->hij", q[..., :-rotated], keys) + np.einsum("ihk,jk->hij", *turned)
        seen = np.einsum("hij,jhv->ihv", _weights(scores / np.sqrt(whole)), values)
        return self.product(seen.reshape(n, -1), "attn_output")

    def attention(self, h: Numbers) -> Numbers:
        n, size = len(h), self.about["attention.key_length"]
        heads, keys = self.about["attention.head_count"], self.about["attention.head_count_kv"]
        q, gates = self.product(h, "attn_q").reshape(n, heads, -1), None
        if q.shape[-1] == 2 * size:
            q, gates = q[..., :size], q[..., size:]
        q = self.turned(_normed(q, self.t("attn_q_norm.weight")))
        k = self.turned(_normed(self.product(h, "attn_k").reshape(n, keys, size), self.t("attn_k_norm.weight")))
        v = self.product(h, "attn_v").reshape(n, keys, size)
        scores = np.einsum("ihd,jhd->hij", q, k.repeat(heads // keys, 1)) / np.sqrt(size)
        seen = np.einsum("hij,jhd->ihd", _weights(scores), v.repeat(heads // keys, 1))
        return self.product((seen if gates is None else seen * _sigmoid(gates)).reshape(n, -1), "attn_output")

    def gated(self, h: Numbers, gate: Numbers, up: Numbers, down: Numbers) -> Numbers:
        g = h @ gate.T
        made: Numbers = (g * _sigmoid(g) * (h @ up.T)) @ down.T
        return made

    def feed_forward(self, h: Numbers) -> Numbers:
        if not self.has("ffn_gate_inp.weight"):
            return self.gated(h, *(self.t(f"ffn_{part}.weight") for part in ("gate", "up", "down")))
        logits = self.product(h, "ffn_gate_inp")
        chooses = self.has("exp_probs_b.bias")  # GLM's: sigmoids, and a bias that chooses
        shares = _sigmoid(logits) if chooses else np.exp(logits - logits.max(-1, keepdims=True))
        shares /= 1 if chooses else shares.sum(-1, keepdims=True)
        chosen = np.argsort(-(shares + (self.t("exp_probs_b.bias") if chooses else 0)), -1)
        chosen = chosen[:, : self.about["expert_used_count"]]
        weights = np.take_along_axis(shares, chosen, -1)
        weights = weights / weights.sum(-1, keepdims=True) * self.about.get("expert_weights_scale", 1)
        shared = self.gated(h, *(self.t(f"ffn_{part}_shexp.weight") for part in ("gate", "up", "down")))
        if self.has("ffn_gate_inp_shexp.weight"):
            shared *= _sigmoid(h @ self.t("ffn_gate_inp_shexp.weight"))[:, None]
        experts = [self.t(f"ffn_{part}_exps.weight") for part in ("gate", "up", "down")]
        for i in range(len(h)):
            for e, weight in zip(chosen[i], weights[i], strict=True):
                shared[i] += weight * self.gated(h[i : i + 1], *(part[e] for part in experts))[0]
        return shared

    def logits(self, ids: list[int], hidden: Numbers) -> Numbers:
        """Of pairs of a token and what the layers made of the one before, as their head reads it."""
        before = _normed(hidden, self.t("nextn.hnorm.weight"))
        embedding = self.t("nextn.embed_tokens.weight", "token_embd.weight")[ids]
        x = self.product(
            np.concatenate([_normed(embedding, self.t("nextn.enorm.weight")), before], -1), "nextn.eh_proj"
        )
        attention = self.latent_attention if self.has("attn_kv_a_mqa.weight") else self.attention
        x = x + attention(_normed(x, self.t("attn_norm.weight")))
        x = x + self.feed_forward(_normed(x, self.t("post_attention_norm.weight", "ffn_norm.weight")))
        head = self.t("nextn.shared_head_head.weight", "output.weight", "token_embd.weight")
        made: Numbers = _normed(x, self.t("nextn.shared_head_norm.weight", "output_norm.weight")) @ head.T
        return made


def features(found: Any, n: int) -> Numbers:
    """What the layers made of the first n tokens, which their last norm has not seen yet."""
    error, hidden = new_error(), np.empty((n, 64), np.float32)
    check(lib.bee_session_features(found, 0, n, ffi.cast("float *", ffi.from_buffer(hidden)), error), error)
    return hidden.astype(np.float64)


def drafted(found: Any, ids: list[int], last: int) -> tuple[list[int], npt.NDArray[np.float32]]:
    """Five drafts behind a text and a last token, and their logits."""
    error, drafts, out = new_error(), ffi.new("int32_t[]", 5), np.empty((5, N_VOCAB), np.float32)
    evaluate(found, ids, 16)
    check(lib.bee_session_draft(found, last, 5, drafts, ffi.cast("float *", ffi.from_buffer(out)), error), error)
    return list(drafts), out


@of_devices(NAMES, on_cuda=[LISTED])
def test_a_block_that_predicts(device: str, name: str, tmp_path: Path) -> None:
    """Its first draft behind texts of any length, against the formulas; and the same bits from a file of its own."""
    document, ids = target_of(name), tokens(60)
    path = document.write(tmp_path / "model.gguf")
    trunk = without_block(document).write(tmp_path / "trunk.gguf")
    alone = block_alone(document).write(tmp_path / "mtp-model.gguf")
    error = new_error()
    on = {"threads": 1, "device": device}
    with engine(path, **on) as whole, engine(trunk, alone, **on) as parted:
        kept = lib.bee_session_open(whole, N_CTX, True, error)
        check(kept, error)
        evaluate(kept, ids, 16)
        block = Block(document)
        expected = block.logits(ids[1:], _normed(features(kept, len(ids))[:-1], block.t("output_norm.weight")))
        with session(parted) as other:
            for n in (1, 2, 17, 59, 30):
                drafts, out = drafted(kept, ids[:n], ids[n])
                exact = expected[n - 1]
                assert ((out[0] - exact) ** 2).mean() < ERROR * (exact**2).mean()
                assert [int(row.argmax()) for row in out] == drafts
                again, same = drafted(other, ids[:n], ids[n])
                assert (again, same.tobytes()) == (drafts, out.tobytes())
        lib.bee_session_close(kept)


@pytest.mark.parametrize("name", NAMES)
def test_the_formulas_are_llama_cpps(name: str) -> None:
    hidden, exact = (golden()[f"{name} {part}"].astype(np.float64) for part in ("hidden", "predicted"))
    found = Block(target_of(name)).logits(tokens(N_PREDICTED + 1)[1:], hidden)
    assert ((found - exact) ** 2).mean() < ERROR * (exact**2).mean()


@of_devices(NAMES, on_cuda=[LISTED, "glm4moe-predicting"])
def test_predicted_drafts_change_nothing(device: str, name: str, tmp_path: Path) -> None:
    """As test_speculation_changes_nothing, without a DFlash drafter."""
    draw = random.Random(5)
    document = target_of(name)
    path, drafter = document.write(tmp_path / "model.gguf"), None
    if name != LISTED:  # the others' blocks from files of their own
        path = without_block(document).write(path)
        drafter = block_alone(document).write(tmp_path / "mtp-model.gguf")
    modes, accepted = (lib.BEE_SPECULATION_MTP, lib.BEE_SPECULATION_AUTO), 0
    stats = ffi.new("bee_stats *")
    rounds = (GENERATIONS + 3) // 4 if device == "cuda" else 3 * GENERATIONS if name == LISTED else GENERATIONS
    with engine(path, drafter, device=device) as handle, session(handle) as plain, session(handle) as drafting:
        history = tokens(20)
        for _ in range(rounds):
            temperature, seed, n = draw.choice([0, 0.3, 1, 1.5]), draw.getrandbits(48), draw.randint(1, 24)
            expected = generate(handle, plain, history, lib.BEE_SPECULATION_OFF, 0, temperature, seed, n)
            mode, length = draw.choice(modes), draw.choice([-1, 1, 3, 5])
            assert generate(handle, drafting, history, mode, length, temperature, seed, n) == expected, (mode, length)
            lib.bee_session_stats(drafting, stats)
            accepted += stats.accepted_tokens
            history = [*(history + expected)[: draw.randint(5, 180)], draw.randrange(N_VOCAB)]
    assert accepted


@of_devices([LISTED])
def test_drafts_in_company_are_those_of_a_session_that_is_alone(device: str, name: str, tmp_path: Path) -> None:
    """A pass of the block has a row for each session, and logits of one that is alone lie elsewhere."""
    path = target_of(name).write(tmp_path / "model.gguf")
    prompts = [tokens(20), tokens(33)[::-1], tokens(45)[9:16]]
    mode, temperature, n = lib.BEE_SPECULATION_MTP, 2.0, 40 if device == "cpu" else 12
    stats = ffi.new("bee_stats *")

    def accepted(found: Any) -> tuple[int, int]:
        lib.bee_session_stats(found, stats)
        return int(stats.cycles), int(stats.accepted_tokens)

    with engine(path, device=device) as handle, ExitStack() as stack:
        found = [stack.enter_context(session(handle)) for _ in prompts]
        alone = [
            generate(handle, one, prompt, mode, 3, temperature, 1, n)
            for one, prompt in zip(found, prompts, strict=True)
        ]
        expected = [accepted(one) for one in found]
    with engine(path, device=device) as handle, ExitStack() as stack:
        found = [stack.enter_context(session(handle)) for _ in prompts]
        assert generate_together(handle, found, prompts, mode, 3, temperature, n) == alone
        assert [accepted(one) for one in found] == expected
    assert sum(n_accepted for _, n_accepted in expected)


# ---- which files have one, and which do not --------------------------------------------------------------------------


@of_devices([LISTED, "glm4moe-predicting"], on_cuda=[LISTED])
def test_beginnings_are_shared_with_what_the_block_read(device: str, name: str, tmp_path: Path) -> None:
    path = target_of(name).write(tmp_path / "model.gguf")
    prompts = [[*tokens(90)[:80], i, *tokens(20)] for i in range(3)]
    with engine(path, device=device) as handle:
        assert_shared(handle, prompts, 80, lib.BEE_SPECULATION_MTP, N_CTX, 12 if device == "cpu" else 4)


def test_a_block_that_predicts_is_asked_for_by_name(tmp_path: Path) -> None:
    path = target_of("qwen35").write(tmp_path / "model.gguf")
    with engine(path) as handle, session(handle) as found, pytest.raises(BeeError, match="speculation is MTP"):
        generate(handle, found, tokens(9), lib.BEE_SPECULATION_MTP, -1, 0, 1, 4)


def test_a_block_without_its_norm(tmp_path: Path) -> None:
    document = target_of(LISTED)
    del document.tensors["blk.3.nextn.hnorm.weight"]
    path = document.write(tmp_path / "broken.gguf")
    with pytest.raises(ModelFormatError, match=r"blk.3.nextn.hnorm.weight"), engine(path):
        pass


def test_layers_alone_run_though_their_metadata_count_the_block(tmp_path: Path) -> None:
    document = target_of(LISTED)
    for name in [name for name in document.tensors if name.startswith("blk.3.")]:
        del document.tensors[name]
    path = document.write(tmp_path / "model.gguf")
    with engine(path) as handle:
        info = ffi.new("bee_engine_info *")
        lib.bee_engine_describe(handle, info)
        assert not info.predicts
    with ModelFile(path) as file:
        assert (file.plan().n_left_out, file.plan().is_drafter) == (1, False)


def test_a_file_of_the_block_alone_is_a_drafter(tmp_path: Path) -> None:
    """It takes less than it would with the embedding, which the target has."""
    document = target_of(LISTED)
    path = block_alone(document).write(tmp_path / "mtp-model.gguf")
    with pytest.raises(UnsupportedModelError, match=r"predicts further tokens.*give it as the drafter"), engine(path):
        pass
    target = without_block(document).write(tmp_path / "model.gguf")
    whole = document.write(tmp_path / "whole.gguf")
    with ModelFile(path) as file, ModelFile(target) as other, ModelFile(whole) as together:
        assert file.plan().is_drafter
        for device in ("cpu", "cuda"):
            plan = plan_memory(other, file, device, N_CTX)
            assert plan == plan_memory(together, None, device, N_CTX)
    with engine(target, path) as handle:
        info = ffi.new("bee_engine_info *")
        lib.bee_engine_describe(handle, info)
        assert (info.predicts, info.has_drafter, info.block_size) == (True, False, 6)


@pytest.mark.parametrize("missing", [["token_embd.weight"], ["output.weight"], ["token_embd.weight", "output.weight"]])
def test_what_a_file_of_the_block_alone_need_not_repeat(missing: list[str], tmp_path: Path) -> None:
    """The target's serves in its place."""
    document = target_of("qwen3next-predicting")
    path, trunk = document.write(tmp_path / "whole.gguf"), without_block(document).write(tmp_path / "model.gguf")
    alone = block_alone(document)
    for name in missing:
        del alone.tensors[name]
    drafter = alone.write(tmp_path / "mtp-model.gguf")
    with ModelFile(drafter) as file:
        assert (file.plan().is_drafter, file.plan().n_vocab) == (True, N_VOCAB)
    with engine(path, threads=1) as handle, session(handle) as found:
        expected = drafted(found, tokens(20), 5)[1].tobytes()
    with engine(trunk, drafter, threads=1) as handle, session(handle) as found:
        assert drafted(found, tokens(20), 5)[1].tobytes() == expected


@pytest.mark.parametrize("drafter", ["in the file", "alone", "without the head", "dflash"])
def test_the_scale_of_a_head(drafter: str, tmp_path: Path) -> None:
    """Beside the head that drafts are made with. Halves are exact: the head may be them."""
    scaled, found = target_of("qwen3next-predicting"), []
    halved = scaled.copy()
    halved.tensors["output.weight"] = Stored.of(scaled.tensors["output.weight"].values() / 2)
    scaled.tensors["output.scale"] = Stored.of(np.array([0.5]))
    for document in (scaled, halved):
        path, other = document.write(tmp_path / "model.gguf"), None
        if drafter != "in the file":
            path = without_block(document).write(path)
            made = drafter_for("qwen3next-predicting") if drafter == "dflash" else block_alone(document)
            if drafter == "dflash":
                made.tensors["d2t"] = Stored.of(np.arange(N_VOCAB)[::-1], "I64")
            for name in ("output.weight", "output.scale") if drafter == "without the head" else ():
                made.tensors.pop(name, None)
            other = made.write(tmp_path / "drafter.gguf")
        with engine(path, other, threads=1) as handle, session(handle) as opened:
            found.append(drafted(opened, tokens(20), 5)[1])
    assert np.array_equal(*found)


def _key(name: str, value: Value) -> Any:
    return lambda document: document.metadata.update({name: value})


def _words(n: int, first: str) -> Value:
    return Value(ARRAY, [first, *VOCABULARY.content[1:], "more"][:n], STRING)


def _moved(document: Document) -> None:
    """The block of a model with one more layer."""
    document.metadata["qwen35.block_count"] = integer(5)
    del document.metadata["qwen35.attention.recurrent_layers"]
    for name in [name for name in document.tensors if name.startswith("blk.3.")]:
        document.tensors["blk.4." + name[6:]] = document.tensors.pop(name)


def _other_architecture(document: Document) -> None:
    glm = block_alone(target_of("glm4moe-predicting"))
    document.metadata, document.tensors = glm.metadata, glm.tensors


def _without(*names: str) -> Any:
    def change(document: Document) -> None:
        for name in names:
            del document.tensors[name]

    return change


def _zeros(name: str, *shape: int) -> Any:
    return lambda document: document.tensors.update({name: Stored.of(np.zeros(shape, np.float32))})


UNFIT: dict[str, tuple[Any, type[BeeError], str]] = {
    "of another architecture": (_other_architecture, DrafterMismatchError, "'glm4moe'.*'qwen35'"),
    "of another width": (_key("qwen35.embedding_length", integer(128)), DrafterMismatchError, "embedding_length is 12"),
    "of more layers": (_moved, DrafterMismatchError, "block_count .* is 4, the target's is 3"),
    "of another size of the vocabulary": (
        _key("qwen35.vocab_size", integer(65)), DrafterMismatchError, "vocab_size is 65, the target's is 64",
    ),
    "with a list for other blocks": (
        _key("qwen35.attention.recurrent_layers", Value(ARRAY, [True, True, False], BOOL)),
        ModelFormatError,
        "'qwen35.attention.recurrent_layers' has 3 entries.* each of the 4 blocks",
    ),
    "of more tokens": (_key("tokenizer.ggml.tokens", _words(65, "token 0")), DrafterMismatchError, "vocabulary size"),
    "of other tokens": (_key("tokenizer.ggml.tokens", _words(64, "other")), DrafterMismatchError, "other tokens"),
    "without a vocabulary": (
        lambda document: document.metadata.pop("tokenizer.ggml.tokens"), DrafterMismatchError, "no vocabulary",
    ),
    "without a norm": (_without("blk.3.nextn.enorm.weight"), ModelFormatError, "'blk.3.nextn.enorm.weight'"),
    "without its last norm": (
        _without("blk.3.nextn.shared_head_norm.weight", "output_norm.weight"), ModelFormatError, "'output_norm.weight'",
    ),
    "with a norm of another width": (
        _zeros("blk.3.nextn.hnorm.weight", 32), ModelFormatError, "'blk.3.nextn.hnorm.weight'",
    ),
    "with a projection of one half": (
        _zeros("blk.3.nextn.eh_proj.weight", 64, 64), ModelFormatError, "'blk.3.nextn.eh_proj.weight'.*128",
    ),
    "with an embedding of another height": (
        _zeros("token_embd.weight", 63, 64), ModelFormatError, "'token_embd.weight'",
    ),
    "with a layer": (_zeros("blk.1.attn_k.weight", 64, 64), UnsupportedModelError, "'blk.1.attn_k.weight'"),
    "of two": (
        lambda document: document.metadata.update(
            {"qwen35.nextn_predict_layers": integer(2), "qwen35.block_count": integer(5)}
        )
        or document.metadata.pop("qwen35.attention.recurrent_layers"),
        UnsupportedModelError,
        "nextn_predict_layers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNFIT)
def test_blocks_that_do_not_fit(case: str, tmp_path: Path) -> None:
    change, kind, pattern = UNFIT[case]
    document = target_of(LISTED)
    target = without_block(document).write(tmp_path / "model.gguf")
    alone = block_alone(document)
    change(alone)
    with pytest.raises(kind, match=pattern), engine(target, alone.write(tmp_path / "mtp-model.gguf")):
        pass


def test_a_whole_model_is_no_drafter(tmp_path: Path) -> None:
    path = target_of(LISTED).write(tmp_path / "model.gguf")
    with ModelFile(path) as file, pytest.raises(DrafterMismatchError, match="drafter is its target"):
        plan_memory(file, file, "cpu", N_CTX)
    with pytest.raises(DrafterMismatchError, match="nor a model's block alone"), engine(path, path):
        pass


def test_everything_that_takes_a_drafter_takes_the_block(tmp_path: Path) -> None:
    """By its path, and as "auto" finds it in the model's folder."""
    document = spoken(LISTED)
    model = without_block(document).write(tmp_path / "model.gguf")
    drafter = block_alone(document).write(tmp_path / "mtp-model.gguf")
    greedy = GenerationParams(max_tokens=20, temperature=0.0)
    answers = []
    for given in (None, drafter, "auto"):
        with Engine(tmp_path if given == "auto" else model, drafter=given, threads=1, device="cpu") as engine:
            assert engine.info["predicts"] == (given is not None)
            mode = "mtp" if given else "off"
            answers.append(engine.complete([1, 2, 3], replace(greedy, speculation=mode)))
            assert answers[-1].stats.speculation == mode
    assert answers[0].tokens == answers[1].tokens == answers[2].tokens
    assert answers[1].stats.drafted_tokens == answers[2].stats.drafted_tokens > 0
    chain = BeeLLM(
        model=str(model), drafter=str(drafter), speculation="mtp", temperature=0.0, max_tokens=9, device="cpu"
    )
    found = chain.generate(["abab"]).generations[0][0]
    assert found.generation_info is not None
    assert found.generation_info["speculation"]["mode"] == "mtp"
