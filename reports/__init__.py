"""Figures and pages drawn from finished values; nothing is computed here."""

from dpaudit.reports.mlflow import log_to_mlflow as log_to_mlflow
from dpaudit.reports.model_card import insert_model_card as insert_model_card
from dpaudit.reports.model_card import model_card as model_card
from dpaudit.reports.page import render_report as render_report
from dpaudit.reports.pages import compare_page as compare_page
from dpaudit.reports.pages import exposure_page as exposure_page

__all__ = [
    # Pages.
    "compare_page",
    "exposure_page",
    "render_report",
    # Model cards and trackers.
    "insert_model_card",
    "log_to_mlflow",
    "model_card",
]
