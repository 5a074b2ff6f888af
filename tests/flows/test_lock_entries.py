"""dvc.lock is read whole though DVC rewrites it in place."""

import threading

import pytest

from flows import lock_entries
from flows.lock_entries import lock_entry

WHOLE = """schema: '2.0'
stages:
  first:
    cmd: a
    outs:
    - path: a.txt
      md5: '1'
  last:
    cmd: b
    outs:
    - path: b.txt
      md5: '2'
    - path: c.txt
      md5: '3'
"""


def test_a_file_that_is_being_written_is_waited_for(tmp_path):
    lock = tmp_path / "dvc.lock"
    cuts = (0, WHOLE.index("  first"), WHOLE.index("    - path: c.txt"), len(WHOLE))
    done = threading.Event()

    def write() -> None:
        for cut in cuts:
            lock.write_text(WHOLE[:cut])
            done.wait(0.1)

    lock.write_text("")
    writer = threading.Thread(target=write)
    writer.start()
    assert [out["md5"] for out in lock_entry(lock, "last")["outs"]] == ["2", "3"]
    writer.join()
    assert lock_entry(lock, "first")["cmd"] == "a"


def test_an_entry_that_never_comes_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(lock_entries, "SECONDS_TO_WRITE", 0.3)
    with pytest.raises(RuntimeError, match=r"dvc\.lock: no entry of other"):
        lock_entry(tmp_path / "dvc.lock", "other")
