"""Narratives of the training images, one file per shard of images.

The files have the official format (`stages.common.formats.narratives`), with our image ids, and
their texts are written as those of captions are.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from stages.common.formats.narratives import (
    NAMED_IN_ERROR,
    Narrative,
    NarrativeReader,
    narrative_line,
)
from stages.common.runtime.progress import track
from stages.common.runtime.storage import replace_file
from stages.download.examples import NarrativeFiles, plain

HOME = "google.github.io/localized-narratives"


def write_narratives(path: Path, narratives: Iterable[Narrative]) -> None:
    """Write one narrative per line; the file is empty if there are none."""
    with replace_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(f"{narrative_line(narrative)}\n" for narrative in narratives)


def check_files(source: NarrativeFiles) -> None:
    """Find a missing file before hundreds of gigabytes are copied.

    Raises:
        FileNotFoundError: a file is missing.
    """
    for path in source.paths:
        if not path.is_file():
            raise FileNotFoundError(
                f"{path.absolute()}: not found; {source.key} of params.yaml needs this file of"
                f" Localized Narratives: get it from {HOME}"
            )


def tell_broken(reader: NarrativeReader) -> None:
    """Write on stderr which lines were left out, the first of them."""
    for line in reader.broken[:NAMED_IN_ERROR]:
        print(f"download: narrative left out: {line}", file=sys.stderr)
    if left := len(reader.broken[NAMED_IN_ERROR:]):
        print(f"download: {left} more narratives left out", file=sys.stderr)


def copy_narratives(
    folder: Path,
    written: Mapping[str, Sequence[int]],
    source: NarrativeFiles,
    max_broken_fraction: float,
) -> str:
    """Write a source's narratives of training images; return a sentence with their number.

    One narrative is in memory at a time; the files of all shards are open.

    Args:
        folder: where <name of the image file>.jsonl is written.
        written: name of each shard's image file → ids of its images.
        source: the files to read.
        max_broken_fraction: of lines, in 0..1, above which the files are refused.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: too many lines are broken, or no narrative is of a training image.
    """
    shard_of = {image_id: name for name, ids in written.items() for image_id in ids}
    reader, kept, images, found = NarrativeReader(max_broken_fraction), 0, set(), ""
    with ExitStack() as stack:
        files = {}
        for name in written:
            partial = stack.enter_context(replace_file(folder / f"{name}.jsonl"))
            files[name] = stack.enter_context(partial.open("w", encoding="utf-8"))
        for narrative in track(reader.read(source.paths), "download narratives"):
            found = found or narrative.image_id
            image_id = source.image_id(narrative.image_id)
            if image_id in shard_of:
                spoken = tuple(replace(own, text=plain(own.text)) for own in narrative.utterances)
                own = replace(
                    narrative,
                    image_id=str(image_id),
                    caption=plain(narrative.caption),
                    utterances=spoken,
                )
                files[shard_of[image_id]].write(f"{narrative_line(own)}\n")
                kept += 1
                images.add(image_id)
    tell_broken(reader)
    if not kept:
        raise ValueError(_no_narrative(source, found))
    return (
        f"{kept} of {reader.num_lines} narratives are of {len(images)} of {len(shard_of)} training"
        f" images; {len(reader.broken)} lines were broken"
    )


def _no_narrative(source: NarrativeFiles, found: str) -> str:
    """Return why there is none of a training image; `found` is the first image id, or empty."""
    if not found:
        return f"{source.paths[0]}: has no narrative; write one per line, as {HOME} describes"
    return (
        f"{source.paths[0]}: no narrative is of a training image: the first one's image_id is"
        f" {found!r}, that of a training image would be {source.example!r}; copy the narratives of"
        f" these images there, or correct {source.key} of params.yaml"
    )
