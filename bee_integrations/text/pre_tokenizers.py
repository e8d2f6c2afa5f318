"""How text is cut into words before byte-pair merges: one entry per `tokenizer.ggml.pre` that Bee knows.

A vocabulary is only right together with the cut that it was trained with, so an unknown name is refused rather than
guessed. Names and cuts follow llama.cpp, whose results the tests compare for every entry: also where llama.cpp
approximates the cut of the original tokenizer (tekken, gpt-4o and their kin leave marks out of words), because those
are the ids that people compare with.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tokenizers import Regex, pre_tokenizers

from ..errors import UnsupportedModelError

__all__ = ["PreTokenizer", "pre_tokenizer", "supported_pre_tokenizers"]

# llama.cpp's tables of letters, numbers, marks and signs are those of Unicode 15.1, the ones of the tokenizers library
# those of Unicode 16. These ranges hold what Unicode 16 added, and nothing that was there before.
_UNICODE_16 = (
    r"\x{897}\x{1B4E}-\x{1B4F}\x{1B7F}\x{1C89}-\x{1C8A}\x{2427}-\x{2429}\x{31E4}-\x{31E5}\x{A7CB}-\x{A7CD}"
    r"\x{A7DA}-\x{A7DC}\x{105C0}-\x{105F3}\x{10D40}-\x{10D8F}\x{10EC2}-\x{10EFC}\x{11380}-\x{113E2}"
    r"\x{116D0}-\x{116E3}\x{11BC0}-\x{11BF9}\x{11F5A}\x{13460}-\x{143FA}\x{16100}-\x{16139}\x{16D40}-\x{16D79}"
    r"\x{18CFF}\x{1CC00}-\x{1CEB3}\x{1E5D0}-\x{1E5FF}\x{1F8B2}-\x{1F8C1}\x{1FA89}-\x{1FA8F}\x{1FABE}\x{1FAC6}"
    r"\x{1FADC}-\x{1FADF}\x{1FAE9}\x{1FBCB}-\x{1FBEF}"
)


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
        splits = [pre_tokenizers.Split(Regex(_dated(pattern)), behavior="isolated") for pattern in self.patterns]
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([*splits, byte_level])


def _dated(pattern: str) -> str:
    """The pattern with classes of characters as of Unicode 15.1."""
    return re.sub(r"\\p\{[LNMPS]\}", lambda found: f"[{found[0]}&&[^{_UNICODE_16}]]", pattern)


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Spelled out: without regard to case, a regular expression would take U+017F for an s.
_ENDING = r"'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACE = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_ENDING}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACE}"
_QWEN2 = rf"{_ENDING}|{_WORD}|\p{{N}}|{_SIGNS}|{_SPACE}"
_QWEN35 = rf"{_ENDING}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACE}"
_SIGNS_AND_SLASHES = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_NOT_LOWER = r"[\p{L}&&[^a-z]]"
_NOT_UPPER = r"[\p{L}&&[^A-Z]]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_NOT_LOWER}*{_NOT_UPPER}+|[^\r\n\p{{L}}\p{{N}}]?{_NOT_LOWER}+{_NOT_UPPER}*"
    rf"|\p{{N}}|{_SIGNS_AND_SLASHES}|{_SPACE}"
)
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_NOT_LOWER}*{_NOT_UPPER}+(?:{_ENDING})?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_NOT_LOWER}+{_NOT_UPPER}*(?:{_ENDING})?"
    rf"|\p{{N}}{{1,3}}|{_SIGNS_AND_SLASHES}|{_SPACE}"
)
_MARKED_WORD = rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+(?:{_ENDING})?"
# Digits in threes from the right, what stands before them joined to the first group. A match begins where the last one
# ended, or not at all: else a long text without digits would be searched from each of its characters.
_DIGITS_FROM_RIGHT = (
    r"(?:\A|(?<=\p{N}))[^\p{N}]*+\p{N}+",
    r"\A[^\p{N}]*+\p{N}{1,3}(?=(?:\p{N}{3})*+\z)",
)
_TINY_AYA = (*_DIGITS_FROM_RIGHT, rf"{_MARKED_WORD}|\p{{N}}{{1,3}}|{_SIGNS_AND_SLASHES}|{_SPACE}")
_HAN = (
    r"[\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2EBEF}\x{F900}-\x{FAFF}"
    r"\x{2F800}-\x{2FA1F}]"
)
_KIMI_K2 = rf"{_HAN}+|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}&&[^{_HAN}]]+(?:{_ENDING})?|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACE}"
_IDEOGRAPHS_AND_KANA = r"[\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+"
_ASCII_SIGN_AND_WORD = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
_DEEPSEEK_V3_WORDS = _ASCII_SIGN_AND_WORD + r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|" + _SPACE
_DEEPSEEK_V3 = (r"\p{N}{1,3}", _IDEOGRAPHS_AND_KANA, _DEEPSEEK_V3_WORDS)
# The classes span spaces beyond ASCII, which count as white space all the same.
_DEEPSEEK_IDEOGRAPHS = r"[[\x{4E00}-\x{9FA5}\x{0800}-\x{4E00}\x{AC00}-\x{D7FF}]&&\S]+"
_DEEPSEEK_PUNCTUATION = r"\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3001}-\x{3002}]+"
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
_GPT4O_CUT = PreTokenizer((_GPT4O,))
_TINY_AYA_CUT = PreTokenizer(_TINY_AYA)
_BAILING_CUT = PreTokenizer((rf"{_ENDING}|{_WORD}|\p{{N}}|{_SIGNS}|\s*[\r\n]|\s+(?!\S)|\s+",))
_THREE_ASCII_DIGITS = "[0-9][0-9][0-9]"

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
    "minicpm5": PreTokenizer((r"\p{N}{1,3}", rf"{_ENDING}|{_WORD}|\p{{N}}+|{_SIGNS}|{_SPACE}"), whole_words=True),
    "tekken": PreTokenizer((_TEKKEN,), whole_words=True, add_bos=True),
    "gpt-4o": _GPT4O_CUT,
    "llama4": _GPT4O_CUT,
    "kanana2": _GPT4O_CUT,
    "talkie": _GPT4O_CUT,
    "minimax-m2": _GPT4O_CUT,
    "tiny_aya": _TINY_AYA_CUT,
    "cohere2moe": _TINY_AYA_CUT,
    "kimi-k2": PreTokenizer((_KIMI_K2,)),
    "bailingmoe": _BAILING_CUT,
    "bailingmoe2": _BAILING_CUT,
    "llada-moe": _BAILING_CUT,
    "exaone-moe": PreTokenizer(
        (
            rf"{_ENDING}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
        )
    ),
    "seed-coder": PreTokenizer((rf"{_ENDING}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACE}",)),
    "ufakzeka": PreTokenizer((rf"{_WORD}|\p{{N}}|{_SIGNS}|{_SPACE}",)),
    "laguna": PreTokenizer((r"[^\n]+|\n+", _QWEN2)),
    "youtu": PreTokenizer(
        (
            r"[\x{AC00}-\x{D7A3}\x{3131}-\x{318E}]+"
            r"|[\x{FF01}\x{2026}\x{201C}\x{201D}\x{2018}\x{2019}\x{2014}\x{FF1A}\x{FF1B}\x{FF0C}\x{3001}-\x{303F}"
            rf"\x{{FE30}}-\x{{FE4F}}]+|[\x{{3105}}-\x{{312F}}]+|{_IDEOGRAPHS_AND_KANA}",
            rf"{_MARKED_WORD}|\p{{N}}|{_SIGNS_AND_SLASHES}|{_SPACE}",
        ),
        whole_words=True,
    ),
    "spark2_5": PreTokenizer(
        (
            r"\p{N}{1,3}",
            _IDEOGRAPHS_AND_KANA,
            _ASCII_SIGN_AND_WORD + r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+",
            r"\p{N}",
        )
    ),
    "falcon": PreTokenizer((r"[\p{P}$+<=>\^~|`]+", _GPT2, _THREE_ASCII_DIGITS)),
    "default": PreTokenizer((r"[\p{P}$+<=>\^~|]+", _GPT2, r"\p{N}+", _THREE_ASCII_DIGITS)),
    "qwen2": _QWEN2_CUT,
    "kormo": _QWEN2_CUT,
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
    "hy_v4": _DEEPSEEK_V3_CUT,
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
