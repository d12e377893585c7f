"""The commands, each in a file of its own with two functions.

`add(parser)` adds the arguments of the command to a parser, and `run(args)` runs the command. A
file is imported when its command is called, so that `captioning --help` is quick.
"""

COMMANDS = {
    "demo": "train on drawn pictures and report, in minutes on a CPU",
    "prepare": "turn captioned pictures into COCO files with splits",
    "train": "train a captioner",
    "caption": "write captions for pictures",
    "evaluate": "score a captioner, or captions",
    "serve": "caption pictures on a local web page",
}
