"""The `llm` command line, told of the service as its documentation says: prompt, stream, options, conversation, errors."""

import os
import subprocess
import sys
from pathlib import Path

ANSWER = "Paris is the capital of France."
MODELS = """\
- model_id: served
  model_name: test-model
  api_base: "{base}"
"""


def llm(*arguments: str, good: bool = True) -> str:
    command = [sys.executable, "-m", "llm", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL)
    assert (done.returncode == 0) == good, done.stdout + done.stderr
    return (done.stdout if good else done.stderr).strip()


def main() -> None:
    folder = Path(os.environ["LLM_USER_PATH"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "extra-openai-models.yaml").write_text(MODELS.format(base=os.environ["OPENAI_BASE_URL"]))
    assert llm("-m", "served", "What is the capital of France?") == ANSWER
    assert llm("-m", "served", "--no-stream", "What is the capital of France?") == ANSWER
    assert llm("-m", "served", "-o", "max_tokens", "2", "-o", "temperature", "0", "-o", "seed", "3", "x") == "Paris is"
    assert llm("-m", "served", "-c", "And of Spain?") == ANSWER
    assert "too many" in llm("-m", "served", "-o", "max_tokens", "100000", "x", good=False)
    print("llm passed")


if __name__ == "__main__":
    main()
