"""Writing captions: searches, and the pictures they are for."""

from captioning.search.decoding import DecodeConfig, random_words, write_tokens
from captioning.search.generate import (
    Caption,
    CaptionedFile,
    best_captions,
    caption_dataset,
    caption_files,
    decode_batch,
    find_pictures,
    generate_captions,
)
from captioning.search.tune import choose_search
