"""Section `phrases` of params.yaml."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from stages.common.runtime.params import Section

Fraction = Annotated[float, Field(ge=0, le=1)]


class WindowParams(Section):
    """Seconds by which a phrase's time is widened."""

    before: Annotated[float, Field(ge=0)]
    after: Annotated[float, Field(ge=0)]


class TraceParams(Section):
    """From the points in a phrase's window to its box."""

    trim_fraction: Annotated[float, Field(ge=0, lt=0.5)]
    min_points: Annotated[int, Field(ge=1)]
    min_side: Annotated[float, Field(gt=0, le=1)]
    max_area: Fraction


class PhrasesParams(Section):
    """How phrases are found in narratives, and what of the trace belongs to them."""

    parser: Literal["pattern", "spacy"]
    spacy_model: str
    window: WindowParams
    box: TraceParams

    def check_references(self, key: str, params: Mapping[str, Any], elsewhere: bool) -> None:
        """Check that spaCy and its model are installed."""
        if self.parser == "spacy" and not elsewhere:
            from stages.phrases.noun_phrases import load_spacy  # it imports this module

            load_spacy(self.spacy_model)
