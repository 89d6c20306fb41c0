"""
What requests may say: one typed model for each kind, so that nothing of a request is ever read as a config. Fields that
are settings of a config are held to the same ranges as on the command line.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from monailabel.utils.others.generic import device_map
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError
from scripts.errors import DataError
from scripts.judging import judge
from scripts.setup_run import check_device

__all__ = [
    "BatchOptions",
    "ImageInfo",
    "InferOptions",
    "Options",
    "RegionRequest",
    "SampleOptions",
    "SegmentOptions",
    "Strict",
    "TrainOptions",
    "default_device",
    "plain_name",
]

CODE_MARKS = ("$", "@", "%")  # what MONAI's configs read as an expression, a reference, a macro
LONGEST_NAME = 200  # bytes; file systems allow 255, and files named after an image add suffixes


def default_device() -> str:
    """The device of requests that name none."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _known_device(name: str) -> str:
    """torch's name of a device; a client may also give the name that ``/info/`` lists."""
    device = device_map().get(name, name)
    try:
        check_device(device)
    except DataError as error:
        raise PydanticCustomError("device", "{told}", {"told": f"{error.problem}. {error.hint}"}) from error
    return device


def _first(value: Any) -> Any:
    """Clients that let their user choose nothing send the list of choices back, as ``/info/`` gave it."""
    return value[0] if isinstance(value, list) and value else value


def plain_name(name: str) -> str:
    """
    A name that is safe as the name of a file.

    Raises:
        ValueError: when it has folders, is hidden, is too long, or begins like an expression of a config.
    """
    if not name or name.startswith((".", *CODE_MARKS)) or not name.isprintable() or any(c in name for c in "/\\"):
        raise ValueError("give a plain name, without folders, that begins with none of . $ @ %")
    if len(name.encode()) > LONGEST_NAME:
        raise ValueError(f"the name is longer than {LONGEST_NAME} bytes")
    return name


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean '{close[0]}'?" if close else f"known are {', '.join(known)}"


Device = Annotated[str, BeforeValidator(_first), AfterValidator(_known_device)]
Name = Annotated[str, AfterValidator(plain_name)]
Pixels = Annotated[int, Field(ge=-(2**31), lt=2**31)]
Point = tuple[Pixels, Pixels]
Side = Annotated[int, Field(ge=64, le=4096)]
# 0 is how clients say that they do not know it
Mpp = Annotated[float, Field(ge=0, le=100)]


class Strict(BaseModel):
    """
    Fields of a request, each with its type and range; others are refused.

    ``ignored`` are fields that clients of MONAI Label are known to send and that mean nothing here.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    ignored: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        for name in fields:
            if name not in cls.model_fields and name not in cls.ignored:
                hint = _nearest(name, list(cls.model_fields))
                raise PydanticCustomError("unknown", "'{name}' is not known; {hint}", {"name": name[:60], "hint": hint})
        return {name: value for name, value in fields.items() if name not in cls.ignored}


class Options(Strict):
    """What a request says of how to do it. What looks like a piece of a config is refused, whatever its field."""

    nested: ClassVar[frozenset[str]] = frozenset()  # fields that are objects
    config: ClassVar[str | None] = None  # whose settings the fields of the same names are, see scripts.settings

    client_id: str | None = Field(None, max_length=200, description="who asks; kept with what is stored")

    @model_validator(mode="before")
    @classmethod
    def _refuse_code(cls, fields: Any) -> Any:
        for name, value in fields.items() if isinstance(fields, dict) else ():
            field = cls.model_fields.get(name)
            if isinstance(value, bool) and field and field.annotation is not bool:  # pydantic would read 1 or 0
                raise PydanticCustomError("bool", "'{name}' may not be true or false", {"name": name[:60]})
            if isinstance(value, dict) and name not in cls.nested:
                raise PydanticCustomError("object", "'{name}' may not be an object", {"name": name[:60]})
            if isinstance(value, str) and value.startswith(CODE_MARKS):
                raise PydanticCustomError("code", "'{name}' may not begin with $, @ or %", {"name": name[:60]})
        return fields

    @model_validator(mode="after")
    def _judge(self) -> Self:
        given = {name: value for name, value in self if value is not None and name not in ("device", "mpp")}
        try:
            judge(self.config, given) if self.config else None
        except DataError as error:
            raise PydanticCustomError("setting", "{told}", {"told": str(error)}) from None
        return self

    @classmethod
    def of(cls, request: Mapping[str, Any]) -> Self:
        """The options among the fields of a request to which the server has added its own."""
        return cls.model_validate({name: request[name] for name in cls.model_fields if name in request})


class SegmentOptions(Options):
    """How to segment; what is None is as in the bundle's configs, or known from the image."""

    # of QuPath; 3D Slicer; OHIF; CVAT; the Digital Slide Archive
    ignored = frozenset(
        "foreground background max_workers "
        "label label_info roi slice reset_state result_extension result_dtype selected_label_name "
        "label_prompt restore_label_idx result_compress "
        "output "
        "wsi_tiles".split()
    )

    config = "inference"

    device: Device | None = None
    threshold: float | None = None
    min_peak: float | None = None
    marker_depth: float | None = None
    min_area: float | None = Field(None, description="pixels")
    mpp: Mpp | None = Field(None, description="micrometres per pixel")


