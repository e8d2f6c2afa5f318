"""How text is cut into words before byte-pair merges: one entry per `tokenizer.ggml.pre` that Bee knows.

A vocabulary is only right together with the cut that it was trained with, so an unknown name is refused rather than
guessed. Names and cuts follow llama.cpp, whose results the tests compare for every entry; where llama.cpp only
approximates the cut that a model was trained with (tekken, gpt-4o and others), the entry is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Regex, pre_tokenizers

from ..errors import UnsupportedModelError

__all__ = ["PreTokenizer", "pre_tokenizer", "supported_pre_tokenizers"]


@dataclass(frozen=True)
class PreTokenizer:
    """`patterns` are applied in turn, each inside the pieces of the one before; matches become pieces.

    `whole_words`: a piece that is a token as it stands is taken without merging. `add_bos`: what holds where the file
    does not say.
    """

    patterns: tuple[str, ...]
    whole_words: bool = False
    add_bos: bool = False

    def build(self) -> pre_tokenizers.PreTokenizer:
        """The same as an object of the tokenizers library, with GPT-2's bytes-to-characters mapping at the end."""
        splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in self.patterns]
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([*splits, byte_level])


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+|"
_PUNCTUATION_AND_SPACE = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTION + _WORD + r"\p{N}{1,3}|" + _PUNCTUATION_AND_SPACE
_QWEN2 = _CONTRACTION + _WORD + r"\p{N}|" + _PUNCTUATION_AND_SPACE
_QWEN35 = (
    _CONTRACTION
    + r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}|"
    + r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    r"[\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_DEEPSEEK_IDEOGRAPHS = r"[\x{4E00}-\x{9FA5}\x{0800}-\x{4E00}\x{AC00}-\x{D7FF}]+"
_DEEPSEEK_PUNCTUATION = r"\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+"
# Cased letters as this family lists them; not the same as \p{Lu}\p{Ll}\p{Lt} of a current Unicode version.
_DEEPSEEK_LETTERS = (
    r"\s?[A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}\x{295}-\x{2AF}"
    r"\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}"
    r"\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}"
    r"\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}"
    r"\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}"
    r"\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}"
    r"\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}"
    r"\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}"
    r"\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}"
    r"\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}"
    r"\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}"
    r"\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}"
    r"\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}"
    r"\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}]+"
)

_GPT2_CUT = PreTokenizer((_GPT2,))
_DIGITS_CUT = PreTokenizer((r"\p{N}", _GPT2))
_LLAMA3_CUT = PreTokenizer((_LLAMA3,), whole_words=True, add_bos=True)
_QWEN2_CUT = PreTokenizer((_QWEN2,))
_DEEPSEEK_V3_CUT = PreTokenizer(_DEEPSEEK_V3)

_KNOWN: dict[str, PreTokenizer] = {
    "gpt-2": _GPT2_CUT,
    "phi-2": _GPT2_CUT,
    "mpt": _GPT2_CUT,
    "olmo": _GPT2_CUT,
    "jais": _GPT2_CUT,
    "trillion": _GPT2_CUT,
    "gigachat": _GPT2_CUT,
    "a.x-4.0": _GPT2_CUT,
    "mellum": _GPT2_CUT,
    "exaone4": _GPT2_CUT,
    "granite-docling": _GPT2_CUT,
    "smollm": _DIGITS_CUT,
    "starcoder": _DIGITS_CUT,
    "refact": _DIGITS_CUT,
    "command-r": _DIGITS_CUT,
    "codeshell": _DIGITS_CUT,
    "exaone": _DIGITS_CUT,
    "minerva-7b": _DIGITS_CUT,
    "mellum2": _DIGITS_CUT,
    "llama3": _LLAMA3_CUT,
    "llama-v3": _LLAMA3_CUT,
    "llama-bpe": _LLAMA3_CUT,
    "falcon3": _LLAMA3_CUT,
    "falcon-h1": _LLAMA3_CUT,
    "pixtral": _LLAMA3_CUT,
    "midm-2.0": _LLAMA3_CUT,
    "lfm2": _LLAMA3_CUT,
    "dbrx": PreTokenizer((_LLAMA3,)),
    "smaug-bpe": PreTokenizer((_LLAMA3,)),
    "chatglm-bpe": PreTokenizer((_LLAMA3,)),
    "glm4": PreTokenizer((_LLAMA3,), whole_words=True),
    "glm5": PreTokenizer((_LLAMA3,), whole_words=True),
    "qwen2": _QWEN2_CUT,
    "deepseek-r1-qwen": _QWEN2_CUT,
    "megrez": _QWEN2_CUT,
    "stablelm2": _QWEN2_CUT,
    "hunyuan": _QWEN2_CUT,
    "solar-open": _QWEN2_CUT,
    "grok-2": _QWEN2_CUT,
    "qwen35": PreTokenizer((_QWEN35,)),
    "deepseek-v3": _DEEPSEEK_V3_CUT,
    "hunyuan-dense": _DEEPSEEK_V3_CUT,
    "joyai-llm": _DEEPSEEK_V3_CUT,
    "deepseek-coder": PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_IDEOGRAPHS, r"\p{N}")),
    "deepseek-llm": PreTokenizer(
        (r"[\r\n]", _DEEPSEEK_LETTERS, _DEEPSEEK_PUNCTUATION, r"\s+$", _DEEPSEEK_IDEOGRAPHS, r"\p{N}+")
    ),
}


def supported_pre_tokenizers() -> list[str]:
    """The values of `tokenizer.ggml.pre` that `pre_tokenizer` accepts, sorted."""
    return sorted(_KNOWN)


def pre_tokenizer(name: str) -> PreTokenizer:
    """The entry called `name`; raises `UnsupportedModelError`, listing the known ones, where there is none."""
    if name not in _KNOWN:
        known = ", ".join(supported_pre_tokenizers())
        raise UnsupportedModelError(
            f"tokenizer.ggml.pre is {name[:60]!r}, which is not supported; supported are {known}"
        )
    return _KNOWN[name]
