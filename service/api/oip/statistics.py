"""What the metrics say in the words of Triton's statistics extension. Pure: families in, document out."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import Metric

from service.api.oip.metadata import VERSION
from service.api.oip.schemas import Duration, InferenceStatistics, ModelStatistics, Statistics
from service.batching.batcher import Outcome

NO_DURATION = Duration(count=0, ns=0)

PARTS = {"queue": "queue", "compute_input": "copy", "compute_infer": "engine", "compute_output": "encode"}
"""Parts of an inference as the extension names them, and the stages of a request that they are."""

_NANOSECONDS = 1_000_000_000


class Samples:
    """Samples of metric families, added up over what is not asked for, such as replicas."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._samples = [sample for family in families for sample in family.samples]

    def total(self, name: str, **labels: str) -> float:
        """The sum of all samples of that name with these labels; 0 if there is none."""
        return sum(
            sample.value
            for sample in self._samples
            if sample.name == name and all(sample.labels.get(key) == value for key, value in labels.items())
        )


def statistics(families: Iterable[Metric], model_name: str, last_batch_s: float) -> Statistics:
    """The body of GET /v2/models/stats; `last_batch_s` is the time of the last batch, in seconds since 1970."""
    samples = Samples(families)
    parts = {part: _stage(samples, stage) for part, stage in PARTS.items()}
    ended = {outcome: int(samples.total("freqmerge_images_total", outcome=outcome.value)) for outcome in Outcome}
    answered = ended.pop(Outcome.ANSWERED)
    return Statistics(
        model_stats=[
            ModelStatistics(
                name=model_name,
                version=VERSION,
                last_inference=int(1000 * last_batch_s),
                inference_count=answered,
                execution_count=int(samples.total("freqmerge_batch_size_count")),
                inference_stats=InferenceStatistics(
                    success=Duration(count=parts["queue"].count, ns=sum(part.ns for part in parts.values())),
                    fail=Duration(count=sum(ended.values()), ns=0),
                    cache_hit=NO_DURATION,
                    cache_miss=NO_DURATION,
                    **parts,
                ),
                batch_stats=[],
            )
        ]
    )


def _stage(samples: Samples, stage: str) -> Duration:
    """How often requests passed a stage, and how long they took for it altogether."""
    metric = "freqmerge_stage_duration_seconds"
    seconds = samples.total(f"{metric}_sum", stage=stage)
    return Duration(count=int(samples.total(f"{metric}_count", stage=stage)), ns=round(seconds * _NANOSECONDS))
