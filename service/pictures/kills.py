"""Why a decoding process ended in the middle of a picture; light to import: the metrics need no picture code."""

from typing import Literal, get_args

Kill = Literal["cpu", "abandoned", "silent", "died"]
"""CPU time used up, nobody waits any more, no answer in wall time, or something else."""

KILLS: tuple[Kill, ...] = get_args(Kill)
