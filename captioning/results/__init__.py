"""Scores of captions, and what they look like."""

from captioning.results.attention_maps import attends, compute_maps, file_maps
from captioning.results.evaluation import evaluate, read_results
from captioning.results.figures import MAX_SHEET, write_panels, write_sheet
from captioning.results.metrics import Scores, score_captions
from captioning.results.report import Section, choose, write_report
