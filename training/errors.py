"""What `training` refuses, beyond what `model` refuses:

FreqMergeError (model)
└── TrainingError
    ├── DataError       a data set that is missing, unreadable or of another layout
    ├── WeightsError    starting weights that are missing or do not fit
    ├── ResumeError     a run that cannot be continued, or would be overwritten
    ├── DivergedError   a loss or an answer that is no longer a number
    ├── SaveError       a file of a run that could not be written
    ├── PeerError       another process of the run that failed, or does not answer
    └── BudgetError     a cost that no merging schedule reaches
"""

from model.errors import FreqMergeError


class TrainingError(FreqMergeError):
    """Base of the errors of the training package."""


class DataError(TrainingError):
    """A data set that is missing, unreadable or of another layout."""


class ResumeError(TrainingError):
    """A run that cannot be continued, or that a new one would overwrite."""


class DivergedError(TrainingError):
    """A loss or an answer that is no longer a finite number."""


class PeerError(TrainingError):
    """Another process of the same run that failed, or does not answer."""


class BudgetError(TrainingError):
    """A number of multiply-accumulates that no merging schedule reaches."""


class WeightsError(TrainingError):
    """Starting weights that are missing, unreadable or of another architecture."""


class SaveError(TrainingError):
    """A file of a run that could not be written; what was there before is untouched."""
