"""Which patches make the batches of an epoch: of which cases, of which size, and where they may lie."""

from __future__ import annotations

from collections.abc import Sequence

from fedseg.contract.patch_sizes import forced_count
from fedseg.contract.settings import TrainingSettings
from fedseg.randomness import derive_seed, generator
from fedseg.tasks.task import Task
from fedseg.training.patches import PatchItem


def epoch_batches(
    task: Task, settings: TrainingSettings, cases: Sequence[tuple[int, Sequence[int | str]]], where: Sequence[int | str]
) -> list[list[PatchItem]]:
    """The patches of an epoch, batch by batch.

    Of each case ``patches_per_case`` follow one another. All patches of a batch have one size, drawn by its share.
    Where ``forced_foreground`` is not 0, its share of each batch, the last ones, have a voxel of the foreground in
    their centre, and the others lie anywhere (nnU-Net, Isensee et al., Nat Methods 2021). No batch, also no short last
    one, has a smaller share than a whole batch, see ``forced_count``.

    Args:
        task: its patch size is that of all patches where the settings name no other.
        settings: of the round.
        cases: of the epoch in their order, by index, and what the patches of each follow from.
        where: what all of them follow from: seed, site, round, epoch.
    """
    drawn = [
        (index, derive_seed(*where, "patch", *draw, *([number] if number else [])))
        for index, draw in cases
        for number in range(settings.patches_per_case)
    ]
    batches = [drawn[first : first + settings.batch_size] for first in range(0, len(drawn), settings.batch_size)]
    sizes = _sizes(task, settings, len(batches), where)
    return [
        [PatchItem(*item, size, _forced(settings, place, len(batch))) for place, item in enumerate(batch)]
        for batch, size in zip(batches, sizes, strict=True)
    ]


def _forced(settings: TrainingSettings, place: int, batch: int) -> bool | None:
    """Whether a patch of a batch of so many is forced; None where nothing is, and the task's frequencies hold."""
    share = settings.forced_foreground
    return place >= batch - forced_count(share, settings.batch_size, batch) if share else None


def _sizes(
    task: Task, settings: TrainingSettings, count: int, where: Sequence[int | str]
) -> Sequence[tuple[int, int, int]]:
    if not settings.patch_sizes:
        return [task.patch_size] * count
    shares = [each.share for each in settings.patch_sizes]
    chosen = generator(*where, "sizes").choice(len(shares), count, p=[share / sum(shares) for share in shares])
    return [settings.patch_sizes[int(place)].size for place in chosen]
