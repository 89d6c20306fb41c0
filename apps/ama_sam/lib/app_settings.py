from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path

from scripts.data.domain_folders import auxiliary_domains
from scripts.data.domains import LABELLED
from scripts.errors import DataError
from scripts.judging import judge

__all__ = ["SETTINGS", "UNLABELLED", "check_settings"]

SETTINGS = ("mpp", "auxiliary_dir", "auxiliary", "model_dir", "cache_dir", "origins")
UNLABELLED = "unlabelled"  # name of the domain of tiles without a label


def check_settings(conf: Mapping[str, str]) -> None:
    """
    Refuse settings of the app (``-c NAME VALUE``) with which it would fail later, in the middle of somebody's work.

    Names that are not ours are MONAI Label's own, unless one of ours is near.

    Raises:
        DataError: naming the setting.
    """
    for name in conf:
        close = difflib.get_close_matches(name, SETTINGS, n=1, cutoff=0.8)
        if close and name not in SETTINGS:
            what = f"there is no such setting (did you mean '{close[0]}'?)"
            raise DataError(name, what, f"Settings are {', '.join(SETTINGS)}")
    if "mpp" in conf:
        try:
            mpp = float(conf["mpp"])
        except ValueError:
            raise DataError("mpp", f"'{conf['mpp']}' is no number", "Give micrometres per pixel, e.g. 0.25") from None
        judge("inference", {"mpp": mpp})
    for name in ("model_dir", "cache_dir"):
        if name in conf:
            judge("train", {"models_dir": conf[name]})
    if "auxiliary_dir" in conf:
        if not Path(conf["auxiliary_dir"]).is_dir():
            raise DataError("auxiliary_dir", f"there is no folder '{conf['auxiliary_dir']}'", "Name one of domains")
        for domain in auxiliary_domains(conf["auxiliary_dir"], conf.get("auxiliary", "all")):
            if domain["name"] in (LABELLED, UNLABELLED):  # found in the middle of a training, else
                raise DataError(domain["root"], "the studies' own images are the domain of this name", "Rename it")
    elif "auxiliary" in conf:
        raise DataError("auxiliary", "nothing says where these domains are", "Give -c auxiliary_dir FOLDER, too")
