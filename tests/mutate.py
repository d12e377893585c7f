"""Mutation testing: plants small faults, one at a time, and reports which ones the tests notice.

    python tests/mutate.py --count 250 --seed 1        # hours on one core; resumes if interrupted
    python tests/mutate.py --count 250 --seed 1 --report

A fault is another operator, a number off by one, True for False, or a deleted statement. `PARTS`
lists the files in which faults are planted. Each worker has its own copy of the tree in
build/mutants. A changed C++ file is compiled with little optimization. A file of kernels, which is
otherwise compiled for each instruction set, is compiled for the baseline only.
"""

import argparse
import ast
import filecmp
import io
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tokenize
from pathlib import Path
from typing import NamedTuple

import pytest

# The tests call the kernels of the baseline. torch reads the variable when it is imported.
os.environ |= {"ATEN_CPU_CAPABILITY": "default", "OMP_WAIT_POLICY": "passive"}
import torch

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "build" / "mutants"
# Tests that take longer than a limit count as having noticed the fault. The limits are seconds of
# CPU time, which does not depend on other programs, and of wall time, for tests that wait forever.
CPU_TIME_LIMIT, TIME_LIMIT = 900, 3600

# Arguments of pytest. One process runs each item, until one fails; quick tests come first.
_FIRST = "tests/op/test_layer.py -k (results or test_gradients) and not reference and not graph"
_NATIVE = [
    _FIRST,
    "tests/op/test_same_bits.py",
    "tests/cpu/test_cpu_engine.py -k not every_instruction and not tiles",
    "tests/op/test_layer.py -k not opcheck and not reference",
    "tests/module/test_prepacked.py tests/module/test_errors.py tests/module/test_precision.py "
    "tests/op/test_numerics.py tests/op/test_batched_grad.py tests/op/test_fuzzed_calls.py",
]
_EMULATED = ["tests/cuda/test_simt.py", "tests/cuda/test_cuda_op.py"]
_MODULE = [
    "tests/module tests/op/test_same_bits.py tests/op/test_fuzzed_calls.py "
    "-k not inductor and not another_processor",
    "tests/module tests/op tests/project/test_commands.py "
    "-k inductor or another_processor or test_layer or batched_grad or test_commands",
]
_PREPACKED = "prepacked", "prepacked_errors", "prepacked_models", "prepacked_saved"
_SEARCH = "test_search test_neighbors test_ensemble test_decoders"
_SEARCH += " test_loss test_words test_datasets test_checkpoint test_metrics test_self_critical"


class Part(NamedTuple):
    """A part of the sources, and the tests that should notice faults in it."""

    files: list[str]  # glob patterns
    share: float  # its share of all faults
    tests: list[str]  # arguments of pytest, an item for each process


def _cpu(*patterns):
    return [f"csrc/cpu/{pattern}" for pattern in patterns]


def _python(*names):
    return [f"fastlstm/{name}.py" for name in names]


def _module_tests(*names):
    return " ".join(f"tests/module/test_{name}.py" for name in names)


