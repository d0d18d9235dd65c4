"""Arithmetic on plain tensors: no weights, no configuration, no notion of a layer."""
