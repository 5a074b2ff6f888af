"""Files of stages, written atomically, with the same bytes for the same content.

JSON for small facts, Parquet for tables, safetensors for weights and dense maps. A file is written
under a temporary name beside its path and then renamed, so that a reader never sees half a file and
a crash loses no finished one.
"""

import codecs
import csv
import json
import os
from collections import Counter
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
    """Provide a temporary path to write to, which replaces `path` on success.

    Raises:
        OSError: the file cannot be written (a full disk, say); the message names `path`.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
        mode = partial.stat().st_mode
        yield partial
        partial.chmod(mode)  # safetensors creates files that only the owner may read
        os.replace(partial, path)
    except OSError as error:
        raise OSError(error.errno, f"cannot write {path}: {error.strerror}") from error
    finally:
        with suppress(OSError):  # the folder could not be made
            partial.unlink(missing_ok=True)


def _require(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path.absolute()}: no such file; `dvc repro` makes it")
    return path


def write_json(path: Path, content: Any, indent: int | None = 1) -> None:
    """Write JSON with sorted keys, so that equal content gives equal bytes.

    Bytes of a file name that are not UTF-8 are escaped; `read_json` restores them.

    Raises:
        ValueError: the content has NaN or infinity.
    """
    text = json.dumps(content, sort_keys=True, indent=indent, allow_nan=False, ensure_ascii=False)
    with replace_file(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def read_text(path: Path) -> str:
    """Return the text of a file in UTF-8, or in UTF-16 with a byte order mark.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file has another encoding.
    """
    encoded = _require(path).read_bytes()
    utf16 = encoded.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = encoded.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        place = len(encoded) - len(error.object) + error.start  # the mark is not in `object`
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


def parse_json(text: str) -> Any:
    """Return the content of a JSON text.

    Raises:
        ValueError: it is invalid, or an object has a key twice, of which Python would drop one.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON: {error}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        ((key, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"key {key!r} is given twice in one object; give it once")
    return content


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: its encoding or its JSON is invalid, or an object has a key twice; the message
            names the file.
    """
    try:
        return parse_json(read_text(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write_rows(path: Path, rows: list[dict]) -> None:
    """Write a CSV for DVC's plots: columns of the first row, floats with six significant digits."""
    with replace_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})


def write_table(path: Path, table: pa.Table, row_group_size: int = 65_536) -> None:
    """Write a Parquet file with zstd compression."""
    with replace_file(path) as partial:
        pq.write_table(table, partial, compression="zstd", row_group_size=row_group_size)


def read_table(path: Path) -> pa.Table:
    """Return a whole Parquet file; for image shards see `stages.common.formats.images`."""
    return pq.read_table(_require(path), memory_map=True)


def write_tensors(path: Path, tensors: "dict[str, torch.Tensor]", facts: Any = None) -> None:
    """Write tensors as safetensors, with `facts` (JSON values) in the header.

    The header has one key only: the format does not fix the order of several, and equal content
    must give equal bytes.
    """
    from safetensors.torch import save_file  # here: it imports torch, 3 s that JSON does not need

    contiguous = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    with replace_file(path) as partial:
        save_file(contiguous, partial, {"facts": json.dumps(facts, sort_keys=True)})


def read_tensors(path: Path) -> "tuple[dict[str, torch.Tensor], Any]":
    """Return the tensors of a safetensors file, on the CPU, and its facts.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not a safetensors file.
    """
    with _open_tensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, _facts(file)  # noqa: SIM118


def read_facts(path: Path) -> Any:
    """Return the facts of a file that `write_tensors` wrote, without reading its tensors."""
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