PARTS = {
    "equations": Part(["csrc/equations/*.h"], 0.04, [*_NATIVE, _EMULATED[0]]),
    "walks": Part(
        [*_cpu("walk/*.cpp", "walk/*.h", "stages/*.h", "rows.h"), "csrc/stepwise/*.h"],
        0.1,
        [*_NATIVE, _EMULATED[1]],
    ),
    "products": Part(
        _cpu("gemm/*", "products/*.h", "cell/*.h", "targets/[abkt]*", "vec.h", "half.h"),
        0.16,
        [*_NATIVE, "tests/cpu/test_kernels.py", "tests/cpu/test_cpu_engine.py"],
    ),
    "plan": Part(
        [*_cpu("plan.cpp", "lstm_cpu.cpp", "scratch.cpp"), "csrc/core/*"],
        0.1,
        [_FIRST, "tests/cpu/test_kernels.py -k this_machine", *_NATIVE[1:], *_MODULE],
    ),
    "op": Part(
        ["csrc/op/*.h", "csrc/op/*.cpp"],
        0.1,
        [_FIRST, _module_tests("module", "sequences", "errors"), *_NATIVE[3:], *_MODULE],
    ),
    "cuda": Part(["csrc/cuda/*"], 0.12, [*_EMULATED, "tests/cuda/test_ptx.py"]),
    "engines": Part(
        _python("engine/*", "_engine_table"),
        0.1,
        [_module_tests("engine", "errors", "sequences", "torch_engine", "func"), *_MODULE],
    ),
    "modules": Part(
        _python("modules/*", "functional", "convert", "compare"),
        0.14,
        [_module_tests("module", "errors", "sequences", "convert", "compare"), *_MODULE],
    ),
    "prepack": Part(_python("prepack/*"), 0.06, [_module_tests(*_PREPACKED), *_MODULE]),
    "captioning": Part(
        [f"captioning/{folder}/*.py" for folder in ("search", "model", "data")],
        0.08,
        [" ".join(f"tests/captioning/{name}.py" for name in _SEARCH.split()), "tests/captioning"],
    ),
}
# What takes the place of a token.
REPLACEMENT = {
    "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "+": "-", "-": "+",
    "*": "+", "/": "*", "&&": "||", "||": "&&", "and": "or", "or": "and", "true": "false",
    "false": "true", "True": "False", "False": "True", "not": "", "!": "", "+=": "-=", "-=": "+=",
}  # fmt: skip


class Fault(NamedTuple):
    """A text in a line of a file, and the text that replaces it."""

    part: str
    file: str
    line: int
    column: int
    old: str
    new: str

    def __str__(self):
        return f"{self.file}:{self.line}:{self.column}: {self.old!r} becomes {self.new!r}"

    def plant(self, folder):
        path = folder / self.file
        lines = path.read_text().splitlines(keepends=True)
        line, end = lines[self.line - 1], self.column + len(self.old)
        assert line[self.column : end] == self.old, self
        lines[self.line - 1] = line[: self.column] + self.new + line[end:]
        path.write_text("".join(lines))


def off_by_one(text):
    return re.sub(r"^\d+", lambda digits: str(int(digits[0]) + 1), text)


def faults_in_python(text):
    """Yields line, column, the text there, and the text that replaces it."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NUMBER:
            yield *token.start, token.string, off_by_one(token.string)
        elif token.string in REPLACEMENT and token.string not in ("*", "/"):
            yield *token.start, token.string, REPLACEMENT[token.string]
    for node in ast.walk(ast.parse(text)):
        is_call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
        if (is_call or isinstance(node, ast.Raise)) and node.lineno == node.end_lineno:
            yield node.lineno, node.col_offset, ast.get_source_segment(text, node) or "", "pass"


# No fault is planted in comments, strings and lines of the preprocessor, nor in what only changes
# the speed: thresholds, sizes of blocks, capacities of vectors, functions and lines that prefetch.
PREFETCH = re.compile(
    r"(?ms)^( *)(?:struct Prefetch|[^\n/]*\bprefetch_\w+\([^;{]*\)[\w ]*) \{.*?^\1\}"
)
SKIPPED = re.compile(
    r'//.*|"(?:\\.|[^"])*"|^\s*#.*|static_assert.*|template <.*'
    r"|constexpr (?:int64_t|double) k.*|SmallVector<.*?>|.*[Pp]refetch.*"
)
TOKEN = re.compile(
    r"(?<= )(?:[<>]=?|[=!]=|&&|\|\||[-+*/]|[-+]=)(?= )|\b(?:true|false)\b|!(?=\w)"
    r"|(?<![\w.])\d+(?![\w.])"
)
STATEMENT = re.compile(
    r"\s+((?:if \(.*\) )?(?!return|static_cast)[\w.*>:-]+(?:\(.*\)| [-+*/]?= .*);)$"
)


def faults_in_cpp(text):
    """Like `faults_in_python`, by patterns of the project's formatting."""
    text = PREFETCH.sub(lambda found: "\n" * found[0].count("\n"), text)
    for number, line in enumerate(text.splitlines(), 1):
        blank = SKIPPED.sub(lambda found: " " * len(found[0]), line)
        for found in TOKEN.finditer(blank):
            yield number, found.start(), found[0], REPLACEMENT.get(found[0], off_by_one(found[0]))
        statement = STATEMENT.match(blank.rstrip())
        if statement and statement[1].count("(") == statement[1].count(")"):
            yield number, statement.start(1), line[statement.start(1) : statement.end(1)], ";"


