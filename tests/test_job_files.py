"""One writer, whole lines only, and no output lost by a mistake."""

from __future__ import annotations

import errno
import functools
import io
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from fake_engine import FakeEngine
from test_jobs import OPTIONS, PROMPTS, prompt_file, records, run

from specmoe.cli import job_files, jobs
from specmoe.cli.job_files import OutFile, OutStream, encode
from specmoe.errors import OptionError, StoreError

ROOT = Path(__file__).resolve().parents[1]
NAME = functools.partial(jobs.fingerprint, "fake", {}, OPTIONS)

# One writer


@pytest.mark.parametrize("how", [{}, {"resume": True}, {"overwrite": True}])
def test_the_second_writer_is_refused_at_once_and_changes_nothing(how, tmp_path):
    prompts, out = prompt_file(tmp_path), tmp_path / "out"
    with jobs.open_job(prompts, out, NAME) as job:
        job.run(FakeEngine, OPTIONS, print)
        before = out.read_bytes()
        with pytest.raises(OptionError, match="another job is writing --out .*out"):
            run(prompts, out, **how)
        assert out.read_bytes() == before
    run(prompts, out, resume=True)
    assert out.read_bytes() == before


def test_the_lock_dies_with_its_process(tmp_path):
    out = tmp_path / "out"
    program = (
        "import sys; from specmoe.cli.job_files import OutFile\n"
        f"out = OutFile({str(out)!r}); out.begin(); out.append({{}}); print('held', flush=True); "
        "sys.stdin.read()"
    )
    held = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    )
    try:
        assert held.stdout.readline() == "held\n"
        with pytest.raises(OptionError, match="another job"):
            OutFile(out)
        held.send_signal(signal.SIGKILL)
        held.wait()
        OutFile(out).close()
    finally:
        held.kill()
        held.communicate()


def test_where_there_are_no_locks_a_warning_says_so_and_the_job_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(job_files, "fcntl", None)
    with pytest.warns(UserWarning, match=r"cannot be locked \(this system has no flock\)"):
        run(prompt_file(tmp_path), tmp_path / "out")
    assert len(records(tmp_path / "out")) == len(PROMPTS)


def test_where_the_file_system_has_no_locks_the_warning_has_its_reason(tmp_path, monkeypatch):
    def fail(fd, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(job_files.fcntl, "flock", fail)
    with pytest.warns(UserWarning, match=r"cannot be locked \(No locks available\)"):
        run(prompt_file(tmp_path), tmp_path / "out")
    assert len(records(tmp_path / "out")) == len(PROMPTS)


@pytest.mark.parametrize("put_there", [None, "somebody else's\n"])
def test_an_output_that_is_removed_or_replaced_while_it_is_written_ends_the_job(
    put_there, tmp_path
):
    prompts, out = prompt_file(tmp_path), tmp_path / "out"

    class Replacing(FakeEngine):
        def generate(self, prompts, **options):
            out.unlink()
            if put_there is not None:
                out.write_text(put_there)
            return super().generate(prompts, **options)

    with pytest.raises(StoreError, match="removed or replaced"):
        run(prompts, out, Replacing())
    assert (out.read_text() if out.exists() else None) == put_there


# What is there stays until there is something to write


def test_a_model_that_cannot_be_loaded_costs_no_old_output_and_leaves_no_new_one(tmp_path):
    prompts, out = prompt_file(tmp_path), tmp_path / "out"
    out.write_text("precious\n")

    def fail():
        raise OptionError("no such model")

    for fingerprint, load in ((fail, FakeEngine), (NAME, fail)):
        for path, how in ((out, {"overwrite": True}), (tmp_path / "new", {})):
            with pytest.raises(OptionError, match="no such model"):
                with jobs.open_job(prompts, path, fingerprint, **how) as job:
                    job.run(load, OPTIONS, print)
    assert out.read_text() == "precious\n" and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "kind", ["folder", "no folder", "device", "pipe", "null byte", "below a file", "denied"]
)
def test_an_output_that_cannot_be_written_is_one_sentence(kind, tmp_path, monkeypatch):
    prompts = prompt_file(tmp_path)
    out = {
        "folder": tmp_path,
        "no folder": tmp_path / "no" / "out",
        "device": "/dev/full",
        "pipe": tmp_path / "pipe",
        "null byte": f"{tmp_path}/a\0b",
        "below a file": prompts / "out",
        "denied": tmp_path / "denied",
    }[kind]
    if kind == "pipe":
        os.mkfifo(out)
    if kind == "denied":  # by hand, since root may write anywhere
        real = os.open

        def deny(path, *rest):
            if path == out:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return real(path, *rest)

        monkeypatch.setattr(os, "open", deny)
    with pytest.raises(OptionError) as refused:
        run(prompts, out, overwrite=True)
    assert "--out" in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_the_prompts_under_another_name_are_never_overwritten(link, tmp_path):
    prompts = prompt_file(tmp_path)
    before = prompts.read_bytes()
    link(prompts, tmp_path / "out")
    for how in ({"overwrite": True}, {"resume": True}):
        with pytest.raises(OptionError, match="itself"):
            run(prompts, tmp_path / "out", **how)
    assert prompts.read_bytes() == before


