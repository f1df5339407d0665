# ruff: noqa: D103, T201
"""Have the starter answer all questions, and write down what it said and how sure it was of every token.

python evaluation/generate.py answers.jsonl.gz             1402 answers: 13 minutes on two busy cores
python evaluation/generate.py fresh.jsonl.gz --fresh       456 others: 3 minutes

One half of the questions is asked as it is, which mostly gets a sentence, the other after two short answers, which gets
short ones. Answers are greedy; ``--temperature 0.7`` draws them instead. One line an answer: kind, question, style, the
text, whether it was right, how it ended, and for each token the log probability, the exact entropy and the log
probabilities of the 20 most likely ones.
"""

import argparse
import gzip
import json
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs
from questions import Question, fresh_questions, questions

from jackfield.models.device import detect_device, import_mlx_lm, load_blas

BLAS = load_blas()  # before MLX is imported
import_mlx_lm()

import mlx.core as mx  # noqa: E402

from jackfield.engine.memory import MemoryGuard  # noqa: E402
from jackfield.engine.pace import PrefillPace  # noqa: E402
from jackfield.engine.prefix_cache import PrefixCache  # noqa: E402
from jackfield.engine.request import (  # noqa: E402
    FinishEvent,
    GenerationRequest,
    SamplingParameters,
    TokenEvent,
)
from jackfield.engine.runner import Runner  # noqa: E402
from jackfield.engine.scheduler import Scheduler  # noqa: E402
from jackfield.models import cpu  # noqa: E402
from jackfield.models.loading import load_network  # noqa: E402
from jackfield.models.sources import resolve  # noqa: E402
from jackfield.models.tokenizer import Tokenizer  # noqa: E402

MAX_TOKENS = 32
BATCH = 32
TOP = 20
DIGITS = 4
STYLES: dict[str, list[dict[str, str]]] = {
    "sentence": [],
    "word": [
        {"role": "user", "content": "Which colour is a ripe banana?"},
        {"role": "assistant", "content": "Yellow"},
        {"role": "user", "content": "Who painted the Mona Lisa?"},
        {"role": "assistant", "content": "Leonardo da Vinci"},
    ],
}
"""What stands before the question. The starter does not heed the wish for a short answer, but imitates short ones."""


@dataclass
class Answer:
    """One generation as it grows."""

    question: Question
    style: str
    tokens: list[TokenEvent] = field(default_factory=list)
    shapes: list[mx.array] = field(default_factory=list)
    """Of each distribution: entropy, mean log probability over the vocabulary, log of the sum of exp(logits)."""
    finish: str = ""

    def watch(self, tokens: tuple[int, ...], logits: mx.array) -> mx.array:
        """A logits processor that changes nothing, and takes down what the engine does not tell yet."""
        values = logits.astype(mx.float32)
        total = mx.logsumexp(values)
        entropy = total - mx.sum(mx.exp(values - total) * values)
        shape = mx.stack([entropy, mx.mean(values) - total, total])
        mx.eval(shape)
        self.shapes.append(shape)
        return logits

    def line(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """For the file."""
        ends = self.finish == "stop"
        text = tokenizer.decode([token.id for token in (self.tokens[:-1] if ends else self.tokens)])
        return {
            "kind": self.question.kind,
            "question": self.question.text,
            "style": self.style,
            "text": text,
            "correct": self.question.grade(text, self.question.answers),
            "finish": self.finish,
            "ids": [token.id for token in self.tokens],
            "logprob": [round(token.logprob or 0, DIGITS) for token in self.tokens],
            "top": [[round(logprob, DIGITS) for _, logprob in token.top] for token in self.tokens],
            "shape": [[round(value, DIGITS) for value in shape.tolist()] for shape in self.shapes[: len(self.tokens)]],
        }


def asked(
    questions: Sequence[Question], tokenizer: Tokenizer, temperature: float
) -> Iterator[tuple[Answer, GenerationRequest]]:
    """A generation for each question, in this style and that by turns."""
    for number, question in enumerate(questions):
        style = list(STYLES)[number % len(STYLES)]
        prompt = tokenizer.render([*STYLES[style], {"role": "user", "content": question.text}], [], {})
        answer = Answer(question, style)
        yield (
            answer,
            GenerationRequest(
                str(number),
                tuple(tokenizer.encode(prompt, special=False)),
                MAX_TOKENS,
                SamplingParameters(temperature=temperature, seed=number),
                stop_tokens=tokenizer.end_tokens,
                top_logprobs=TOP,
                processors=(answer.watch,),
            ),
        )


def generate(engine: Scheduler, work: Iterable[tuple[Answer, GenerationRequest]]) -> Iterator[Answer]:
    """The answers as they end."""
    pending = list(work)
    running: dict[str, Answer] = {}
    while pending or running:
        while pending and len(running) < BATCH:
            answer, request = pending.pop()
            running[request.id] = answer
            engine.submit(request)
        for name, event in engine.step():
            if isinstance(event, TokenEvent):
                running[name].tokens.append(event)
            elif isinstance(event, FinishEvent):
                running[name].finish = event.reason
                yield running.pop(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--temperature", type=float, default=0)
    parser.add_argument("--fresh", action="store_true", help="other questions than those of the default weights")
    parser.add_argument("--every", type=int, default=1, help="only every so manieth question")
    options = parser.parse_args()
    folder = resolve("starter", cache=Path(platformdirs.user_cache_dir("jackfield")))
    tokenizer = Tokenizer(folder)
    runner = Runner(load_network(folder, detect_device(BLAS), prepare=cpu.prepare).model)
    engine = Scheduler(
        runner, PrefixCache(1 << 30), BATCH, MemoryGuard(1 << 62), PrefillPace(smallest=512, smallest_shared=512)
    )
    chosen = (fresh_questions() if options.fresh else questions())[:: options.every]
    deque(generate(engine, asked(chosen[: len(STYLES)], tokenizer, 0)), maxlen=0)  # what stands before is cached now
    began, count = time.monotonic(), 0
    with gzip.open(options.file, "wt") as file:
        for answer in generate(engine, asked(chosen, tokenizer, options.temperature)):
            print(json.dumps(answer.line(tokenizer)), file=file)
            count += 1
    print(f"{count} answers in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
