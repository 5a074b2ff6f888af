"""The paper's claims, each measured on several seeds: `make claims`.

The seeds are points of a sweep, so a second call, or a call with one more seed, repeats nothing.
What a claim compares with (an oracle detector, a base-trained RPN, an image-labels-only detector)
is a stage of claims/dvc.yaml; a claim about a param is a point with that param changed.
"""

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

from flows.sweeps.points import Point, point_name
from flows.sweeps.start import run_points
from flows.sweeps.worktrees import worktree
from flows.table import mean_and_spread

RESULT = Path("docs/claims.json")
PIPELINE = "claims/dvc.yaml"
METRICS = {
    "quality": "data/quality/metrics.json",
    "evaluation": "data/evaluation/metrics.json",
    "rpn": "data/rpn/metrics.json",
    "oracle": "data/oracle_evaluation/metrics.json",
    "true_masks": "data/true_masks_evaluation/metrics.json",
    "wsddn": "data/wsddn_evaluation/metrics.json",
}
# The same experiment with only the first look of each activation map: G = 0.
FIRST_LOOK = {"boxes.activation_round": "first", "masks.activation_round": "first"}

# What WSPN's order of boxes is compared with.
ORDERS = {
    "selective_search": "selective search",
    "random_order": "selective search in random order",
    "rpn": "a base-trained RPN",
    "rpn_in_layers": "that RPN, thinned out as WSPN is",
}

Facts = dict[str, dict]  # metrics files of one seed, by the names above


