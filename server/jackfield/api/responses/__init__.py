"""``/v1/responses``: OpenAI's newer way to ask for an answer, and to find it again."""
