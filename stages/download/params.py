"""The `download` section of params.yaml: where images come from, and how many."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from stages.common.runtime.params import PARAMS_FILE, Section

Fraction = Annotated[float, Field(ge=0, le=1)]


class NumImages(Section):
    """How many scenes of each split to draw."""

    pairs: NonNegativeInt
    train: PositiveInt
    val: NonNegativeInt
    test: PositiveInt


class AnnotatorParams(Section):
    """How the simulated annotator describes scenes and points at objects."""

    words_per_second: Annotated[float, Field(gt=0)]
    points_per_second: Annotated[float, Field(gt=0)]
    loops_per_second: Annotated[float, Field(gt=0)]
    lag: Annotated[float, Field(ge=0)]
    lag_deviation: Annotated[float, Field(ge=0)]
    reach: Annotated[float, Field(gt=0)]
    reach_deviation: Annotated[float, Field(ge=0)]
    drift: Annotated[float, Field(ge=0)]
    jitter: Annotated[float, Field(ge=0)]
    wrong_object_fraction: Fraction
    noise: Annotated[float, Field(ge=0)]


class ScenesParams(Section):
    """Drawn scenes."""

    num_images: NumImages
    scene_side: Annotated[int, Field(ge=32, le=1024)]
    pair_side: Annotated[int, Field(ge=32, le=1024)]
    captions_per_image: PositiveInt
    synonym_fraction: Fraction
    omission_fraction: Fraction
    jpeg_quality: Annotated[int, Field(ge=1, le=100)]
    class_split: Annotated[int, Field(ge=0, le=16)]
    annotator: AnnotatorParams


class MaxImagesWithoutVal(Section):
    """The largest number of images per split; null takes all."""

    pairs: NonNegativeInt | None
    train: PositiveInt | None
    test: PositiveInt | None


class MaxImages(MaxImagesWithoutVal):
    """The same for sources with a `val` split."""

    val: NonNegativeInt | None


class CocoParams(Section):
    """A folder with the layout of COCO 2017."""

    folder: str
    train_part: Literal["train2017", "val2017"]
    test_fraction: Annotated[float, Field(gt=0, lt=1)]
    val_fraction: Annotated[float, Field(ge=0, lt=1)]
    narratives: bool
    max_images: MaxImages


class OpenImagesParams(Section):
    """A folder with the files of Open Images V7."""

    folder: str
    test_part: Literal["validation", "test"]
    division: Literal["frequency", "coco"]
    val_fraction: Annotated[float, Field(ge=0, lt=1)]
    narratives: bool
    max_images: MaxImages


class FolderParams(Section):
    """A user's own images."""

    path: str
    max_images: MaxImagesWithoutVal


class DownloadParams(Section):
    """The source of data, the size of a shard, and how much data may be missing."""

    source: Literal["scenes", "coco", "open_images", "folder"]
    shard_images: PositiveInt
    max_skipped_fraction: Fraction
    max_leaked_fraction: Fraction
    max_unmatched_fraction: Fraction
    max_missing_class_fraction: Fraction
    scenes: ScenesParams
    coco: CocoParams
    open_images: OpenImagesParams
    folder: FolderParams

    def check_references(self, key: str, params: Mapping[str, Any], elsewhere: bool) -> None:
        """Check that the source's folder is there; stage `download` checks what is in it."""
        if self.source == "scenes" or elsewhere:
            return
        last, folder = {
            "coco": ("coco.folder", self.coco.folder),
            "open_images": ("open_images.folder", self.open_images.folder),
            "folder": ("folder.path", self.folder.path),
        }[self.source]
        if not (path := Path(folder).expanduser()).is_dir():
            own = self.source == "folder"
            fix = "write where your images are" if own else "`make fetch` fetches it"
            raise FileNotFoundError(
                f"{PARAMS_FILE}: {key}.{last}: {path.absolute()} is no folder; {fix}"
            )
