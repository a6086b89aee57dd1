"""What each ablation study measures, as rows: a config, its label, and the rows it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, Literal

from pydantic import Field, field_validator

from model import ModelConfig
from model.config import Scoring
from model.merging.strategies import STRATEGIES, of_role
from training.errors import BudgetError
from training.measure import fitting
from training.measure.bench import BenchConfig

PLAIN, TOME_BEST, EVERYWHERE = "plain", "tome_best", "lfgm_everywhere"
TOME: Scoring = "none"
LFGM: Scoring = "lfgm"
"""Names of rows that several studies share."""
NO_PENALTY = "alpha=0"


class AblationConfig(BenchConfig):
    """Which studies run, and over which values."""

    study: Literal["alpha", "scoring", "budget", "radius", "score", "all"] = Field(
        "all",
        description="alpha, scoring, budget (methods at equal cost), radius, score (what the frequency score is worth, "
        "and variants of it) or all",
    )
    alphas: tuple[float, ...] = Field((0.0, 0.25, 0.5, 0.7, 1.0), min_length=1, description="values of study alpha")
    radii: tuple[int, ...] = Field((0, 1, 2, 3, 4), min_length=1, description="values of study radius")
    budgets: tuple[float, ...] = Field(
        (0.74, 0.65, 0.6, 0.5),
        min_length=1,
        description="costs of study budget as shares of the plain model's (ViT-Small: 3.4, 3.0, 2.75, 2.3 GMACs)",
    )
    tolerance: float = Field(0.01, gt=0, lt=1, description="how far a fitted cost may be off, as a share")
    strategies: tuple[str, ...] = Field(
        (),
        description="strategies of the studies scoring and budget; none takes all but the variants of the frequency "
        "score (budget: without the controls, too)",
    )
    seeds: int = Field(3, ge=1, description="draws of strategies that are random")
    timing_batch: int = Field(32, ge=0, description="images per timed pass; 0 does not time")

    @field_validator("budgets")
    @classmethod
    def _shares(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < share < 1 for share in shares):
            raise ValueError("expected shares between 0 and 1")
        return shares

    @field_validator("strategies")
    @classmethod
    def _registered(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in names if name not in STRATEGIES]
        if unknown:
            raise ValueError(f"expected some of {', '.join(STRATEGIES)}, without {', '.join(unknown)}")
        return names


@dataclass(frozen=True)
class Row:
    """One line of a study's table."""

    name: str
    label: str
    config: ModelConfig | None
    """None where no schedule reaches the budget; `problem` says why."""
    against: tuple[str, ...] = ()
    """Rows of the same study that it is tested against."""
    seeds: int = 1
    budget: float | None = None
    """Wanted share of the plain model's cost."""
    problem: str = ""


Study = Callable[[Any, ModelConfig, AblationConfig], list[Row]]


def alpha(vit: Any, base: ModelConfig, config: AblationConfig) -> list[Row]:
    """The frequency penalty from none (ToMe) to full."""
    values = sorted({*config.alphas, 0.0})
    return [_plain(base), *(_penalised(base, value) for value in values)]


def radius(vit: Any, base: ModelConfig, config: AblationConfig) -> list[Row]:
    """How much low frequency the score leaves out; 0 leaves out the mean alone."""
    rows = [
        Row(
            f"radius={value}",
            f"FreqMerge, radius = {value}",
            base.replace(scoring="lfgm", hpf_radius=value),
            against=(NO_PENALTY,),
        )
        for value in config.radii
    ]
    return [_plain(base), _penalised(base, 0.0), *rows]


def scoring(vit: Any, base: ModelConfig, config: AblationConfig) -> list[Row]:
    """Every strategy on the blocks and keep rate of the checkpoint, and ToMe at its own best for the same cost."""
    own = base.replace(scoring="lfgm")
    methods = [name for name in STRATEGIES if name not in of_role("variant")]
    wanted = list(dict.fromkeys([TOME, "lfgm", *(config.strategies or methods)]))
    rows = [_strategy(base.replace(scoring=name), config.seeds) for name in wanted]
    return [_plain(base), *rows, *_everywhere(vit, base, fitting.cost(vit, own), config, None)]


