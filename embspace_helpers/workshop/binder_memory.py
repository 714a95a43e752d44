"""Measure each notebook as on Binder: a JupyterLab server and its kernel, on one core, together.

    python -m embspace_helpers.binder_memory [notebook or folder …] [--cgroup FOLDER]

Binder gives a session 2 GB. What counts there is the server and the kernel together, not the
kernel alone as under pytest. So this starts JupyterLab, with the environment of binder/start and
bound to one core, opens every notebook through the server's REST API and websocket as a browser
does, runs all its cells and prints the peak. Linux only.

Peak: the proportional set size (Pss in /proc/PID/smaps_rollup) of the server and all processes it
started, summed, every quarter of a second. A page that two processes share counts once. A peak
shorter than that may be missed. MB are 10^6 bytes. Exit code 1 if a notebook is over 1800 MB, or
a cell of it fails.

The hard limit of 2 GB comes on top, where there is one to be had: in a scope of systemd, or with
--cgroup in a new child of a memory cgroup (v1 or v2) that is yours to divide. A group that
another program made is not, so none is chosen unasked. Without a limit the peak alone decides.
"""

import argparse
import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
import websocket

from embspace_helpers.workshop.notebooks import find

LIMIT = 2_000_000_000  # bytes
ALLOWED = 1800  # MB
PERIOD = 0.25  # seconds between two samples
PATIENCE = 1800  # seconds that a cell may be silent
START = Path(__file__).parents[2] / "binder" / "start"
MB = 1_000_000


@dataclass(frozen=True)
class Result:
    """What one notebook took, and "OK", "OVER" or what went wrong."""

    name: str
    peak: float  # MB
    seconds: float
    verdict: str

    def __str__(self) -> str:
        return f"{self.name:<32}{self.peak:>9.0f}{self.seconds:>9.1f}  {self.verdict}"


class Sampler:
    """Samples the memory of a process and all below it in a thread, and keeps the peak."""

    def __init__(self, pid: int) -> None:
        self.pid, self.peak, self._end = pid, 0.0, threading.Event()

    def __enter__(self) -> "Sampler":
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        """Sample until the end, then once more."""
        while True:
            last = self._end.wait(PERIOD)
            self.peak = max(self.peak, sum(map(read_pss, family(self.pid))))
            if last:
                return


def read_pss(pid: int) -> float:
    """Return a process's proportional set size in MB; 0 when it has ended."""
    try:
        found = re.search(r"^Pss:\s*(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)
    except OSError:
        return 0.0
    return int(found[1]) * 1024 / MB if found else 0.0


def family(pid: int) -> list[int]:
    """Return a process and all below it."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    found = [pid]
    for member in found:  # grows while it is read: children, then their children
        found += children.get(member, [])
    return found


@contextlib.contextmanager
def limit_memory(parent: Path | None) -> Iterator[tuple[list[str], str]]:
    """Give the start of a command that runs the rest under the hard limit, and what limits it.

    `parent`: a memory cgroup to make a child of. Raises OSError when none can be made there.
    """
    if parent is None:
        yield _systemd_scope()
        return
    group = parent / f"embspace-{os.getpid()}"
    group.mkdir()
    try:
        second_version = (group / "memory.max").exists()
        (group / ("memory.max" if second_version else "memory.limit_in_bytes")).write_text(
            str(LIMIT)
        )
        # The shell enters the group before it becomes the server: all its memory is counted.
        enter = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(group)]
        yield enter, f"a hard limit of {LIMIT // MB} MB ({group})"
    finally:
        _remove(group)


def _remove(group: Path) -> None:
    """Remove a cgroup; its last processes may take a moment to leave it."""
    for _ in range(50):
        with contextlib.suppress(OSError):
            return group.rmdir()
        time.sleep(0.1)
    print(f"could not remove the cgroup {group}", file=sys.stderr)


def _systemd_scope() -> tuple[list[str], str]:
    """Return a command for a scope of the user's systemd, where that works; else an empty one."""
    scope = ["systemd-run", "--user", "--scope", "--quiet", "-p", f"MemoryMax={LIMIT}",
             "-p", "MemorySwapMax=0", "--"]
    if shutil.which(scope[0]):
        trial = subprocess.run([*scope, "true"], capture_output=True, check=False)
        if trial.returncode == 0:
            return scope, f"a hard limit of {LIMIT // MB} MB (systemd)"
    return [], "no hard limit: the peak alone decides"


class Server:
    """A running JupyterLab server, reached as a browser reaches it; `pid` is its process."""

    def __init__(self, pid: int, port: int, token: str) -> None:
        self.pid, self.port, self.token = pid, port, token

    def request(self, method: str, path: str, body: dict | None = None) -> dict:
        """Ask the REST API; raises OSError when the server does not answer or refuses."""
        asked = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api/{path}", method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"token {self.token}"},
        )
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return json.loads(answer.read() or b"{}")

    @contextlib.contextmanager
    def session(self, path: str) -> Iterator[websocket.WebSocket]:
        """Open a notebook with a kernel of its own; give the websocket to the kernel."""
        made = self.request("POST", "sessions", {"path": path, "name": path, "type": "notebook",
                                                 "kernel": {"name": "python3"}})
        try:
            socket = websocket.create_connection(
                f"ws://127.0.0.1:{self.port}/api/kernels/{made['kernel']['id']}/channels",
                header=[f"Authorization: token {self.token}"], timeout=PATIENCE,
            )
            with contextlib.closing(socket):
                yield socket
        finally:
            self._end_session(made["id"])

    def _end_session(self, name: str) -> None:
        """End a session and its kernel; a dead one, which the server just restarts, needs time."""
        for _ in range(20):
            try:
                self.request("DELETE", f"sessions/{name}")
                return
            except urllib.error.HTTPError as error:
                if error.code == 404:  # it is gone
                    return
            time.sleep(0.5)


