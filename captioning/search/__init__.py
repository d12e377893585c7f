"""Writing captions: searches, and the pictures they are for."""

from captioning.search.caption import CaptionedFile, caption_files, caption_table, find_pictures
from captioning.search.decoding import Hypothesis, random_words, write_tokens
from captioning.search.generate import (
    Caption,
    DecodeConfig,
    agreement,
    best_captions,
    decode_batch,
    generate_captions,
    rank,
)
