"""What a run finds in its output folder: whether it may write there, and what it would replace."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from training.config import TrainConfig
from training.errors import ResumeError, SaveError
from training.run import state


def claim(config: TrainConfig) -> None:
    """Returns if the run may begin: there is a state to resume, or nothing that it would replace unasked.

    Raises `ResumeError` otherwise.
    """
    if config.resume:
        state.facts(config.state_path)
    elif not config.overwrite and (config.state_path.exists() or config.checkpoint_path.exists()):
        raise ResumeError(f"output_dir: {config.output_dir} holds {_held(config)}")


def _held(config: TrainConfig) -> str:
    """What is there, of which run, and what to do about it."""
    replace = "replace it with --overwrite or choose another --output_dir"
    if not config.state_path.exists():
        return f"{config.checkpoint_path.relative_to(config.output_dir)}, the checkpoint of some other run; {replace}"
    try:
        facts = state.facts(config.state_path)
    except ResumeError:
        return f"the damaged state of a run; {replace}"
    done, epochs = facts["progress"]["epoch"], facts["run"]["epochs"]
    origin = f", started as `{facts['command']}`" if "command" in facts else ""  # older states do not tell
    if done >= epochs:
        return f"a finished run ({done} of {epochs} epochs done{origin}); {replace}"
    return (
        f"an unfinished run ({done} of {epochs} epochs done{origin}); go on with --resume, start over with "
        "--overwrite or choose another --output_dir"
    )


def probe(config: TrainConfig) -> None:
    """Returns if files can be made where the outputs will go; leaves none. Raises `SaveError`."""
    for path in (config.checkpoint_path, config.history_path, config.curves_path):
        try:
            folder = next(parent for parent in path.absolute().parents if parent.exists())
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise SaveError(
                f"output_dir: expected a folder that can be written, found {config.output_dir} ({error}); choose "
                "another --output_dir or make this one writable"
            ) from error


@contextmanager
def saving(path: Path, resumable: bool) -> Iterator[None]:
    """Turns a failed write into a `SaveError`; files are replaced whole or not at all."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        advice = "go on with --resume" if resumable else "start again, as nothing can be resumed yet"
        raise SaveError(
            f"{path} could not be written ({error}); what was there before is untouched. Make room and {advice}"
        ) from error
