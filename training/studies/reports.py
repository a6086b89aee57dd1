"""Words and tables made from records: what was measured beside what the seed claims, and what follows from it.

Nothing here is known beforehand: every number and every verdict is read off the entries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from model import ModelConfig
from model.labels import CLASS_NAMES
from training.measure.records import by_machine
from training.studies import claims
from training.studies.claims import Claim
from training.studies.plan import NO_PENALTY, PLAIN, TOME, TOME_BEST

Entry = Mapping[str, Any]
NOT_RUN = "not run"
UNDECIDED = "no difference that these images can show"
TEST_IMAGES = 10_000
DYNAMICVIT_EPOCHS = 30
"""For which its authors train DynamicViT."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, first column to the left and the others to the right."""
    align = [":--", *["--:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, align, *rows))


def study_table(entries: Sequence[Entry]) -> str:
    """A study in full: cost, throughput, top-1, and the paired difference from each row of reference."""
    kinds = {other.rpartition("/")[2] for entry in entries for other in entry.get("against", {})}
    references = [name for name in (NO_PENALTY, TOME, TOME_BEST) if name in kinds]
    names = {entry["row"].rpartition("/")[2]: entry["label"] for entry in entries}
    head = ["row", "tokens", "GMACs", _timing_head(entries), "top-1 (%)"]
    head += [f"against {names[name]}: points [95 %], p" for name in references]
    rows = [
        [
            entry["label"] + ("" if entry["budget"] is None else f", {entry['budget']:.0%} of the plain cost"),
            *(costs(entry) if "top1" in entry else ["", "", "", "not reachable"]),
            *(_against(entry, name) for name in references),
        ]
        for entry in entries
    ]
    return table(head, rows)


def tome(entries: Sequence[Entry]) -> tuple[str, str] | None:
    """Top-1 of ToMe in the study `scoring`, and what FreqMerge gains over it; None where either was not measured."""
    by_row = {entry["row"]: entry for entry in entries if "top1" in entry}
    if TOME not in by_row or "lfgm" not in by_row:
        return None
    return _top1(by_row[TOME]), _against(by_row["lfgm"], TOME)


def methods(entries: Sequence[Entry], dynamicvit: Sequence[Entry]) -> str:
    """The seed's table of methods, its numbers beside those of the study `scoring`; "not run" where there is none."""
    by_row = {entry["row"]: entry for entry in entries if "top1" in entry}
    sources = {
        "plain": by_row.get(PLAIN),
        "dynamicvit": _dynamicvit(dynamicvit, entries),
        "tome": by_row.get(TOME),
        "freqmerge": by_row.get("lfgm"),
    }
    head = ["method", "measured setting"]
    for column in ("parameters (M)", "GMACs", _timing_head(entries), "top-1 (%)"):
        head += [f"{column}: seed", "measured"]
    rows = [
        [claims.SEED_LABELS[name], _setting(entry), *_pairs(claims.METHODS[name], entry, entries)]
        for name, entry in sources.items()
    ]
    best = by_row.get(TOME_BEST)
    rows.append(["ToMe, every block", _setting(best), *_pairs(None, best, entries)])
    return table(head, rows)


def _setting(entry: Entry | None) -> str:
    """What was measured, where the seed's name of a row says something else."""
    if entry is None:
        return ""
    if "rho" in entry:
        return f"ρ = {entry['rho']:g}, {_length(entry)}"
    config = ModelConfig(**entry["config"])
    if not config.merges:
        return "nothing merges"
    blocks = f"blocks {' '.join(str(layer) for layer in config.merge_layers)}"
    if config.merge_counts:
        lowest, highest = min(config.merge_counts), max(config.merge_counts)
        return f"{lowest if lowest == highest else f'{lowest} to {highest}'} tokens in every block"
    strength = f", α {config.alpha:g}" if config.scoring == "lfgm" else ""
    return f"keep rate {config.keep_rate:g}{strength}, {blocks}"


def alpha(entries: Sequence[Entry]) -> str:
    """The seed's α sweep beside the study `alpha`."""
    by_alpha = {entry["config"]["alpha"]: entry for entry in entries if entry["row"].startswith("alpha=")}
    labels = {value: f"{value:.2f}" + (" (= ToMe)" if value == 0 else "") for value in (*claims.ALPHA, *by_alpha)}
    rows = [(labels[value], claims.ALPHA.get(value), by_alpha.get(value)) for value in sorted(labels)]
    return _beside("α", rows, NO_PENALTY, "α = 0")


def scoring(entries: Sequence[Entry]) -> str:
    """The seed's comparison of scores beside the study `scoring`; the other strategies below."""
    by_row = {entry["row"]: entry for entry in entries if entry["row"] != PLAIN}
    seeds = {"random": "Random Pruning", "attention": "Attention-Based Score", "lfgm": "LFGM (Ours)"}
    rows: list[tuple[str, Claim | None, Entry | None]]
    rows = [(label, claims.SCORING[name], by_row.get(name)) for name, label in seeds.items()]
    rows += [(entry["label"], None, entry) for name, entry in by_row.items() if name not in seeds]
    return _beside("strategy", rows, TOME, "ToMe, same blocks")


def source(entries: Sequence[Entry], *others: Sequence[Entry]) -> str:
    """Where the measured numbers come from; of `others` only the command is named."""
    if not entries:
        return ""
    first = entries[0]
    further = "".join(f" Also `{other[0]['command']}`, commit {other[0]['commit']}." for other in others if other)
    return (
        f"Measured: `{first['command']}`, checkpoint `{first['checkpoint']}` ({first['digest'][:12]}), "
        f"{conditions(first)}.{further}"
    )


def conditions(entry: Entry) -> str:
    """On what an entry was measured: images, precision, machine, versions and commit."""
    machine = entry["machine"]
    return (
        f"{entry['images']:,} test images, {entry['precision']}; {machine['device']}, {machine['threads']} threads, "
        f"torch {machine['torch']}, timm {machine['timm']}; commit {entry['commit']}"
    )


def findings(entries: Sequence[Entry]) -> list[str]:
    """What a study says about FreqMerge, one sentence per reference and budget."""
    labels = {entry["row"]: entry["label"] for entry in entries}
    pairs = [
        (entry, other, pair)
        for entry in entries
        if entry["label"].startswith("FreqMerge")
        for other, pair in entry.get("against", {}).items()
    ]
    sentences = [
        _sorted_by_outcome(labels[reference], [(entry, pair) for entry, other, pair in pairs if other == reference])
        for reference in dict.fromkeys(other for _, other, _ in pairs)
    ]
    if first := next((entry for entry in entries if "top1" in entry), None):
        sentences += about_the_sample(first)
    return sentences + about_the_tests(entries) + _out_of_reach(entries)


def about_the_tests(entries: Sequence[Entry]) -> list[str]:
    """How many false alarms so many tests may give; nothing where there is one."""
    tests = sum(len(entry.get("against", {})) for entry in entries)
    if tests < 2:
        return []
    return [
        f"p-values are of single tests; with {tests} of them, {0.05 * tests:.1f} below 0.05 are expected "
        "by chance alone."
    ]


def _out_of_reach(entries: Sequence[Entry]) -> list[str]:
    """The rows that no schedule brings to their budget, one sentence per budget."""
    missed = [entry for entry in entries if "unreachable" in entry]
    sentences = []
    for share in dict.fromkeys(entry["budget"] for entry in missed):
        labels = ", ".join(entry["label"] for entry in missed if entry["budget"] == share)
        cost = "FreqMerge's own cost" if share is None else f"{share:.0%} of the plain cost"
        sentences.append(f"No schedule comes near enough to {cost} for: {labels}; the records say how near.")
    return sentences


def _sorted_by_outcome(reference: str, pairs: Sequence[tuple[Entry, Mapping[str, Any]]]) -> str:
    """Which rows are better than the reference, which worse, and for which nothing can be said."""
    share = pairs[0][0]["budget"]
    at = "" if share is None else f" at {share:.0%} of the plain cost"
    beaten = any(outcome(pair) == "better" for _, pair in pairs)
    return f"Against {reference}{at}, in points: {by_outcome(pairs)}." + (
        "" if beaten else f" FreqMerge does not beat {reference}."
    )


def by_outcome(pairs: Sequence[tuple[Entry, Mapping[str, Any]]]) -> str:
    """The rows with their comparisons, in points: the better ones, the worse ones, and those that show nothing."""
    parts = []
    for said in ("better", "worse", UNDECIDED):
        rows = [f"{entry['label']} ({100 * pair['difference']:+.2f})" for entry, pair in pairs if outcome(pair) == said]
        parts += [f"{said}: {', '.join(rows)}"] if rows else []
    return "; ".join(parts)


def outcome(pair: Mapping[str, Any]) -> str:
    """'better' or 'worse' where McNemar's test and the bootstrap interval agree on it, else that nothing shows."""
    if pair["p"] >= 0.05 or pair["low"] <= 0 <= pair["high"]:
        return UNDECIDED
    return "better" if pair["difference"] > 0 else "worse"


def verdict(own: Entry, other: Entry, pair: Mapping[str, Any]) -> str:
    """One paired comparison in words."""
    points = f"{100 * pair['difference']:+.2f} points [{100 * pair['low']:+.2f}, {100 * pair['high']:+.2f}]"
    said = outcome(pair)
    beats = "" if said == "better" else f": it does not beat {other['label']}"
    at = "" if own["budget"] is None else f" at {own['budget']:.0%} of the plain cost"
    return f"{own['label']} against {other['label']}{at}: {points}, McNemar's p: {p_value(pair['p'])}; {said}{beats}."


def remarks(
    entries: Sequence[Entry], counts: Sequence[Entry], alphas: Sequence[Entry], dynamicvit: Sequence[Entry]
) -> list[str]:
    """What has to be said beside the seed's claims."""
    sentences = []
    measured = next((entry for entry in entries if "top1" in entry), None)
    if measured and not _is_the_seeds_model(measured):
        sentences.append(
            f"The seed's numbers are for ViT-Small/16 at 224 pixels, the measured ones for `{measured['checkpoint']}` "
            f"({measured['parameters'] / 1e6:.2f} M parameters, {measured['config']['image_size']} pixels): compare "
            "the rows of a column, not the columns."
        )
    sentences += _about_counts(counts)
    sentences += _about_gains(entries)
    sentences += _about_alpha(alphas)
    sentences.append(_about_dynamicvit(_dynamicvit(dynamicvit, entries)))
    missing = [name for name in claims.PICTURED_CLASSES if name not in CLASS_NAMES]
    sentences.append(
        f"The seed's picture names {' and '.join(missing)}, which are not among the {len(CLASS_NAMES)} classes of "
        "CIFAR-100."
    )
    return sentences


def _about_counts(counts: Sequence[Entry]) -> list[str]:
    """Where the seed's parameters and GFLOPs differ from what is counted."""
    by_name = {entry["row"]: entry for entry in counts}
    sentences = []
    if plain := by_name.get(PLAIN):
        claim = claims.METHODS["plain"].parameters_m
        sentences.append(
            f"A ViT-Small/16 with {plain['config']['num_classes']} classes has {plain['parameters'] / 1e6:.1f} M "
            f"parameters, not {claim} M."
        )
    for name, (key, published) in claims.PUBLISHED.items():
        half, meant = by_name.get(f"{name}_half"), by_name.get(key)
        if half and meant:
            claim = claims.METHODS[name].gmacs
            sentences.append(
                f'The seed\'s "{claims.SEED_LABELS[name]}" at {claim:.2f} GMACs is mislabelled: {half["label"]} counts '
                f"{half['macs'] / 1e9:.2f}; {published} is what its authors publish for {meant['label']}, "
                f"{meant['macs'] / 1e9:.2f} as counted here."
            )
    if dynamic := by_name.get("dynamicvit_half"):
        claim = claims.METHODS["dynamicvit"].parameters_m
        sentences.append(
            f"DynamicViT has {dynamic['parameters'] / 1e6:.1f} M parameters with its predictors, not {claim} M."
        )
    if own := by_name.get("lfgm"):
        sentences.append(
            f"FreqMerge as the seed configures it counts {own['macs'] / 1e9:.2f} GMACs, not "
            f"{claims.METHODS['freqmerge'].gmacs}."
        )
    return sentences


def _about_gains(entries: Sequence[Entry]) -> list[str]:
    """The seed's headline, FreqMerge over ToMe, beside the measured one."""
    by_row = {entry["row"]: entry for entry in entries}
    if "top1" not in by_row.get("lfgm", {}):
        return []
    claim = claims.METHODS["freqmerge"].top1 - claims.METHODS["tome"].top1
    sentences = [f"The seed claims {claim:+.2f} points for FreqMerge over ToMe."]
    sentences += [verdict(by_row["lfgm"], by_row[other], paired) for other, paired in by_row["lfgm"]["against"].items()]
    return sentences + about_the_sample(by_row["lfgm"])


def _about_alpha(alphas: Sequence[Entry]) -> list[str]:
    """The seed's throughput falls with α; the work does not change."""
    macs = {entry["macs"] for entry in alphas if entry["row"].startswith("alpha=") and entry["config"]["alpha"] > 0}
    if len(macs) != 1:
        return []
    first, last = claims.ALPHA[0.25].images_per_s, claims.ALPHA[1.0].images_per_s
    return [
        f"The seed's throughput falls from {first} to {last} images/s between α = 0.25 and 1, but every α above 0 "
        f"costs the same {macs.pop() / 1e9:.4g} GMACs: differences between these rows are timing noise."
    ]


def about_the_sample(entry: Entry) -> list[str]:
    """How far an accuracy over these images can be trusted."""
    sentences = []
    if entry["images"] < TEST_IMAGES:
        sentences.append(f"Only {entry['images']:,} of {TEST_IMAGES:,} test images: a trial, not a result.")
    sentences.append(
        f"One accuracy over {entry['images']:,} images has a standard error of {100 * entry['standard_error']:.2f} "
        "points; the differences above are paired on the same images."
    )
    return sentences


def _beside(name: str, rows: Sequence[tuple[str, Claim | None, Entry | None]], reference: str, called: str) -> str:
    measured = [entry for _, _, entry in rows if entry]
    head = [name, "top-1 (%): seed", "measured", f"against {called}: points [95 %], p"]
    head += ["images/s: seed", _timing_head(measured).replace("images/s", "measured"), "GMACs"]
    cells = []
    for label, claim, entry in rows:
        run = entry is not None and "top1" in entry
        cells.append(
            [
                label,
                f"{claim.top1:.2f}" if claim else "",
                _top1(entry) if entry and run else "not reachable" if entry else NOT_RUN,
                _against(entry, reference) if entry else "",
                str(claim.images_per_s) if claim else "",
                _rate(entry) if entry else "",
                f"{entry['macs'] / 1e9:.4g}" if entry and run else "",
            ]
        )
    return table(head, cells)


def _pairs(claim: Claim | None, entry: Entry | None, timed: Sequence[Entry]) -> list[str]:
    """Parameters, GMACs, images/s and top-1: claimed, measured, claimed, …"""
    said = (
        [f"{claim.parameters_m}", f"{claim.gmacs:.2f}", f"{claim.images_per_s}", f"{claim.top1:.2f}"]
        if claim
        else [""] * 4
    )
    if entry is None:
        measured = [NOT_RUN] * 4
    else:
        size = next((row["timing_batch"] for row in timed if "timing_batch" in row), None)
        measured = [f"{entry['parameters'] / 1e6:.2f}", f"{entry['macs'] / 1e9:.3g}", _rate(entry, size), _top1(entry)]
    return [cell for pair in zip(said, measured, strict=True) for cell in pair]


def _dynamicvit(dynamicvit: Sequence[Entry], entries: Sequence[Entry]) -> Entry | None:
    """Of the DynamicViT records from the measured checkpoint the one with ρ nearest 0.7, of several the longest run."""
    starts = {entry["digest"] for entry in entries}
    own = [entry for entry in dynamicvit if entry["start"]["digest"] in starts]
    return min(
        own, key=lambda run: (abs(run["rho"] - 0.7), -(run.get("images_seen") or 0), -run["epochs"]), default=None
    )


def per_machine(entries: Sequence[Entry], page: Callable[[Sequence[Entry]], str]) -> str:
    """The page of each machine's entries, one after the other, or "not run"."""
    return "\n".join(page(own) for own in by_machine(entries)) or f"{NOT_RUN}\n"


def with_findings(shown: str, findings: Sequence[str], source: str) -> str:
    """A table, what follows from it as a list, and how it was measured."""
    return "".join([shown, "\n", *(f"- {line}\n" for line in findings), f"\n{source}\n"])


def by_batch_size(what: str, own: Mapping[int, Entry], field: str, goals: Mapping[int, float]) -> str:
    """A ratio at every batch size, and whether it reaches its goal where there is one."""
    cells = []
    for size, entry in own.items():
        goal = goals.get(size)
        verdict = "" if goal is None else f" (goal {goal:.2f}: {reached(entry[field] >= goal)})"
        cells.append(f"{entry[field]:.2f} at batch {size}{verdict}")
    return f"{what}: {', '.join(cells)}."


def reached(met: bool) -> str:
    """The word for a goal."""
    return "reached" if met else "missed"


def batch_sizes(entries: Sequence[Entry]) -> list[int]:
    """Those that were measured, rising."""
    return sorted({entry["batch_size"] for entry in entries})


def duration(seconds: float) -> str:
    """Such as '23 s', '12 min' and '3.0 h'."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _length(run: Entry) -> str:
    """How long DynamicViT was trained; older records know the epochs alone."""
    images, seconds = run.get("epoch_images"), run.get("seconds")
    return "".join(
        [
            f"{run['epochs']} epoch{'' if run['epochs'] == 1 else 's'}",
            f" of {images:,} images" if images else "",
            f", {duration(seconds)}" if seconds else "",
        ]
    )


def _about_dynamicvit(run: Entry | None) -> str:
    """How long the run was, beside its authors'."""
    if run is None:
        return f"DynamicViT has to be trained; there is no run from this checkpoint yet: {NOT_RUN}."
    steps = f" ({run['steps']:,} steps, {run['images_seen']:,} images)" if run.get("steps") else ""
    epoch = run.get("epoch", run["epochs"])
    best = "" if epoch == run["epochs"] else f"; the weights are those of epoch {epoch}"
    return (
        f"DynamicViT was trained for {_length(run)}{steps}{best}; its authors train for {DYNAMICVIT_EPOCHS} epochs of "
        "ImageNet."
    )


def _is_the_seeds_model(entry: Entry) -> bool:
    """Whether it is the seed's backbone at the seed's size; how the last block's tokens are pooled is no matter."""
    seeds, config = ModelConfig(), entry["config"]
    sizes = {name for name in config["backbone_args"] if name not in ("global_pool", "fc_norm")}
    return not sizes and all(config[field] == getattr(seeds, field) for field in ("backbone", "image_size"))


def costs(entry: Entry) -> list[str]:
    """Tokens, GMACs, images/s and top-1, as tables print them."""
    tokens = schedule(entry["patches"], entry["schedule"])
    return [tokens, f"{entry['macs'] / 1e9:.4g}", _rate(entry), _top1(entry)]


def schedule(patches: int, left: Sequence[int]) -> str:
    """The patch tokens of a model and those left after each block, such as 196 → 137 → 96; long ones shortened."""
    counts: list[int | str] = [*dict.fromkeys([patches, *left])]
    if len(counts) > 6:
        counts = [*counts[:2], "…", counts[-1]]
    return " → ".join(str(count) for count in counts)


def _top1(entry: Entry) -> str:
    each = entry.get("top1_per_seed", [entry["top1"]])
    spread = f" ({100 * min(each):.2f} to {100 * max(each):.2f}, {len(each)} seeds)" if len(each) > 1 else ""
    return f"{100 * entry['top1']:.2f}{spread}"


def _images_per_s(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _rate(entry: Entry, batch_size: int | None = None) -> str:
    if "images_per_s" in entry:
        return f"{_images_per_s(entry['images_per_s'])} ({entry['speed_up']:.2f}×)"
    timed = next((timing for timing in entry.get("throughput", []) if timing["batch_size"] == batch_size), None)
    return f"{_images_per_s(timed['images_per_s'])} ({timed['speed_up']:.2f}×)" if timed else "not timed"


def _timing_head(entries: Sequence[Entry]) -> str:
    size = next((entry["timing_batch"] for entry in entries if "timing_batch" in entry), None)
    return f"images/s, batch {size}" if size else "images/s"


def _against(entry: Entry, reference: str) -> str:
    for other, pair in entry.get("against", {}).items():
        if other.rpartition("/")[2] == reference:
            return paired_cell(pair)
    return ""


def paired_cell(pair: Mapping[str, Any]) -> str:
    """A paired comparison as tables print it: points, 95 % interval, p-value."""
    points = f"{100 * pair['difference']:+.2f} [{100 * pair['low']:+.2f}, {100 * pair['high']:+.2f}]"
    return f"{points}, {p_value(pair['p'])}"


def p_value(p: float) -> str:
    """A p-value as tables print it."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
