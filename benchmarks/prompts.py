"""What is asked: text of a wished length that nobody has seen before."""

import random
from dataclasses import dataclass

# Short everyday words, each one token in the usual vocabularies.
WORDS = """
time year people way day man thing woman life child world school state family student group country problem hand part
place case week company system program question work government number night point home water room mother area money
story fact month lot right study book eye job word business issue side kind head house service friend father power hour
game line end member law car city community name president team minute idea body information back parent face level
office door health person art war history party result change morning reason research girl guy moment air teacher force
""".split()  # noqa: SIM905
INSTRUCTION = "\n\nTell a very long story in which every one of these words has its place, and do not stop."


@dataclass(frozen=True)
class Prompts:
    """Prompts of a wished length that begin differently every time, so that no prefix cache can help."""

    seed: str
    overhead: int = 0
    """Tokens that the model's chat template and the instruction add."""

    def of(self, tokens: int, client: int = 0) -> str:
        """A prompt of about so many tokens; the same one again for the same seed and client."""
        return self.words(max(1, tokens - self.overhead), f"{tokens} {client}") + INSTRUCTION

    def words(self, count: int, which: str = "") -> str:
        """So many words, which are about as many tokens; the same ones again for the same seed and ``which``."""
        chosen = random.Random(f"{self.seed} {which}")  # noqa: S311
        return " ".join(chosen.choices(WORDS, k=count))
