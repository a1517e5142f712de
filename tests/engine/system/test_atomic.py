"""Files and folders appear whole or not at all, also if a run is killed."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from lira_engine import LiraError
from lira_engine.system.atomic import atomic_directory, atomic_write, check_file, remove_leftovers


def test_a_directory_appears_only_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "bundle"
    with atomic_directory(target) as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "file").write_text("x")
        assert not target.exists()
        assert partial.parent == target.parent and partial.name.startswith(".")
    assert (target / "sub" / "file").read_text() == "x"
    assert os.listdir(target.parent) == ["bundle"]


def test_an_error_leaves_no_file_or_folder(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic_directory(tmp_path / "bundle") as partial:
        (partial / "file").write_text("x")
        raise ZeroDivisionError
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "file") as file:
        file.write(b"x")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_a_folder_with_content_is_replaced_by_overwrite_only(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    with atomic_directory(target) as partial:  # an empty folder counts as none
        (partial / "lira.json").write_text("1")
    with pytest.raises(LiraError, match="exists already"), atomic_directory(target):
        pass
    with atomic_directory(target, overwrite=True) as partial:
        (partial / "lira.json").write_text("2")
    assert (target / "lira.json").read_text() == "2"
    assert os.listdir(tmp_path) == ["bundle"]


def test_a_failed_overwrite_keeps_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    with atomic_directory(target) as partial:
        (partial / "lira.json").write_text("1")
    with pytest.raises(ZeroDivisionError), atomic_directory(target, overwrite=True):
        raise ZeroDivisionError
    assert (target / "lira.json").read_text() == "1"


def test_overwrite_refuses_what_lira_edge_did_not_write(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "letters").write_text("dear")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(home)
    for name in ("home", "file", "link"):
        with (
            pytest.raises(LiraError, match="choose another path"),
            atomic_directory(tmp_path / name, overwrite=True),
        ):
            pass
    assert (home / "letters").read_text() == "dear"


def test_a_file_or_link_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "engines").write_text("x")
    with (
        pytest.raises(LiraError, match=r"engines is a file, expected a folder for cpu-fp32: remove it"),
        atomic_directory(tmp_path / "engines" / "cpu-fp32", marker=None),
    ):
        pass
    (tmp_path / "link").symlink_to(tmp_path)
    with (
        pytest.raises(LiraError, match=r"link exists and is not a folder, or only a link to one: remove it$"),
        atomic_directory(tmp_path / "link", overwrite=True, marker=None),
    ):
        pass


def test_an_unreadable_folder_is_a_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bundle").mkdir()

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with (
        pytest.raises(
            LiraError, match="bundle cannot be read or written: Permission denied; change its perm"
        ),
        atomic_directory(tmp_path / "bundle", overwrite=True),
    ):
        pass


def test_atomic_write_replaces_a_file_and_refuses_a_folder(tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    for content in (b"1", b"2"):
        with atomic_write(target) as file:
            file.write(content)
    assert target.read_bytes() == b"2"
    with pytest.raises(LiraError, match="is a folder"), atomic_write(tmp_path):
        pass


def test_a_file_that_cannot_be_written_is_found_before(tmp_path: Path) -> None:
    check_file(tmp_path / "new" / "a.json")
    assert [path.name for path in tmp_path.rglob("*")] == ["new"]
    (tmp_path / "new" / "a.json").write_text("kept")
    check_file(tmp_path / "new" / "a.json")
    check_file(os.devnull)
    assert (tmp_path / "new" / "a.json").read_text() == "kept"
    with pytest.raises(LiraError, match="new is a folder, expected the path of a file"):
        check_file(tmp_path / "new")
    with pytest.raises(LiraError, match=r"a\.json is a file, expected a folder for b"):
        check_file(tmp_path / "new" / "a.json" / "b")


@pytest.mark.skipif(os.name != "posix", reason="Linux and macOS only")
def test_links_stay_links_and_pipes_are_written(tmp_path: Path) -> None:
    real, link, pipe = (tmp_path / name for name in ("real", "link", "pipe"))
    real.write_text("old")
    link.symlink_to(real)
    with atomic_write(link) as file:
        file.write(b"new")
    assert link.is_symlink() and real.read_bytes() == b"new"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with atomic_write(pipe) as file:
        file.write(b"new")
    assert os.read(reader, 9) == b"new" and pipe.is_fifo()
    os.close(reader)
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe", "real"]


@pytest.mark.parametrize("number", [errno.EFBIG, errno.EMFILE, errno.ENAMETOOLONG])
def test_a_system_limit_is_a_one_line_error(tmp_path: Path, number: int) -> None:
    with (
        pytest.raises(LiraError, match=r"file cannot be written: .*; (raise|take) "),
        atomic_write(tmp_path / "file"),
    ):
        raise OSError(number, "x")


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    code = """
        import sys, time
        from lira_engine.system.atomic import atomic_directory, atomic_write
        with atomic_directory("bundle") as partial, atomic_write("file") as file:
            (partial / "big").write_text("x")
            print("ready", flush=True)
            time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None and running.stdout.readline() == "ready\n"
        alive = {name for name in os.listdir(tmp_path) if "partial" in name}
        assert len(alive) == 2
        with atomic_directory(tmp_path / "bundle"):
            assert alive <= set(os.listdir(tmp_path))  # a running one's work is left alone
        (tmp_path / "bundle").rmdir()
        running.send_signal(signal.SIGKILL)
        running.wait()
    assert alive == set(os.listdir(tmp_path))
    (tmp_path / ".other.partial-1").mkdir()
    with atomic_directory(tmp_path / "bundle"), atomic_write(tmp_path / "file"):
        pass
    assert set(os.listdir(tmp_path)) == {"bundle", "file", ".other.partial-1"}
    with atomic_directory(tmp_path / "more") as alive_one:
        remove_leftovers(tmp_path)
        assert set(os.listdir(tmp_path)) == {"bundle", "file", alive_one.name}


