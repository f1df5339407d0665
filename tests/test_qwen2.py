"""A Qwen checkpoint that really talks: the starter's weights as model_type qwen2 say the same."""

import pytest
from openai import OpenAI

from serving import serve

QUESTIONS = ["What is the capital of France?", "Write a Python function that adds two numbers."]


def answers(server) -> list[tuple[str, list[float]]]:
    with OpenAI(base_url=server.api, api_key="any", max_retries=0) as client:
        (model,) = client.models.list().data
        choices = [
            client.chat.completions.create(
                model=model.id,
                messages=[{"role": "user", "content": question}],
                temperature=0,
                max_tokens=24,
                logprobs=True,
            ).choices[0]
            for question in QUESTIONS
        ]
    return [(c.message.content, [token.logprob for token in c.logprobs.content]) for c in choices]


def test_the_same_weights_as_a_qwen2_checkpoint_give_the_same_text(starter_server, qwen2_starter):
    with serve(qwen2_starter) as server:
        qwen = answers(server)
    for (text, logprobs), (expected, expected_logprobs) in zip(qwen, answers(starter_server), strict=True):
        assert text == expected
        assert logprobs == pytest.approx(expected_logprobs, abs=1e-3)
