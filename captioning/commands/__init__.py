"""One file for each command: `add` adds its arguments to a parser, `run` runs it.

A file is imported when its command is called, so that `captioning --help` is quick.
"""

COMMANDS = {
    "demo": "train on drawn pictures and report, in minutes on a CPU",
    "prepare": "turn captioned pictures into COCO files with splits",
    "train": "train a captioner",
    "caption": "write captions for pictures",
    "evaluate": "score a captioner, or captions",
    "serve": "caption pictures on a local web page",
}
