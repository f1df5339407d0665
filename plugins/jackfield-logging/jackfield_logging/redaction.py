"""Hides secrets in text: keys, tokens, passwords and e-mail addresses, by rule."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import re2  # type: ignore[import-untyped]

LOOKAHEAD = 1024
"""Characters beyond a cut that are searched as well, so that a secret on the edge is seen whole."""

_SURROGATES = re.compile("[\ud800-\udfff]")

# Key shapes as their issuers document them, and as secret scanners such as gitleaks (config/gitleaks.toml) know them.
# Lengths are lower bounds, and nothing is asked of what stands before a key: too much hidden is better than too little.
_KEYS = (
    r"sk-(?:(?:proj|svcacct|admin|None|ant|or|lf)-[A-Za-z0-9_-]{20,}|[A-Za-z0-9]{20,})",  # OpenAI, Anthropic and others
    r"(?:xai|pplx|tvly|nvapi)-[A-Za-z0-9_-]{20,}",  # xAI, Perplexity, Tavily, NVIDIA
    r"(?:gsk|r8|hf|npm|lin_api|ntn)_[A-Za-z0-9]{20,}",  # Groq, Replicate, Hugging Face, npm, Linear, Notion
    r"gh[pousr]_[A-Za-z0-9]{20,}",  # GitHub
    r"github_pat_[A-Za-z0-9_]{20,}",
    r"gl(?:pat|oas|dt|rt|rtr|cbt|ptt|ft|imt|agent|soat|ffct)-[A-Za-z0-9_.-]{20,}",  # GitLab
    r"(?:A3T[A-Z0-9]|ABIA|ACCA|AKIA|ASIA|AROA|AIDA)[A-Z0-9]{16}",  # Amazon
    r"AIza[A-Za-z0-9_-]{30,}",  # Google
    r"ya29\.[A-Za-z0-9_-]{20,}",
    r"GOCSPX-[A-Za-z0-9_-]{20,}",
    r"xox[a-z](?:\.xox[a-z])?-[A-Za-z0-9-]{10,}",  # Slack
    r"xapp-[A-Za-z0-9-]{10,}",
    r"hooks\.slack\.com/(?:services|workflows|triggers)/[A-Za-z0-9/_-]{20,}",
    r"discord(?:app)?\.com/api/webhooks/[0-9]+/[A-Za-z0-9_-]{20,}",
    r"[prs]k_(?:live|test)_[A-Za-z0-9]{10,}",  # Stripe
    r"whsec_[A-Za-z0-9+/=]{20,}",
    r"SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}",  # SendGrid
    r"SK[0-9a-f]{32}",  # Twilio
    r"pypi-[A-Za-z0-9_-]{30,}",
    r"do[opr]_v1_[0-9a-f]{40,}",  # DigitalOcean
    r"shp(?:at|ca|pa|ss)_[0-9a-fA-F]{20,}",  # Shopify
    r"dckr_[a-z]{3}_[A-Za-z0-9_-]{20,}",  # Docker
    r"hv[sbr]\.[A-Za-z0-9_-]{20,}",  # Vault
    r"dapi[0-9a-f]{32}",  # Databricks
    r"[0-9]{8,10}:[A-Za-z0-9_-]{35}",  # Telegram
    r"AGE-SECRET-KEY-1[A-Z0-9]{20,}",
)
_NAMED = (
    r"(?i)(?:password|passwd|passphrase|pwd|secret|credentials?|(?:api|access|account|auth|private|secret|shared)[_-]?key"
    r"|(?:access|api|auth|bearer|id|refresh|session)[_-]?token|authorization)"
    r"""\w{0,24}(?:\\?["'`])?\s*(?:=>|:=|=|:)\s*"""
)

_BUILT_IN = (
    ("private_key", r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----(?s:.*?)(?:-----END [A-Z0-9 ]*-----|\z)"),
    ("jwt", r"eyJ[A-Za-z0-9_-]{10,}(?:\.[A-Za-z0-9_-]*){0,4}"),
    ("api_key", "|".join(_KEYS)),
    ("bearer_token", r"(?i)bearer\s+(?P<secret>[A-Za-z0-9._~+/=-]{10,})"),
    ("url_password", r"[A-Za-z][A-Za-z0-9+.-]*://[^\s/:@]*:(?P<secret>[^\s/]+)@"),
    ("password", _NAMED + r"""\\?"(?P<secret>(?:[^"\\\n]|\\[^\n])+)"""),
    ("password", _NAMED + r"""\\?'(?P<secret>(?:[^'\\\n]|\\[^\n])+)"""),
    ("password", _NAMED + r"""(?:(?:bearer|basic|token)\s+)?(?P<secret>[^\s"'`]{4,})"""),
    ("email", r"[\pL\pN._%+'-]+@[\pL\pN-]+(?:\.[\pL\pN-]+)+"),
)


@dataclass(frozen=True, slots=True)
class Rule:
    """Something to hide, and the name that is shown instead."""

    name: str
    pattern: Any
    group: int
    """The group that holds what is hidden; 0 is all that matches."""

    @classmethod
    def compile(cls, name: str, pattern: str) -> "Rule":
        """Make a rule of a regular expression in RE2's syntax, which takes linear time by construction.

        Raises:
            ValueError: the expression is wrong, or finds nothing but emptiness.
        """
        options = re2.Options()
        options.log_errors = False
        try:
            compiled = re2.compile(pattern, options)
        except re2.error as error:
            reason = error.args[0].decode() if isinstance(error.args[0], bytes) else error
            raise ValueError(
                f"{pattern!r} is no regular expression in RE2's syntax, which knows neither lookaround nor "
                f"backreferences: {reason}"
            ) from None
        if compiled.search(""):
            raise ValueError(f"{pattern!r} matches the empty text, and so would hide nothing; ask for a character")
        return cls(name, compiled, compiled.groupindex.get("secret", 0))

    def spans(self, text: str) -> Iterator[tuple[int, int, str]]:
        """Where something is to be hidden."""
        for match in self.pattern.finditer(text):
            start, end = match.span(self.group)
            if start < end:
                yield start, end, self.name


class Redacted(str):
    """Text that holds no secrets any more."""

    __slots__ = ()


class Redactor:
    """Hides what the built-in rules and one's own ones find.

    Args:
        own: regular expressions in RE2's syntax, by name. What a group named ``secret`` holds is hidden, or else all
            that they match.
    """

    def __init__(self, own: Mapping[str, str] | None = None) -> None:
        self._built_in = [Rule.compile(name, pattern) for name, pattern in _BUILT_IN]
        self._own = [Rule.compile(name, pattern) for name, pattern in (own or {}).items()]
        self._any = Rule.compile("", "|".join(f"(?:{pattern})" for _, pattern in _BUILT_IN).replace("?P<secret>", "?:"))

    def redact(self, text: str, limit: int) -> Redacted:
        """The text without secrets, cut after ``limit`` characters; a lone surrogate becomes U+FFFD."""
        window = _SURROGATES.sub("\ufffd", text[: limit + LOOKAHEAD])
        shown, end = [], 0
        for start, stop, name in self._found(window):
            if start >= limit:
                break
            shown += [window[end:start], f"[redacted:{name}]"]
            end = stop
        shown.append(window[end:limit])
        cut = len(text) - max(end, limit)
        return Redacted("".join(shown) + (f"… [{cut} more characters]" if cut > 0 else ""))

    def _found(self, text: str) -> list[tuple[int, int, str]]:
        """What to hide, in order; what overlaps is hidden as one."""
        merged: list[tuple[int, int, str]] = []
        # Most texts hold no secret, and one look tells.
        rules = [*self._built_in, *self._own] if self._any.pattern.search(text) else self._own
        for start, end, name in sorted(span for rule in rules for span in rule.spans(text)):
            if merged and start < merged[-1][1]:
                first, before, known = merged.pop()
                start, end, name = first, max(before, end), known  # noqa: PLW2901 - both become one
            merged.append((start, end, name))
        return merged
