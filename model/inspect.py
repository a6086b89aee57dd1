"""`python -m model.inspect MODEL`: what merging does to a timm model or a checkpoint, and what it is worth here.

Prints the schedule, GMACs and parameters, and the speed-up measured on this machine: model and merged model take
turns, and the speed-up is the median of the ratios. Weights of a timm name are random: none of this depends on them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from model import processor
from model.checkpoint import load_checkpoint, versions
from model.config import BackboneArg, MergeConfig, backbone_arg
from model.engines.device import pick_device
from model.errors import ConfigError, FreqMergeError
from model.macs import count_macs, count_parameters
from model.speed import rates
from model.vit import backbone
from model.vit.merged import MergedViT, merge_tokens

PLAIN, MERGED = "plain", "merged"


def merged(arguments: argparse.Namespace) -> MergedViT:
    """The model that the command line names, merging; raises `FreqMergeError`."""
    named = ("keep_rate", "merge_layers", "alpha", "scoring")
    settings = {name: getattr(arguments, name) for name in named if getattr(arguments, name) is not None}
    if arguments.r:
        settings["r"] = _r(arguments.r, arguments.inflect)
    elif arguments.inflect is not None:
        raise ConfigError("inflect: expected together with r, found alone")
    if not _is_path(arguments.model):
        size = {} if arguments.img_size is None else {"img_size": arguments.img_size}
        return merge_tokens(backbone.create(arguments.model, **size, **dict(arguments.backbone_args)), **settings)
    for name in ("img_size", "backbone_args"):
        if given := getattr(arguments, name):
            raise ConfigError(f"{name}: a checkpoint has its own, found {given}; leave it out")
    model = load_checkpoint(arguments.model).model
    return merge_tokens(model.vit, **_own(model.config, settings), **settings)


def _r(values: list[int], inflect: float | None) -> int | tuple[int, float] | list[int]:
    if inflect is None:
        return values[0] if len(values) == 1 else values
    if len(values) > 1:
        raise ConfigError(f"inflect: expected with one count r, found {len(values)} counts")
    return values[0], inflect


def _own(config: MergeConfig, settings: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of merging and the command line does not."""
    counts = config.merge_counts if config.merges and "keep_rate" not in settings else ()
    dropped = {"r": ("merge_layers", "merge_counts", "keep_rate"), "merge_layers": ("merge_counts",)}
    without = {field for name, fields in dropped.items() if name in settings for field in fields}
    without |= {"keep_rate"} if counts and "merge_layers" not in settings else {"merge_counts"}
    known = {name: getattr(config, name) for name in MergeConfig.model_fields}
    return {name: value for name, value in known.items() if name not in {*settings, *without}}


def report(model: MergedViT, name: str, arguments: argparse.Namespace) -> str:
    """The table."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = pick_device(arguments.device)
    model = model.to(device).eval()
    vit, side = model.vit, model.vit.patch_embed.img_size[0]
    images = torch.randn(arguments.batch_size, vit.in_chans, side, side, device=device)
    both: dict[str, Any] = {PLAIN: vit, MERGED: model}
    throughput = rates(both, images, arguments.repeats, arguments.warm_up, device)
    macs = {key: count_macs(module, side) for key, module in both.items()}
    patches = model.grid[0] * model.grid[1]
    rows = [
        ("", PLAIN, MERGED, ""),
        ("patch tokens at the end", str(patches), str(model.schedule[-1]), ""),
        (
            "GMACs per image",
            *(f"{count / 1e9:.3f}" for count in macs.values()),
            f"{macs[PLAIN] / macs[MERGED]:.2f}x fewer",
        ),
        ("parameters", *[f"{count_parameters(vit) / 1e6:.2f} M"] * 2, "shared"),
        (
            f"images/s, batch {arguments.batch_size}",
            *(f"{rate.images_per_s:.1f}" for rate in throughput.values()),
            f"{throughput[MERGED].speed_up:.2f}x speed-up",
        ),
    ]
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else processor.cpu_name()
    return "\n".join(
        [
            f"{name}: {type(vit).__name__}, {len(vit.blocks)} blocks, {model.grid[0]}x{model.grid[1]} patches of "
            f"{side // model.grid[0]}x{side // model.grid[1]} pixels, prefix tokens: {vit.num_prefix_tokens}",
            f"merging: {_merging(model.config)}",
            f"patch tokens after each block: {' '.join(map(str, model.schedule))}",
            "",
            *(f"{title:<24} {plain:>10} {merging:>10}   {ratio}".rstrip() for title, plain, merging, ratio in rows),
            "",
            f"medians of {arguments.repeats} passes in turns after {arguments.warm_up}, eager float32, "
            f"{torch.get_num_threads()} threads on {machine}; "
            + ", ".join(f"{package} {versions()[package]}" for package in ("torch", "timm")),
        ]
    )


def _merging(config: MergeConfig) -> str:
    layers = " ".join(map(str, config.merge_layers))
    if not config.merges:
        return "none"
    many = (
        f"counts {' '.join(map(str, config.merge_counts))}"
        if config.merge_counts
        else f"keep rate {config.keep_rate:g}"
    )
    return f"blocks {layers}, {many}, alpha {config.alpha:g}, scoring {config.scoring}"


def _is_path(name: str) -> bool:
    return Path(name).suffix == ".safetensors" or "/" in name or Path(name).is_file()


def parser() -> argparse.ArgumentParser:
    """The command line."""
    flags = argparse.ArgumentParser(prog="python -m model.inspect", description=__doc__, allow_abbrev=False)
    flags.add_argument("model", metavar="MODEL", help="timm model name, or a checkpoint (.safetensors)")
    flags.add_argument("--keep_rate", type=float, help="share of patch tokens kept per merging block (default: 0.7)")
    flags.add_argument("--merge_layers", type=int, nargs="+", help="0-based blocks (default: 4 6 8 10, by depth)")
    flags.add_argument("--r", type=int, nargs="+", help="ToMe's counts: one for every block, or one per block")
    flags.add_argument("--inflect", type=float, help="with one r: -1 merges early, 1 late")
    flags.add_argument("--alpha", type=float, help="frequency penalty weight; 0 is ToMe (default: 0.7)")
    flags.add_argument("--scoring", help="strategy by name (default: lfgm)")
    flags.add_argument("--img_size", type=int, help="side of the images in pixels (default: the model's own)")
    flags.add_argument(
        "--backbone_args",
        type=_pair,
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="further arguments of timm.create_model, such as dynamic_img_size=false, which DINOv3 needs",
    )
    flags.add_argument("--batch_size", type=_positive, default=8, help="images per pass (default: 8)")
    flags.add_argument("--repeats", type=_positive, default=15, help="timed passes of each, at least 2 (default: 15)")
    flags.add_argument("--warm_up", type=_positive, default=3, help="passes before timing (default: 3)")
    flags.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    flags.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's choice")
    return flags


def _pair(text: str) -> tuple[str, BackboneArg]:
    try:
        return backbone_arg(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, found {value}")
    return value


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; an error becomes one line on standard error and exit code 2."""
    parsed = parser().parse_args(arguments)
    parsed.repeats = max(2, parsed.repeats)  # quartiles need two
    try:
        sys.stdout.write(report(merged(parsed), parsed.model, parsed) + "\n")
    except (FreqMergeError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
