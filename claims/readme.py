"""The tables and figures in README.md and docs/ that are generated from results and from the graph.

Each table is between comments such as `<!-- results -->` and `<!-- /results -->`. `make readme`
rewrites it after `make repro` or `make claims`, so that nobody copies numbers by hand.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from claims.measure import TABLE
from flows.dvc.project import load_graph
from flows.graph import Graph
from flows.table import read_results, read_supervision, results_table

QUALITY = Path("data/label_quality/metrics.json")
GROUPS = ("base", "novel")
RECALLS = {
    "WSPN": "ranking",
    "selective search, its own order": "selective_search",
    "selective search, random order": "random_order",
}
RECALL_AT = (10, 50, 100)
BOXES = {
    "pseudo-boxes, mean IoU (fraction ≥ 0.5)": "boxes",
    "the best fixed square at the peak of the map": "fixed_square",
}
MASKS = {
    "pseudo-masks, mean IoU": "pseudo",
    "the same boxes filled": "box_filled",
    "the ellipses in them": "ellipse",
    "the activation in them above the best threshold": "thresholded_activation",
    "the best part of the map that seeds the masks": "activation_fraction",
}


# Figure → the montage that it is the top of, and its largest height in pixels.
FIGURES = {
    "docs/pipeline.jpg": ("data/label_quality/montage.png", 1000),
    "docs/phrases.jpg": ("data/phrase_labels/montage.png", 740),
}
JPEG_QUALITY = 85


def pages(root: Path) -> list[Path]:
    """Return the pages that may contain a table."""
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def place(name: str) -> re.Pattern[str]:
    """Return a pattern that matches a table between its comments; group 2 is the table."""
    return re.compile(rf"(<!-- {name} -->\n)(.*?)(<!-- /{name} -->)", re.DOTALL)


def write_readme(root: Path) -> list[str]:
    """Rewrite every table wherever it is, and every figure; return the names of those that changed.

    Raises:
        ValueError: no page has the comments of a table, or results are missing.
    """
    texts = {path: path.read_text(encoding="utf-8") for path in pages(root)}
    changed = []
    for name, make in TABLES.items():
        if not any(place(name).search(text) for text in texts.values()):
            raise ValueError(
                f"no place for a table: add <!-- {name} --> and <!-- /{name} --> to README.md or to"
                " a page in docs/"
            )
        table = make(root)
        for path, text in texts.items():
            texts[path] = _replace(text, name, table)
            if texts[path] != text and name not in changed:
                changed.append(name)
    for path, text in texts.items():
        if text != path.read_text(encoding="utf-8"):
            path.write_text(text, encoding="utf-8")
    for name, (montage, most) in FIGURES.items():
        jpeg = _top(root / montage, most)
        if not (root / name).is_file() or (root / name).read_bytes() != jpeg:
            (root / name).write_bytes(jpeg)
            changed.append(name)
    return changed


def _top(montage: Path, most: int) -> bytes:
    """Return the first rows of a montage as JPEG, cut where it is white.

    Raises:
        ValueError: there is no such image.
    """
    image = cv2.imread(str(montage))
    if image is None:
        raise ValueError(f"{montage}: is no image; `make repro` makes it")
    white = np.flatnonzero((image[:most] == 255).all((1, 2)))
    _, jpeg = cv2.imencode(".jpg", image[: white.max()], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return jpeg.tobytes()


def _replace(text: str, name: str, table: str) -> str:
    return place(name).sub(lambda found: f"{found[1]}{table}\n{found[3]}", text)


def _results(root: Path) -> str:
    results = read_results(root)
    if results is None:
        raise ValueError("there are no results yet; `make repro` makes them")
    return f"```\n{results_table(results, read_supervision(root))}\n```"


def _labels(root: Path) -> str:
    """Return the quality of pseudo-labels and proposals on the training images."""
    quality = json.loads((root / QUALITY).read_text(encoding="utf-8"))
    masks, recall = quality["masks"], quality["recall"]
    rows = [
        *(
            (
                words,
                [
                    f"{quality[name][group]['mean_iou']:.3f} ({quality[name][group]['at_50']:.3f})"
                    for group in GROUPS
                ],
            )
            for words, name in BOXES.items()
        ),
        (
            "pseudo-boxes that an object of another class fits better",
            [f"{quality['boxes'][group]['on_another']:.3f}" for group in GROUPS],
        ),
        *(
            (words, [f"{masks[name][group]['mean_iou']:.3f}" for group in GROUPS])
            for words, name in MASKS.items()
        ),
        *(
            (f"recall@{'/'.join(map(str, RECALL_AT))}, {words}", _recalls(recall[name]))
            for words, name in RECALLS.items()
        ),
    ]
    lines = ["| | base | novel |", "|---|---|---|"]
    lines += [f"| {words} | {' | '.join(cells)} |" for words, cells in rows]
    return "\n".join([*lines, "", _self_training(root)])


def _recalls(by_group: dict[str, Any]) -> list[str]:
    return [
        " / ".join(f"{by_group[group][f'recall@{count}']:.3f}" for count in RECALL_AT)
        for group in GROUPS
    ]


def _self_training(root: Path) -> str:
    facts = (read_results(root) or {})["detector"]["training_objects"]["all"]
    return (
        f"On its own training objects the detector's masks have a mean IoU of"
        f" {facts['found_detector_mask_iou']:.3f}, the\npseudo-masks that it learned them from"
        f" {facts['found_pseudo_mask_iou']:.3f} ({facts['found']} objects that it found)."
    )


def reruns(graph: Graph, param: str) -> list[str]:
    """Return the groups that rerun when `param` changes: its readers and all stages downstream."""
    touched: set[str] = set()
    for name, stage in graph.items():
        reads = any(is_within(param, key) or is_within(key, param) for key in stage.params)
        if reads or touched.intersection(stage.needs):
            touched.add(name)
    return list(dict.fromkeys(graph[name].group for name in graph if name in touched))


def reruns_table(graph: Graph) -> str:
    """Return the table of docs/params.md: each key that a stage reads, and what it reruns."""
    keys = dict.fromkeys(key for stage in graph.values() for key in stage.params)
    everything = list(dict.fromkeys(stage.group for stage in graph.values()))
    rows = ["| param | stages that rerun |", "| --- | --- |"]
    for key in keys:
        groups = reruns(graph, key)
        names = "all" if groups == everything else ", ".join(f"`{group}`" for group in groups)
        rows.append(f"| `{key}` | {names} |")
    return "\n".join(rows)


def is_within(key: str, section: str) -> bool:
    """Return whether a dotted params key is `section` or lies inside it."""
    return key == section or key.startswith(section + ".")


def _reruns(root: Path) -> str:
    return reruns_table(load_graph(root))


def _of_claims(name: str) -> Callable[[Path], str]:
    """Return what copies the table of this name from the page of the claims."""

    def copy(root: Path) -> str:
        path = root / TABLE
        if not path.is_file():
            raise ValueError(f"there is no {TABLE} yet; `make claims` makes it")
        return table_of(path.read_text(encoding="utf-8"), name)

    return copy


def table_of(page: str, name: str) -> str:
    """Return the table of the claims' page that is between the comments of this name."""
    found = place(name).search(page)
    assert found, "claims_page marks it"
    return found[2].rstrip("\n")


TABLES: dict[str, Callable[[Path], str]] = {
    "results": _results,
    "labels": _labels,
    "claims": _of_claims("verdicts"),
    "seeds": _of_claims("seeds"),
    "reruns": _reruns,
}
