"""What can be set in ``[plugins.confidence]``."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0, le=1)]


class Settings(BaseModel):
    """Where the words begin, and when somebody is told."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    high: Share = 0.6
    """Scores from here on are called ``high``."""
    low: Share = 0.3
    """Scores below are called ``low``; all between are ``medium``."""
    event_below: Share = 0.1
    """Scores below are told as the event ``low_confidence``; 0 for no events."""
    question_words: Annotated[int, Field(ge=0, le=500)] = 40
    """Answers are compared with questions of up to so many words; 0 for never: see the README on ``echo``."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low ({self.low:g}) must not be above high ({self.high:g})")
        return self

    def label(self, score: float) -> str:
        """A score in a word."""
        if score >= self.high:
            return "high"
        return "low" if score < self.low else "medium"
