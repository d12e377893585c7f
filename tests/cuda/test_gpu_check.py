""".ci/gpu-check without a GPU: a stand-in for Python plays the machine that has one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from native import check, run

from fastlstm import _build

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu  # noqa: E402
from cases import Case  # noqa: E402

# It tells what it was called with in the file `calls`.
STAND_IN = f"""#!/bin/sh
echo "FREE_SMS=$FASTLSTM_FREE_SMS CHECKED=$FASTLSTM_CHECKED PATH0=${{PYTHONPATH%%:*}} $*" >>calls
case "$*" in
  "- "*) exec {sys.executable} "$@" ;;
  *get_device_capability*) echo 9.0 ;;
  *build_ext*) echo "nvcc broke"; exit $BUILD ;;
  *build-lib*) mkdir -p build/checked/fastlstm; touch build/checked/fastlstm/_C.so ;;
  *"gpu.py smoke"*) echo "0 of 8 failed"; exit $SMOKE ;;
  *"gpu.py table"*) echo '{{"rows": [1, 2]}}' >"$3"; kill -9 $$ ;;
  *pytest*) echo "2 passed"; sleep $SLEEP ;;
  "-m fastlstm") echo "which engine serves what" ;;
esac
"""
STEPS = {
    "native": "ok",
    "build": "ok",
    "info": "ok",
    "smoke": "ok",
    "table": "failed",
    "tests": "ok",
    "stepwise": "ok",
    "every-engine": "ok",
    "two-streams": "ok",
}


class Checked:
    """A run of gpu-check in a folder of its own."""

    def __init__(self, folder, build=0, smoke=0, sleep=0, **variables):
        python, output = folder / "python", folder / "results.json"
        python.write_text(STAND_IN)
        python.chmod(0o755)
        for name in (".ci", "tests/cuda", "tests/op"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        make = folder / "bin/make"
        make.parent.mkdir(exist_ok=True)
        make.write_text("#!/bin/sh\necho 'make '$* >>calls\necho 60 cases, 0 skipped\n")
        make.chmod(0o755)
        shutil.copy(ROOT / ".ci/gpu-check", folder / ".ci")
        (folder / "tests/cuda/test_gpu.py").write_text("mark.gpu")
        (folder / "tests/op/test_layer.py").write_text("from samples import Route")
        environment = {
            **os.environ,
            "PYTHON": str(python),
            "OUTPUT": str(output),
            "BUILD": str(build),
            "SMOKE": str(smoke),
            "SLEEP": str(sleep),
            "PATH": f"{make.parent}:{os.environ['PATH']}",
            **variables,
        }
        environment.pop("OUT", None) if "OUT" not in variables else None
        done = subprocess.run(
            [str(folder / ".ci/gpu-check")],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=180,
        )
        self.status, self.printed = done.returncode, done.stdout
        [path] = list(folder.rglob("*.json")) or [output]
        self.path, self.log = path, path.with_suffix(".log")
        self.record = json.loads(path.read_text()) if path.exists() else {}
        self.steps = {step["step"]: step for step in self.record.get("gpu_check", [])}
        self.results = {name: step["result"] for name, step in self.steps.items()}
        calls = folder / "calls"
        self.calls = calls.read_text().splitlines() if calls.exists() else []

    def call(self, word):
        [call] = [call for call in self.calls if word in call]
        return call


def test_what_fails_loses_nothing(tmp_path):
    run = Checked(tmp_path, build=1)
    assert run.status == 1 and "failed: build: failed\nfailed: table: failed\n" in run.printed
    assert run.results == {**STEPS, "build": "failed"}
    assert run.steps["build"]["last_line"] == "nvcc broke"
    assert run.steps["native"]["last_line"] == "60 cases, 0 skipped"
    assert run.call("tests/native").endswith("-C tests/native check")
    assert run.steps["tests"]["last_line"] == "2 passed"
    assert run.record["rows"] == [1, 2]
    assert run.log.read_text() == run.printed
    assert sorted(p.name for p in tmp_path.glob("results*")) == ["results.json", "results.log"]


def test_who_uses_which_build(tmp_path):
    """What may hang runs in the build that bounds its waits, what is measured in the other."""
    run = Checked(tmp_path)
    assert "CHECKED=1" in run.call("--build-lib")
    assert "CHECKED= " in run.call("build_ext")
    for word, folder in (
        ("gpu.py smoke", "/build/checked "),
        ("--deselect", "/build/checked "),
        ("gpu.py table", " "),
        ("-k not opcheck", " "),
    ):
        assert f"PATH0={tmp_path}{folder}" in run.call(word)
    assert "--engines stepwise,persistent" in run.call("gpu.py table")
    assert "--deselect tests/cuda/test_gpu.py::test_two_streams" in run.call("--deselect")
    words = ("gpu.py smoke", "gpu.py table", "--deselect", "not opcheck", "two_streams tests")
    order = [run.calls.index(run.call(word)) for word in words]
    assert order == sorted(order)


def test_after_a_failed_smoke_test_the_rest_is_stepwise(tmp_path):
    run = Checked(tmp_path, smoke=1)
    assert run.status == 1 and run.results == {**STEPS, "smoke": "failed"}
    assert run.call("gpu.py table").endswith("--engines stepwise")
    after = run.calls[1 + run.calls.index(run.call("gpu.py smoke")) :]
    assert after and all("FREE_SMS=100000" in call for call in after)


def test_it_ends_in_time(tmp_path):
    run = Checked(tmp_path, sleep=30, SECONDS_IN_ALL="22")
    assert run.status == 1
    assert run.results["tests"].startswith("over ")
    assert run.results["every-engine"] == run.results["two-streams"] == "no time left"


@pytest.mark.parametrize("seconds, limits", [(540, [200]), (320, range(70, 96)), (60, [20])])
def test_the_table_gets_a_part_of_the_time(tmp_path, seconds, limits):
    """And some where others took too long."""
    run = Checked(tmp_path, SECONDS_IN_ALL=str(seconds))
    call = run.call("gpu.py table")
    assert int(call.split("--limit ")[1].split()[0]) in limits


def test_stages_alone_add_to_the_record(tmp_path):
    first = Checked(tmp_path, STAGES="table build")
    assert first.results == {"build": "ok", "table": "failed"}
    second = Checked(tmp_path, STAGES="info")
    assert list(second.results) == ["build", "table", "info"] and second.record["rows"] == [1, 2]
    assert second.log.read_text() == first.printed + second.printed


def test_a_wheel_replaces_the_build(tmp_path):
    run = Checked(tmp_path, WHEEL="fastlstm.whl")
    assert "-m zipfile -e fastlstm.whl build/prebuilt" in run.call("zipfile")
    assert not [call for call in run.calls if "setup.py" in call]
    assert f"PATH0={tmp_path}/build/prebuilt " in run.call("gpu.py table")


def test_a_dry_run_tells_what_each_stage_may_take(tmp_path):
    run = Checked(tmp_path, DRY_RUN="1")
    told = [line.split(": ")[0][4:] for line in run.printed.splitlines() if line[:4] == "=== "]
    assert run.status == 0 and not run.record and not run.log.exists()
    assert told == [
        "native", "racecheck", "synccheck", *[*STEPS][1:7], "memcheck", *[*STEPS][7:],
    ]  # fmt: skip
    assert "=== smoke: up to 110 s, " in run.printed and not any("smoke" in c for c in run.calls)


def test_no_engine_but_ours_is_judged():
    """On an H100 what tests/cuda/test_gpu.py calls large fits the persistent engine, all of it."""
    import test_gpu

    assert {test_gpu.engine_for(*layer, 132, 90) for layer in test_gpu.LARGE} == {"persistent"}
    assert test_gpu.engine_for("float32", 1024, 16, 58, 89) == "stepwise"


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc on PATH")
def test_the_native_tests_link(tmp_path):
    """With every case of the drivers; they run on a GPU alone."""
    done = check("make", "-s", "-j2", "-C", str(ROOT / "tests/native"), "ARCH=sm_90",
                 f"BUILD={tmp_path}")  # fmt: skip
    names = check(str(tmp_path / "native_tests"), "--list").stdout.splitlines()
    assert "persistent/bfloat16/two parts" in names and any(n.startswith("deep/") for n in names)
    if not torch.cuda.is_available():
        done = run(str(tmp_path / "native_tests"), "persistent/bfloat16/two parts")
        assert done.returncode == 1 and done.stdout.startswith("device: ")


@pytest.mark.parametrize("out", [True, False])
def test_where_the_results_go(tmp_path, out):
    folder = tmp_path / "back"
    run = Checked(tmp_path, OUTPUT="", **({"OUT": str(folder)} if out else {}))
    if out:
        assert run.path == folder / "gpu-check.json"
    else:
        assert run.path.parent == tmp_path / "benchmarks/results"
    assert run.log.read_text() == run.printed


def test_no_device(tmp_path):
    run = Checked(tmp_path, PYTHON=sys.executable, CUDA_VISIBLE_DEVICES="")
    assert run.status == 1 and not run.steps and not run.log.exists()
    assert "no CUDA device for" in run.printed


@pytest.mark.skipif(not _build.extension_available(), reason="no extension")
@pytest.mark.parametrize("mode", gpu.MODES)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_smoke_compares_an_engine_with_stepwise(precision, mode, monkeypatch):
    gpu.smoke(precision, mode, device="cpu", engine="auto")
    monkeypatch.setitem(gpu.check_agreement.__globals__["AGREEMENT"], precision, -1.0)
    with pytest.raises(RuntimeError, match="the results differ by"):
        gpu.smoke(precision, mode, device="cpu", engine="auto")


def test_smoke_cases_hang_and_crash_alone(tmp_path, monkeypatch, capsys):
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\ncase "$3 $4" in "tf32 inference") exec sleep 60;;'
        ' "float16 training") echo trapped; kill -9 $$;; esac\n'
    )
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    assert gpu.main(["smoke", "--seconds", "3"]) == 1
    printed = capsys.readouterr().out.splitlines()
    told = dict(line.split(": ", 1) for line in printed if ": " in line)
    assert len(told) == 8 and told["float32 inference"] == told["tf32 training"] == "ok"
    assert told["tf32 inference"] == "hangs: killed after 3 s"
    assert told["float16 training"] == "trapped" and printed[-1] == "2 of 8 failed"


def test_the_table_that_decides(monkeypatch, tmp_path, capsys):
    """On a CPU; an engine that does not serve a case is named with its reason."""
    engines = ("reference", "persistent")
    on_cpu = gpu.measure
    monkeypatch.setattr(gpu, "measure", lambda case, engines: on_cpu(case, engines, "cpu"))
    monkeypatch.setattr(gpu.machine, "describe", lambda device: {})
    monkeypatch.setattr(gpu, "EFFORT", gpu.Effort(0.0, min_pairs=1))
    cases = [Case(16, steps, 3, 128, "inference", "bfloat16") for steps in (1, 20, 40)]
    monkeypatch.setattr(gpu, "grid", lambda: cases)
    gpu.main(["table", str(tmp_path / "gpu.json"), "--engines", ",".join(engines)])
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert all(row["torch.nn us"] > 0 < row["reference"] for row in rows) and len(rows) == 3
    assert all("persistent" in row["persistent"] for row in rows)
    *_, header, _, line = capsys.readouterr().out.splitlines()
    assert header == "| nn.LSTM / reference, persistent | B 1 | B 16 | B 64 | B 256 |"
    long = [row["reference"] for row in rows[1:]]
    mean = (long[0] * long[1]) ** 0.5
    assert line == f"| bfloat16, inference, H 128 | - | {mean:.2f} ({min(long):.2f}) | - | - |"


def test_the_grid_covers_all_sizes_early():
    cases = gpu.grid()
    assert len(set(cases)) == len(cases) == 17 + 4 * 2 * 5 * 4 * 4
    assert {(case.precision, case.hidden_size) for case in cases[17:117]} >= {
        (precision, H) for precision in gpu.PRECISIONS for H in gpu.SIZES
    }
