"""Whether there is ground truth: a user's own images have none, and metrics then say so."""

from pathlib import Path

# `stages.download` writes sorted keys, so this comes first: a file of gigabytes need not be parsed.
UNANNOTATED = b'{"annotated": false'
SKIPPED = "no annotations: skipped"


def is_annotated(path: Path) -> bool:
    """Return whether anybody has annotated the images of a file of data/download/ground_truth.

    Without annotations is not the same as without objects: nothing is measured on it.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.absolute()}: no such file; `dvc repro download` makes it")
    with path.open("rb") as file:
        return file.read(len(UNANNOTATED)) != UNANNOTATED
