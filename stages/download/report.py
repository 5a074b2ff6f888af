"""What was written, what was left out and why, and whether that is acceptable.

The report names the images that were left out and the classes. It is made twice: from the tables,
before images are read, and from the images.
"""

import textwrap
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from stages.common.formats.captions import MentionFinder
from stages.download.examples import (
    CAPTIONED,
    NEITHER,
    NO_AREA,
    NO_CAPTION,
    NO_FILE,
    SPLITS,
    WRONG_BOX,
    Leaked,
    Listed,
    Skipped,
    Source,
)
from stages.download.params import DownloadParams

NAMED_IN_ERROR = 3  # images that a message names; the report names all
SHOWN = 80  # characters of a caption
NAMED_IN_REPORT = 10  # ignored files and unusable annotations that the report names
COPY_AGAIN = "Copy broken files again from their source"
ADVICE = {  # reason → what helps
    NO_CAPTION: "Write captions for these images, or move them out of the training images",
    NO_FILE: "Correct the names of these files where they are given, or put the files there",
}
LARGEST_UNUSABLE = 0.05  # fraction of a file's annotations; `finetune` has the same limit


@dataclass
class SplitReport:
    """Counts of one split."""

    finder: MentionFinder
    skipped: list[Skipped] = field(default_factory=list)
    leaked: list[Leaked] = field(default_factory=list)
    num_images: int = 0
    num_captions: int = 0
    num_unmatched_captions: int = 0
    unmatched: list[dict[str, str]] = field(default_factory=list)
    mentions: Counter = field(default_factory=Counter)
    objects: Counter = field(default_factory=Counter)

    def add(self, outcome: Listed | Skipped | Leaked) -> None:
        """Count one image, written or left out."""
        if isinstance(outcome, Skipped):
            self.skipped.append(outcome)
            return
        if isinstance(outcome, Leaked):
            self.leaked.append(outcome)
            return
        self.num_images += 1
        self.objects.update(outcome.category_ids)
        named = [self.finder.classes([caption]) for caption in outcome.captions]
        self.num_captions += len(named)
        self.num_unmatched_captions += sum(not classes for classes in named)
        self.mentions.update(set().union(*named))
        if named and not any(named):
            caption = textwrap.shorten(outcome.captions[0], SHOWN, placeholder=" …")
            self.unmatched.append({"file_name": outcome.file_name, "caption": caption})


def empty_reports(source: Source) -> dict[str, SplitReport]:
    """Return an empty report for each split."""
    finder = MentionFinder(source.categories)
    return {split: SplitReport(finder) for split in SPLITS}


def summarise(splits: dict[str, SplitReport], source: Source) -> dict:
    """Return the content of report.json.

    Only base and novel classes are counted. `mentioned_in_images` is the number of images whose
    captions name the class, `objects` that of annotations, crowds included. Some keys exist only
    when needed: `objects` if the source has annotations, `leaked` if a training image equals a
    held-out one, `unusable_annotations` and `ignored_files` if there are any.
    """
    scored = [category for category in source.categories if category.split != "excluded"]
    report: dict[str, Any] = {
        "splits": {
            name: {
                "images": split.num_images,
                "skipped": [vars(skipped) for skipped in split.skipped],
                "captions": split.num_captions,
                "captions_without_class": split.num_unmatched_captions,
                "images_without_class_in_captions": split.unmatched,
                "mentioned_in_images": {c.name: split.mentions[c.id] for c in scored},
            }
            for name, split in splits.items()
        },
        "classes_without_caption_in_train": [
            c.name for c in scored if not splits["train"].mentions[c.id]
        ],
    }
    for name, split in splits.items():
        if split.leaked:
            report["splits"][name]["leaked"] = [vars(leaked) for leaked in split.leaked]
    if source.ignored:
        report["ignored_files"] = {
            folder: {"number": len(names), "first": list(names[:NAMED_IN_REPORT])}
            for folder, names in source.ignored.items()
        }
    if unusable := {name: file for name, file in source.files.items() if file.unusable}:
        report["unusable_annotations"] = {
            name: {
                "annotations": file.number,
                "unusable": {
                    reason: {"number": len(ids), "first": list(ids[:NAMED_IN_REPORT])}
                    for reason, ids in file.unusable.items()
                },
            }
            for name, file in unusable.items()
        }
    if source.annotated:
        for name, split in splits.items():
            report["splits"][name]["objects"] = {c.name: split.objects[c.id] for c in scored}
        report["classes_without_object_in_test"] = [
            c.name for c in scored if not splits["test"].objects[c.id]
        ]
    return report


