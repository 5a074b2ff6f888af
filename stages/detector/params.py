"""The `detector` section of params.yaml."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from stages.common.runtime.params import PARAMS_FILE
from stages.models.detection.params import (
    Aspect,
    SourceParams,
    StartParams,
    SupervisionParams,
    check_sources,
)

TRUTH = "data/download/ground_truth/train.json"
# Source → its annotations, and the classes of which the detector may see objects.
ANNOTATIONS = {
    "pseudo_masks": ("data/pseudo_labels/pseudo_annotations.json", ("all",)),
    "phrases": ("data/phrase_labels/annotations.json", ("novel", "all")),
    "base_masks": (TRUTH, ("base",)),
    "novel_boxes": (TRUTH, ("novel",)),
    "novel_masks": (TRUTH, ("novel",)),
}
BOXES_ALONE = ("phrases", "novel_boxes")


class DetectorSourceParams(SourceParams):
    """A source, its annotation file, and the classes of which it has objects."""

    annotations: str
    classes: Literal["base", "novel", "all"]

    @model_validator(mode="after")
    def _is_what_its_name_says(self) -> "DetectorSourceParams":
        if self.name not in ANNOTATIONS:
            raise ValueError(f"name: expected one of {', '.join(ANNOTATIONS)}, found {self.name!r}")
        path, classes = ANNOTATIONS[self.name]
        if self.annotations != path or self.classes not in classes:
            raise ValueError(
                f"{self.name}: expected annotations {path} and classes {' or '.join(classes)},"
                f" found {self.annotations!r} and {self.classes}"
            )
        if self.name in BOXES_ALONE and "mask" in self.teaches:
            raise ValueError(f"{self.name}: has boxes and no masks; leave mask out of teaches")
        return self


class DetectorSupervisionParams(SupervisionParams):
    """The sources that the detector learns from."""

    sources: list[DetectorSourceParams] = Field(min_length=1)

    def taught_splits(self) -> set[str]:
        """Return the splits, base or novel, of whose classes any source has objects."""
        splits = {source.classes for source in self.sources}
        return {"base", "novel"} if "all" in splits else set(splits)

    @model_validator(mode="after")
    def _sources_make_sense_together(self) -> "DetectorSupervisionParams":
        for aspect in ("class", "box", "mask"):
            if not any(source.teaches.get(aspect) for source in self.sources):
                raise ValueError(f"sources: none teaches a {aspect}, but every detection has one")
        if {"novel_boxes", "novel_masks"} <= {source.name for source in self.sources}:
            raise ValueError("sources: novel_masks has the boxes of novel_boxes too; take one")
        return self


# Of the option `--annotations`: every object teaches all of itself, whatever the section's sources.
GIVEN = SupervisionParams(
    draw="together",
    sources=[
        SourceParams(
            name="annotations",
            fraction=1,
            teaches=dict.fromkeys(get_args(Aspect), 1),
            weigh_by_score=False,
            box_grids=[],
            negatives="all",
        )
    ],
)


def _check_narratives(key: str, download: Any, elsewhere: bool) -> None:
    """Raise ValueError if the images' source can have narratives, but none will be read."""
    name = download.get("source") if isinstance(download, dict) else None
    source = download.get(name) if name else None
    if isinstance(source, dict) and source.get("narratives") is False:
        raise ValueError(
            f"{PARAMS_FILE}: download.{name}.narratives: is false, but phrases in"
            f" {key}.supervision.sources are made of narratives; set it to true, or remove phrases"
        )
    if name == "folder" and isinstance(source, dict) and not elsewhere:
        folder = Path(str(source.get("path"))).expanduser()
        if folder.is_dir() and not (folder / "narratives.jsonl").is_file():
            raise ValueError(
                f"{PARAMS_FILE}: {folder.absolute()} has no narratives.jsonl, but phrases in"
                f" {key}.supervision.sources are made of it; put it there, or remove phrases"
            )


class DetectorParams(StartParams):
    """The network, the initial weights of its backbone, its supervision and its training."""

    region_head: str | None
    supervision: DetectorSupervisionParams

    def check_references(self, key: str, params: Mapping[str, Any], elsewhere: bool) -> None:
        """Check too that there are narratives for phrases, and the modules of region hooks."""
        super().check_references(key, params, elsewhere)
        if "phrases" in {source.name for source in self.supervision.sources}:
            _check_narratives(key, params.get("download"), elsewhere)
        if self.training.region_losses or self.region_head is not None:
            from stages.models.detection.region_hooks import check_hooks  # imports torch

            check_hooks(self, key)

    @model_validator(mode="after")
    def _region_head_fits_the_network(self) -> "DetectorParams":
        if self.region_head is not None and "region_hooks" not in self.network.supports:
            raise ValueError("region_head: this architecture takes none; set it to null")
        return self

    @model_validator(mode="after")
    def _network_can_learn_it(self) -> "DetectorParams":
        check_sources(self.supervision, self.network)
        return self
