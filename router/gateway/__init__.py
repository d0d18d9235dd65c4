"""HTTP: OpenAI, Anthropic, admin and the live page."""
