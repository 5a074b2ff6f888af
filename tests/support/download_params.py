"""Section `download` of params.yaml for tests: the repository's, but small, with given changes."""

import json
from pathlib import Path
from typing import Any

from stages.common.runtime.params import read_params
from tests.support.toy import REPOSITORY

SMALL: dict[str, Any] = {
    "shard_images": 1,
    "max_skipped_fraction": 0.0,
    "max_leaked_fraction": 0.0,
    "max_unmatched_fraction": 0.0,
    "scenes": {
        "num_images": {"pairs": 3, "train": 5, "val": 1, "test": 2},
        "scene_side": 64,
        "pair_side": 32,
    },
}


def write_download_params(place: Path, shards: tuple[int, ...] = (0, 1), **changes: Any) -> None:
    """Write a params.yaml whose section `download` has the changes; mappings are merged."""
    section = _changed(
        _changed(read_params(REPOSITORY / "params.yaml")["download"], SMALL), changes
    )
    content = {"seed": 0, "shards": list(shards), "download": section}
    (place / "params.yaml").write_text(json.dumps(content))


def _changed(old: Any, new: Any) -> Any:
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    return {**old, **{key: _changed(old.get(key), value) for key, value in new.items()}}
