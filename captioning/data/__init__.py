"""Captioned pictures: formats, captions, words, pixels."""

from captioning.data.coco import (
    ON_ERROR,
    CaptionDataset,
    CaptionedImage,
    load_coco,
    load_references,
)
from captioning.data.images import (
    MAX_PIXELS,
    ImageError,
    Transform,
    data_uri,
    image_files,
    load_image,
)
from captioning.data.words import (
    END,
    PAD,
    START,
    UNK,
    EncodedCaptions,
    Vocabulary,
    ptb_tokenize,
    shuffled,
    tokenize,
)
