"""Building blocks that families compose: small frozen objects that hold weights and are called with activations."""
