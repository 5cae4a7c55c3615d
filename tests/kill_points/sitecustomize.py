"""Ends processes of a study at named points of their work. Python runs this file when it starts, wherever the folder is
in PYTHONPATH and KILLS names files and points (see test_kills); the library's code knows nothing of it.

KILLS is JSON: {file of the study: [point, whom, bytes]}. Points of a file, in their order: `before` its temporary file
is there, `while` that is written (after so many bytes), when it is `written` and not renamed, and when it is `renamed`.
For a script as the file, `start` is the moment before Snakemake starts it. `whom`: the `job`, the `workflow` alone,
which a job then outlives, or `all` of them, as a power cut does.
"""

import json
import os
import resource
import signal
import sys

KILLS = json.loads(os.environ.get("KILLS", "{}"))
EVENTS = {"pathlib.Path.glob": "before", "os.rename": "written", "os.remove": "renamed"}


def watch(event: str, about: tuple) -> None:
    if event == "subprocess.Popen" and os.getpid() == os.getsid(0):
        for script, (_, whom, _) in KILLS.items():
            if f".{script}" in str(about[1]) and ".snakemake/scripts" in str(about[1]):
                kill(whom)
    if event not in EVENTS:
        return
    touched = "/".join(map(str, about)) if event == "pathlib.Path.glob" else str(about[0])
    # Not the files that killed processes left, which the next one removes.
    ending = ".tmp" if event == "pathlib.Path.glob" else f".{os.getpid()}.tmp"
    for file, (point, whom, size) in KILLS.items():
        folder, _, name = file.rpartition("/")
        if not touched.startswith(f"{folder}/.{name}.") or not touched.endswith(ending):
            continue
        if (event, point) == ("pathlib.Path.glob", "while"):
            # The kernel ends the process at the write that would make any file of it longer than this.
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        elif EVENTS[event] == point:
            kill(whom)


def kill(whom: str) -> None:
    if whom == "job":
        os.kill(os.getpid(), signal.SIGKILL)
    elif whom == "workflow":  # It leads the session.
        os.kill(os.getsid(0), signal.SIGKILL)
    else:
        os.killpg(os.getsid(0), signal.SIGKILL)


if KILLS:
    sys.addaudithook(watch)
