"""Which channels go, so that a network's multiply-accumulates keep a budget and as little as possible is lost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from catalog import KilnError
from export.channels import Group, Ids, Keep, Wiring
from export.channels.score import Scores

FLOOR = 1 / 8  # of a group's channels stay whatever they are worth
OUTPUT = 64  # multiply-accumulates that writing and reading one output costs at least as much as, in integer kernels


def multiple(channels: int) -> int:
    """The number of channels whose multiples remain, by what a layer has.

    Integer kernels work on blocks of 16: a SimCNN of 56 channels in its middle layers is no faster than one of 64.
    """
    return 16 if channels >= 64 else 8 if channels >= 32 else 4 if channels >= 12 else 1


@dataclass(frozen=True)
class _Block:
    """Channels of one group that go together, and what is lost for each multiply-accumulate saved."""

    group: int
    channels: Ids
    price: float


def choose(wired: Wiring, scores: Scores, budget: int, full: list[int] | None = None) -> Keep:
    """The channels to keep so that at most `budget` multiply-accumulates remain.

    Greedy: of all groups' least valuable blocks, the one goes that loses least for the work it saves, until the budget
    holds; then blocks come back, the dearest first, as far as the budget allows. A block's loss is -log of the share of
    its group's worth that stays without it: so groups compare whatever their scores' unit, and a group loses ever more
    by each further block. Work is multiply-accumulates, and a little for every output.

    `full` are the groups' widths before an earlier pruning; multiples and floors are those of them.

    Raises:
        KilnError: The budget cannot be held with a floor of channels in every group.
    """
    keep, removed = wired.everything(), list[_Block]()
    widths = full or [len(group.channels) for group in wired.groups]
    while wired.macs(keep) > budget:
        found = [_cheapest(wired, number, widths[number], scores, keep) for number in range(len(wired.groups))]
        blocks = [block for block in found if block is not None]
        if not blocks:
            raise KilnError(
                f"pruning channels leaves {wired.macs(keep):,} multiply-accumulates at the least, with an eighth of "
                f"every layer's channels kept; {budget:,} were asked for. Choose a milder level"
            )
        removed.append(min(blocks, key=lambda block: block.price))
        keep[removed[-1].channels] = False
    return _give_back(wired, keep, removed, budget)


def _cheapest(wired: Wiring, number: int, width: int, scores: Scores, keep: Keep) -> _Block | None:
    """The next block of a group; None where the group is at its floor."""
    group = wired.groups[number]
    left, step = group.channels[keep[group.channels]], multiple(width)
    size = len(left) % step or step
    if len(left) - size < max(step, int(np.ceil(width * FLOOR))):
        return None
    channels = left[np.argsort(scores[left], kind="stable")[:size]]
    gone = float(scores[channels].sum()) / max(float(scores[left].sum()), 1e-30)
    return _Block(number, channels, -float(np.log(max(1 - gone, 1e-9))) / max(_saved(wired, group, size, keep), 1))


def _saved(wired: Wiring, group: Group, size: int, keep: Keep) -> int:
    """Work that goes with `size` channels of a group, in multiply-accumulates."""
    total = 0
    for name in group.enters.keys() | group.leaves.keys():
        place = wired.places[name]
        if place.macs:
            out, gone_out = int(keep[place.leave].sum()), size * group.leaves.get(name, 0)
            total += OUTPUT * place.pixels * gone_out
            if place.kind == "DepthwiseConv2D":
                total += place.macs * gone_out
            else:
                into, gone_in = int(keep[place.enter].sum()), size * group.enters.get(name, 0)
                total += place.macs * (into * out - (into - gone_in) * (out - gone_out))
    return total


def _give_back(wired: Wiring, keep: Keep, removed: list[_Block], budget: int) -> Keep:
    """Puts blocks back under the budget; within a group only in the reverse of the order they went."""
    stacks = {number: [block for block in removed if block.group == number] for number in range(len(wired.groups))}
    while tops := [stack[-1] for stack in stacks.values() if stack]:
        block = max(tops, key=lambda top: top.price)
        keep[block.channels] = True
        if wired.macs(keep) <= budget:
            stacks[block.group].pop()
        else:
            keep[block.channels] = False
            stacks[block.group].clear()  # what lies beneath would come back before its turn
    return keep
