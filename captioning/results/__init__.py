"""Scores of captions, and what they look like."""

from captioning.results.attention_maps import (
    ATTENTION_STYLE,
    compute_maps,
    file_maps,
    panels_html,
    write_panels,
)
from captioning.results.evaluation import evaluate, read_results, with_pictures, write_evaluation
from captioning.results.metrics import Scores, score_captions
from captioning.results.report import (
    MAX_SHEET,
    Picture,
    Section,
    write_contact_sheet,
    write_report,
    write_sheet,
)
