"""The ground truth of a split as a COCO instances file, written in constant memory.

The entries of each image wait on disk, in one file per image shard, until the shards are merged in
the order of image ids. The bytes are those of `storage.write_json` with `indent=None`.
"""

import heapq
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from stages.common.runtime.storage import replace_file
from stages.download.examples import Example, Source

IMAGE_FACTS = ("file_name", "height", "width")


def dump(content: Any) -> str:
    """Return compact JSON with sorted keys."""
    return json.dumps(content, sort_keys=True, allow_nan=False, ensure_ascii=False)


class GroundTruth:
    """Collects the examples of a split; within a shard they must come in the order of image ids."""

    def __init__(self, scratch: Path) -> None:
        """Keep waiting entries in the empty folder `scratch`."""
        self._scratch = scratch
        self._spools: list[Path] = []

    def collect(self, examples: Iterable[Example]) -> Iterator[Example]:
        """Yield the examples of one shard again, and note their ground truth."""
        spool = self._scratch / f"{len(self._spools)}.jsonl"
        self._spools.append(spool)
        with spool.open("w", encoding="utf-8") as file:
            for example in examples:
                image = example.image
                entry: dict[str, Any] = {"id": image.image_id}
                entry |= {fact: getattr(image, fact) for fact in IMAGE_FACTS}
                if example.verified is not None:
                    entry["verified_category_ids"] = sorted(example.verified)
                file.write(dump([entry, example.annotations]) + "\n")
                yield example

    def write(self, path: Path, source: Source) -> None:
        """Write a COCO instances file in the order of image ids.

        Annotations without id get their number, from 1. The file has keys that COCO does not have:
        `annotated`, false if nobody has annotated the images; `verified_category_ids` of an image,
        the classes known to be present or absent; `ancestors` of a category, the ids of all classes
        that include it.
        """
        categories = []
        for category in source.categories:
            entry = {"id": category.id, "name": category.name, "split": category.split}
            if category.id in source.ancestors:
                entry["ancestors"] = sorted(source.ancestors[category.id])
            categories.append(entry)
        with replace_file(path) as partial, partial.open("w", encoding="utf-8") as file:
            file.write("{" if source.annotated else '{"annotated": false, ')
            file.write('"annotations": [')
            self._write_items(file.write, self._annotations())
            file.write(f'], "categories": {dump(categories)}, "images": [')
            self._write_items(file.write, (image for image, _ in self._merged()))
            file.write("]}\n")

    def _merged(self) -> Iterator[list]:
        with ExitStack() as stack:
            files = [stack.enter_context(spool.open(encoding="utf-8")) for spool in self._spools]
            lines = [map(json.loads, file) for file in files]
            yield from heapq.merge(*lines, key=lambda entry: entry[0]["id"])

    def _annotations(self) -> Iterator[dict]:
        annotations = (annotation for _, group in self._merged() for annotation in group)
        for number, annotation in enumerate(annotations, 1):
            yield {"id": number, **annotation}

    @staticmethod
    def _write_items(write: Callable[[str], Any], items: Iterable[dict]) -> None:
        for place, item in enumerate(items):
            write(f"{', ' if place else ''}{dump(item)}")