def all_faults(part):
    """Returns every fault that can be planted in the files of a part."""
    faults = []
    for pattern in PARTS[part].files:
        for path in sorted(ROOT.glob(pattern)):
            search = faults_in_python if path.suffix == ".py" else faults_in_cpp
            name = str(path.relative_to(ROOT))
            faults += [Fault(part, name, *place) for place in search(path.read_text())]
    return [f for f in faults if f.new != f.old]


def draw_faults(count, seed):
    """Draws the faults: of each part as many as its share says, then shuffled."""
    generator, faults = random.Random(seed), []
    for name, part in PARTS.items():
        every = all_faults(name)
        faults += generator.sample(every, min(len(every), round(count * part.share)))
    generator.shuffle(faults)
    return faults


class Tree:
    """A copy of the project with its build, in which one fault at a time is planted."""

    def __init__(self, folder):
        self.folder = folder
        files = subprocess.run(["git", "ls-files", "-z", "-co", "--exclude-standard"],
                               cwd=ROOT, capture_output=True, text=True, check=True)  # fmt: skip
        for name in filter(None, files.stdout.split("\0")):
            source, copy = ROOT / name, folder / name
            if source.is_file() and not (
                copy.is_file() and filecmp.cmp(source, copy, shallow=False)
            ):
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, copy)  # keeps that it can be executed
        [built] = ROOT.glob("fastlstm/_C*.so")
        self.library = folder / "fastlstm" / built.name
        shutil.copy2(built, self.library)
        shutil.copy2(built.with_name("_build_info.json"), folder / "fastlstm")
        shutil.copy2(built, folder / "unchanged.so")
        self.environment = os.environ | {"PYTHONPATH": str(folder), "FASTLSTM_RECORDS": "off"}
        # The objects and compiler commands of the last build of the project.
        ninja = max(ROOT.glob("build/*/build.ninja"), key=lambda path: path.stat().st_mtime)
        tool = "ninja", "-C", str(ninja.parent), "-t"
        database = json.loads(self.run(*tool, "compdb", "compile"))
        self.commands = {command["output"]: command["command"] for command in database}
        self.includes = {}
        for line in self.run(*tool, "deps").splitlines():
            if ": #deps" in line:
                target = self.includes.setdefault(line.partition(":")[0], [])
            elif line.strip():
                target.append(os.path.normpath(ninja.parent / line.strip()))

    def run(self, *command):
        options = {"check": True, "capture_output": True, "text": True}
        return subprocess.run(command, cwd=self.folder, env=self.environment, **options).stdout

    def compile(self, fault):
        """Compiles the objects that include the changed file, and links the library.

        Returns True if only kernels of other instruction sets than the baseline changed. The tests
        must then run with all instruction sets of this machine.
        """
        changed = {t for t, sources in self.includes.items() if str(ROOT / fault.file) in sources}
        kernels = {target for target in changed if "/targets/" in target}
        baseline = {target for target in kernels if "baseline" in target}
        changed -= kernels - baseline if baseline else set()
        objects = {target: f"{self.folder}/{k}.mutant.o" for k, target in enumerate(changed)}
        for target, mutant in objects.items():
            text = self.commands[target].replace(target, mutant).replace("-O3", "-O1")
            self.run(*shlex.split(text.replace(f"{ROOT}/csrc", f"{self.folder}/csrc")))
        if changed:
            folder = Path(torch.__file__).parent / "lib"
            libraries = f"-L{folder}", "-lc10", "-ltorch", "-ltorch_cpu", "-ltorch_python"
            self.run("c++", "-shared", "-fopenmp", *(objects.get(t, t) for t in self.includes),
                     f"-Wl,-rpath,{folder}", *libraries, "-o", str(self.library))  # fmt: skip
        return bool(kernels) and not baseline

    def failed(self, selection, every_instruction_set):
        """Runs tests; returns the first one that failed, or "" if none did.

        They run in a fork of this process, which has imported torch and pytest but not fastlstm.
        """
        files, _, selected = selection.partition(" -k ")
        words = ["-x", "-q", "-p", "no:cacheprovider"]
        words += [selection] if "::" in selection else files.split()
        words += ["-k", selected] if selected else []
        log = self.folder / "log"
        child = os.fork()
        if child == 0:
            signal.setitimer(signal.ITIMER_PROF, CPU_TIME_LIMIT)
            signal.alarm(TIME_LIMIT)
            os.chdir(self.folder)
            os.environ.update(self.environment)
            sys.path.insert(0, str(self.folder))
            with log.open("w") as file:
                os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
            if every_instruction_set:  # torch has read the variable in this process
                del os.environ["ATEN_CPU_CAPABILITY"]
                os.execv(sys.executable, [sys.executable, "-m", "pytest", *words])
            os._exit(pytest.main(words))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        text = log.read_text(errors="replace")
        if re.search(r"\.(?:cu|cpp|h):\d+:\d+: error: ", text):
            raise subprocess.CalledProcessError(status, selection)
        failed = re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", text, re.M)
        return "" if status in (0, 5) else (failed or [f"exit status {status}"])[0]

    def notices(self, fault, tests):
        """Returns what noticed the fault: a test, "the compiler", or "" if nothing did.

        Returns None if that test fails without the fault, too.
        """
        before = (self.folder / fault.file).read_text()
        every_isa, by = False, ""
        fault.plant(self.folder)
        try:
            if not fault.file.endswith(".py"):
                every_isa = self.compile(fault)
            by = next(filter(None, (self.failed(each, every_isa) for each in tests)), "")
        except subprocess.CalledProcessError:
            return "the compiler"
        finally:
            (self.folder / fault.file).write_text(before)
            shutil.copy2(self.folder / "unchanged.so", self.library)
        if by.startswith("tests/") and self.failed(by, every_isa):
            print(f"fails without the fault, too: {by}")
            return None
        return by


