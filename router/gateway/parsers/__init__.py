"""What a model's text means: reasoning, tool calls, plain text. One file per family of models; pure, incremental."""