def at_budgets(vit: Any, base: ModelConfig, config: AblationConfig) -> list[Row]:
    """Every method at the same counted cost, beside the checkpoint's own setting.

    In the checkpoint's blocks as far as they reach, for smaller budgets in blocks before them, too.
    """
    whole = fitting.cost(vit, base.replace(keep_rate=1.0))
    left_out = {*of_role("control"), *of_role("variant")}
    wanted = config.strategies or tuple(name for name in STRATEGIES if name not in left_out)
    wanted = tuple(dict.fromkeys([TOME, "lfgm", *wanted]))
    rows = [_plain(base), *(_strategy(base.replace(scoring=name), config.seeds) for name in (TOME, "lfgm"))]
    rows += _everywhere(vit, base, fitting.cost(vit, base.replace(scoring="lfgm")), config, None)
    for share in config.budgets:
        macs = round(share * whole)
        rows += [_fitted(vit, base.replace(scoring=name), share, macs, config) for name in wanted]
        rows += _everywhere(vit, base, macs, config, share)
    return rows


def score(vit: Any, base: ModelConfig, config: AblationConfig) -> list[Row]:
    """Whether the frequency score earns its place: its variants and controls on three schedules.

    The checkpoint's own; half of the tokens in each of its blocks, with every other choice of the config too; half in
    one block more, before them.
    """
    whole = fitting.cost(vit, base.replace(keep_rate=1.0))
    rows = [_plain(base), *_scores(base, config.seeds), *_later(vit, base, config)]
    for layers in islice(_ever_earlier(base.merge_layers, len(vit.blocks)), 2):
        halved = base.replace(merge_layers=layers, keep_rate=0.5, merge_counts=())
        share = round(fitting.cost(vit, halved) / whole, 2)
        measured = _scores(halved, config.seeds) + (_choices(halved) if layers == base.merge_layers else [])
        rows += [_within(share, row) for row in measured]
    return rows


def _scores(base: ModelConfig, seeds: int) -> list[Row]:
    """One schedule under every score."""
    further = sorted(of_role("variant")) + sorted(of_role("control"))
    return [
        replace(_strategy(base.replace(scoring=name), seeds), against=() if name == TOME else (TOME,))
        for name in (TOME, "lfgm", *further, "attention")
    ]


def _choices(base: ModelConfig) -> list[Row]:
    """One schedule under every other choice of the config, for the frequency score and its natural repair."""
    penalties: list[dict[str, Any]] = [{"alpha": value} for value in (0.25, 0.5, 1.0) if value != base.alpha]
    penalties += [{"score_scale": "rank"}, {"pair_score": "mean"}, {"score_scale": "rank", "pair_score": "mean"}]
    other = "pool" if base.rescore == "grid" else "grid"
    changes = {
        "lfgm": [*penalties, {"rescore": other}, {"cosine": "clamped"}, {"match_on": "tokens"}],
        "normalised_detail": [change for change in penalties if "pair_score" not in change],
        TOME: [{"match_on": "tokens"}],
    }
    return [_changed(base.replace(scoring=name), change) for name, each in changes.items() for change in each]


def _later(vit: Any, base: ModelConfig, config: AblationConfig) -> list[Row]:
    """ToMe and FreqMerge one block later, for the cost of the checkpoint's own schedule."""
    layers = tuple(layer + 1 for layer in base.merge_layers if layer + 1 < len(vit.blocks))
    change = {"merge_layers": layers, "merge_counts": ()}
    rows = [
        Row(
            f"{name} later", f"{STRATEGIES[name].label}, one block later", base.replace(scoring=name, **change), (TOME,)
        )
        for name in (TOME, LFGM)
    ]
    macs = fitting.cost(vit, base.replace(scoring="lfgm"))
    return [_settled(row, partial(_fit_rate, vit, row, macs, config.tolerance)) for row in rows]


def _changed(config: ModelConfig, change: Mapping[str, Any]) -> Row:
    said = ", ".join(f"{field} {value}" for field, value in change.items())
    label = f"{STRATEGIES[config.scoring].label}, {said}"
    return Row(f"{config.scoring} {said}", label, config.replace(**change), (TOME,))


