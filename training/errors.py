"""What `training` refuses, beyond what `model` refuses:

FreqMergeError (model)
└── TrainingError
    ├── DataError       a data set that is missing, unreadable or of another layout
    ├── ResumeError     a run that cannot be continued, or would be overwritten
    └── DivergedError   a loss that is no longer a number
"""

from model.errors import FreqMergeError


class TrainingError(FreqMergeError):
    """Base of the errors of the training package."""


class DataError(TrainingError):
    """A data set that is missing, unreadable or of another layout."""


class ResumeError(TrainingError):
    """A run that cannot be continued, or that a new one would overwrite."""


class DivergedError(TrainingError):
    """A loss that is no longer a finite number."""
