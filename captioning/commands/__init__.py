"""One file for each command: `add` adds its arguments to a parser, `run` runs it.

A file is imported when its command is called, so that `captioning --help` is quick.
"""

COMMANDS = {
    "prepare": "turn captioned pictures into COCO files with splits",
    "features": "encode pictures once with a frozen CNN",
    "train": "train a captioner",
    "evaluate": "score captions",
    "caption": "write captions for pictures",
    "serve": "caption pictures on a local web page",
    "import-yunjey": "convert a captioner of yunjey's pytorch-tutorial",
    "demo": "train on drawn pictures and report, in minutes on a CPU",
}
