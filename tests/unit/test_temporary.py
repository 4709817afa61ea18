"""Temporary folders: removed in the end, or by the next process where the first was killed, and nobody else's ever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from jobs import temporary
from jobs.temporary import held_file, held_folder, remove_unheld
from tests.strangers import NOBODY


def leave(parent: Path, elsewhere: str = "") -> Path:
    """Have a process make a folder in `parent`, and be killed."""
    code = textwrap.dedent("""
        import os, signal, sys
        from pathlib import Path
        from jobs.temporary import add_elsewhere, held_folder
        with held_folder("test", Path(sys.argv[1])) as folder:
            (folder / "deep").mkdir()
            (folder / "deep" / "file").write_text("1")
            add_elsewhere(folder, [sys.argv[2]])
            print(folder, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    done = subprocess.run([sys.executable, "-c", code, parent, elsewhere], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return Path(done.stdout.strip())


def test_a_folder_is_its_owners_alone_and_gone_in_the_end(tmp_path: Path) -> None:
    with held_folder("test", tmp_path) as folder:
        assert folder.stat().st_mode & 0o077 == 0
        (folder / "file").write_text("1")
        with held_folder("test", tmp_path) as other:  # which looks for what is left
            assert other != folder
        assert (folder / "file").exists()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_goes_with_the_next(tmp_path: Path) -> None:
    socket, kept = tmp_path / "socket", tmp_path / "kept"
    socket.touch()
    kept.mkdir()
    left = leave(tmp_path, str(socket))
    other = leave(tmp_path, str(kept))  # removes the first
    assert not left.exists()
    assert not socket.exists()
    remove_unheld(tmp_path)
    assert not other.exists()
    assert kept.exists()  # folders elsewhere are never removed


@pytest.mark.parametrize("ends", ["raise KeyboardInterrupt", "return"], ids=["struck", "written to meanwhile"])
def test_a_removal_that_does_not_succeed_leaves_nothing(ends: str, tmp_path: Path) -> None:
    """Nor does a process that was forked meanwhile take away what its parent still uses."""
    code = textwrap.dedent("""
        import atexit, os, shutil, sys
        from pathlib import Path
        from jobs.temporary import held_folder
        removed = shutil.rmtree
        def struck(*_, **__):
            shutil.rmtree = removed
            ENDS
        try:
            with held_folder("test", Path(sys.argv[1])) as folder:
                (folder / "file").write_text("1")
                if not os.fork():
                    atexit._run_exitfuncs()
                    os._exit(0)
                os.wait()
                print(folder.exists(), flush=True)
                shutil.rmtree = struck
        except KeyboardInterrupt:
            pass
        print(folder.exists())
    """).replace("ENDS", ends)
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout == "True\nTrue\n"
    assert list(tmp_path.iterdir()) == []


def test_what_others_left_and_links_stay(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").touch()
    (tmp_path / "daskyard-held-link").symlink_to(elsewhere)
    (tmp_path / "daskyard-held-file").touch()
    (tmp_path / "daskyard-old1name").mkdir()
    os.mkfifo(tmp_path / "daskyard-held-fifo")
    if os.getuid() == 0:
        (tmp_path / "daskyard-held-theirs").mkdir()
        os.chown(tmp_path / "daskyard-held-theirs", NOBODY, NOBODY)
    before = sorted(tmp_path.iterdir())
    remove_unheld(tmp_path)
    assert sorted(tmp_path.iterdir()) == before
    assert (elsewhere / "file").exists()


def test_a_folder_that_is_taken_for_left_behind_before_it_is_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = temporary._hold
    n_tries = 0

    def late(handle: int, path: Path) -> bool:
        nonlocal n_tries
        n_tries += 1
        if n_tries < 3:
            monkeypatch.setattr(temporary, "_hold", hold)
            remove_unheld(path.parent)  # as another process would, in this moment
            monkeypatch.setattr(temporary, "_hold", late)
        return hold(handle, path)

    monkeypatch.setattr(temporary, "_hold", late)
    with held_folder("test", tmp_path) as folder:
        (folder / "file").write_text("1")
    n_tries = 0
    with held_file(tmp_path) as (file, path):
        file.write(b"1")
        file.flush()
        assert path.read_bytes() == b"1"
    assert list(tmp_path.iterdir()) == []


MAKE_MANY = """
import os, random, signal, sys
from pathlib import Path
from jobs.temporary import add_elsewhere, held_folder
numbers = random.Random(int(sys.argv[2]))
while True:
    with held_folder("test", Path(sys.argv[1])) as folder:
        (folder / "file").write_text("1")
        add_elsewhere(folder, [])
        if numbers.random() < 0.1:
            os.kill(os.getpid(), signal.SIGKILL)
        assert (folder / "file").read_text() == "1"
"""


def test_processes_that_make_and_sweep_and_are_killed_at_once_leave_nothing(tmp_path: Path) -> None:
    for seed in range(0, 32, 4):
        processes = [
            subprocess.Popen([sys.executable, "-c", MAKE_MANY, tmp_path, str(seed + n)], stderr=subprocess.PIPE)
            for n in range(4)
        ]
        errors = [process.communicate(timeout=60)[1] for process in processes]
        assert errors == [b""] * 4  # none found its own folder removed
        assert {process.returncode for process in processes} == {-signal.SIGKILL}
    remove_unheld(tmp_path)
    assert list(tmp_path.iterdir()) == []
