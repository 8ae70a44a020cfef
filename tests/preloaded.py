"""Programs of Python in forks of one process that has torch loaded, which takes most of the time of
the short ones. It knows nothing of planter or the tests, so that a fork is as foreign to them as a
new process."""

from __future__ import annotations

import atexit
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

_SERVER = """
import json, os, runpy, sys, traceback
import numpy, torch, torch.export
torch.export.export(torch.nn.ReLU(), (torch.ones(1),))  # what it loads late
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(job[name], os.O_WRONLY | os.O_CREAT), stream)
        os.chdir(job["folder"])
        sys.argv, code = job["command"], 1
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
            code = 0
        except SystemExit as end:
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@cache
def _server() -> subprocess.Popen[str]:
    server = subprocess.Popen(
        [sys.executable, "-P", "-W", "ignore", "-c", _SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(server.communicate)  # closes its input, at which it ends
    return server


def run(command: Sequence[str], *, cwd: Path, **streams: Any) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run` of `[sys.executable, "-P", PROGRAM, ...]`, both streams kept as text."""
    python, option, *program = command
    assert (python, option) == (sys.executable, "-P")
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        job = {"command": program, "folder": str(cwd), "out": str(out), "err": str(err)}
        print(json.dumps(job), file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        told = (file.read_text(errors=streams.get("errors")) for file in (out, err))
        return subprocess.CompletedProcess(list(command), code, *told)