# Prompts that are no file on a disk, or not a finished one


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/urandom", "/dev/full"])
@pytest.mark.parametrize("way", ["path", "link", "stdin"])
def test_a_device_that_never_ends_is_refused_at_once(device, way, tmp_path, monkeypatch):
    path = device
    if way == "link":
        path = tmp_path / "link"
        path.symlink_to(device)
    with open(device) as stream:
        if way == "stdin":
            monkeypatch.setattr(sys, "stdin", stream)
            path = "-"
        for read in (lambda: run(path, tmp_path / "out"), lambda: jobs.read_prompts(path)):
            with pytest.raises(OptionError, match="is a device, which .* give a file or a pipe"):
                read()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("way", ["path", "stdin"])
def test_the_null_device_holds_no_prompts(way, tmp_path, monkeypatch):
    with open(os.devnull) as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        with pytest.raises(OptionError, match="holds no prompts"):
            run(os.devnull if way == "path" else "-", tmp_path / "out")


def test_prompts_typed_at_a_terminal_are_taken(tmp_path, monkeypatch):
    ours, theirs = os.openpty()
    os.write(ours, b'{"prompt": "a"}\n\x04')
    with open(theirs) as stream, open(ours, "rb"):
        monkeypatch.setattr(sys, "stdin", stream)
        run("-", tmp_path / "out")
    assert len(records(tmp_path / "out")) == 1


@pytest.mark.parametrize("name", ["folder", "null byte", "half a surrogate pair", "a list"])
def test_prompts_that_cannot_be_opened_are_one_sentence(name, tmp_path):
    path = {
        "folder": tmp_path,
        "null byte": "a\0b",
        "half a surrogate pair": "\ud800",
        "a list": ["a"],
    }[name]
    for read in (lambda: run(path, tmp_path / "out"), lambda: jobs.read_prompts(path)):
        with pytest.raises(OptionError, match="cannot read prompts from") as refused:
            read()
        assert str(refused.value).isprintable()
    assert not (tmp_path / "out").exists()


