"""Captioned pictures: formats, captions, words, pixels."""

from captioning.data.datasets import (
    ON_ERROR,
    CaptionDataset,
    CaptionedImage,
    EncodedCaptions,
    load_coco,
    load_references,
    shuffled,
)
from captioning.data.images import (
    MAX_PIXELS,
    ImageError,
    Transform,
    data_uri,
    image_files,
    load_image,
)
from captioning.data.tokenizer import ptb_tokenize, tokenize
from captioning.data.vocabulary import END, PAD, START, UNK, Vocabulary
