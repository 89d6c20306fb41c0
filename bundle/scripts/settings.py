"""
What a user may set: for each config, every key of its top level that is no component, with its type and range, one line
of help and its unit. The defaults stand in the configs. Nothing but pydantic is imported here, so that a command line
can be judged, and explained, before anything else is loaded.
"""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field

__all__ = ["GONE", "RENAMED", "SETTINGS", "Setting"]

# keys of earlier versions, each with what it is called now
RENAMED = {"cache_variants": "cache_windows"}
# those that are gone, each with what does it now
GONE = {
    "shard": "--cluster shares slides among workers: local:N, or tcp://HOST:PORT of a scheduler (docs/slides.md)",
    "flips": "--views 2 or 4 averages turned and enlarged views",
    "teacher_ramp": "--teacher MODEL labels images instead of the average of the training's weights",
    "teacher_decay": "--teacher MODEL labels images instead of the average of the training's weights",
    "adversary_by_region": "--aligned_by region is what true was, --aligned_by image what false was",
}


class Setting(NamedTuple):
    """
    One key.

    Args:
        kind: what pydantic holds a value to; ``words`` in its JSON schema say it where the schema alone does not.
        help: one line.
        unit: of a number.
        free: a training that is resumed may be given another value.
    """

    kind: Any
    help: str
    unit: str = ""
    free: bool = False


def _words(words: str) -> Any:
    return Field(json_schema_extra={"words": words})


def _whole(**limits: int) -> Any:
    return Annotated[int, Field(strict=True, **limits)]


def _number(**limits: float) -> Any:
    return Annotated[float, Field(strict=True, allow_inf_nan=False, **limits)]


def _one_of(*numbers: int) -> Any:
    return Annotated[Literal[numbers], BeforeValidator(_is_whole)]


def _is_whole(value: Any) -> Any:
    if type(value) is not int:  # to Python true is 1, and 2.0 is 2
        raise ValueError("no whole number")
    return value


