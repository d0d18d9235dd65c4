"""The `llm` command line, told of the service as its documentation says: prompt, stream, options, schema, conversation,
tools, cancel, errors."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from asked import QUESTION, SCHEMA

MODELS = """\
- model_id: served
  model_name: "{model}"
  api_base: "{base}"
  supports_schema: true
  supports_tools: true
"""
SHORT = ("-m", "served", "-o", "temperature", "0", "-o", "max_tokens", "16")


def llm(*arguments: str, good: bool = True) -> str:
    command = [sys.executable, "-m", "llm", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL)
    assert (done.returncode == 0) == good, done.stdout + done.stderr
    return (done.stdout if good else done.stderr).strip()


def cancel() -> None:
    command = [sys.executable, "-m", "llm", "-m", "served", "-o", "max_tokens", "400", "Tell a very long story."]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert running.stdout is not None
    assert running.stdout.read(1)
    running.send_signal(signal.SIGINT)
    assert running.wait(20) != 0


def main() -> None:
    folder = Path(os.environ["LLM_USER_PATH"])
    folder.mkdir(parents=True, exist_ok=True)
    models = MODELS.format(model=os.environ["MODEL"], base=os.environ["OPENAI_BASE_URL"])
    (folder / "extra-openai-models.yaml").write_text(models)
    answer = llm(*SHORT, QUESTION)
    assert answer
    assert llm(*SHORT, "--no-stream", QUESTION) == answer
    assert len(llm(*SHORT, "-o", "max_tokens", "2", "-o", "seed", "3", QUESTION)) < len(answer)
    assert answer.split()[1] not in llm(*SHORT, "-o", "stop", answer.split()[1], QUESTION)
    assert json.loads(llm(*SHORT, "--schema", json.dumps(SCHEMA), QUESTION))["big"] in (True, False)
    assert llm(*SHORT, "-c", "And of Spain?")
    assert llm(*SHORT, "--functions", "def get_weather(city: str) -> str:\n    return 'sunny'", "Hello")
    cancel()
    assert "too many" in llm("-m", "served", "-o", "max_tokens", "10000000", "x", good=False)
    print("llm passed")


if __name__ == "__main__":
    main()
