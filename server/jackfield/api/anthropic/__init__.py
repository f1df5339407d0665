"""Anthropic's Messages API, in terms of conversations as `jackfield.api.conversation` has them."""