def test_of_two_runs_the_last_to_end_wins_without_a_marker(tmp_path: Path) -> None:
    """No user named such a folder. No leftovers stay."""
    target = tmp_path / "bundle"
    with atomic_directory(target, overwrite=True, marker=None) as first:
        (first / "file").write_text("1")
        with atomic_directory(target, overwrite=True, marker=None) as second:
            (second / "file").write_text("2")
        assert (target / "file").read_text() == "2"
    assert (target / "file").read_text() == "1"
    assert os.listdir(tmp_path) == ["bundle"]


def letters(folder: Path) -> None:
    folder.mkdir()
    (folder / "letters").write_text("dear")


def links(path: Path) -> None:
    letters(path.with_name("home"))
    path.symlink_to(path.with_name("home"))


def bundles(folder: Path) -> None:
    folder.mkdir()
    (folder / "lira.json").write_text("another run's")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("appear", [letters, links, bundles, lambda path: path.write_text("x")])
def test_what_appears_during_a_run_is_kept(
    tmp_path: Path, appear: Callable[[Path], None], overwrite: bool
) -> None:
    target = tmp_path / "bundle"

    def contents() -> dict[str, str]:
        return {str(path): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}

    with (
        pytest.raises(LiraError, match=r"bundle appeared while .* stays as it is, .*: choose another path$"),
        atomic_directory(target, overwrite=overwrite) as partial,
    ):
        (partial / "lira.json").write_text("1")
        appear(target)
        before = contents()
    before.pop(str(partial / "lira.json"))
    assert contents() == before
    assert target.is_symlink() == (appear is links)
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_an_empty_folder_that_appears_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with atomic_directory(tmp_path / "link" / "bundle") as partial:
        (partial / "lira.json").write_text("1")
        (tmp_path / "real" / "bundle").mkdir()
    assert (tmp_path / "real" / "bundle" / "lira.json").read_text() == "1"
    assert os.listdir(tmp_path / "real") == ["bundle"]


