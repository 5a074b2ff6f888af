"""Whether images have ground truth: a user's own images have none, and metrics then say so."""

from pathlib import Path

# `stages.download` sorts keys, so the file begins with this; gigabytes of JSON need not be parsed.
UNANNOTATED = b'{"annotated": false'
SKIPPED = "no annotations: skipped"


def is_annotated(path: Path) -> bool:
    """Return whether the images of a file of data/download/ground_truth have been annotated.

    Images without annotations are not images without objects: nothing is measured on them.

    Raises:
        FileNotFoundError: the file does not exist.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.absolute()}: no such file; `dvc repro download` makes it")
    with path.open("rb") as file:
        return file.read(len(UNANNOTATED)) != UNANNOTATED
