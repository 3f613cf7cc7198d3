"""Figures and pages drawn from finished values; nothing is computed here."""

from dpaudit.reports.curves import over_delta as over_delta
from dpaudit.reports.curves import over_steps as over_steps
from dpaudit.reports.curves import tradeoff_curves as tradeoff_curves
from dpaudit.reports.figures import budget as budget
from dpaudit.reports.figures import epsilon_axis as epsilon_axis
from dpaudit.reports.figures import histogram as histogram
from dpaudit.reports.figures import roc as roc
from dpaudit.reports.figures import tradeoff as tradeoff
from dpaudit.reports.mlflow import log_to_mlflow as log_to_mlflow
from dpaudit.reports.model_card import insert_model_card as insert_model_card
from dpaudit.reports.model_card import model_card as model_card
from dpaudit.reports.page import render_report as render_report
from dpaudit.reports.page import report_drawings as report_drawings
from dpaudit.reports.pages import compare_page as compare_page
from dpaudit.reports.pages import exposure_page as exposure_page
from dpaudit.reports.svg import Drawing as Drawing
