"""Processes that need the same library make it once, and none of them loads half of it."""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import pytest

from .compiler import CompilationError, make_once


def write_slowly(text, path):
    with open(path, "w") as file:
        file.write(text[:1])
        file.flush()
        time.sleep(0.3)
        file.write(text[1:])
    with open(path.with_suffix(".log"), "a") as log:
        log.write("made\n")


def read(path):
    return make_once(path, partial(write_slowly, "complete")).read_text()


def test_processes_wait_for_the_one_that_makes_the_file(tmp_path):
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(3, mp_context=context) as pool:
        texts = list(pool.map(read, [tmp_path / "library.so"] * 6))
    assert texts == ["complete"] * 6
    assert (tmp_path / "library.log").read_text() == "made\n"


def test_what_failed_is_made_by_the_next(tmp_path):
    def fail(path):
        path.write_text("half")
        raise CompilationError("no")

    path = tmp_path / "library.so"
    with pytest.raises(CompilationError):
        make_once(path, fail)
    assert not path.exists()
    assert read(path) == "complete"
