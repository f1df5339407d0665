"""The engine: from token ids to token events. It knows no HTTP and no OpenAI."""
