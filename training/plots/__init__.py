"""Pictures, each made from what was recorded or answered; written as PNG in one step."""

from training.plots.confusion_matrix import confusion_matrix
from training.plots.curves import training_curves
from training.plots.heatmaps import heatmaps
from training.plots.studies import study

__all__ = ["confusion_matrix", "heatmaps", "study", "training_curves"]
