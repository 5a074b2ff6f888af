"""Files that stages read and write: whole or not at all, and the same bytes for the same content.

JSON for small facts, Parquet for tables, safetensors for weights and dense maps. A file is written
beside its place and renamed: a reader never meets half a file, a crash loses nothing finished.
"""

import codecs
import csv
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open

if TYPE_CHECKING:
    import torch


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; on success it takes the place of `path`.

    Raises:
        OSError: what the system said (a full disk, say), with the file's name.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
        mode = partial.stat().st_mode
        yield partial
        partial.chmod(mode)  # safetensors makes a file that only its owner may read
        os.replace(partial, path)
    except OSError as error:
        raise OSError(error.errno, f"cannot write {path}: {error.strerror}") from error
    finally:
        with suppress(OSError):  # whose folder could not be made
            partial.unlink(missing_ok=True)


def _require(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path.absolute()}: no such file; `dvc repro` makes it")
    return path


def write_json(path: Path, content: Any, indent: int | None = 1) -> None:
    """Write sorted keys, so that equal content gives equal bytes; NaN and infinity are refused.

    The bytes of a file name that are no UTF-8 are escaped, and come back by `read_json`.
    """
    text = json.dumps(content, sort_keys=True, indent=indent, allow_nan=False, ensure_ascii=False)
    with replace_file(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def read_text(path: Path) -> str:
    """Return the text of a file that a person may have written: UTF-8, or UTF-16 with its mark.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is of another encoding, which nobody can be sure of.
    """
    encoded = _require(path).read_bytes()
    utf16 = encoded.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = encoded.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        place = len(encoded) - len(error.object) + error.start  # the mark is no part of it
        raise ValueError(
            f"{path}: byte {place} ({error.object[error.start]:#04x}) is not {error.encoding}; save"
            " the file as UTF-8"
        ) from None
    if "\0" in text:
        raise ValueError(
            f"{path}: byte {text.index(chr(0))} is 0, as in UTF-16 without its mark; save the file"
            " as UTF-8"
        )
    return text


def read_json(path: Path) -> Any:
    """Return the file's content; a syntax error names the file."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error


def write_rows(path: Path, rows: list[dict]) -> None:
    """Write a CSV for DVC's plots, columns as in the first row, numbers to six digits."""
    with replace_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})


def write_table(path: Path, table: pa.Table, row_group_size: int = 65_536) -> None:
    """Write one Parquet file with fixed compression."""
    with replace_file(path) as partial:
        pq.write_table(table, partial, compression="zstd", row_group_size=row_group_size)


def read_table(path: Path) -> pa.Table:
    """Return a whole Parquet file; use `stages.common.formats.images` to stream image shards."""
    return pq.read_table(_require(path), memory_map=True)


def write_tensors(path: Path, tensors: "dict[str, torch.Tensor]", facts: Any = None) -> None:
    """Write tensors, with `facts` (anything JSON) in the header.

    One header key only: the format does not fix the order of several, and equal content must give
    equal bytes.
    """
    from safetensors.torch import save_file  # with torch: 3 s that a file of JSON does not need

    contiguous = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    with replace_file(path) as partial:
        save_file(contiguous, partial, {"facts": json.dumps(facts, sort_keys=True)})


def read_tensors(path: Path) -> "tuple[dict[str, torch.Tensor], Any]":
    """Return (tensors on the CPU, facts)."""
    with _open_tensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, _facts(file)  # noqa: SIM118


def read_facts(path: Path) -> Any:
    """Return the facts of a file of `write_tensors`; its tensors are not read."""
    with _open_tensors(path) as file:
        return _facts(file)


@contextmanager
def _open_tensors(path: Path) -> Iterator[Any]:
    try:
        with safe_open(_require(path), framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file: {error}") from error


def _facts(file: Any) -> Any:
    return json.loads((file.metadata() or {}).get("facts", "null"))