def test_a_named_pipe_gives_its_lines_and_a_job_resumes_from_it(tmp_path):
    content = prompt_file(tmp_path).read_bytes()
    run(prompt_file(tmp_path), tmp_path / "whole")
    whole, out, pipe = (tmp_path / "whole").read_bytes(), tmp_path / "out", tmp_path / "pipe"
    os.mkfifo(pipe)
    for there in (b"", whole[: len(whole) // 2]):
        out.write_bytes(there)
        # Opening it waits for the other side, so each has a thread of its own.
        writer = threading.Thread(target=pipe.write_bytes, args=(content,))
        writer.start()
        run(pipe, out, resume=True)
        writer.join()
        assert out.read_bytes() == whole


def test_lines_that_come_while_the_job_runs_are_decoded_too(tmp_path):
    prompts = prompt_file(tmp_path, *[{"prompt": "a"}] * 8)
    more = b'{"prompt": "b"}\n'

    class Slow(FakeEngine):
        def generate(self, asked, **options):
            if not self.calls:
                with open(prompts, "ab") as file:
                    file.write(more)
            return super().generate(asked, **options)

    run(prompts, tmp_path / "out", Slow())
    assert [record["prompt"] for record in records(tmp_path / "out")] == ["a"] * 8 + ["b"]
    with open(prompts, "ab") as file:
        file.write(more)
    run(prompts, tmp_path / "out", resume=True)
    assert len(records(tmp_path / "out")) == 10


def test_half_a_line_at_the_end_is_an_error_and_resuming_does_not_take_it_for_the_whole(tmp_path):
    prompts, out = prompt_file(tmp_path, *[{"prompt": "a"}] * 3), tmp_path / "out"
    with open(prompts, "ab") as file:
        file.write(b'{"prompt": ')
    run(prompts, out)
    assert "not JSON" in records(out)[3]["error"]
    before = out.read_bytes()
    with open(prompts, "ab") as file:
        file.write(b'"b"}\n')
    with pytest.raises(OptionError, match="out line 4 does not belong to line 4 of the prompts"):
        run(prompts, out, resume=True)
    assert out.read_bytes() == before


# Faults of the disk


@pytest.mark.parametrize("at", [1, 2, 8, 9, 11])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG])
def test_a_full_or_failing_disk_leaves_whole_lines_and_the_job_goes_on_later(
    at, number, tmp_path, monkeypatch
):
    prompts, out, real, count = prompt_file(tmp_path), tmp_path / "out", os.pwrite, [0]
    run(prompts, tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()

    def failing(fd, data, offset):
        count[0] += 1
        if count[0] < at:
            return real(fd, data, offset)
        if count[0] == at:
            return real(fd, data[:9], offset)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pwrite", failing)
    with pytest.raises(
        StoreError, match=f"out cannot be written: {os.strerror(number)}; go on with --resume"
    ):
        run(prompts, out)
    monkeypatch.undo()
    left = out.read_bytes() if out.exists() else b""
    assert left == b"".join(whole.splitlines(keepends=True)[: at - 1])
    run(prompts, out, resume=True)
    assert out.read_bytes() == whole


@pytest.mark.parametrize("at", [1, 2, 9])
def test_an_interrupt_in_the_middle_of_a_line_leaves_whole_lines(at, tmp_path, monkeypatch):
    prompts, out, real, count = prompt_file(tmp_path), tmp_path / "out", os.pwrite, [0]
    run(prompts, tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()

    def interrupted(fd, data, offset):
        count[0] += 1
        if count[0] < at:
            return real(fd, data, offset)
        real(fd, data[:9], offset)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "pwrite", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(prompts, out)
    left = out.read_bytes() if out.exists() else b""
    assert left == b"".join(whole.splitlines(keepends=True)[: at - 1])


def test_a_disk_that_will_not_sync_is_said(tmp_path, monkeypatch):
    def failing(fd):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(StoreError, match="Input/output error"):
        run(prompt_file(tmp_path), tmp_path / "out")
    assert len(records(tmp_path / "out")) == 8


def test_every_chunk_is_synced(tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr(os, "fsync", lambda fd: sizes.append(len(records(tmp_path / "out"))))
    run(prompt_file(tmp_path), tmp_path / "out")
    assert sizes == [8, 11]


def test_prompts_that_cannot_be_read_on_end_the_job_with_what_is_done(tmp_path, monkeypatch):
    class Failing(io.BytesIO):
        def readline(self, size=-1):
            if self.tell() == len(self.getvalue()):
                raise OSError(errno.EIO, "Input/output error")
            return super().readline(size)

    stream = Failing(prompt_file(tmp_path, *[{"prompt": "a"}] * 8).read_bytes())
    monkeypatch.setattr(jobs, "open_input", lambda path: (stream, "in"))
    with pytest.raises(StoreError, match="in cannot be read after line 8: Input/output error"):
        run("in", tmp_path / "out")
    assert len(records(tmp_path / "out")) == 8


def test_half_a_surrogate_pair_in_a_message_becomes_an_escape():
    line = encode({"error": "no file \udcff, ä"})
    assert json.loads(line) == {"error": "no file \udcff, ä"} and "ä".encode() in line


# stdout


def test_a_full_stdout_is_a_typed_error_and_a_reader_who_left_is_not(monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(StoreError, match="stdout cannot be written: No space left"):
            OutStream().append({"line": 1})
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        with pytest.raises(BrokenPipeError):
            OutStream().append({"line": 1})


@pytest.mark.parametrize("how", [{"resume": True}, {"overwrite": True}])
def test_stdout_is_not_resumed(how, tmp_path):
    with pytest.raises(OptionError, match="belong to a file"):
        run(prompt_file(tmp_path), "-", **how)


def test_closed_standard_streams_are_named(tmp_path, monkeypatch):
    prompts = prompt_file(tmp_path)
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(OptionError, match="stdout is closed"):
        run(prompts, "-")
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(OptionError, match="stdin is closed"):
        run("-", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Any length


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_ten_thousand_lines_take_the_memory_of_one_chunk(tmp_path):
    prompts = prompt_file(tmp_path, *[{"prompt": [5] * 40, "id": i} for i in range(10_000)])
    held = {}

    def look(done: int) -> None:
        if done in (2_048, 10_000):
            held[done] = resident_bytes()

    class Forgetful(FakeEngine):
        def generate(self, prompts, **options):
            self.calls.clear()
            return super().generate(prompts, **options)

    engine = Forgetful()
    with jobs.open_job(prompts, tmp_path / "out", NAME) as job:
        job.run(lambda: engine, {**OPTIONS, "batch_size": 64}, print, look)
    assert held[10_000] < 1.02 * held[2_048]


def test_a_pipe_that_does_not_block_and_is_full_is_one_sentence(monkeypatch):
    class FullPipe:
        asked = 0

        def write(self, data):
            self.asked += 1
            assert self.asked == 1, "it was asked again"
            return None  # what a raw stream says when nothing could be written

    out = OutStream()
    out._raw = FullPipe()
    with pytest.raises(StoreError, match="stdout cannot be written: it takes no more"):
        out.append({"prompt": 1})


def test_an_output_replaced_before_its_lock_is_opened_again_and_nothing_stays_open(
    tmp_path, monkeypatch
):
    path, lock, opened = tmp_path / "out.jsonl", job_files._lock, []

    def replaced_at_first(fd, name):
        opened.append(fd)
        if len(opened) == 1:
            path.rename(tmp_path / "old.jsonl")
            path.touch()
        lock(fd, name)

    monkeypatch.setattr(job_files, "_lock", replaced_at_first)
    out = OutFile(path)
    assert len(opened) == 2 and os.path.samestat(os.fstat(out._fd), path.stat())
    old = (tmp_path / "old.jsonl").stat()
    names = (os.path.join("/dev/fd", name) for name in os.listdir("/dev/fd"))
    assert not any(os.path.exists(name) and os.path.samestat(os.stat(name), old) for name in names)
    out.close()
