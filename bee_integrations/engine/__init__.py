"""The engine without a framework: load a model, stream a generation."""

from .engine import Completion, Engine, GenerationParams, Statistics, Step, check_arguments, model_tokenizer

__all__ = ["Completion", "Engine", "GenerationParams", "Statistics", "Step", "check_arguments", "model_tokenizer"]
