"""The claims in Markdown: a table with a verdict per claim, and one with a row per comparison."""

import math
import statistics
from collections.abc import Sequence

from claims.comparisons import CLAIMS, FACTS, KINDS, Comparison
from claims.records import Record
from claims.verdicts import Difference, difference, holm, joint_verdict
from flows.intervals import t_interval

BOLD = {"holds": "holds", "fails": "**fails**", "undecided": "undecided"}
PROCEDURES = {"ours": "ours", "paper": "the paper's"}
MARKS = {"ours": "", "paper": " *(paper)*", "beside": " *(beside)*"}
SAME = "″"  # the same as in the row above
# What a detector learned from → where a record has its AP50.
LEARNED_FROM = {
    "pseudo-masks (`detector`)": "evaluation.detector",
    "pseudo-masks, then ground truth of base classes (`finetune`)": "evaluation.finetune",
    "ground truth of base classes": "comparators.base_only",
    "ground truth of all classes": "comparators.oracle",
}
EXPLANATION = (
    "A row's difference is that of measured and factor × compared with, seed by seed: its mean and"
    " two-sided 95 % t interval.\nIt *holds* if the interval lies above 0, or above the margin that"
    " the row names, *fails* if below, else it is *undecided*.\nA claim's p is the largest"
    " one-sided p of its procedure's rows, corrected by Holm over the lines of this table. It"
    " *holds*\nif that is at most 0.025, so it may be undecided although each of its rows holds;"
    " else it *fails* if a row fails.\nRows marked *beside* count for no claim."
)


def claims_page(records: Sequence[Record], left_out: Sequence[Record] = ()) -> str:
    """Return a page of both tables, with the seeds and commits that they come from.

    Args:
        records: the records to use, at least one.
        left_out: records of other params, code or packages, to be named only.
    """
    lines = ["# The claims, comparison by comparison", "", "<!-- verdicts -->"]
    lines += [_sources(records), *([_left_out(left_out)] if left_out else []), ""]
    lines += ["| | claim | procedure | p | p, Holm | verdict |", "|---|---|---|---|---|---|"]
    lines += [*_claim_lines(records), "", EXPLANATION, "<!-- /verdicts -->", ""]
    lines += ["<!-- seeds -->", *_seeds_lines(records), "<!-- /seeds -->", ""]
    lines += [
        "| | what | ours in it | measured | compared with | difference [95 % interval] | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    for claim in CLAIMS:
        above = ""
        for row in claim.comparisons:
            lines.append(_row(claim.letter, row, SAME if row.ours == above else row.ours, records))
            above = row.ours
    return "\n".join(lines)


def _seeds_lines(records: Sequence[Record]) -> list[str]:
    """Return a table of the detectors' AP50: means over the seeds, halves of their t intervals."""
    lines = [
        f"AP50 in percent, generalized, box / mask: means of {_seeds([r.seed for r in records])}"
        " ± half a 95 % interval.",
        "",
        "| learned from | base | novel |",
        "|---|---|---|",
    ]
    for what, model in LEARNED_FROM.items():
        facts = [f"{model}.generalized.{group}" for group in ("base", "novel")]
        cells = [" / ".join(_mean(records, f"{f}.{kind}.AP50") for kind in KINDS) for f in facts]
        lines.append(f"| {what} | {' | '.join(cells)} |")
    return lines


def _mean(records: Sequence[Record], fact: str) -> str:
    if fact not in FACTS:
        return "–"
    values = [record.facts[fact] for record in records]
    mean, (_, high) = statistics.fmean(values), t_interval(values)
    return f"{mean:.1f} ± {high - mean:.1f}" if len(values) > 1 else f"{mean:.1f}"


def measured(comparison: Comparison, records: Sequence[Record]) -> Difference:
    """Return the comparison's difference over the records' seeds."""
    better, worse = (
        [record.facts[path] for record in records] for path in (comparison.better, comparison.worse)
    )
    return difference(better, worse, comparison.factor, comparison.margin)


def _claim_lines(records: Sequence[Record]) -> list[str]:
    family = [
        (claim, part, rows)
        for claim in CLAIMS
        for part in PROCEDURES
        if (rows := [measured(c, records) for c in claim.comparisons if c.part == part])
    ]
    p_values = [max(row.p for row in rows) for _, _, rows in family]
    return [
        f"| {claim.letter} | {claim.text} | {PROCEDURES[part]} | {_p(p)} | {_p(adjusted)} |"
        f" {BOLD[joint_verdict(rows, adjusted)]} |"
        for (claim, part, rows), p, adjusted in zip(family, p_values, holm(p_values), strict=True)
    ]


def _row(letter: str, comparison: Comparison, ours: str, records: Sequence[Record]) -> str:
    found = measured(comparison, records)
    better, worse = (
        statistics.fmean(record.facts[path] for record in records)
        for path in (comparison.better, comparison.worse)
    )
    # AP in percent and counts get one decimal; fractions get three, and their differences four.
    fine = max(abs(better), abs(worse)) <= 1
    digits, more = (3, 4) if fine else (1, 1)
    scale = f" × {comparison.factor:g}" if comparison.factor != 1 else ""
    interval = ""
    if math.isfinite(found.low):
        interval = f" [{found.low:+.{more}f}, {found.high:+.{more}f}]"
    cells = [
        letter,
        comparison.what + MARKS[comparison.part],
        ours or "–",
        f"{better:.{digits}f}",
        f"{worse:.{digits}f}{scale}",
        f"{found.mean:+.{more}f}{interval}",
        BOLD[found.verdict],
    ]
    return f"| {' | '.join(cells)} |"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.0005 else "< 0.001"


def _sources(records: Sequence[Record]) -> str:
    """Return which seeds and commits the table comes from, and how many experiments they are of."""
    by_commit: dict[str, list[int]] = {}
    for record in records:
        by_commit.setdefault(record.commit, []).append(record.seed)
    told = "; ".join(f"{_seeds(seeds)} at commit {commit}" for commit, seeds in by_commit.items())
    digests = {tuple(record.outputs or [record.digest]) for record in records}
    mixed = "" if len(digests) == 1 else f", of {len(digests)} different experiments"
    return f"Measured: {told}{mixed}."


def _left_out(records: Sequence[Record]) -> str:
    told = "; ".join(f"{_seeds([record.seed])} at commit {record.commit}" for record in records)
    return f"Left out, because params, code or packages were different: {told}."


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