def test_a_folder_that_takes_a_bundles_place_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "bundle"
    bundles(target)

    def rename(source: Path, target: Path) -> None:
        raise AssertionError("a folder that must stay was moved")

    with (
        pytest.raises(LiraError, match="bundle appeared"),
        atomic_directory(target, overwrite=True) as partial,
    ):
        (partial / "lira.json").write_text("2")
        target.rename(tmp_path / "kept")
        letters(target)
        (target / "lira.json").write_text("mine")
        monkeypatch.setattr(os, "rename", rename)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "bundle",
        "bundle/letters",
        "bundle/lira.json",
        "kept",
        "kept/lira.json",
    ]


def racing(monkeypatch: pytest.MonkeyPatch, do: Callable[[Path, Path], None], at: int) -> None:
    """Call `do(source, target)` right before rename number `at`, after all checks."""
    rename, count = os.rename, 0

    def raced(source: Path, target: Path) -> None:
        nonlocal count
        count += 1
        if count == at:
            do(source, target)
        rename(source, target)

    monkeypatch.setattr(os, "rename", raced)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_appears_at_the_last_moment_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    target = tmp_path / "bundle"
    racing(monkeypatch, lambda source, target: letters(target), 1)
    with (
        pytest.raises(LiraError, match="bundle appeared"),
        atomic_directory(target, overwrite=overwrite) as partial,
    ):
        (partial / "lira.json").write_text("1")
    assert sorted(os.listdir(tmp_path)) == ["bundle"] and os.listdir(target) == ["letters"]


def test_a_bundle_changed_at_the_last_moment_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "bundle"
    bundles(target)

    def exchange(source: Path, target: Path) -> None:
        (source / "lira.json").rename(tmp_path / "kept.json")
        (source / "letters").write_text("dear")

    racing(monkeypatch, exchange, 1)
    with (
        pytest.raises(LiraError, match="bundle appeared"),
        atomic_directory(target, overwrite=True) as partial,
    ):
        (partial / "lira.json").write_text("1")
    assert sorted(os.listdir(tmp_path)) == ["bundle", "kept.json"] and os.listdir(target) == ["letters"]


