"""C++ source of the native kernels; `prfaas.model.kernels.native_library` compiles it."""
