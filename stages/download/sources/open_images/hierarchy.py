"""Open Images' labels of the 300 classes, and the hierarchy of these classes."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from stages.common.runtime.storage import read_json, read_text
from stages.download.sources.open_images.files import CLASSES


def read_labels(folder: Path, wanted: Collection[str]) -> dict[str, str]:
    """Return Open Images' label ("/m/…") → name, for the wanted classes.

    Raises:
        FileNotFoundError: the file of class descriptions is missing.
        ValueError: it is not UTF-8, or lacks one of the classes.
    """
    path = folder / CLASSES
    if not path.is_file():
        raise FileNotFoundError(f"{path.absolute()}: not found; fetch it with the other tables")
    lines = read_text(path).splitlines()
    described = dict(line.partition(",")[::2] for line in lines)
    labels = {label: name for label, name in described.items() if name in wanted}
    if missing := sorted(set(wanted) - set(labels.values())):
        raise ValueError(
            f"{path}: does not describe {len(missing)} of the {len(wanted)} classes, such as"
            f" {missing[:3]}; it must be the file of the segmentable classes of 2019"
        )
    return labels


def read_ancestors(path: Path, category_ids: Mapping[str, int]) -> dict[int, set[int]]:
    """Return category id → ids of all classes that include it; classes without any are left out.

    Args:
        path: the hierarchy file.
        category_ids: Open Images' label → category id.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file is not a hierarchy.
    """
    ancestors: dict[int, set[int]] = {}

    def visit(node: dict, above: frozenset[int]) -> None:
        own = category_ids.get(node["LabelName"])
        if own is not None and above:
            ancestors.setdefault(own, set()).update(above - {own})
        below = above if own is None else above | {own}
        for child in node.get("Subcategory", ()):
            visit(child, below)

    try:
        visit(read_json(path), frozenset())
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: not a class hierarchy: a node lacks LabelName ({error!r}); fetch it again"
        ) from error
    return ancestors


def verified_classes(
    labels: Sequence[tuple[int, bool]],
    named: Collection[int],
    ancestors: Mapping[int, Collection[int]],
) -> set[int]:
    """Return the ids of the classes that are known to be present in an image or absent from it.

    A present class implies all classes that include it; an absent one implies that all classes that
    it includes are absent. Source: Open Images Challenge 2019, evaluation, "hierarchy handling".

    Args:
        labels: (category id, whether it is present), as verified by people.
        named: category ids of the annotated objects.
        ancestors: category id → ids of all classes that include it.
    """
    there = {category_id for category_id, present in labels if present} | set(named)
    absent = {category_id for category_id, present in labels if not present}
    above = {parent for category_id in there for parent in ancestors.get(category_id, ())}
    below = {child for child, parents in ancestors.items() if absent & set(parents)}
    return there | above | absent | below
