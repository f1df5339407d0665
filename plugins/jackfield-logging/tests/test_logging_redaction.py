"""No secret that a rule knows survives, wherever it stands."""

import string

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jackfield_logging.redaction import Redactor

UNHURRIED = settings(deadline=None)
ALNUM = string.ascii_letters + string.digits
HEX = "0123456789abcdef"


def _of(alphabet: str, length: int) -> st.SearchStrategy[str]:
    return st.text(alphabet, min_size=length, max_size=length)


def _key(prefix: str, length: int, alphabet: str = ALNUM) -> st.SearchStrategy[str]:
    return _of(alphabet, length).map(lambda body: prefix + body)


# Shapes and lengths as their issuers document them: GitHub, GitLab, AWS, Google, Slack, Stripe, OpenAI and others.
KEYS = st.one_of(
    _key("sk-", 48),
    _key("sk-proj-", 156, ALNUM + "_-"),
    _key("sk-ant-api03-", 95, ALNUM + "_-"),
    _key("sk-or-v1-", 64, HEX),
    _key("xai-", 80),
    _key("gsk_", 52),
    _key("hf_", 34, string.ascii_letters),
    _key("r8_", 37),
    _key("npm_", 36),
    _key("ghp_", 36),
    _key("ghs_", 36),
    _key("github_pat_", 82, ALNUM + "_"),
    _key("glpat-", 20, ALNUM + "_-"),
    _key("AKIA", 16, string.ascii_uppercase + "234567"),
    _key("ASIA", 16, string.ascii_uppercase + "234567"),
    _key("AIza", 35, ALNUM + "_-"),
    _key("xoxb-", 50, string.digits + "-"),
    _key("sk_live_", 24),
    _key("rk_test_", 24),
    _key("whsec_", 32),
    _key("SK", 32, HEX),
    _key("dop_v1_", 64, HEX),
    _key("shpat_", 32, HEX),
    _key("hvs.", 90, ALNUM + "_-"),
    _key("dapi", 32, HEX),
    _key("pypi-AgEIcHlwaS5vcmc", 150, ALNUM + "_-"),
    st.tuples(_of(ALNUM, 22), _of(ALNUM, 43)).map(lambda parts: f"SG.{parts[0]}.{parts[1]}"),
    st.tuples(_of(string.digits, 10), _of(ALNUM, 35)).map(":".join),
)
BASE64URL = st.text(ALNUM + "_-", min_size=20, max_size=200)
JWTS = st.tuples(BASE64URL, BASE64URL, BASE64URL).map(lambda parts: f"eyJ{parts[0]}.eyJ{parts[1]}.{parts[2]}")
PRIVATE_KEYS = st.tuples(
    st.sampled_from(["RSA ", "EC ", "OPENSSH ", "ENCRYPTED ", ""]), st.text(ALNUM + "+/=\n", min_size=64, max_size=2500)
).map(lambda parts: f"-----BEGIN {parts[0]}PRIVATE KEY-----\n{parts[1]}\n-----END {parts[0]}PRIVATE KEY-----")
WORD = st.text(ALNUM, min_size=3, max_size=20)
EMAILS = st.tuples(
    WORD, st.sampled_from(["", ".b", "+tag", "_c"]), WORD, st.sampled_from(["com", "co.uk", "museum"])
).map(lambda parts: f"{parts[0]}{parts[1]}@{parts[2]}.{parts[3]}")
SECRETS = st.one_of(KEYS, JWTS, PRIVATE_KEYS, EMAILS)
PASSWORDS = st.text(ALNUM + "!#$%&*+.:=?^_~@-", min_size=8, max_size=60)
LETTERS = st.text(max_size=300)
"""Whatever may stand around a secret."""


@UNHURRIED
@given(before=LETTERS, secret=SECRETS, after=LETTERS)
@example(before="x\\n", secret="sk-" + "a" * 48, after="")
@example(before="\x1b[31m", secret="ghp_" + "a" * 36, after="\x1b[0m")
@example(before="ada@example.com", secret="bob@example.com", after="")
def test_no_secret_survives(before: str, secret: str, after: str) -> None:
    assert secret not in Redactor().redact(before + secret + after, 10_000)


@UNHURRIED
@given(before=LETTERS, secret=st.one_of(KEYS, JWTS, PRIVATE_KEYS), after=LETTERS, data=st.data())
def test_no_half_of_a_secret_survives_a_cut(before: str, secret: str, after: str, data: st.DataObject) -> None:
    limit = len(before) + data.draw(st.integers(1, len(secret)))
    shown = Redactor().redact(before + secret + after, limit)
    assert secret[: limit - len(before)] not in shown[len(before) :] or limit - len(before) <= _public(secret)


@pytest.mark.parametrize("secret", ["ghp_" + "a1" * 18, "ada.lovelace@example.com"])
def test_a_secret_is_hidden_wherever_the_cut_is(secret: str) -> None:
    for limit in range(7, 6 + len(secret)):
        assert (
            Redactor().redact(f"It is {secret}.", limit) == f"It is [redacted:{RULES[secret[:3]]}]… [1 more characters]"
        )


