"""Texts that tokenizers get wrong, if they get any wrong."""

# Nothing decomposed: Qwen's tokenizers compose it (NFC), as they should.
TEXTS = (
    "def add(a, b):\n    return a + b\n",
    "\tTabs,  two spaces, and no newline at the end",
    "Grüße, 你好, 🙂👩‍👩‍👧",
    "<html>&amp;</html> {{ braces }} \\n 100 % $PATH",
)
