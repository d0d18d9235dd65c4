"""litellm against OPENAI_BASE_URL: completion, stream, n, text completion, responses, errors."""

import os

import litellm

ANSWER = "Paris is the capital of France."
MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]


def main() -> None:
    base = {"model": "openai/test-model", "api_base": os.environ["OPENAI_BASE_URL"], "num_retries": 0}
    whole = litellm.completion(messages=MESSAGES, seed=1, temperature=0, **base)
    assert whole.choices[0].message.content == ANSWER, whole
    assert whole.usage.prompt_tokens_details.cached_tokens == 3, whole.usage
    chunks = list(litellm.completion(messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **base))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ANSWER
    assert len(litellm.completion(messages=MESSAGES, n=2, **base).choices) == 2
    text = litellm.text_completion(
        model="text-completion-openai/test-model", api_base=os.environ["OPENAI_BASE_URL"], prompt="The", max_tokens=2
    )
    assert text.choices[0].text == "Paris is", text
    try:
        litellm.completion(messages=MESSAGES, max_tokens=100_000, **base)
    except (litellm.ContextWindowExceededError, litellm.BadRequestError) as error:
        print("refused as it should be:", type(error).__name__)
    else:
        raise AssertionError("a request over the context was accepted")
    print("litellm passed")


if __name__ == "__main__":
    main()
