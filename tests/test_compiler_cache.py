"""What torch's compiler keeps on disk: what a killed run left of it does not end the next one."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from model import compiler_cache
from tests.small_runs import REPOSITORY, figures, make_inputs

SHORT = ["--compile", "--max_steps", "1", "--val_fraction", "0"]


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """An empty folder of the compiler, one for its headers in it."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "kept"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "kept" / "ab").mkdir(parents=True)
    return tmp_path / "kept"


def remove_unfinished() -> int:
    compiler_cache.remove_unfinished.cache_clear()
    return compiler_cache.remove_unfinished()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"), reason="Linux, g++")
def test_libraries_that_are_not_whole_are_removed(kept):
    """Empty, or cut anywhere; the source stays, and so does all that is whole."""
    (kept / "one.cpp").write_text("int one() { return 1; }")
    command = ["g++", "-shared", "-fPIC", "one.cpp", "-o", "one.so"]
    subprocess.run(command, cwd=kept, check=True, timeout=60)
    whole = (kept / "one.so").read_bytes()
    for i, size in enumerate([0, 1, 40, 64, 1000, len(whole) // 2, len(whole) - 1, len(whole)]):
        (kept / "ab" / f"c{i}.main.so").write_bytes(whole[:size])
        (kept / "ab" / f"c{i}.main.cpp").write_text("int main;")
    assert remove_unfinished() == 7
    assert names(kept / "ab") == {f"c{i}.main.cpp" for i in range(8)} | {"c7.main.so"}
    assert remove_unfinished() == 0


def test_what_a_build_left_is_removed(kept, tmp_path):
    """Its folder is there: a library or an object of any length, a header in the other folder."""
    headers = compiler_cache.cache_folders()[1] / "precompiled_headers"
    assert headers.is_relative_to(tmp_path)
    headers.mkdir(parents=True)
    for folder, name, suffix in [
        (kept / "ab", "c1.main", ".so"), (kept / "ab", "c2.main", ".o"), (headers, "c3.h", ".gch")
    ]:  # fmt: skip
        (folder / f"{name}_CxxBuild").mkdir()
        (folder / f"{name}{suffix}").write_bytes(b"\x7f")
    (headers / "c3.h").write_text("#include <vector>")
    (headers / "c4.h.gch").write_bytes(b"gpch")
    assert remove_unfinished() == 3
    assert names(kept / "ab") == set() and names(headers) - {"locks"} == {"c3.h", "c4.h.gch"}


def test_what_is_being_built_is_left(kept):
    """Its lock is held; once it is free without the build having ended, it is removed."""
    (kept / "ab" / "c1.main_CxxBuild").mkdir()
    (kept / "ab" / "c1.main.so").touch()
    (kept / "locks").mkdir()
    with FileLock(kept / "locks" / "c1.lock"):
        assert remove_unfinished() == 0
    assert (kept / "ab" / "c1.main.so").exists()
    assert remove_unfinished() == 1 and names(kept / "ab") == set()


def test_thousands_are_looked_at_in_no_time(kept):
    """A second for 2,000 libraries and their locks, a disk that is busy included."""
    (kept / "locks").mkdir()
    for i in range(2000):
        (kept / f"{i % 99}").mkdir(exist_ok=True)
        (kept / f"{i % 99}" / f"c{i}.main.so").write_bytes(bytes(64))
        (kept / "locks" / f"c{i}.lock").touch()
    begin = time.process_time()
    assert remove_unfinished() == 0
    assert time.process_time() - begin < 1


@pytest.fixture
def train(tmp_path, tiny_tokenizer_dir):
    """A function: one compiled step with folders of the compiler's own; what it printed."""
    flags = [*make_inputs(tmp_path, tiny_tokenizer_dir)["pretrain"], *SHORT]
    kept = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "kept"), "TMPDIR": str(tmp_path)}

    def once(out: str, status: int = 0, **more: str) -> str:
        command = [sys.executable, "train_pretrain.py", *flags, "--out_dir", str(tmp_path / out)]
        done = subprocess.run(
            command, cwd=REPOSITORY, env=os.environ | {"OMP_NUM_THREADS": "1"} | kept | more,
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == status, done.stdout + done.stderr
        return done.stderr if status else done.stdout

    return once


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="libraries of another format")
def test_a_run_after_a_killed_one(train, tmp_path):
    """Libraries and the header that are empty or cut in half are made anew, and it trains."""
    train("first")
    libraries = sorted((tmp_path / "kept").glob("??/*.so"))
    headers = sorted(tmp_path.glob("torchinductor_*/precompiled_headers/*.gch"))
    assert libraries
    for i, path in enumerate([*headers, *libraries]):
        os.truncate(path, (i + 1) % 2 * path.stat().st_size // 2)
    for header in headers:
        header.with_name(header.name.removesuffix(".gch") + "_CxxBuild").mkdir()
    train("again")
    assert figures(tmp_path / "again") == figures(tmp_path / "first")
    assert all(path.stat().st_size for path in libraries)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a shell script as the compiler")
def test_a_fault_of_the_compiler_in_words(train, tmp_path):
    """A disk that is full: one line with the folders that may be deleted, status 2."""
    compiler = tmp_path / "g++"
    line = "cc1plus: fatal error: error writing to out.s: No space left on device"
    compiler.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && exec g++ "$@"\necho "{line}"\nexit 1\n'
    )
    compiler.chmod(0o755)
    error = train("run", status=2, CXX=str(compiler))
    assert error.startswith(f"error: torch's compiler failed ({line}): "), error
    assert str(tmp_path / "kept") in error and error.count("\n") == 1
