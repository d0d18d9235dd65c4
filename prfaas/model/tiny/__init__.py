"""Small models with seeded random weights, written as real Hugging Face directories: for tests, demos and simulations."""

from prfaas.model.tiny.write import TINY_MODELS, TinyModel, write_model, write_tiny_model

__all__ = ["TINY_MODELS", "TinyModel", "write_model", "write_tiny_model"]
