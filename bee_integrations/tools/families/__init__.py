"""The families of formats that are told by a description. A new one is a description here and a word in `ALL`."""

from ..description import Description
from .deepseek import DEEPSEEK_DSML, DEEPSEEK_R1, DEEPSEEK_V3_1
from .glm import GLM, HUNYUAN
from .json_lists import (
    APERTUS,
    APRIEL,
    COHERE,
    COMMAND_R_PLUS,
    FIREFUNCTION,
    GRANITE_3,
    MINIMAX_M1,
    NEMOTRON_V2,
)
from .kimi import KIMI_K2, KIMI_K3
from .others import FUNCTIONARY_3_1, FUNCTIONARY_3_2, GIGACHAT_3, GIGACHAT_3_1, LFM2, SMOLLM3, SOLAR
from .tags import MINICPM5, MINIMAX_M2, MINIMAX_M3, MUSE, QWEN3_CODER, SEED

__all__ = ["ALL"]

ALL: tuple[Description, ...] = (
    APERTUS, APRIEL, COHERE, COMMAND_R_PLUS, *DEEPSEEK_DSML, DEEPSEEK_R1, DEEPSEEK_V3_1, FIREFUNCTION, FUNCTIONARY_3_1,
    FUNCTIONARY_3_2, GIGACHAT_3, GIGACHAT_3_1, GLM, GRANITE_3, HUNYUAN, KIMI_K2, KIMI_K3, LFM2, MINICPM5, MINIMAX_M1,
    MINIMAX_M2, MINIMAX_M3, MUSE, NEMOTRON_V2, QWEN3_CODER, SEED, SMOLLM3, SOLAR,
)  # fmt: skip
