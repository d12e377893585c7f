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

from fastlstm import _build, _choice

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import smoke  # noqa: E402

# It tells what it was called with in the file `calls`.
STAND_IN = f"""#!/bin/sh
echo "FREE_SMS=$FASTLSTM_FREE_SMS CHECKED=$FASTLSTM_CHECKED PATH0=${{PYTHONPATH%%:*}} $*" >>calls
case "$*" in
  "- "*) exec {sys.executable} "$@" ;;
  *get_device_capability*) echo 9.0 ;;
  *build_ext*) echo "nvcc broke"; exit $BUILD ;;
  *build-lib*) mkdir -p build/checked/fastlstm; touch build/checked/fastlstm/_C.so ;;
  *smoke.py*) echo "0 of 8 failed"; exit $SMOKE ;;
  *"bench_lstm.py --device cpu"*)
    while [ "$1" != --output ]; do shift; done
    echo '{{"groups": [9]}}' >"$2" ;;
  *bench_lstm*)
    while [ "$1" != --output ]; do shift; done
    echo '{{"groups": [1, 2]}}' >"$2"; kill -9 $$ ;;
  *sweep.py*) echo '{{"sweep": [3], "complete": true}}' >"$2" ;;
  *cudnn_grid.py*) echo '{{"cudnn": [4]}}' >"$2" ;;
  *pytest*) echo "2 passed"; sleep $SLEEP ;;
  "-m fastlstm") echo "which engine serves what" ;;
esac
"""
STEPS = {
    "native": "ok",
    "build": "ok",
    "info": "ok",
    "smoke": "ok",
    "sweep": "ok",
    "cudnn": "ok",
    "tests": "ok",
    "stepwise": "ok",
    "benchmark": "failed",
    "never-slower": "ok",
    "every-engine": "ok",
    "two-streams": "ok",
    **{f"cpu-{n}": "ok" for n in (1, 2, 4, 8, 16) if n <= len(os.sched_getaffinity(0))},
}


class Checked:
    """A run of gpu-check in a folder of its own."""

    def __init__(self, folder, *arguments, build=0, smoke=0, sleep=0, **variables):
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
            [str(folder / ".ci/gpu-check"), *arguments],
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
    run = Checked(tmp_path, "--group", "bf16-training", build=1)
    assert run.status == 1 and "failed: build: failed\nfailed: benchmark: failed\n" in run.printed
    assert run.results == {**STEPS, "build": "failed"}
    assert run.steps["build"]["last_line"] == "nvcc broke"
    assert run.steps["native"]["last_line"] == "60 cases, 0 skipped"
    assert run.call("tests/native").endswith("-C tests/native check")
    assert run.steps["tests"]["last_line"] == "2 passed"
    assert [run.record[key] for key in ("groups", "sweep", "cudnn")] == [[1, 2], [3], [4]]
    assert run.record["cpu"]["1"] == {"groups": [9]}
    assert "complete" not in run.record  # the sweep's
    assert run.log.read_text() == run.printed
    assert sorted(p.name for p in tmp_path.glob("results*")) == ["results.json", "results.log"]
    assert run.call("bench_lstm.py --device cuda").endswith("results.json --group bf16-training")


def test_who_uses_which_build(tmp_path):
    """What may hang runs in the build that bounds its waits, what is measured in the other."""
    run = Checked(tmp_path)
    assert "CHECKED=1" in run.call("--build-lib")
    assert "CHECKED= " in run.call("build_ext")
    for word, folder in (
        ("smoke.py", "/build/checked "),
        ("--deselect", "/build/checked "),
        ("bench_lstm.py --device cuda", " "),
        ("sweep.py", " "),
        ("-k not opcheck", " "),
    ):
        assert f"PATH0={tmp_path}{folder}" in run.call(word)
    assert "--engine auto" in run.call("bench_lstm.py --device cuda")
    assert "--deselect tests/cuda/test_gpu.py::test_two_streams" in run.call("--deselect")
    order = [run.calls.index(run.call(word)) for word in ("smoke.py", "sweep.py", "--deselect",
             "bench_lstm.py --device cuda", "two_streams tests", "cpu --threads 1 ")]  # fmt: skip
    assert order == sorted(order)


def test_after_a_failed_smoke_test_the_rest_is_stepwise(tmp_path):
    run = Checked(tmp_path, smoke=1)
    expected = {**STEPS, "smoke": "failed"}
    del expected["sweep"]
    assert run.status == 1 and run.results == expected
    assert "--engine stepwise" in run.call("bench_lstm.py --device cuda")
    after = run.calls[1 + run.calls.index(run.call("smoke.py")) :]
    assert after and all("FREE_SMS=100000" in call for call in after)
    assert run.record["groups"] == [1, 2]


