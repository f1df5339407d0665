"""Who gets in, from where, and how much of the server they may take. docs/security.md says what is promised."""
