"""One module per family of architectures. Each declares `FAMILY`; modules starting with an underscore are shared parts."""
