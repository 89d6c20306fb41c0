from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from monai.data import DataLoader, Dataset
from monai.engines import PrepareBatchExtraInput, SupervisedEvaluator
from monai.transforms import Compose
from scripts.alignment.features import RegionFeatures
from scripts.alignment.report import AlignmentReport
from scripts.alignment.windows import SIZE_MULTIPLE, CutWindows, window_items
from scripts.data.domains import domain_names
from scripts.data.readers import LoadNucleid
from scripts.data.transforms import ToTargetMppd
from scripts.networks.adapters import share_frozen
from torch import nn

__all__ = ["alignment_evaluator", "final_alignment", "window_dataset"]


def window_dataset(
    domains: Sequence[dict],
    splits: str | Sequence[str],
    windows_per_domain: int,
    window_size: int,
    target_mpp: float | None,
    strict: bool = True,
) -> Dataset:
    """
    The windows in which domains are compared, as a list for each image.

    Args:
        domains, splits, windows_per_domain, strict: see :func:`scripts.alignment.windows.window_items`.
        window_size: side in pixels, see :class:`scripts.alignment.windows.CutWindows`.
        target_mpp: micrometres per pixel that images are resampled to before; None leaves them.
    """
    items = window_items(domains, splits, windows_per_domain, strict)
    return Dataset(items, Compose([LoadNucleid(), ToTargetMppd(target_mpp), CutWindows(window_size)]))


def alignment_evaluator(
    network: nn.Module,
    dataset: Dataset,
    handlers: Sequence[Any],
    device: torch.device,
    amp: bool = False,
    control: nn.Module | None = None,
) -> SupervisedEvaluator:
    """
    An engine that shows a network's :class:`scripts.alignment.features.RegionFeatures` to handlers.

    Args:
        network: an ``AMASAM``.
        dataset: of :func:`window_dataset`.
        handlers: such as ``AlignmentReport``.
        device, amp: where, and whether in mixed precision.
        control: a network to compare with, see ``RegionFeatures``.
    """
    return SupervisedEvaluator(
        device=device,
        val_data_loader=DataLoader(dataset, batch_size=1, num_workers=0),
        network=RegionFeatures(network, control),
        prepare_batch=PrepareBatchExtraInput("label"),
        val_handlers=list(handlers),
        decollate=False,
        amp=amp,
    )


def final_alignment(
    network: nn.Module,
    domains: Sequence[dict],
    windows_per_domain: int,
    window_size: int,
    target_mpp: float | None,
    output_dir: str | os.PathLike,
    run: str,
    device: torch.device,
    amp: bool = False,
) -> SupervisedEvaluator:
    """
    The alignment report of a training: on what it did not train on, against the network as it is now.

    Args:
        network: an ``AMASAM``; the control is a copy of what is trained in it.
        domains: the domain list.
        windows_per_domain, target_mpp: see :func:`window_dataset`.
        window_size: the same; rounded down to what any network takes.
        output_dir: folder of the report.
        run: its name, for the report.
        device, amp: see :func:`alignment_evaluator`.
    """
    splits, window_size = ["validation", "testing"], max(window_size - window_size % SIZE_MULTIPLE, SIZE_MULTIPLE)
    provenance = {
        "run": run,
        "splits": splits,
        "window_size": window_size,
        "windows_per_domain": windows_per_domain,
        "target_mpp": target_mpp,
    }
    report = AlignmentReport(output_dir, domain_names(domains), provenance)
    dataset = window_dataset(domains, splits, windows_per_domain, window_size, target_mpp, strict=False)
    return alignment_evaluator(network, dataset, [report], device, amp, share_frozen(network))
