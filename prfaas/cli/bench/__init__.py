"""The load generator behind `prfaas bench` and the project's benchmarks: any OpenAI-compatible server, streamed."""
