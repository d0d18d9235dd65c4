"""Generated protobuf and gRPC stubs. Regenerate with `make proto`; never edit."""
