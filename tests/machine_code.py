"""Machine code of NVIDIA GPUs, as cuobjdump prints it, instruction by instruction.

From sm_70 on an instruction has 128 bits, of which bits 105 to 125 are for the scheduler: how many
clocks to stall, which scoreboard the instruction holds until its result is there (bits 110-112) and
which scoreboards it waits for (116-121), after Jia et al., "Dissecting the NVIDIA Volta GPU
Architecture via Microbenchmarking" (2018), chapter 2.
"""

import re
from typing import NamedTuple

LINE = re.compile(
    r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?\s*(\S+)\s*(.*?)\s*; +/\* 0x[0-9a-f]{16} \*/\n"
    r"\s+/\* (0x[0-9a-f]{16}) \*/$",
    re.MULTILINE,
)


class Instruction(NamedTuple):
    opcode: str
    operands: tuple[str, ...]
    holds: int | None  # a scoreboard, until its result is there
    waits_for: frozenset[int]  # scoreboards

    def is_a(self, *opcodes):
        """Whether it is one of these, given as LDG or as LDG.E.U16."""
        return any(f"{self.opcode}.".startswith(f"{opcode}.") for opcode in opcodes)

    @property
    def is_poll(self):
        """A load of what other blocks write."""
        return self.is_a("LDG") and ".STRONG.GPU" in self.opcode

    @property
    def is_publication(self):
        return self.is_a("STG", "ST") and ".STRONG.GPU" in self.opcode

    @property
    def written(self):
        """Numbers of the registers that it writes."""
        match = re.match(r"R(\d+)", self.operands[0]) if self.operands else None
        if self.is_a("ST", "STG", "STS", "RED") or not match:
            return range(0)
        wide = 4 if ".128" in self.opcode or self.is_a("HMMA") else 1
        if ".64" in self.opcode or ".WIDE" in self.opcode or self.opcode == "CS2R":
            wide = 2
        return range(int(match[1]), int(match[1]) + wide)

    @property
    def read(self):
        """Numbers of the registers that it names as sources."""
        operands = self.operands[1 if self.written else 0 :]
        return {int(number) for text in operands for number in re.findall(r"\bR(\d+)\b", text)}


def instruction(match):
    control = int(match[3], 16) >> 41
    scoreboard, mask = control >> 5 & 7, control >> 11 & 63
    waits_for = frozenset(i for i in range(6) if mask >> i & 1)
    operands = tuple(text.strip() for text in match[2].split(",")) if match[2] else ()
    return Instruction(match[1], operands, None if scoreboard == 7 else scoreboard, waits_for)


def kernels(dump):
    """The instructions of every kernel in what `cuobjdump --dump-sass` prints, by its name."""
    bodies = [text.partition("\n") for text in dump.split("Function : ")[1:]]
    return {name: [instruction(m) for m in LINE.finditer(body)] for name, _, body in bodies}
