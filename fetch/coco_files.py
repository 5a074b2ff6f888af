"""Names, places and checksums of COCO 2017's files, as they are published.

Source: cocodataset.org/#download; sizes and MD5 as images.cocodataset.org sends them and many
projects pin them.
"""

from dataclasses import dataclass

SERVER = "http://images.cocodataset.org"
PARTS = ("train2017", "val2017")


def annotation_files(train_part: str) -> tuple[str, ...]:
    """Return the files that an experiment with training images of `train_part` reads."""
    names = {f"instances_{train_part}", "instances_val2017", f"captions_{train_part}"}
    return tuple(f"annotations/{name}.json" for name in sorted(names))


@dataclass(frozen=True)
class Archive:
    """A published archive: path on the server, bytes and MD5, and its rough size when unpacked."""

    key: str
    size: int
    md5: str
    unpacked: int


ANNOTATION_ARCHIVE = Archive(
    "annotations/annotations_trainval2017.zip",
    252_907_541,
    "f4bbac642086de4f52a3fdda2de5fa2c",
    560_000_000,  # the three files above
)
IMAGE_ARCHIVES = {
    "train2017": Archive(
        "zips/train2017.zip", 19_336_861_798, "cced6f7f71b7629ddf16f17bbcfab6b2", 19_400_000_000
    ),
    "val2017": Archive(
        "zips/val2017.zip", 815_585_330, "442b8da7639aecaf257c1dceb8ba8c80", 820_000_000
    ),
}