@dataclass(frozen=True)
class Comparison:
    """`better` should exceed `factor` × `worse`, in the mean over seeds."""

    what: str
    better: Callable[[Facts], float]
    worse: Callable[[Facts], float]
    factor: float = 1.0


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper and the comparisons that must all hold for it."""

    name: str
    text: str
    comparisons: tuple[Comparison, ...]


def at(path: str) -> Callable[[Facts], float]:
    """Return a function that takes a number out of the metrics: "file.key.key…"."""

    def take(facts: Facts) -> float:
        value = facts
        for key in path.split("."):
            value = value[key]
        return float(value)

    return take


def _label_claims() -> list[Claim]:
    groups = ("base", "novel")
    rounds = tuple(
        Comparison(
            f"pseudo-mask IoU, {group}: G ≥ 1 above G = 0",
            at(f"quality.masks.pseudo.{group}.mean_iou"),
            at(f"first_look.masks.pseudo.{group}.mean_iou"),
        )
        for group in groups
    )
    recall = tuple(
        Comparison(
            f"recall@{count} of novel objects: WSPN above {words}",
            at(f"rpn.recall.wspn.novel.recall@{count}"),
            at(f"rpn.recall.{other}.novel.recall@{count}"),
        )
        for count in (10, 50, 100)
        for other, words in ORDERS.items()
    )
    masks = tuple(
        Comparison(
            f"pseudo-mask IoU, {group}: network above {other.replace('_', ' ')}",
            at(f"quality.masks.pseudo.{group}.mean_iou"),
            at(f"quality.masks.{other}.{group}.mean_iou"),
        )
        for group in groups
        for other in ("box_filled", "thresholded_activation")
    )
    return [
        Claim("a", "Iterative masking improves the pseudo-masks", rounds),
        Claim("b", "WSPN finds more novel objects than selective search and a base RPN", recall),
        Claim("c", "The segmentation network beats filled boxes and thresholded maps", masks),
    ]


def _detector_claims() -> list[Claim]:
    kinds = {"bbox": "box", "segm": "mask"}
    learned = Comparison(
        "mask IoU on the training objects: detector above its pseudo-masks",
        at("evaluation.detector.training_objects.all.found_detector_mask_iou"),
        at("evaluation.detector.training_objects.all.found_pseudo_mask_iou"),
    )
    oracle = tuple(
        Comparison(
            f"novel {name} AP50 above 65 % of the oracle's",
            at(f"evaluation.detector.generalized.novel.{kind}.AP50"),
            at(f"oracle.oracle.generalized.novel.{kind}.AP50"),
            0.65,
        )
        for kind, name in kinds.items()
    )
    ablation = Comparison(
        "novel mask AP50 above 65 % of the oracle's, had the pseudo-boxes true masks",
        at("true_masks.true_masks.generalized.novel.segm.AP50"),
        at("oracle.oracle.generalized.novel.segm.AP50"),
        0.65,
    )
    tuned = tuple(
        Comparison(
            f"{group} {name} AP50: fine-tuned {'far above' if group == 'base' else 'not below'}",
            at(f"evaluation.finetune.generalized.{group}.{kind}.AP50"),
            at(f"evaluation.detector.generalized.{group}.{kind}.AP50"),
            1.15 if group == "base" else 1.0,
        )
        for group in ("base", "novel")
        for kind, name in kinds.items()
    )
    labels_only = Comparison(
        "novel box AP50: the detector above twice that of image labels only",
        at("evaluation.detector.generalized.novel.bbox.AP50"),
        at("wsddn.wsddn.generalized.novel.bbox.AP50"),
        2.0,
    )
    return [
        Claim("d", "The detector's masks are better than those it learned from", (learned,)),
        Claim(
            "e", "Without base annotations novel AP50 is 65 % of the oracle's", (*oracle, ablation)
        ),
        Claim("f", "Base annotations raise base AP50 and do not lower novel AP50", tuned),
        Claim("g", "A detector from image labels alone is far below", (labels_only,)),
    ]


CLAIMS = [*_label_claims(), *_detector_claims()]


def measure_claims(root: Path, seeds: list[int], cores: int | None = None) -> list[dict]:
    """Run all seeds, write docs/claims.json and return it.

    Raises:
        RuntimeError: an experiment of a seed failed; what is finished stays in the cache.
    """
    points = [point for seed in seeds for point in _points(root, seed)]
    failed = [r.point.name for r in run_points(root, "claims", points, cores) if r.failed]
    if failed:
        raise RuntimeError(f"{', '.join(failed)} failed; mend it and run `make claims` again")
    results = judge([_read_facts(root, seed) for seed in seeds], seeds)
    path = root / RESULT
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return results


def judge(facts: list[Facts], seeds: list[int]) -> list[dict]:
    """Return one entry per comparison: {claim, text, metric, holds, values}."""
    entries = []
    for claim in CLAIMS:
        for comparison in claim.comparisons:
            better = [comparison.better(one) for one in facts]
            worse = [comparison.worse(one) for one in facts]
            holds = statistics.fmean(better) > comparison.factor * statistics.fmean(worse)
            entries.append(
                {
                    "claim": claim.name,
                    "text": claim.text,
                    "metric": comparison.what,
                    "factor": comparison.factor,
                    "holds": holds,
                    "seeds": seeds,
                    "values": better,
                    "compared_with": worse,
                }
            )
    return entries


def claims_table(entries: list[dict]) -> str:
    """Return README's table: mean ± standard deviation over seeds of both sides."""
    lines = ["| | claim | measured | compared with | holds |", "|---|---|---|---|---|"]
    for entry in entries:
        scale = f" × {entry['factor']:g}" if entry["factor"] != 1 else ""
        values, compared = (mean_and_spread(entry[key]) for key in ("values", "compared_with"))
        lines.append(
            f"| {entry['claim']} | {entry['metric']} | {values} | {compared}{scale} |"
            f" {'yes' if entry['holds'] else '**no**'} |"
        )
    return "\n".join(lines)


def _points(root: Path, seed: int) -> tuple[Point, Point]:
    """Return a seed's experiment with all that it is compared with, and its first looks."""
    comparators = YAML(typ="safe").load(root / PIPELINE)["stages"]
    targets = ("quality", "evaluation", *(f"{PIPELINE}:{name}" for name in comparators))
    plain, first = {"seed": seed}, {"seed": seed, **FIRST_LOOK}
    return (
        Point(point_name(plain), plain, targets),
        Point(point_name(first), first, ("quality",)),
    )


def _read_facts(root: Path, seed: int) -> Facts:
    plain, first = (worktree(root, point) for point in _points(root, seed))
    facts = {name: _read(plain / path) for name, path in METRICS.items()}
    return {**facts, "first_look": _read(first / METRICS["quality"])}


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))
