"""The wire: what clients send and what they get back, as pydantic models. It knows nothing of the server."""
