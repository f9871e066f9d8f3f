"""One of several processes that run commands of the package, one after the other; see `launching`."""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import random
import sys
import time
from pathlib import Path
from unittest import mock

import torch

from ipu_vit import agreement
from ipu_vit.__main__ import main

# What one process may have otherwise than the rest.
OTHERS = {
    "code": lambda: mock.patch.object(agreement, "_code", lambda: "f" * 64),
    "Python": lambda: mock.patch.object(platform, "python_version", lambda: "3.7.0"),
    "torch": lambda: mock.patch.object(torch, "__version__", "1.0.0"),
    "clock": lambda: mock.patch.object(time, "time", random.Random(1).random),
}

folder, rank = Path(sys.argv[1]), os.environ["HOROVOD_RANK"]
own = folder / f"process-{rank}"
own.mkdir(exist_ok=True)
os.chdir(own)
results = []
for job in json.loads((folder / "jobs.json").read_text()):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        stack.enter_context(mock.patch.dict(os.environ, job.get("environment", {}).get(rank, {})))
        for name in job.get("other", {}).get(rank, []):
            stack.enter_context(OTHERS[name]())
        code = main([*job["arguments"], *job.get("extra", {}).get(rank, [])])
    results.append((code, out.getvalue(), err.getvalue()))
(folder / f"results-{rank}.json").write_text(json.dumps(results))