def notices(report: dict) -> list[str]:
    """Return a line for each kind of omission."""
    lines = []
    for folder, ignored in report.get("ignored_files", {}).items():
        first = ", ".join(ignored["first"][:NAMED_IN_ERROR])
        more = ", …" if ignored["number"] > NAMED_IN_ERROR else ""
        lines.append(
            f"{folder}/: {ignored['number']} files are hidden or no images and were ignored:"
            f" {first}{more}"
        )
    for name, file in report.get("unusable_annotations", {}).items():
        lines += [f"{name}: {_tell(reason, found)}" for reason, found in file["unusable"].items()]
    for name, split in report["splits"].items():
        for kind, what in (
            ("skipped", "skipped"),
            ("leaked", "left out because they equal held-out images"),
        ):
            if number := len(split.get(kind, [])):
                lines.append(f"{name}: {number} images were {what}")
    return lines


def find_problems(report: dict, params: DownloadParams) -> list[str]:
    """Return a message for each limit that the report exceeds."""
    problems = []
    for name, split in report["splits"].items():
        problems += _skipped_problem(name, split, params.max_skipped_fraction)
        problems += _leaked_problem(name, split, params.max_leaked_fraction)
        if name in CAPTIONED:
            problems += _unmatched_problem(name, split, params.max_unmatched_fraction)
        if name in ("train", "test") and not split["images"]:
            problems.append(f"split {name} has no image left; see report.json for the reasons")
    for name, file in report.get("unusable_annotations", {}).items():
        problems += _unusable_problem(name, file)
    for key in ("classes_without_caption_in_train", "classes_without_object_in_test"):
        if key in report:
            problems += _class_problem(key, report, params.max_missing_class_fraction)
    return problems


def _skipped_problem(name: str, split: dict, limit: float) -> list[str]:
    skipped = split["skipped"]
    total = split["images"] + len(skipped)
    if len(skipped) <= limit * total:
        return []
    first = "; ".join(f"{s['file_name']}: {s['reason']}" for s in skipped[:NAMED_IN_ERROR])
    advice = dict.fromkeys(ADVICE.get(s["reason"], COPY_AGAIN) for s in skipped)
    return [
        f"split {name}: {len(skipped)} of {total} images skipped, more than "
        f"download.max_skipped_fraction = {limit} allows: {first}"
        f"{'; …' if len(skipped) > NAMED_IN_ERROR else ''}. {'; '.join(advice)}; or allow a larger"
        " fraction in params.yaml"
    ]


def _leaked_problem(name: str, split: dict, limit: float) -> list[str]:
    leaked = split.get("leaked", [])
    total = split["images"] + len(leaked)
    if len(leaked) <= limit * total:
        return []
    first = "; ".join(f"{one['file_name']} is {one['same_as']}" for one in leaked[:NAMED_IN_ERROR])
    return [
        f"split {name}: {len(leaked)} of {total} images are held-out images, byte for byte,"
        f" more than download.max_leaked_fraction = {limit} allows: {first}"
        f"{'; …' if len(leaked) > NAMED_IN_ERROR else ''}. Remove them from one of the two splits,"
        " or allow a larger fraction in params.yaml: they are left out of training"
    ]


def _tell(reason: str, found: dict) -> str:
    first = ", ".join(map(str, found["first"][:NAMED_IN_ERROR]))
    more = ", …" if found["number"] > NAMED_IN_ERROR else ""
    return f"{found['number']} annotations {reason} (ids {first}{more})"


def _unusable_problem(name: str, file: dict) -> list[str]:
    reasons = (NO_AREA, NEITHER, WRONG_BOX)
    broken = {r: found for r, found in file["unusable"].items() if r in reasons}
    number = sum(found["number"] for found in broken.values())
    if number <= LARGEST_UNUSABLE * file["annotations"]:
        return []
    told = "; ".join(_tell(reason, found) for reason, found in broken.items())
    return [
        f"{name}: {number} of {file['annotations']} annotations are unusable, more than"
        f" {LARGEST_UNUSABLE:.0%}: {told}. Correct or remove them; a bbox is x, y, width and height"
        " in pixels"
    ]


def _unmatched_problem(name: str, split: dict, limit: float) -> list[str]:
    unmatched = split["images_without_class_in_captions"]
    if len(unmatched) <= limit * split["images"]:
        return []
    first = "; ".join(f"{u['file_name']}: '{u['caption']}'" for u in unmatched[:NAMED_IN_ERROR])
    return [
        f"split {name}: the captions of {len(unmatched)} of {split['images']} images name no "
        f"class, more than download.max_unmatched_fraction = {limit} allows: {first}"
        f"{'; …' if len(unmatched) > NAMED_IN_ERROR else ''}. Add the words they use to the"
        " classes' synonyms, or allow a larger fraction in params.yaml"
    ]


def _class_problem(key: str, report: dict, limit: float) -> list[str]:
    missing, total = report[key], len(report["splits"]["train"]["mentioned_in_images"])
    if len(missing) <= limit * total:
        return []
    return [
        f"{key.replace('_', ' ')}: {len(missing)} of {total} ({', '.join(missing)}), more than "
        f"download.max_missing_class_fraction = {limit} allows. Take more images, or allow a "
        "larger fraction in params.yaml"
    ]