@contextlib.contextmanager
def serve(root: Path, prefix: list[str]) -> Iterator[Server]:
    """Start JupyterLab on one core, on the folder `root`; stop it at the end.

    Raises RuntimeError with the end of the server's log when it does not start.
    """
    token, cores = secrets.token_hex(16), os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory() as runtime:
        command = [*prefix, *(["bash", str(START)] if START.exists() else []),
                   sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root",
                   "--ServerApp.ip=127.0.0.1", "--ServerApp.port=0", f"--ServerApp.root_dir={root}"]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "JUPYTER_TOKEN": token,
                       "JUPYTER_RUNTIME_DIR": runtime}
        with open(Path(runtime) / "log", "w+", encoding="utf-8") as log:
            os.sched_setaffinity(0, {min(cores)})  # the server and its kernels inherit it
            try:
                process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            finally:
                os.sched_setaffinity(0, cores)
            try:
                yield Server(process.pid, _wait_for_port(process, Path(runtime)), token)
            finally:
                _stop(process)


def _stop(process: subprocess.Popen) -> None:
    """Let the server end its kernels and itself; kill them all when it has not in 30 seconds."""
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        for pid in reversed(family(process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def _wait_for_port(process: subprocess.Popen, runtime: Path) -> int:
    """Return the port that the server has taken, as it writes it to its runtime folder."""
    end = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < end:
        for path in runtime.glob("jpserver-*.json"):
            with contextlib.suppress(ValueError):  # half written
                return json.loads(path.read_text())["port"]
        time.sleep(0.1)
    tail = (runtime / "log").read_text(encoding="utf-8")[-2000:]
    raise RuntimeError(f"JupyterLab did not start:\n{tail}")


def execute(socket: websocket.WebSocket, source: str) -> str | None:
    """Run a cell and wait for its end; return the error it raised, None without one."""
    name, error = uuid.uuid4().hex, None
    ended: set[str] = set()
    header = {"msg_id": name, "msg_type": "execute_request", "session": "binder", "username": "",
              "version": "5.3"}
    content = {"code": source, "silent": False, "store_history": True, "user_expressions": {},
               "allow_stdin": False, "stop_on_error": False}
    socket.send(json.dumps({"header": header, "parent_header": {}, "metadata": {},
                            "content": content, "channel": "shell", "buffers": []}))
    while ended != {"reply", "idle"}:
        message = socket.recv()
        if isinstance(message, bytes):  # a widget's data
            continue
        message = json.loads(message)
        kind, content = message["header"]["msg_type"], message["content"]
        state = content.get("execution_state") if kind == "status" else None
        if state in ("restarting", "dead"):
            return "the kernel died: out of memory?"
        if message["parent_header"].get("msg_id") != name:
            continue
        ended |= {"idle"} if state == "idle" else {"reply"} if kind == "execute_reply" else set()
        error = f"{content['ename']}: {content['evalue']}" if kind == "error" else error
    return error


def measure(server: Server, root: Path, path: Path) -> Result:
    """Run all cells of a notebook on the server and return what it took."""
    cells = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    verdict, start, sampler = "OK", time.perf_counter(), Sampler(server.pid)
    inside = path.resolve().relative_to(root).as_posix()
    try:
        with server.session(inside) as socket, sampler:
            for number, source in enumerate(cells):
                error = execute(socket, source)
                if error:
                    verdict = f"FAILED in cell {number}: {error}"
                    break
            seconds = time.perf_counter() - start
    except (OSError, websocket.WebSocketException) as error:
        verdict, seconds = f"FAILED: {error}", time.perf_counter() - start
    if verdict == "OK" and sampler.peak > ALLOWED:
        verdict = f"OVER {ALLOWED} MB"
    return Result(path.name, sampler.peak, seconds, verdict)


def measure_all(paths: list[Path], cgroup: Path | None) -> int:
    """Measure notebooks on one server and print the table; return 1 if one is over or fails."""
    root = Path(os.path.commonpath([path.resolve().parent for path in paths]))
    failed = 0
    with limit_memory(cgroup) as (prefix, limit), serve(root, prefix) as server:
        print(f"server and kernel on one core, {limit}\n"
              f"{'notebook':<32}{'peak MB':>9}{'seconds':>9}", flush=True)
        for path in paths:
            result = measure(server, root, path)
            print(result, flush=True)
            failed = max(failed, int(result.verdict != "OK"))
    return failed


def main(arguments: list[str] | None = None) -> int:
    """Measure the notebooks named on the command line; return 1 if one is over or fails."""
    parser = argparse.ArgumentParser(
        prog="python -m embspace_helpers.binder_memory", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS,
    )
    parser.add_argument("paths", nargs="*", default=["notebooks"], help="notebooks or folders")
    parser.add_argument("--cgroup", type=Path, help="a memory cgroup to make a child of")
    options = parser.parse_args(arguments)
    if sys.platform != "linux":
        parser.error("this measures through /proc: it needs Linux")
    paths = find(options.paths)
    if not paths:
        parser.error(f"no notebook in {', '.join(options.paths)}")
    try:
        return measure_all(paths, options.cgroup)
    except (OSError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1
