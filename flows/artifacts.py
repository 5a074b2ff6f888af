"""What people see of an execution on Prefect's pages: tables, the graph, images and progress."""

import base64
import re
import time
from pathlib import Path
from uuid import UUID

import cv2
import httpx
from prefect.artifacts import (
    create_image_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.exceptions import PrefectException

from flows.graph import Outcome, Step, mermaid
from flows.table import read_results, result_rows, summarize_plan

# Lines of stages/common/runtime/progress.py: "wspn, classify: 120/400 in 10 s (12.0/s, 23 s left)".
PROGRESS = re.compile(r"(?P<what>[^:]+): (?P<done>\d+)/(?P<total>\d+) in \d+ s \((?P<rate>.*)\)$")
SECONDS_BETWEEN_UPDATES = 5.0
PREVIEW_WIDTH, PREVIEW_QUALITY = 900, 80  # 100 to 200 KB, kept in Prefect's database


def show_plan(steps: list[Step]) -> None:
    """Show what the execution will do, stage by stage, and the graph."""
    create_table_artifact(
        key="plan",
        table=[
            {"stage": s.stage.name, "plan": s.status.value, "why": "; ".join(s.reasons)}
            for s in steps
        ],
        description=summarize_plan(steps),
    )
    create_markdown_artifact(
        key="dag",
        markdown=mermaid(steps),
        description="The graph of stages. Orange runs, light orange may run, blue is restored",
    )


def show_outcomes(root: Path, steps: list[Step], outcomes: list[Outcome]) -> None:
    """Show what happened, the results, and the images that are there."""
    create_table_artifact(
        key="stages",
        table=[{"stage": o.stage, "outcome": o.outcome, "seconds": o.seconds} for o in outcomes],
        description="What happened to each stage",
    )
    results = read_results(root)
    if results:
        create_table_artifact(
            key="results", table=result_rows(results), description="AP50 (AP), percent"
        )
    done = {o.stage for o in outcomes if o.outcome not in ("failed", "not run")}
    for step in steps:
        for output in step.stage.outputs if step.stage.name in done else ():
            if output.endswith(".png") and (root / output).is_file():
                _show_image(root, step.stage.name, output)


def _show_image(root: Path, stage: str, path: str) -> None:
    """Show a small copy that needs no server of files, and say where the original is."""
    url = _preview(root / path)
    if url:
        key = f"{stage}-{Path(path).stem}"
        create_image_artifact(key=_legal(key), image_url=url, description=f"`{path}`, smaller")


def _preview(path: Path) -> str | None:
    """Return a data URL of the image as JPEG, or None if the bytes are no image."""
    pixels = cv2.imread(str(path))
    if pixels is None:
        return None
    height, width = pixels.shape[:2]
    scale = min(1.0, PREVIEW_WIDTH / width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    _, encoded = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, PREVIEW_QUALITY])
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.tobytes()).decode('ascii')}"


class StageProgress:
    """Turns the progress lines of one stage into a progress artifact, a few seconds apart."""

    def __init__(self, stage: str, seconds_between: float = SECONDS_BETWEEN_UPDATES) -> None:
        """Watch the stage of that name; nothing is shown before its first unfinished line."""
        self._stage = stage
        self._seconds = seconds_between
        self._artifact: UUID | None = None
        self._last = -seconds_between
        self._broken = False

    def see(self, line: str) -> None:
        """Take a line of the stage's output."""
        found = PROGRESS.match(line.strip())
        if not found or self._broken:
            return
        done, total = int(found["done"]), int(found["total"])
        ended = done >= total
        if (ended and not self._artifact) or (not ended and self._is_too_early()):
            return
        self._last = time.monotonic()
        self._show(100 * done / max(total, 1), f"{found['what']}: {done}/{total}, {found['rate']}")

    def _is_too_early(self) -> bool:
        return time.monotonic() - self._last < self._seconds

    def _show(self, percent: float, words: str) -> None:
        try:
            if self._artifact is None:
                key = _legal(f"progress-{self._stage}")
                self._artifact = create_progress_artifact(percent, key=key, description=words)
            else:
                update_progress_artifact(self._artifact, percent, words)
        except (PrefectException, httpx.HTTPError) as error:
            # A stage must not fail because the page about it cannot be written.
            self._broken = True
            print(f"[{self._stage}] no more progress on Prefect's page: {error}", flush=True)


def _legal(key: str) -> str:
    """Return a key that Prefect accepts: `pseudo_boxes@0` becomes `pseudo-boxes-0`."""
    return re.sub(r"[^a-z0-9-]+", "-", key.lower())
