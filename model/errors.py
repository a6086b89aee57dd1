"""Everything `model` refuses, as one tree:

FreqMergeError
├── ConfigError       a value outside its range, or fields that contradict each other
├── BackboneError     a timm model that cannot merge tokens
├── CheckpointError   a file that is not a whole, trusted FreqMerge checkpoint
├── EngineError       an engine that cannot be built, or a batch it cannot run
│   └── ArtifactError a compiled file that is damaged, or was made of something else than is asked for
└── ImageError        an array or picture of the wrong shape or type
"""


class FreqMergeError(Exception):
    """Base of all errors that `model` raises on purpose."""


class ConfigError(FreqMergeError, ValueError):
    """A configuration value that is out of range or contradicts another."""


class BackboneError(FreqMergeError, ValueError):
    """A timm model whose tokens cannot be merged."""


class CheckpointError(FreqMergeError):
    """A file that is not a complete and unaltered FreqMerge checkpoint."""


class EngineError(FreqMergeError, RuntimeError):
    """An engine that cannot be built here, or a batch that it cannot run."""


class ArtifactError(EngineError):
    """A compiled file that is damaged, or made from another checkpoint, for another GPU or by other versions."""


class ImageError(FreqMergeError, ValueError):
    """An image array or picture of the wrong shape, type or mode."""