def test_it_ends_in_time(tmp_path):
    run = Checked(tmp_path, sleep=30, SECONDS_IN_ALL="22")
    assert run.status == 1
    assert run.results["tests"].startswith("over ")
    assert run.results["benchmark"] == run.results["two-streams"] == "no time left"


@pytest.mark.parametrize("seconds, limits", [(540, [140]), (200, range(70, 96)), (60, [20])])
def test_the_benchmark_gets_a_part_of_the_time(tmp_path, seconds, limits):
    """And some where others took too long."""
    run = Checked(tmp_path, SECONDS_IN_ALL=str(seconds))
    call = run.call("bench_lstm.py --device cuda")
    assert int(call.split("--limit ")[1].split()[0]) in limits


def test_stages_alone_add_to_the_record(tmp_path):
    first = Checked(tmp_path, STAGES="build sweep")
    assert first.results == {"build": "ok", "sweep": "ok"} and "cudnn" not in first.record
    second = Checked(tmp_path, STAGES="cudnn")
    assert list(second.results) == ["build", "sweep", "cudnn"]
    assert (second.record["sweep"], second.record["cudnn"]) == ([3], [4])
    assert second.log.read_text() == first.printed + second.printed


def test_a_wheel_replaces_the_build(tmp_path):
    run = Checked(tmp_path, WHEEL="fastlstm.whl")
    assert "-m zipfile -e fastlstm.whl build/prebuilt" in run.call("zipfile")
    assert not [call for call in run.calls if "setup.py" in call]
    assert f"PATH0={tmp_path}/build/prebuilt " in run.call("sweep.py")


def test_a_dry_run_tells_what_each_stage_may_take(tmp_path):
    run = Checked(tmp_path, DRY_RUN="1")
    told = [line.split(": ")[0][4:] for line in run.printed.splitlines() if line[:4] == "=== "]
    assert run.status == 0 and not run.record and not run.log.exists()
    assert told == [
        "native", "racecheck", "synccheck", *[*STEPS][2:8], "stepwise", "memcheck",
        *[*STEPS][9:],
    ]  # fmt: skip
    assert "=== sweep: up to 100 s, " in run.printed and not any("sweep" in c for c in run.calls)


def test_no_engine_but_ours_is_judged():
    """On an H100 what tests/cuda/test_gpu.py calls large fits the persistent engine, all of it."""
    import test_gpu

    h100 = _choice.Gpu(132, 90)
    assert {test_gpu.ours(*layer, h100) for layer in test_gpu.LARGE} == {"persistent"}
    assert test_gpu.ours("float32", 1024, 16, _choice.Gpu(58, 89)) == "stepwise"
    assert test_gpu.ours("bfloat16", 512, 16, h100._replace(free_sms=100000)) == "stepwise"


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
@pytest.mark.parametrize("walk", ["forward", "backward"])
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_smoke_compares_an_engine_with_stepwise(kind, walk, monkeypatch, capsys):
    found = smoke.difference(kind, walk, engine="auto", device="cpu", hidden=24)
    assert 0 <= found <= smoke.LARGEST[kind]
    for wrong in (2 * smoke.LARGEST[kind], float("nan")):
        monkeypatch.setattr(smoke, "difference", lambda *_, wrong=wrong: wrong)
        with pytest.raises(SystemExit):
            smoke.main([kind, walk])
    assert "differs by nan of the largest value" in capsys.readouterr().out


def test_smoke_judges_the_largest_difference(monkeypatch):
    results = {
        "persistent": [torch.tensor([1.0, 4.0]), torch.tensor([2.5])],
        "stepwise": [torch.tensor([1.0, 4.0]), torch.tensor([2.0])],
    }
    monkeypatch.setattr(smoke, "_results", lambda entry, device: results[entry["engine"]])
    assert smoke.difference("float32", "forward") == 0.125


def test_smoke_cases_hang_and_crash_alone(tmp_path, monkeypatch, capsys):
    """A case has its seconds from when it has a device, so that a slow start is no hang."""
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\ncase "$2 $3" in "tf32 forward") echo ready; echo waits; exec sleep 60;;'
        ' "float16 backward") echo trapped; kill -9 $$;; "tf32 backward") sleep 3; echo ready;;'
        ' "bfloat16 forward") exec sleep 60;; esac; echo fine\n'
    )
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(smoke, "SECONDS_TO_START", 6.0)
    assert smoke.main(["--seconds", "1"]) == 1
    printed = capsys.readouterr().out.splitlines()
    told = dict(line.split(": ", 1) for line in printed if ": " in line)
    assert len(told) == 8 and told["float32 forward"] == told["tf32 backward"] == "ok: fine"
    assert told["tf32 forward"] == "FAILED (-9): waits; hangs: killed after 1 s"
    assert told["bfloat16 forward"] == "FAILED (-9): hangs: killed after 6 s"
    assert told["float16 backward"] == "FAILED (-9): trapped"
    assert printed[-1] == "3 of 8 failed"
