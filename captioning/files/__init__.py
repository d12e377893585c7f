"""Files: written atomically, locked, and read strictly."""

from captioning.files.atomic import (
    delay_interrupts,
    open_regular,
    read_json,
    read_text,
    write_atomically,
    write_json,
    write_text,
    writing,
)
from captioning.files.locks import lock_files, lock_folder
