"""Does memory grow with the number of images? `python -m benchmarks.memory`.

Runs every stage of the smoke profile on 1,000 to 20,000 generated images in shards of 1,000, and
reports the peak memory of each stage's largest process. Trainings have few steps, and work that
only takes time is cut short, so the numbers show how data is handled. `--only` runs some stages and
those upstream of them.
"""

import argparse
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

from ruamel.yaml import YAML

from benchmarks.measure import run, table
from benchmarks.project import REPOSITORY, copy_definition
from flows.dvc.project import load_graph
from flows.environment import stage_environment
from flows.graph import Graph
from flows.overlay import apply_profile

SHARD = 1000  # images
FLAT = 1.1  # factor by which memory may grow with 20 times the images


def make_folder(root: Path, images: int) -> Graph:
    """Make a project of the smoke profile with `images` training images; return its graph."""
    copy_definition(root)
    shutil.copytree(REPOSITORY / "experiments", root / "experiments")
    apply_profile(root, "smoke")
    yaml = YAML()
    params = yaml.load(root / "params.yaml")
    params["shards"] = list(range(max(1, images // SHARD)))
    params["download"]["shard_images"] = min(SHARD, images)
    params["download"]["scenes"]["num_images"]["train"] = images
    params["proposals"] |= {"mode": "single", "longer_side": 64}
    params["activation"]["rounds"] = 0
    params["pseudo_labels"]["min_labelled_fraction"] = 0.0
    params["label_quality"]["activation_thresholds"] = [0.2]
    params["evaluation"]["training_images"] = 6
    yaml.dump(params, root / "params.yaml")
    return load_graph(root)


def measure(root: Path, images: int, only: list[str] | None) -> dict[str, float]:
    """Return the peak memory in MiB of each group of stages: that of its largest shard."""
    graph = make_folder(root, images)
    if only:
        graph = load_graph(root, only)
    peaks: dict[str, float] = {}
    for stage in graph.values():
        command = shlex.split(stage.command)
        seconds, peak, _ = run([sys.executable, *command[1:]], root, **stage_environment())
        peaks[stage.group] = max(peak, peaks.get(stage.group, 0.0))
        print(f"{images} images: {stage.name} {seconds:.0f} s, {peak:.0f} MiB", flush=True)
    return peaks


def main() -> None:
    """Print the table, and the stages whose memory grows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 5000, 20000])
    parser.add_argument("--only", nargs="+", metavar="stage", help="and what they need")
    options = parser.parse_args()
    found = {}
    for images in options.images:
        with tempfile.TemporaryDirectory(prefix="ovis-benchmark-") as folder:
            found[images] = measure(Path(folder, "project"), images, options.only)
    first, last = found[options.images[0]], found[options.images[-1]]
    rows = [
        {
            "stage": group,
            **{f"{images:,} images": f"{found[images][group]:.0f}" for images in found},
            "growth": f"× {last[group] / first[group]:.2f}",
        }
        for group in first
    ]
    print("\n" + table("Peak memory of each stage's largest process, MiB", rows))
    growing = [group for group in first if last[group] > FLAT * first[group]]
    print(f"\nGrows by more than a tenth: {', '.join(growing) or 'none'}")


if __name__ == "__main__":
    main()