def _is_bool(value: Any) -> Any:
    return {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value


def _is_path(value: Any) -> Any:
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    if isinstance(value, str) and ("\0" in value or not value.strip()):
        raise ValueError("not a path")
    return value


def _is_folder(value: str) -> str:
    # a name of more than 255 bytes cannot be one, and os.path.exists says no then
    place = os.path.abspath(value)
    while not os.path.exists(place) and place != os.path.dirname(place):
        place = os.path.dirname(place)
    if not os.path.isdir(place):
        raise ValueError("not a folder")
    return value


def _is_writable(value: str) -> str:
    place = os.path.abspath(value)
    while not os.path.exists(place):
        place = os.path.dirname(place)
    if not os.access(place, os.W_OK | os.X_OK):
        raise ValueError("not to be written to")
    return value


def _is_name(value: str) -> str:
    if value.strip(". ") == "" or re.search(r"[/\\\0\n]", value) or len(value.encode(errors="replace")) > 200:
        raise ValueError("not a name")
    return value


def _is_device(value: Any) -> Any:
    return str(value) if type(value).__name__ == "device" else value  # torch is not imported here


def _is_cluster(value: str) -> str:
    if not re.fullmatch(r"local(:[1-9]\d{0,3})?|(tcp|tls|ucx)://\S+:\d+", value):
        raise ValueError("no cluster")
    return value


def _from_commas(value: Any) -> Any:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    return list(value) if isinstance(value, tuple) else value


def _numbers_from_commas(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return [value]
    parts = _from_commas(value)
    return [int(part) if str(part).isdecimal() else part for part in parts] if isinstance(value, str) else parts


def _listed(kind: Any, words: str = "") -> Any:
    extra = (_words(words),) if words else ()
    return Annotated[list[kind], BeforeValidator(_from_commas), Field(min_length=1), *extra]


Bool = Annotated[bool, Field(strict=True), BeforeValidator(_is_bool), _words("true or false")]
Text = Annotated[str, Field(min_length=1, coerce_numbers_to_str=True), _words("text")]
Path = Annotated[str, Field(coerce_numbers_to_str=True), BeforeValidator(_is_path), _words("a path")]
Folder = Annotated[Path, AfterValidator(_is_folder), _words("a folder (or a path where none is yet)")]
Writable = Annotated[
    Folder, AfterValidator(_is_writable), _words("a folder that can be written to (or a path where none is yet)")
]
Name = Annotated[Text, AfterValidator(_is_name), _words("a name without slashes, for a folder")]
Names = Annotated[Text | list[Text], BeforeValidator(lambda v: list(v) if isinstance(v, tuple) else v), _words("names")]
Device = Annotated[
    str, BeforeValidator(_is_device), Field(pattern=r"^(cpu|mps|cuda(:\d{1,3})?)$"), _words("cpu, cuda, cuda:1 or mps")
]
Cluster = Annotated[
    str, AfterValidator(_is_cluster), _words("local, local:N for N processes, or a Dask scheduler's tcp://HOST:PORT")
]
Region = Annotated[
    list[_whole()],
    BeforeValidator(_numbers_from_commas),
    Field(min_length=4, max_length=4),
    _words("x,y,width,height, four whole level-0 pixels"),
]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$"), _words("64 hexadecimal digits")]
Checksums = Annotated[Sha256 | dict[str, Sha256], _words("a sha256 of 64 hexadecimal digits, or several by file name")]

Seed = _whole(ge=0, le=2**32 - 1)
Count = _whole(ge=1)
CountOrNone = _whole(ge=0)
Share = _number(ge=0, le=1)
ShareBelow1 = _number(ge=0, lt=1)
Between = _number(gt=0, lt=1)
NotNegative = _number(ge=0)
Mpp = _number(ge=0.05, le=20)  # pixel_size.PLAUSIBLE_MPP
Split = Literal["training", "validation", "testing"]
_FULL = ("vit_t", "vit_test", "vit_b", "vit_l", "vit_h")
Backbone = Literal[(*_FULL, *(f"{name}_half" for name in _FULL))]
Adapters = Literal["none", "late", "early", "all"]
Decoder = Literal["light", "standard", "wide", "quarter"]
Targets = Literal["distance", "hv", "border", "foreground"]
Stride = _one_of(4, 8, 16, 32)
Views = _one_of(1, 2, 4)
Side32 = _whole(ge=32, multiple_of=32)
Groups = Annotated[
    Literal["all"] | list[Count | Literal["all"] | None],
    BeforeValidator(_numbers_from_commas),
    _words("whole numbers from 1, or all"),
]
Metric = Literal[
    "dice", "iou", "aji", "pq", "dq", "sq", "f1_50", "surface_dice", "hd95_px", "hd_px", "hd95_um", "hd_um",
    "merged", "touching_merged", "palest_missed", "split", "missed", "mostly_missed", "wrong_outline", "false",
    "ece", "brier", "out_of_domain", "domain_distance", "n_true", "n_pred", "undefined",
]  # fmt: skip

_ROOT = {"bundle_root": Setting(Folder, "folder of the bundle")}
_SEED = {"seed": Setting(Seed, "of all random numbers")}
_DEVICE = {"device": Setting(Device, "where the network runs", free=True)}
_AMP = {"amp": Setting(Bool, "mixed precision; on a CPU it pays where that has units for bfloat16")}
_RUNTIME = {
    "runtime": Setting(
        Literal["torch", "openvino"], "what runs the network; openvino is a package for CPUs with units for bfloat16"
    )
}
_COMPILE = {"compile": Setting(Bool, "compile the network first: pays where much is to be done", free=True)}
_DATA = {
    "dataset_dir": Setting(Path, "folder of the domains' folders"),
    "primary": Setting(Text | None, "name of the domain that counts; may be left out where there is one", free=True),
    "auxiliary": Setting(
        Names | Annotated[list, Field(max_length=0)], "names of the others, 'all' or 'none'", free=True
    ),
}
_UNLABELLED = {
    "unlabelled": Setting(
        Names | Annotated[list, Field(max_length=0)], "names of those whose labels are never read, or 'none'"
    )
}
_TRACKING = {
    "experiment_name": Setting(Text, "MLflow experiment", free=True),
    "local_tracking_uri": Setting(Text, "MLflow store that is made where none is named", free=True),
    "tracking_uri": Setting(Text, "MLflow store or server", free=True),
}
_ENCODER = {"encoder_precision": Setting(Literal["float32", "bfloat16", "float16"], "arithmetic of the encoder")}
_TARGET_MPP = {"target_mpp": Setting(Mpp | None, "what images are resampled to; by default the model's", "um a pixel")}
_TILE = {"tile_size": Setting(Side32, "side of the tiles the network sees", "pixels")}
_MODEL = {
    "ckpt_path": Setting(Path, "the model: .pt of a training, or an export (.ts, .onnx)"),
    "backbone": Setting(Backbone | None, "encoder of an old model that does not say"),
    "decoder_size": Setting(Decoder | None, "decoder of an old model that does not say"),
    "out_channels": Setting(Count | None, "channels of an old model that does not say"),
    "targets": Setting(Targets | None, "what the channels of a model mean that does not say"),
    "aligned_stride": Setting(Stride | None, "where an old model was aligned", "pixels"),
    **_ENCODER,
    **_TARGET_MPP,
    **_DEVICE,
    **_AMP,
}
_NUCLEI = {
    "threshold": Setting(Between, "foreground probability from which a pixel belongs to a nucleus"),
    "instance_method": Setting(Literal["watershed", "components"], "components leaves touching nuclei together"),
    "marker_depth": Setting(_number(gt=0, le=1), "smaller values separate more touching nuclei and split more"),
    "min_peak": Setting(
        ShareBelow1, "probability that ten pixels of a nucleus must exceed; none where not above threshold"
    ),
    "min_solidity": Setting(Share, "small nuclei more ragged than this are removed; 0 keeps them"),
    "views": Setting(Views, "looks at each image, turned and enlarged, that are averaged"),
    "tile_batch_size": Setting(Count, "tiles the network sees at once"),
    **_TILE,
}
_AREA = {"min_area": Setting(NotNegative, "smaller nuclei are removed", "pixels")}
_AREA_UM2 = {"min_area_um2": Setting(NotNegative | None, "smaller nuclei are removed", "um2")}
_OVERLAP = {"overlap": Setting(ShareBelow1, "what neighbouring tiles have in common at least, as a share of tile_size")}
_GIVEN_MPP = {
    "mpp": Setting(Mpp | None, "pixel size, where files do not say it or say it wrong: 20x is 0.5", "um a pixel")
}
_ALIGNMENT = {
    "domain_images": Setting(
        CountOrNone, "images of each domain that the out-of-domain score learns; 0: no score", free=True
    ),
    **_TILE,
}
_OUTPUT = {"output_dir": Setting(Writable, "where results go")}
_TRAINING = {
    "max_epochs": Setting(Count, "epochs to train", free=True),
    "batches_per_epoch": Setting(Count, "training steps in one epoch"),
    "backbone": Setting(Backbone, "encoder"),
    "backbone_weights": Setting(
        Path | None, "checkpoint of SAM or MobileSAM, or a model; by default found or fetched", free=True
    ),
    "cache_dir": Setting(Folder, "where encoded features are kept"),
    "models_dir": Setting(Folder, "folder with model.pt and backbones/"),
    **_TARGET_MPP,
}
_RUN_ID = {"mlflow_run_id": Setting(Text | None, "MLflow run to file this in, instead of a new one", free=True)}

SETTINGS: dict[str, dict[str, Setting]] = {
    "inference": {
        **_ROOT,
        "dataset_dir": Setting(Path, "folder of images, or one image"),
        **_OUTPUT,
        "mpp": Setting(
            Mpp | Literal["estimate"] | None,
            "pixel size, where files do not say it: 20x is 0.5; estimate guesses it from the nuclei",
            "um a pixel",
        ),
        **_MODEL,
        **_NUCLEI,
        **_AREA,
        **_AREA_UM2,
        **_OVERLAP,
        "outputs": Setting(
            _listed(Literal["mask", "instances", "overlay", "geojson", "csv", "parquet"]),
            "files to write of each image",
        ),
        "label_format": Setting(Literal["png", "tif", "nii.gz", "ome.tif", "ome.zarr"], "of the instances"),
        **_RUNTIME,
        **_COMPILE,
        **_SEED,
    },
    "wsi": {
        **_ROOT,
        "slide": Setting(Path, "a slide, a folder of slides, or a text file with one path a line"),
        **_OUTPUT,
        **_GIVEN_MPP,
        **_MODEL,
        **_NUCLEI,
        **_AREA_UM2,
        "region": Setting(Region | None, "part of the slide"),
        "margin_um": Setting(NotNegative, "what a tile sees around its own part", "um"),
        "tissue_threshold": Setting(ShareBelow1, "colour from which a pixel is tissue"),
        "class_name": Setting(Text, "QuPath's class of the nuclei"),
        "outputs": Setting(
            _listed(Literal["geojson", "csv", "parquet", "ome.tif", "ome.zarr", "dicom_ann", "dicom_seg"]),
            "files to write of the nuclei; ome are label maps, dicom are of a DICOM series",
        ),
        "resume": Setting(Bool, "go on where an interrupted run stopped"),
        "cluster": Setting(Cluster | None, "Dask workers that share the slides"),
        "workers": Setting(CountOrNone, "processes that read and write tiles; 0: this one"),
        **_RUNTIME,
        **_COMPILE,
        **_SEED,
    },
    "train": {
        **_ROOT,
        **_DATA,
        **_OUTPUT,
        **_TRAINING,
        "mode": Setting(
            Literal["ama", "grl", "signed", "joint", "single"],
            "ama: auxiliary domains are aligned; joint: no alignment; single: the primary alone",
        ),
        **_UNLABELLED,
        "init_model": Setting(Path | None, "model to begin with"),
        "init_share": Setting(ShareBelow1, "of init_model in the weights judged and kept; 0: what was learned"),
        "resume": Setting(Bool, "go on with an interrupted run, exactly", free=True),
        "run_name": Setting(Name, "name of the run, and of its folder in output_dir", free=True),
        "keep": Setting(Literal["best", "last"], "which weights become model.pt"),
        "val_interval": Setting(Count, "epochs from one validation to the next", free=True),
        "patience": Setting(
            CountOrNone, "validations without a new best after which training stops; 0: never", free=True
        ),
        "start_counts": Setting(Bool, "keep init_model where training makes it no better"),
        "learning_rate": Setting(_number(ge=0, le=1), "of AdamW"),
        "weight_decay": Setting(NotNegative, "of AdamW"),
        "warmup_iterations": Setting(CountOrNone, "steps until the learning rate is reached"),
        "batch_size": Setting(Count, "crops of a step"),
        "primary_share": Setting(Share, "of a batch that is from the primary domain"),
        "auxiliary_weight": Setting(NotNegative, "of the auxiliary domains' segmentation loss"),
        "lambda_max": Setting(NotNegative, "strength of the alignment at the end of its ramp"),
        "coefficients": Setting(
            _listed(_number()) | None, "reversal of each domain, the primary's first, instead of the mode's"
        ),
        "lambda_warmup": Setting(ShareBelow1, "of the training in which the discriminator alone learns"),
        "alignment_loss": Setting(
            Literal["adversary", "mmd", "coral"], "the discriminator, or a distance of features that is made small"
        ),
        "aligned_by": Setting(
            Literal["image", "region", "class"],
            "what is aligned apart; region: nuclei and background; class: nuclei found, their border, background",
        ),
        "aligned_at": Setting(Literal["decoder", "encoder"], "whose features are aligned; encoder needs adapters"),
        "spectral_norm": Setting(Bool, "bound each layer of the discriminator"),
        "style_jitter": Setting(Share, "probability that features get a style of no domain; 0: off"),
        "teacher": Setting(Path | None, "model that labels the unlabelled domains' images, with teacher_views"),
        "teacher_views": Setting(Views, "looks of the teacher at an image"),
        "decoder_size": Setting(Decoder, "width and levels of the decoder"),
        "targets": Setting(Targets, "what separates nuclei"),
        "out_channels": Setting(Count | None, "channels of the network, where targets do not say"),
        "aligned_stride": Setting(Stride, "of the features that are aligned", "pixels"),
        "adapters": Setting(Adapters, "small trained parts beside the frozen encoder's late or early blocks, or all"),
        **_ENCODER,
        "crop_size": Setting(_whole(ge=16, multiple_of=16), "side of what a training step sees", "pixels"),
        "window_size": Setting(
            _whole(ge=16, multiple_of=16), "side of the windows that are encoded and stored", "pixels"
        ),
        "cache": Setting(Literal["on", "off"], "store encoded windows; off encodes in every step"),
        "cache_windows": Setting(Count, "augmented windows of each image that are stored"),
        "cache_rate": Setting(
            Share, "share of the decoded images (with cache on: of validation) held in memory", free=True
        ),
        "gaps": Setting(Literal["keep", "close", "auto"], "lines of background drawn between nuclei that touch"),
        "limit_groups": Setting(Count | None, "patients of the primary domain to train on"),
        "limit_draw": Setting(CountOrNone, "which patients: 0 the first ones, else a random draw by this number"),
        "held_out": Setting(ShareBelow1, "of each training image, for validation where there is none"),
        "train_on_validation": Setting(Bool, "learn from the validation parts, too, once a recipe is chosen"),
        "leakage": Setting(Literal["refuse", "allow"], "what to do where test images are trained on", free=True),
        "overlay_images": Setting(CountOrNone, "validation images in the overlay at the end; 0: none", free=True),
        "alignment_report": Setting(Bool, "measure at the end whether domains were aligned", free=True),
        "alignment_windows": Setting(Count, "windows of each domain for that report", free=True),
        **_ALIGNMENT,
        "publish_path": Setting(Path | None, "where the model is copied to at the end"),
        "publish": Setting(Literal["better", "always"], "whether it replaces a better one there", free=True),
        **_DEVICE,
        **_AMP,
        **_COMPILE,
        "num_workers": Setting(CountOrNone, "processes that load data; 0: this one", free=True),
        **_TRACKING,
        **_RUN_ID,
        "system_metrics": Setting(
            NotNegative,
            "between two looks at processors, memory, disk and network for MLflow; 0: none",
            "seconds",
            free=True,
        ),
        "log_model": Setting(Bool, "keep the model in MLflow too, to be loaded and served from there", free=True),
        "register_model": Setting(Name | None, "MLflow's registered model of which it becomes a version", free=True),
        **_SEED,
    },
    "evaluate": {
        **_ROOT,
        **_DATA,
        "split": Setting(Split, "part of the data"),
        **_OUTPUT,
        **_MODEL,
        **_NUCLEI,
        **_AREA,
        **_OVERLAP,
        "surface_tolerance_px": Setting(NotNegative, "of the surface Dice", "pixels"),
        **_TRACKING,
        "run_name": Setting(Text, "name of the MLflow run"),
        **_RUN_ID,
        **_RUNTIME,
        **_COMPILE,
        **_SEED,
    },
    "align": {
        **_ROOT,
        **_DATA,
        "splits": Setting(_listed(Split), "parts of the data"),
        **_OUTPUT,
        **_MODEL,
        "window_size": Setting(Side32, "side of the windows that are compared", "pixels"),
        "control_path": Setting(Path | None, "model to compare with, such as that of mode joint"),
        "windows_per_domain": Setting(Count, "how many of each domain"),
        "min_groups": Setting(_whole(ge=2), "patients that a domain must have to be judged"),
        **_ALIGNMENT,
        **_TRACKING,
        "run_name": Setting(Text, "name of the MLflow run"),
        **_SEED,
    },
    "experiment": {
        **_ROOT,
        **_DATA,
        **_UNLABELLED,
        **_OUTPUT,
        "name": Setting(Name | None, "of the experiment, and of its folder; by default the primary domain's"),
        "leave_out": Setting(
            Names | None, "domains to leave out of training, one after the other, and to test on, or 'all'"
        ),
        "only": Setting(Names | None, "variants to run, or 'all'"),
        "seeds": Setting(
            Annotated[
                list[Seed],
                BeforeValidator(_numbers_from_commas),
                Field(min_length=1),
                _words("whole numbers from 0, such as 0,1,2"),
            ],
            "of the runs of each variant",
        ),
        "limit_groups": Setting(Groups | None, "patients of the primary domain to train on, one run for each number"),
        "split": Setting(Split, "part of the data that is tested on"),
        "jobs": Setting(Count, "runs side by side"),
        "cluster": Setting(Cluster | None, "Dask workers that share the runs"),
        **_TRAINING,
        **_TRACKING,
        "metrics": Setting(_listed(Metric), "what to compare"),
        "domain": Setting(Text | None, "domain whose images are compared; by default the primary"),
        "reference": Setting(Text | None, "variant that the others are compared with"),
        "resamples": Setting(_whole(ge=100, le=10**7), "draws of the bootstrap"),
        "confidence": Setting(Between, "coverage of the intervals"),
        "bootstrap_seed": Setting(Seed, "of the bootstrap"),
    },
    "prepare": {
        **_ROOT,
        "dataset": Setting(Text | None, "name of the published set or format, see configs/datasets.json"),
        "source": Setting(Path | None, "what you downloaded: a folder, or a zip file"),
        **_OUTPUT,
        "name": Setting(Name | None, "of the domain; by default the set's"),
        "download": Setting(Bool, "fetch the files first"),
        "download_dir": Setting(Folder, "where they go"),
        "sha256": Setting(Checksums | None, "checksum of a downloaded file where none is known"),
        "mpp": Setting(Mpp | None, "pixel size, if it is unknown or you know better", "um a pixel"),
        "validation_share": Setting(ShareBelow1, "of what the publication does not divide"),
        "testing_share": Setting(ShareBelow1, "of what the publication does not divide"),
        "workers": Setting(CountOrNone | None, "processes; by default one for each core"),
        "own_datasets": Setting(
            Annotated[dict[str, dict], _words("sets by name")], "further sets, in the form of configs/datasets.json"
        ),
        **_SEED,
    },
    "share": {
        **_ROOT,
        **_OUTPUT,
        "name": Setting(Name, "of the packed bundle"),
        "format": Setting(
            Literal["zoo", "huggingface", "bioimageio"],
            "what it is packed for: MONAI's model zoo, the Hugging Face hub, or the BioImage Model Zoo",
        ),
        "metrics": Setting(Path, "metrics.json of an evaluation"),
    },
}