class InferOptions(SegmentOptions):
    """``params`` of ``/infer/MODEL``."""

    save_label: bool = False
    label_tag: Name = "original"


class BatchOptions(InferOptions):
    """Body of ``/batch/infer/MODEL``."""

    ignored = SegmentOptions.ignored | frozenset("multi_gpu gpus logging".split())  # MONAI Label's own defaults

    max_batch_size: int = Field(0, ge=0, lt=2**31, description="images; 0 is all")


class RegionRequest(Options):
    """Body of ``/infer/wsi/MODEL``, ``wsi`` of ``/infer/wsi_v2/MODEL``; level-0 pixels, a size of 0 is all."""

    # windows are chosen here, and nuclei are never cut; the last three are the Digital Slide Archive's
    ignored = frozenset("level tile_size min_poly_area output girder_api_url girder_token".split())
    nested = frozenset({"params"})

    location: Point = (0, 0)
    size: Point = (2048, 2048)
    params: SegmentOptions = SegmentOptions()

    def region(self) -> list[int] | None:
        """Left, top, width and height, None for all."""
        return [*self.location, *self.size] if any(self.size) else None


class TrainOptions(Options):
    """Body of ``/train/MODEL``; ``mode`` and ``publish`` as in ``train.json``, what is None as in its recipe."""

    # of the Digital Slide Archive
    ignored = frozenset(
        "name dataset dataset_limit dataset_max_region dataset_randomize train_batch_size val_batch_size "
        "girder_api_url girder_token".split()
    )

    config = "train"

    device: Device | None = None
    pretrained: bool = True
    use_unlabelled: bool = Field(False, description="learn also what the served model sees in tiles without a label")
    mode: Annotated[Literal["joint", "ama", "grl", "single"] | None, BeforeValidator(_first)] = None
    max_epochs: int | None = Field(None, le=10_000)
    batches_per_epoch: int | None = Field(None, le=100_000)
    learning_rate: float | None = Field(None, gt=0)
    seed: int = 0
    val_split: float = Field(0.25, ge=0, lt=1)
    publish: Annotated[Literal["better", "always"], BeforeValidator(_first)] = "better"


class SampleOptions(Options):
    """Body of ``/activelearning/STRATEGY``."""

    ignored = frozenset(["image_size"])  # of QuPath

    max_images: int = Field(100, ge=0, lt=2**31)
    image: str = Field("", max_length=LONGEST_NAME, description="a slide of the studies, of which a patch is asked for")
    patch_size: tuple[Side, Side] = Field((1024, 1024), description="level-0 pixels")


class ImageInfo(Options):
    """What may be told of an image in the studies."""

    mpp: Mpp | None = None
