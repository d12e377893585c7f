""".ci/gpu-check without a GPU: a stand-in for Python plays the machine that has one."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
STAND_IN = f"""#!/bin/sh
case "$*" in
  "- "*) exec {sys.executable} "$@" ;;
  *get_device_capability*) echo 9.0 ;;
  *build_ext*) echo "nvcc broke"; exit 1 ;;
  *bench_lstm*)
    [ -d "${{PYTHONPATH%%:*}}/fastlstm" ] || exit 3
    while [ "$1" != --output ]; do shift; done
    echo '{{"groups": [1, 2]}}' >"$2"; kill -9 $$ ;;
  *pytest*) echo "2 passed"; sleep ${{SLEEP:-0}} ;;
  "-m fastlstm") echo "which engine serves what" ;;
esac
"""


def gpu_check(folder, **variables):
    python, output = folder / "python", folder / "results.json"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python), "OUTPUT": str(output), **variables}
    done = subprocess.run([str(ROOT / ".ci/gpu-check")], env=environment, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
    record = json.loads(output.read_text()) if output.exists() else {}
    return done, {step["step"]: step for step in record.get("gpu_check", [])}, record


def test_what_fails_loses_nothing(tmp_path):
    done, steps, record = gpu_check(tmp_path)
    assert done.returncode == 1 and "failed: build: failed" in done.stdout
    assert {name: step["result"] for name, step in steps.items()} == {
        "build": "failed", "info": "ok", "gpu tests": "ok", "tests of every engine": "ok",
        "benchmark": "failed"}
    assert steps["build"]["last_line"] == "nvcc broke"
    assert steps["gpu tests"]["last_line"] == "2 passed"
    assert record["groups"] == [1, 2]


def test_it_ends_in_time(tmp_path):
    done, steps, _ = gpu_check(tmp_path, SECONDS_IN_ALL="17", SLEEP="30")
    assert done.returncode == 1
    assert steps["gpu tests"]["result"].startswith("over ")
    assert steps["benchmark"]["result"] == "no time left"


def test_no_device(tmp_path):
    done, steps, _ = gpu_check(tmp_path, PYTHON=sys.executable, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1 and not steps
    assert "no CUDA device for" in done.stdout
