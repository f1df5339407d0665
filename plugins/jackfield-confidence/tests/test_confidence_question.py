"""What of a request counts as the question."""

import pytest

from jackfield_confidence.question import REMEMBERED, Question, Questions


def asked(content: object, words: int = 40) -> frozenset[str]:
    return Question.of(
        {"messages": [{"role": "system", "content": "Be kind"}, {"role": "user", "content": content}]}, words
    ).words


def test_the_last_thing_the_user_says():
    assert asked("Which colour has SNOW?") == {"which", "colour", "has", "snow"}
    assert asked([{"type": "text", "text": "Red"}, {"type": "text", "text": "or blue?"}]) == {"red", "or", "blue"}


def test_a_prompt_without_messages():
    assert Question.of({"prompt": "Say hi"}, 40).words == {"say", "hi"}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": []},
        {"messages": ["?"]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": [{"type": "text"}, 7]}]},
        {"messages": [{"role": "tool", "content": "42"}]},
        {"prompt": [1, 2, 3]},
    ],
)
def test_requests_without_a_question(body):
    assert Question.of(body, 40) == Question()


def test_long_questions_are_not_looked_at():
    assert asked("one two three", 3) == {"one", "two", "three"}
    assert asked("one two three four", 3) == frozenset()
    assert asked("one", 0) == frozenset()
    assert asked("o" * 100_000) == frozenset()


def test_questions_are_kept_by_request_until_they_are_forgotten():
    questions = Questions()
    questions.remember("a", Question(frozenset({"one"})))
    assert questions.of("a").words == {"one"}
    questions.forget("a")
    questions.forget("a")
    assert questions.of("a") == Question()


def test_no_more_than_so_many_are_kept():
    questions = Questions()
    for number in range(REMEMBERED + 1):
        questions.remember(str(number), Question(frozenset({"one"})))
    assert questions.of("0") == Question()
    assert questions.of("1") != Question()
