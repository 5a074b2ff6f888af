"""What a server says about a file: its length, version, checksum, and when to try again."""

import base64
import email.utils
import time
from typing import Any


def retry_after(told: str | None) -> float | None:
    """Return the seconds that a server asks clients to wait; it may send seconds or a date."""
    if told is None:
        return None
    if told.strip().isdecimal():
        return float(told)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(told).timestamp() - time.time())
    except ValueError:
        return None


def total(response: Any, resumed: bool) -> int | None:
    """Return the size of the whole file in bytes, if the server states it."""
    if resumed:
        told = response.headers.get("Content-Range", "").rpartition("/")[2]
    else:
        told = response.headers.get("Content-Length", "")
    return int(told) if told.isdecimal() else None


def version(response: Any) -> str | None:
    """Return an identifier of this version of the file, if the server sends one.

    A weak tag says that two versions are equivalent, not that they have the same bytes.
    """
    tag = response.headers.get("ETag") or response.headers.get("Last-Modified")
    return None if tag is None or tag.startswith("W/") else tag


def first_byte(response: Any) -> int | None:
    """Return where in the file a partial answer starts."""
    told = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return int(told) if told.isdecimal() else None


def told_md5(response: Any) -> str | None:
    """Return the whole file's checksum if the server sends one, as Google and Amazon do."""
    told = response.headers.get_all("x-goog-hash") or []
    for entry in (part.strip() for line in told for part in line.split(",")):
        if entry.startswith("md5="):
            return base64.b64decode(entry.removeprefix("md5=")).hex()
    tag = (response.headers.get("ETag") or "").strip('"')
    is_md5 = len(tag) == 32 and all(digit in "0123456789abcdef" for digit in tag)
    return tag if is_md5 and response.headers.get("Server") == "AmazonS3" else None