def recorded(path):
    """Returns {fault: what noticed it} for the faults in the file of results."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {record["fault"]: record["noticed by"] for record in map(json.loads, lines)}


def report(faults, results):
    """Prints the faults that no test noticed, and counts by part.

    Faults that do not compile are left out.
    """
    pairs = [(fault, results[str(fault)]) for fault in faults if str(fault) in results]
    pairs = [(fault, by) for fault, by in pairs if by != "the compiler"]
    print(*(f"survives: {fault}" for fault, by in pairs if not by), sep="\n")
    for part in (*PARTS, ""):
        noticed = [bool(by) for fault, by in pairs if part in (fault.part, "")]
        print(f"{part or 'all'}: {sum(noticed)} of {len(noticed)} noticed")


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--count", type=int, default=250, help="of all faults; default: 250")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--part", choices=PARTS, help="only faults of this part")
    parser.add_argument("--worker", default="0/1", help="0/2 and 1/2: each takes half the faults")
    parser.add_argument("--report", action="store_true", help="only print the results so far")
    arguments = parser.parse_args()
    results = OUTPUT / f"results-{arguments.count}-{arguments.seed}.jsonl"
    drawn = draw_faults(arguments.count, arguments.seed)
    drawn = [fault for fault in drawn if arguments.part in (None, fault.part)]
    k, n = map(int, arguments.worker.split("/"))
    faults = [] if arguments.report else [f for f in drawn[k::n] if str(f) not in recorded(results)]
    tree = Tree(OUTPUT / f"tree-{k}") if faults else None
    for fault in faults:
        by = tree.notices(fault, PARTS[fault.part].tests)
        if by is not None:
            with results.open("a") as file:
                file.write(json.dumps({"fault": str(fault), "noticed by": by}) + "\n")
        print(f"{fault}: {'unknown' if by is None else by or 'SURVIVES'}", flush=True)
    report(drawn, recorded(results))


if __name__ == "__main__":
    main()