RULES = {"ghp": "api_key", "ada": "email"}


def _public(secret: str) -> int:
    """What says only which kind of secret it is: its prefix, or a private key's first line."""
    return secret.index("\n") + 1 if "\n" in secret[:64] else 4


@UNHURRIED
@given(
    before=LETTERS,
    user=st.text(ALNUM, max_size=10),
    password=PASSWORDS,
    scheme=st.sampled_from(["https", "postgresql", "redis", "mongodb+srv", "amqp"]),
)
def test_no_password_in_a_url_survives(before: str, user: str, password: str, scheme: str) -> None:
    text = f"{before} {scheme}://{user}:{password}@db.example.com:5432/app"
    assert f":{password}@" not in Redactor().redact(text, 10_000)


@UNHURRIED
@given(
    name=st.sampled_from(
        [
            "password",
            "DB_PASSWORD",
            "api_key",
            "apiKey",
            "X-API-Key",
            "client_secret",
            "AWS_SECRET_ACCESS_KEY",
            "passwd",
        ]
    ),
    sign=st.sampled_from(["=", ": ", " = ", " := ", " => "]),
    quote=st.sampled_from(['"', "'", ""]),
    password=PASSWORDS,
)
def test_no_value_that_is_named_a_secret_survives(name: str, sign: str, quote: str, password: str) -> None:
    quoted_name = f'"{name}"' if quote == '"' else name
    assert password not in Redactor().redact(f"{{{quoted_name}{sign}{quote}{password}{quote}}}", 10_000)


@UNHURRIED
@given(
    secret=st.text(ALNUM + "-._~+/", min_size=10, max_size=100), scheme=st.sampled_from(["Bearer", "bearer", "BEARER"])
)
def test_no_bearer_token_survives(secret: str, scheme: str) -> None:
    for text in (f"{scheme} {secret}", f"Authorization: {scheme} {secret}", f'"authorization": "{scheme} {secret}"'):
        assert secret not in Redactor().redact(text, 10_000)


def test_a_quoted_password_is_hidden_to_its_end() -> None:
    assert (
        Redactor().redact('password = "two words \\" and more", n=1', 1000) == 'password = "[redacted:password]", n=1'
    )


def test_a_secret_within_a_secret_ends_nothing_early() -> None:
    text = "-----BEGIN PGP PRIVATE KEY BLOCK-----\nada@example.com\nxcLYBF\n-----END PGP PRIVATE KEY BLOCK-----."
    assert Redactor().redact(text, 1000) == "[redacted:private_key]."


def test_an_unfinished_private_key_is_hidden_to_the_end() -> None:
    text = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBg"
    assert Redactor().redact(f"Look: {text}", 1000) == "Look: [redacted:private_key]"


@pytest.mark.parametrize(
    "text",
    [
        "def decode(tokens: list[int], max_tokens: int = 256) -> str:",
        "A task-specific-fine-tuning-of-large-language-models is on the disk-cache-of-this-machine.",
        "See https://example.com:8080/a/b?c=d#e and ratio 3:2 at 10:30.",
        "tokens = tokenizer.encode(text)  # about 12 tokens a line",
        "req_1790000000_0badcafe, 2026-11-22T22:17:53.123Z, 127.0.0.1:8080",
        "SmolLM2-135M-Instruct, mlx-community/Qwen2.5-Coder-32B-Instruct-4bit",
        "@dataclass @property user @ home",
    ],
)
def test_what_is_no_secret_is_left_alone(text: str) -> None:
    assert Redactor().redact(text, 1000) == text


@UNHURRIED
@given(text=st.text(ALNUM + " .,;\n", max_size=500), limit=st.integers(1, 600))
def test_a_cut_says_how_much_is_left_out(text: str, limit: int) -> None:
    shown = Redactor().redact(text, limit)
    if len(text) <= limit:
        assert "more characters]" not in shown
    else:
        assert shown.endswith(f"… [{len(text) - limit} more characters]")


def test_own_rules_hide_all_they_match_or_their_group_named_secret() -> None:
    redactor = Redactor({"staff": r"EMP-\d{6}", "door": r"door (?P<secret>\d{4})"})
    assert redactor.redact("EMP-123456 at door 1234", 1000) == "[redacted:staff] at door [redacted:door]"


def test_own_rules_cannot_take_for_ever() -> None:
    """Any engine that backtracks would need longer than there are years for this one."""
    text = "a" * 20_000 + "!"
    assert Redactor({"evil": r"(a+)+$"}).redact(text, 100_000) == text


def test_half_a_surrogate_pair_costs_nobody_the_rest() -> None:
    assert Redactor().redact("\ud800 ada@example.com \udfff", 1000) == "\ufffd [redacted:email] \ufffd"
