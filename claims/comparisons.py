"""The claims, one letter each, and the numbers that each of them compares.

If one of our defaults matters, the paper's procedure is measured as well. So a claim has rows of
our procedure, rows of the paper's, and rows "beside", which do not affect a verdict. A path
"<file>.<key>.<key>…" names a number in the metrics of the experiment, of its comparators
(comparators/dvc.yaml), or of the experiment with changed params (`ARMS`).
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

PIPELINE = "comparators/dvc.yaml"
GROUPS = ("base", "novel")
KINDS = {"bbox": "box", "segm": "mask"}
NOT_BELOW = -2.0  # points of AP50 that "not below" allows

# Divisions of the scenes' classes into base and novel; see download.scenes.class_split.
CLASS_SPLITS = 17


def seed_params(seed: int) -> dict[str, Any]:
    """Return the params that differ between seeds: the seed, and which classes are novel."""
    return {"seed": seed, "download.scenes.class_split": seed % CLASS_SPLITS}


FIRST_ROUND = {"pseudo_boxes.activation_round": "first", "pseudo_masks.activation_round": "first"}
UNWEIGHTED_ROUNDS = {"activation.reach": 0, "activation.weigh_visible": False}
NO_BLUR = {"pseudo_boxes.smoothing": 0, "pseudo_masks.smoothing": 0}
# The experiment and its variants for the claims, with the params that they change.
ARMS: dict[str, dict[str, Any]] = {
    "own": {},
    # Only the first round of each activation map: G = 0.
    "first_look": FIRST_ROUND,
    # The first round is the same as in `own`: reach counts only from the second round on.
    "any_reach": {"activation.reach": 0},
    # The paper's maps: later rounds are not weighted, and there is no blur.
    "plain": {**UNWEIGHTED_ROUNDS, **NO_BLUR},
    "visible": {"activation.reach": 0, **NO_BLUR},
    "plain_first_look": {**NO_BLUR, **FIRST_ROUND},
}
# First key of a path → the arm that makes the metrics file, and the file.
QUALITY, EVALUATION = "data/label_quality/metrics.json", "data/evaluation/metrics.json"
FILES: dict[str, tuple[str, str]] = {
    "quality": ("own", QUALITY),
    "evaluation": ("own", EVALUATION),
    "rpn": ("own", "data/rpn/metrics.json"),
    "comparators": ("own", "data/comparators_evaluation/metrics.json"),
    "wsddn": ("own", "data/wsddn_evaluation/metrics.json"),
    "first_look": ("first_look", QUALITY),
    "any_reach": ("any_reach", QUALITY),
    "plain": ("plain", QUALITY),
    "visible": ("visible", QUALITY),
    "plain_first_look": ("plain_first_look", QUALITY),
}

Part = Literal["ours", "paper", "beside"]


@dataclass(frozen=True)
class Comparison:
    """A row: `better` should exceed `factor` × `worse` by more than `margin`.

    Attributes:
        what: the row's sentence.
        better, worse: paths of the compared numbers.
        factor: multiplies `worse`.
        margin: negative if "not below" is enough.
        part: whose procedure the row measures; no verdict depends on rows "beside".
        ours: our defaults that differ from the paper's and affect the row.
    """

    what: str
    better: str
    worse: str
    factor: float = 1.0
    margin: float = 0.0
    part: Part = "ours"
    ours: str = ""


@dataclass(frozen=True)
class Claim:
    """A letter, its sentence, and the rows of its table."""

    letter: str
    text: str
    comparisons: tuple[Comparison, ...]


BLURS = "`pseudo_boxes.smoothing`, `pseudo_masks.smoothing`"
VISIBLE = "`activation.weigh_visible`"
CROPS = (
    "`pseudo_masks.smoothing`, `pseudo_masks.context`, unequal fractions of `pseudo_masks.seeds`"
)
HEAD = "`wspn.model.backbone`, `wspn.seeds`"
LABELS = f"of the labels: `activation.reach`, `ranking`, `wspn.model.backbone`, {BLURS}"


def _iterative_masking() -> Claim:
    arms: tuple[tuple[Part, str, str, str, str], ...] = (
        ("ours", "quality", "first_look", "", f"`activation.reach`, {VISIBLE}, {BLURS}"),
        ("paper", "plain", "plain_first_look", "no weights of rounds and no blurs, ", ""),
        ("beside", "visible", "plain_first_look", "no reach and no blurs, ", VISIBLE),
        ("beside", "any_reach", "first_look", "no reach, ", f"{VISIBLE}, {BLURS}"),
    )
    rows = [
        Comparison(
            f"pseudo-mask IoU, {group}: {where}G ≥ 1 above G = 0",
            f"{arm}.masks.pseudo.{group}.mean_iou",
            f"{first}.masks.pseudo.{group}.mean_iou",
            part=part,
            ours=own,
        )
        for part, arm, first, where, own in arms
        for group in GROUPS
    ]
    return Claim("a", "Iterative masking improves the pseudo-masks", tuple(rows))


def _proposals() -> Claim:
    others = {
        "selective_search": "selective search",
        "random_order": "selective search in random order",
        "rpn": "a base-trained RPN",
    }
    rankings: dict[str, tuple[Part, str, str]] = {
        "wspn": ("ours", "WSPN", f"`ranking`, {HEAD}"),
        "wspn_by_classes": ("paper", "WSPN by its classes", HEAD),
        "wspn_by_agreement": (
            "beside",
            "WSPN by classes that neighbours agree on",
            f"`ranking.agreement`, {HEAD}",
        ),
    }
    rows = []
    for ranking, (part, name, own) in rankings.items():
        rivals = {**others, f"rpn_like_{ranking}": "that RPN, suppressed as WSPN's boxes are"}
        rows += [
            Comparison(
                f"recall@{count} of novel objects: {name} above {words}",
                f"rpn.recall.{ranking}.novel.recall@{count}",
                f"rpn.recall.{rival}.novel.recall@{count}",
                part=part,
                ours=own,
            )
            for count in (10, 50, 100)
            for rival, words in rivals.items()
        ]
        rows += [
            Comparison(
                f"novel classes with a higher recall@10, more than half: {name} than"
                f" {rivals[rival]}",
                f"rpn.novel_classes_won.{ranking}.{rival}.recall@10",
                "rpn.novel_classes",
                factor=0.5,
                part=part,
                ours=own,
            )
            for rival in list(rivals)[2:]
        ]
    return Claim(
        "b", "WSPN finds more novel objects than selective search and a base RPN", tuple(rows)
    )


def _masks() -> Claim:
    others = {
        "box_filled": "the box filled",
        "ellipse": "the ellipse in the box",
        "thresholded_activation": "the raw map above the best threshold",
        "activation_fraction": "the best part of the map that seeds it",
    }
    rows = [
        Comparison(
            f"pseudo-mask IoU, {group}: network above {words}",
            f"quality.masks.pseudo.{group}.mean_iou",
            f"quality.masks.{other}.{group}.mean_iou",
            ours=CROPS,
        )
        for group in GROUPS
        for other, words in others.items()
    ]
    return Claim("c", "The segmentation network beats simple masks in the same boxes", tuple(rows))


def _self_training() -> Claim:
    row = Comparison(
        "mask IoU on the training objects: detector above its pseudo-masks",
        "evaluation.detector.training_objects.all.found_detector_mask_iou",
        "evaluation.detector.training_objects.all.found_pseudo_mask_iou",
        ours=LABELS,
    )
    return Claim("d", "The detector's masks are better than those it learned from", (row,))


def _ap50(model: str, group: str, kind: str, protocol: str = "generalized") -> str:
    return f"{model}.{protocol}.{group}.{kind}.AP50"


def _oracle() -> Claim:
    own, oracle = "evaluation.detector", "comparators.oracle"
    parts: dict[Part, dict[str, float]] = {
        "ours": {"bbox": 0.8, "segm": 0.7},
        "beside": {"bbox": 0.65, "segm": 0.65},
    }
    shares = [
        Comparison(
            f"novel {name} AP50 above {round(100 * factor)} % of the oracle's",
            _ap50(own, "novel", kind),
            _ap50(oracle, "novel", kind),
            factor,
            part=part,
            ours=LABELS,
        )
        for part, factors in parts.items()
        for kind, name in KINDS.items()
        for factor in (factors[kind],)
    ]
    # The oracle's advantage, step by step; the differences add up to all of it.
    steps = {
        "the labels with true masks in their boxes above the labels": (
            "comparators.true_masks",
            own,
        ),
        "with true boxes as well above true masks alone": (
            "comparators.true_boxes",
            "comparators.true_masks",
        ),
        "with no label missing or wrong (the oracle) above that": (
            oracle,
            "comparators.true_boxes",
        ),
    }
    budget = [
        Comparison(
            f"error budget, novel {name} AP50: {words}",
            _ap50(better, "novel", kind),
            _ap50(worse, "novel", kind),
            part="beside",
            ours=LABELS,
        )
        for kind, name in KINDS.items()
        for words, (better, worse) in steps.items()
    ]
    ease = [
        Comparison(
            f"the oracle's {name} AP50: novel classes above base (how easy they are)",
            _ap50(oracle, "novel", kind),
            _ap50(oracle, "base", kind),
            part="beside",
        )
        for kind, name in KINDS.items()
    ]
    text = "Without base annotations novel AP50 is 80 % (box) and 70 % (mask) of the oracle's"
    return Claim("e", text, (*shares, *budget, *ease))


def _fine_tuning() -> Claim:
    rivals = (
        ("evaluation.detector", "the detector", 1.15),
        ("comparators.longer", "the detector trained as many steps longer on pseudo-labels", 1.0),
    )
    rows = [
        Comparison(
            f"{group} {kind_name} AP50: fine-tuned {relation} {words}",
            _ap50("evaluation.finetune", group, kind),
            _ap50(rival, group, kind),
            factor if group == "base" else 1.0,
            0.0 if group == "base" else NOT_BELOW,
            ours="`finetune.training.learning_rate`",
        )
        for rival, words, factor in rivals
        for group, relation in (
            ("base", "far above" if factor > 1 else "above"),
            ("novel", f"at most {-NOT_BELOW:g} points below"),
        )
        for kind, kind_name in KINDS.items()
    ]
    # In the paper novel AP rises.
    raised = [
        replace(
            row,
            what=row.what.replace(f"at most {-NOT_BELOW:g} points below", "above"),
            margin=0.0,
            part="paper",
        )
        for row in rows
        if row.margin
    ]
    text = "Base annotations raise base AP50 and do not cost novel AP50"
    return Claim("f", text, (*rows, *raised))


def _image_labels() -> Claim:
    row = Comparison(
        "novel box AP50: the detector above twice that of image labels only",
        _ap50("evaluation.detector", "novel", "bbox"),
        _ap50("wsddn.wsddn", "novel", "bbox"),
        2.0,
        ours=LABELS,
    )
    return Claim("g", "A detector from image labels alone is far below", (row,))


def _headline() -> Claim:
    rows = [
        Comparison(
            f"novel {name} AP50, {protocol}: without base annotations above with them alone",
            _ap50("evaluation.detector", "novel", kind, protocol),
            _ap50("comparators.base_only", "novel", kind, protocol),
            ours=LABELS,
        )
        for protocol in ("generalized", "constrained")
        for kind, name in KINDS.items()
    ]
    text = "Without any base annotation novel AP50 is above that of a detector of base annotations"
    return Claim("h", text, tuple(rows))


def _boxes() -> Claim:
    arms: tuple[tuple[Part, str, str, str], ...] = (
        ("ours", "quality", "", "`pseudo_boxes.smoothing`, `ranking.score`"),
        ("paper", "plain", "without a blur ", "`ranking.score`"),
    )
    rows = [
        Comparison(
            f"pseudo-box IoU, {group}: {name}above the best fixed square at the peak of the map",
            f"{arm}.boxes.{group}.mean_iou",
            f"{arm}.fixed_square.{group}.mean_iou",
            part=part,
            ours=own,
        )
        for part, arm, name, own in arms
        for group in GROUPS
    ]
    return Claim("i", "A pseudo-box tells more than where the object is", tuple(rows))


CLAIMS = (
    _iterative_masking(),
    _proposals(),
    _masks(),
    _self_training(),
    _oracle(),
    _fine_tuning(),
    _image_labels(),
    _headline(),
    _boxes(),
)
FACTS = tuple(
    dict.fromkeys(
        path
        for claim in CLAIMS
        for comparison in claim.comparisons
        for path in (comparison.better, comparison.worse)
    )
)