def test_a_bundle_whose_place_is_taken_is_kept_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "bundle"
    bundles(target)
    racing(monkeypatch, lambda source, target: letters(target), 2)
    with (
        pytest.raises(LiraError, match=r"stood there is (\S+) now: move it") as caught,
        atomic_directory(target, overwrite=True) as partial,
    ):
        (partial / "lira.json").write_text("1")
    kept = Path(re.findall(r"there is (\S+) now", str(caught.value))[0])
    assert (kept / "lira.json").read_text() == "another run's"
    remove_leftovers(tmp_path)
    assert kept.exists() and os.listdir(target) == ["letters"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_of_two_runs_the_first_to_end_wins_with_a_marker(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with (
        pytest.raises(LiraError, match="link/bundle appeared"),
        atomic_directory(tmp_path / "link" / "bundle", overwrite=overwrite) as first,
    ):
        (first / "lira.json").write_text("1")
        with atomic_directory(tmp_path / "bundle", overwrite=overwrite) as second:
            (second / "lira.json").write_text("2")
    assert (tmp_path / "bundle" / "lira.json").read_text() == "2"
    assert sorted(os.listdir(tmp_path)) == ["bundle", "link"]


def test_an_error_names_its_file(tmp_path: Path) -> None:
    with (
        pytest.raises(LiraError, match="/there/graph cannot be read or written: Permission denied"),
        atomic_directory(tmp_path / "bundle"),
    ):
        raise PermissionError(errno.EACCES, "x", "/there/graph")


def test_a_full_disk_is_a_one_line_error_and_a_bug_is_raised(tmp_path: Path) -> None:
    with (
        pytest.raises(LiraError, match=r"file cannot be written: No space left .*; free some"),
        atomic_write(tmp_path / "file"),
    ):
        raise OSError(errno.ENOSPC, "full")
    with pytest.raises(FileNotFoundError), atomic_directory(tmp_path / "bundle"):
        raise FileNotFoundError(errno.ENOENT, "a bug, not the user's doing")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_read_only_folder_is_a_one_line_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(LiraError, match="Permission denied"), atomic_directory(tmp_path / "bundle"):
        pass


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What reaches the disk, in order: the inode of what is flushed, and "rename"."""
    order: list[object] = []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def flushed(descriptor: int) -> None:
        order.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def renamed(source: Path, target: Path) -> None:
        order.append("rename")
        rename(source, target)

    def replaced(source: Path, target: Path) -> None:
        order.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "rename", renamed)
    monkeypatch.setattr(os, "replace", replaced)
    return order


@pytest.mark.skipif(os.name != "posix", reason="Windows flushes no folders")
def test_a_file_is_on_the_disk_before_its_name_is(tmp_path: Path, on_disk: list[object]) -> None:
    """Else a power cut leaves the name with an empty file behind it."""
    with atomic_write(tmp_path / "file") as file:
        file.write(b"x")
        file.flush()
        assert on_disk == []
    assert on_disk == [(tmp_path / "file").stat().st_ino, "rename", tmp_path.stat().st_ino]


@pytest.mark.skipif(os.name != "posix", reason="Windows flushes no folders")
def test_a_folder_is_on_the_disk_before_its_name_is(tmp_path: Path, on_disk: list[object]) -> None:
    with atomic_directory(tmp_path / "bundle") as partial:
        (partial / "sub").mkdir()
        for name in ("a", "sub/b"):
            (partial / name).write_text("x")
    paths = (tmp_path / "bundle" / name for name in ("", "a", "sub", "sub/b"))
    renamed = on_disk.index("rename")
    assert sorted(map(str, on_disk[:renamed])) == sorted(str(path.stat().st_ino) for path in paths)
    assert on_disk[renamed:] == ["rename", tmp_path.stat().st_ino]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_a_failed_swap_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    target = tmp_path / "bundle"
    bundles(target)

    def fail(source: Path, target: Path) -> None:
        raise OSError(number, "x", str(source))

    racing(monkeypatch, fail, 2)
    with (
        pytest.raises(LiraError, match=r"bundle cannot be written"),
        atomic_directory(target, overwrite=True) as partial,
    ):
        (partial / "lira.json").write_text("1")
    assert os.listdir(tmp_path) == ["bundle"] and (target / "lira.json").read_text() == "another run's"


def test_what_was_replaced_is_removed_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is killed before has the old folder or the new one under the name, whole."""
    target = tmp_path / "bundle"
    bundles(target)
    seen: list[set[str]] = []
    racing(monkeypatch, lambda source, target: seen.append(set(os.listdir(tmp_path))), 3)
    with atomic_directory(target, overwrite=True) as partial:
        (partial / "lira.json").write_text("1")
    ((*names,),) = seen
    assert "bundle" in names and any(".bundle.replaced-" in name for name in names)
    assert os.listdir(tmp_path) == ["bundle"] and (target / "lira.json").read_text() == "1"


def test_a_disk_that_fills_under_numpy_is_a_one_line_error(
    tmp_path: Path, room_for: Callable[[int], AbstractContextManager[None]]
) -> None:
    """NumPy, which writes arrays by itself, gives no error number."""
    with (
        room_for(1 << 16),
        pytest.raises(LiraError, match=r"bundle cannot be written: the disk took a part of it .*; free some"),
        atomic_directory(tmp_path / "bundle") as partial,
    ):
        np.save(partial / "a.npy", np.zeros(1 << 20, np.uint8))
    assert os.listdir(tmp_path) == []


def test_a_pipe_among_leftovers_is_not_waited_for(tmp_path: Path) -> None:
    """A stranger's folder may hold one."""
    os.mkfifo(tmp_path / ".engines.partial-00")
    remove_leftovers(tmp_path)
    assert not list(tmp_path.iterdir())