STUDIES: dict[str, Study] = {
    "alpha": alpha,
    "scoring": scoring,
    "budget": at_budgets,
    "radius": radius,
    "score": score,
}


def chosen(study: str) -> Sequence[str]:
    """The studies that `--study` means."""
    return list(STUDIES) if study == "all" else [study]


def _plain(base: ModelConfig) -> Row:
    return Row(PLAIN, "plain ViT", base.replace(keep_rate=1.0))


def _penalised(base: ModelConfig, value: float) -> Row:
    label = f"FreqMerge, α = {value:g}" if value else "ToMe, same blocks (α = 0)"
    against = (NO_PENALTY,) if value else ()
    return Row(f"alpha={value:g}", label, base.replace(scoring="lfgm", alpha=value), against)


def _strategy(config: ModelConfig, seeds: int) -> Row:
    name = config.scoring
    against = () if name == TOME else (TOME, TOME_BEST) if name == "lfgm" else (TOME,)
    return Row(name, STRATEGIES[name].label, config, against, seeds if STRATEGIES[name].draws else 1)


def _fitted(vit: Any, base: ModelConfig, share: float, macs: int, config: AblationConfig) -> Row:
    row = _within(share, _strategy(base, config.seeds))
    return _settled(row, partial(_fit_blocks, vit, base, macs, config.tolerance))


def _fit_blocks(vit: Any, base: ModelConfig, macs: int, tolerance: float) -> fitting.Fit:
    """On the config's own blocks; where half of the tokens in each is not little enough, in one block more, and so on.

    Raises the `BudgetError` of the most blocks.
    """
    *fewer, most = (
        base.replace(merge_layers=layers, merge_counts=())
        for layers in _ever_earlier(base.merge_layers, len(vit.blocks))
    )
    for config in fewer:
        with suppress(BudgetError):
            return fitting.fit_keep_rate(vit, config, macs, tolerance)
    return fitting.fit_keep_rate(vit, most, macs, tolerance)


def _ever_earlier(layers: tuple[int, ...], depth: int) -> Iterator[tuple[int, ...]]:
    """Merging blocks, then each time one block more before them, as far from the first as that is from the second."""
    yield layers
    while layers[0] > 0:
        first, second = (*layers, depth)[:2]
        layers = (max(0, 2 * first - second), *layers)
        yield layers


def _everywhere(vit: Any, base: ModelConfig, macs: int, config: AblationConfig, share: float | None) -> list[Row]:
    """ToMe as its paper runs it, the same number of tokens in every block, and FreqMerge on that schedule."""
    tome = Row(TOME_BEST, "ToMe, every block", base.replace(scoring=TOME), (TOME,))
    own = Row(EVERYWHERE, "FreqMerge (LFGM), every block", base.replace(scoring="lfgm"), (TOME_BEST,))
    rows = [tome, own] if share is None else [_within(share, tome), _within(share, own)]
    return [_settled(row, partial(_fit_counts, vit, row, macs, config.tolerance)) for row in rows]


def _fit_rate(vit: Any, row: Row, macs: int, tolerance: float) -> fitting.Fit:
    assert row.config is not None
    return fitting.fit_keep_rate(vit, row.config, macs, tolerance)


def _fit_counts(vit: Any, row: Row, macs: int, tolerance: float) -> fitting.Fit:
    assert row.config is not None
    return fitting.fit_counts(vit, row.config, macs, tolerance)


def _within(share: float, row: Row) -> Row:
    """The row, and those it is tested against, among the rows of one budget."""
    against = tuple(f"{share:g}/{other}" for other in row.against)
    return replace(row, name=f"{share:g}/{row.name}", against=against, budget=share)


def _settled(row: Row, fit: Callable[[], fitting.Fit]) -> Row:
    """The row with the config that meets its budget, or with the reason why there is none."""
    try:
        return replace(row, config=fit().config)
    except BudgetError as error:
        return replace(row, config=None, problem=str(error))
