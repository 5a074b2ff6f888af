"""What a full disk or a lost machine does to the journal."""

from flows.cli import main
from flows.journal import JOURNAL, is_edited, last_seconds, remember
from tests.support.toy import write_empty_project


def test_a_line_that_was_cut_short_is_lost_and_no_other(tmp_path):
    remember(tmp_path, stage="a", outcome="executed", seconds=1.0)
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write('{"at": "2026-11-25T13:14:19", "outcome": "é'.encode()[:-1])
    assert last_seconds(tmp_path) == {"a": 1.0}
    remember(tmp_path, stage="b", outcome="executed", seconds=2.0)
    remember(tmp_path, stage="c", outcome="executed", seconds=3.0)
    assert last_seconds(tmp_path) == {"a": 1.0, "b": 2.0, "c": 3.0}


def test_a_line_that_is_no_record_is_left_out(tmp_path):
    remember(tmp_path, stage="a", outcome="executed", seconds=1.0)
    with (tmp_path / JOURNAL).open("a") as file:
        file.write('\n17\n{"stage"\n')
    assert last_seconds(tmp_path) == {"a": 1.0}


def test_a_full_disk_is_told_in_one_line(tmp_path, monkeypatch, capsys):
    write_empty_project(tmp_path)
    (tmp_path / JOURNAL).parent.mkdir()
    (tmp_path / JOURNAL).symlink_to("/dev/full")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("flows.environment.apply_settings", lambda root: None)
    monkeypatch.setattr("claims.readme.write_readme", lambda root: remember(root, stage="a"))
    assert main(["readme"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "No space left on device" in line and "make room" in line


def test_what_is_newer_than_the_lock_was_edited(done_toy):
    assert not is_edited(done_toy.root)
    (done_toy.root / "stages/merge/__main__.py").touch()
    assert is_edited(done_toy.root)
    (done_toy.root / "dvc.lock").touch()
    assert not is_edited(done_toy.root)
    (done_toy.root / "dvc.lock").unlink()
    assert is_edited(done_toy.root)
