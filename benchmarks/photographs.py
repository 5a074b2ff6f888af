"""What large photographs cost: `python -m benchmarks.photographs`.

The stages `pseudo_boxes` and `pseudo_masks` run on equally many photographs of 0.3 and of 24
megapixels, with the same maps, and with proposals and boxes that cover the same parts of the
images. The time includes reading and decoding.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from ruamel.yaml import YAML

from benchmarks.measure import run, table
from benchmarks.project import REPOSITORY, copy_definition

SIZES = {"0.3 megapixels": 1, "24 megapixels": 9}  # times 640 × 480


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.photographs", description=__doc__)
    parser.add_argument("--count", type=int, default=50)
    count = parser.parse_args().count
    rows = []
    for size, factor in SIZES.items():
        with tempfile.TemporaryDirectory(prefix="ovis-benchmark-") as folder:
            root = Path(folder, "project")
            copy_definition(root)
            yaml = YAML()
            params = yaml.load(root / "params.yaml")
            yaml.dump(params | {"shards": [0]}, root / "params.yaml")
            make = [sys.executable, "-m", "benchmarks.photograph_inputs"]
            run([*make, str(root), str(count), str(factor)], root, PYTHONPATH=str(REPOSITORY))
            for stage in ("pseudo_boxes", "pseudo_masks"):
                seconds, peak, _ = run([sys.executable, "-m", f"stages.{stage}", "0"], root)
                rows.append(
                    {"stage": stage, "of": size, "s": f"{seconds:.1f}", "peak MiB": f"{peak:.0f}"}
                )
    print(table(f"{count} photographs of two named objects each", rows))


if __name__ == "__main__":
    main()
