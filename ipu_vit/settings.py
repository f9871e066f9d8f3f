"""The settings of a run: what may be set, its type, its default and its meaning.

Reading presets and overrides is `ipu_vit.config`'s work; this module only says what a complete,
consistent set of settings is. Every class is frozen, refuses unknown keys, and states its
cross-field rules where the fields are.
"""

from __future__ import annotations

from typing import Any, List, Literal, Optional, Tuple, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from ipu_vit.batching import BatchPlan, is_power_of_two, legal_micro_batches, powers_of_two

Fraction = Tuple[float, float]


class Section(BaseModel):
    """A group of settings that cannot be changed once read and knows all its keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, coerce_numbers_to_str=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_not_one(cls, value: Any, info: ValidationInfo) -> Any:
        """Python counts `true` as 1; a number of updates should not."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise PydanticCustomError("not_a_bool", "a switch is not accepted here")
        return value


class ModelSettings(Section):
    """Sizes of the Vision Transformer (Dosovitskiy et al. 2020, table 1)."""

    image_size: int = Field(224, gt=0, description="height and width of the input, pixels")
    patch_size: int = Field(16, gt=0, description="height and width of a patch, pixels")
    width: int = Field(768, gt=0, description="size of a token")
    depth: int = Field(12, gt=0, description="number of encoder layers")
    heads: int = Field(12, gt=0, description="attention heads per layer")
    mlp_width: int = Field(3072, gt=0, description="hidden size of the MLP in each layer")
    representation: Optional[int] = Field(
        None, gt=0, description="width of a tanh layer before the head ('pre_logits'), or none"
    )
    classes: int = Field(1000, gt=0, description="number of classes")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout after embedding, attention and MLP")
    attention_dropout: float = Field(0.0, ge=0, lt=1, description="dropout on attention weights")
    norm_epsilon: float = Field(1e-6, gt=0, description="epsilon of every layer norm")

    @model_validator(mode="after")
    def _sizes_divide(self) -> ModelSettings:
        if self.image_size % self.patch_size:
            lower = self.image_size // self.patch_size * self.patch_size
            near = [size for size in (lower, lower + self.patch_size) if size]
            raise ValueError(
                f"model.image_size={self.image_size} does not divide by model.patch_size={self.patch_size}; "
                f"nearest sizes that do: {' and '.join(map(str, near))}"
            )
        if self.width % self.heads:
            fitting = [heads for heads in range(1, self.width + 1) if self.width % heads == 0]
            near = sorted(sorted(fitting, key=lambda heads: abs(heads - self.heads))[:3])
            raise ValueError(
                f"model.width={self.width} does not divide by model.heads={self.heads}; "
                f"numbers of heads that do: {', '.join(map(str, near))}"
            )
        return self


class DataSettings(Section):
    """Where images come from and what is done to them."""

    source: Literal["folder", "generated"] = Field(
        "folder", description="class folders of image files, or random images and labels"
    )
    root: Optional[str] = Field(None, description="folder that holds the training and validation splits")
    prepare: Optional[Literal["digits", "glyphs"]] = Field(
        None, description="data set to write to data.root when it is not there"
    )
    train_split: str = Field("train", description="folder of the training images in data.root")
    validation_split: str = Field("val", description="folder of the validation images in data.root")
    generated_images: int = Field(1_281_167, gt=0, description="number of training images when data.source=generated")
    mean: Tuple[float, float, float] = Field(
        (127.5, 127.5, 127.5), description="subtracted from each channel (RGB, 0 to 255)"
    )
    std: Tuple[float, float, float] = Field((127.5, 127.5, 127.5), description="each channel is divided by this")
    crop_area: Fraction = Field((0.08, 1.0), description="share of the image's area that a random crop takes")
    crop_ratio: Fraction = Field((3 / 4, 4 / 3), description="width divided by height of a random crop")
    interpolation: Literal["bilinear", "bicubic"] = Field("bilinear", description="how images are resized")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    evaluation_resize: int = Field(224, gt=0, description="shorter side before the centre crop, pixels")
    workers: int = Field(0, ge=0, description="processes that decode images")
    skip_unreadable: bool = Field(False, description="evaluation skips unreadable images instead of failing")

    @model_validator(mode="after")
    def _ranges_ascend(self) -> DataSettings:
        low, high = self.crop_area
        if not 0 < low <= high <= 1:
            raise ValueError(f"data.crop_area={list(self.crop_area)} must be two shares with 0 < low <= high <= 1")
        low, high = self.crop_ratio
        if not 0 < low <= high:
            raise ValueError(f"data.crop_ratio={list(self.crop_ratio)} must be two ratios with 0 < low <= high")
        if not all(value > 0 for value in self.std):
            raise ValueError(f"data.std={list(self.std)} must be three numbers above 0")
        return self


class PipelineSettings(Section):
    """How the model is spread over IPUs and how a global batch is cut up."""

    layers_per_ipu: List[int] = Field(
        [3, 3, 3, 3],
        min_length=1,
        description="encoder layers on each IPU of a replica; embedding on the first, head on the last",
    )
    replicas: int = Field(1, gt=0, description="copies of the pipeline, over all processes")
    global_batch: int = Field(544, gt=0, description="images per weight update")
    micro_batch: int = Field(17, gt=0, description="images per pass through the pipeline")
    device_iterations: int = Field(1, gt=0, description="weight updates per host call")
    recomputation_checkpoints: Literal["layer", "none"] = Field(
        "layer", description="store only each layer's output, or what PopART chooses"
    )
    available_memory_proportion: List[float] = Field(
        [0.3, 0.3, 0.3, 0.3], description="share of each IPU's memory that matrix products may use"
    )
    partials: Literal["float16", "float32"] = Field("float16", description="type of partial sums in matrix products")
    stochastic_rounding: bool = Field(True, description="round to float16 at random in proportion, in training")
    replicated_tensor_sharding: bool = Field(False, description="spread optimizer state over the replicas")
    executable_cache: Optional[str] = Field(None, description="folder of compiled programs, or none")
    prefetch_depth: int = Field(2, ge=1, description="host batches that the device reads ahead")

    @field_validator("recomputation_checkpoints", mode="before")
    @classmethod
    def _none_is_a_choice(cls, value: Any) -> Any:
        """YAML readers turn the word `none` into no value; here it is one of the choices."""
        return "none" if value is None else value

    @model_validator(mode="after")
    def _one_proportion_per_ipu(self) -> PipelineSettings:
        if any(layers < 0 for layers in self.layers_per_ipu) or 0 in self.layers_per_ipu[1:-1]:
            raise ValueError(
                f"pipeline.layers_per_ipu={self.layers_per_ipu} leaves an IPU idle; only the first, which has the "
                "embedding, and the last, which has the head, can do with 0 layers"
            )
        ipus, given = len(self.layers_per_ipu), len(self.available_memory_proportion)
        if given not in (1, ipus):
            raise ValueError(
                f"pipeline.available_memory_proportion has {given} values for {ipus} IPUs; give one for all or {ipus}"
            )
        if not all(0 < value <= 1 for value in self.available_memory_proportion):
            raise ValueError(
                f"pipeline.available_memory_proportion={self.available_memory_proportion} must be above 0 and at most 1"
            )
        return self

    @model_validator(mode="after")
    def _ipus_are_a_power_of_two(self) -> PipelineSettings:
        """PopTorch attaches to 1, 2, 4, 8, ... IPUs and refuses any other number."""
        ipus = len(self.layers_per_ipu)
        if not is_power_of_two(ipus):
            lower = 2 ** (ipus.bit_length() - 1)
            raise ValueError(
                f"pipeline.layers_per_ipu={self.layers_per_ipu} takes {ipus} IPUs, but IPUs come in powers of two; "
                f"nearest lengths that do: {lower} and {2 * lower}"
            )
        if not is_power_of_two(self.replicas):
            fitting = [number for number in powers_of_two(2 * self.replicas) if self._splits_with(number)]
            raise ValueError(
                f"pipeline.replicas={self.replicas} of {ipus} IPUs takes {ipus * self.replicas}, "
                "but IPUs come in powers of two; "
                + (f"numbers of replicas that fit: {', '.join(map(str, fitting))}" if fitting else "use 1, 2, 4, ...")
            )
        return self

    def _splits_with(self, replicas: int) -> bool:
        """Would that many replicas split the global batch?"""
        legal = legal_micro_batches(self.global_batch, replicas, len(self.layers_per_ipu))
        return self.micro_batch in legal

    @model_validator(mode="after")
    def _batches_divide(self) -> PipelineSettings:
        self.batch_plan()
        return self

    def batch_plan(self) -> BatchPlan:
        """How a global batch is cut into micro batches, accumulation steps and replicas."""
        return BatchPlan.of(
            global_batch=self.global_batch,
            micro_batch=self.micro_batch,
            replicas=self.replicas,
            stages=len(self.layers_per_ipu),
            device_iterations=self.device_iterations,
        )


class OptimizerSettings(Section):
    """The optimizer, run on the device."""

    name: Literal["sgd"] = Field("sgd", description="kind of optimizer")
    momentum: float = Field(0.9, ge=0, lt=1, description="share of the last update that goes on")
    nesterov: bool = Field(False, description="look-ahead momentum")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty added to the gradient")
    no_decay: List[str] = Field(
        ["class_token", "position"], description="parameters whose last name is one of these do not decay"
    )
    loss_scaling: float = Field(256.0, gt=0, description="static factor that keeps float16 gradients representable")
    accumulator_type: Literal["float16", "float32"] = Field("float16", description="type of the gradient accumulators")
    velocity_type: Literal["float16", "float32"] = Field("float16", description="type of the momentum")
    max_grad_norm: Optional[float] = Field(
        None, gt=0, description="bound on the global norm as PopART applies it, or none"
    )


class ScheduleSettings(Section):
    """The learning rate of every weight update."""

    lr: float = Field(0.02, gt=0, description="peak learning rate")
    updates: int = Field(20_000, gt=0, description="weight updates of the whole run")
    warmup: int = Field(0, ge=0, description="updates of linear warm-up")
    warmup_start: float = Field(0.0, ge=0, le=1, description="first learning rate as a share of the curve")
    curve: Literal["cosine_times_warmup", "warmup_then_cosine"] = Field(
        "cosine_times_warmup",
        description="cosine over all updates times a linear warm-up, or cosine over the updates after the warm-up",
    )

    @model_validator(mode="after")
    def _warmup_fits(self) -> ScheduleSettings:
        if self.warmup >= self.updates:
            raise ValueError(
                f"schedule.warmup={self.warmup} must be below schedule.updates={self.updates}; "
                f"accepted: 0 to {self.updates - 1}"
            )
        return self


class LossSettings(Section):
    """The training loss: cross entropy."""

    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread evenly over all classes")


class EvaluationSettings(Section):
    """When and how the validation split is evaluated."""

    every: int = Field(0, ge=0, description="weight updates between evaluations; 0: only at the end")
    micro_batch: int = Field(4, gt=0, description="images per pass through the pipeline")
    pictures: int = Field(12, ge=0, description="validation images drawn with their predictions at the end")


class CheckpointSettings(Section):
    """What is saved for resuming."""

    every: int = Field(1000, gt=0, description="weight updates between checkpoints; the last update is always saved")
    keep: int = Field(3, gt=0, description="newest checkpoints kept, besides the best")


class Settings(Section):
    """Everything a run depends on."""

    name: str = Field("run", description="the preset's name; also the default output folder's")
    device: Literal["auto", "ipu", "ipu_model", "cpu"] = Field(
        "auto",
        description="hardware, the SDK's IPU Model, or the emulator; auto: hardware if present, else the emulator",
    )
    precision: Literal["float16", "float32"] = Field("float16", description="type of weights and activations")
    seed: int = Field(42, ge=0, lt=2**31, description="seed of data order, augmentation, initial weights and dropout")
    output: str = Field("", description="folder of the run; empty: runs/NAME")
    fresh: bool = Field(False, description="start over beside an earlier run instead of continuing it")
    rehearse: Literal["auto", "always", "never"] = Field(
        "auto", description="check the whole run with one weight update; auto: when there is no IPU"
    )
    weights: Optional[str] = Field(
        None, description="file of weights to start from; none: random initial weights; empty: must still be given"
    )
    export: Optional[str] = Field(None, description="file that gets the final weights, in Google's .npz layout")
    export_precision: Literal["float16", "float32"] = Field("float32", description="type of the numbers in that file")
    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    pipeline: PipelineSettings = PipelineSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    loss: LossSettings = LossSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()

    @model_validator(mode="after")
    def _layers_add_up(self) -> Settings:
        placed, depth = sum(self.pipeline.layers_per_ipu), self.model.depth
        if placed != depth:
            raise ValueError(
                f"pipeline.layers_per_ipu={self.pipeline.layers_per_ipu} places {placed} layers but "
                f"model.depth={depth}; for example {_even_layers(depth, len(self.pipeline.layers_per_ipu))} would fit"
            )
        return self

    @model_validator(mode="after")
    def _crop_fits_in_resized_image(self) -> Settings:
        resized, crop = self.data.evaluation_resize, self.model.image_size
        if resized < crop:
            raise ValueError(
                f"data.evaluation_resize={resized} is too small to crop model.image_size={crop} from; "
                f"accepted: {crop} or more"
            )
        return self

    @model_validator(mode="after")
    def _updates_fill_host_calls(self) -> Settings:
        """A host call always runs all its device iterations, so a run is a whole number of calls."""
        updates, step = self.schedule.updates, self.pipeline.device_iterations
        if updates % step:
            lower = updates // step * step
            near = [number for number in (lower, lower + step) if number > self.schedule.warmup]
            raise ValueError(
                f"schedule.updates={updates} does not divide by pipeline.device_iterations={step}; "
                f"nearest numbers of updates that do: {' and '.join(map(str, near))}"
            )
        return self


def _even_layers(depth: int, ipus: int) -> List[int]:
    """Layers for each IPU, as even as can be; the first and the last, with work of their own, get fewer."""
    if depth < ipus - 2:
        return [depth]
    inner_first = [*range(1, ipus - 1), 0, ipus - 1][:ipus]
    return [depth // ipus + (inner_first.index(ipu) < depth % ipus) for ipu in range(ipus)]


def accepted_values(field: FieldInfo) -> str:
    """What a setting accepts, in words: `a number above 0`, `float16 or float32`, `text or none`."""
    kinds = ((Gt, "above", "gt"), (Ge, "at least", "ge"), (Lt, "below", "lt"), (Le, "at most", "le"))
    bounds = [
        f"{words} {getattr(bound, limit)}"
        for bound in field.metadata
        for kind, words, limit in (*kinds, (MinLen, "with at least", "min_length"))
        if isinstance(bound, kind)
    ]
    return " ".join([_kind_of_value(field.annotation), " and ".join(bounds)]).rstrip()


def _kind_of_value(annotation: Any) -> str:
    simple = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    if annotation in simple:
        return simple[annotation]
    kind, parts = get_origin(annotation), get_args(annotation)
    if kind is Literal:
        return " or ".join(map(str, parts))
    if kind is Union:
        return " or ".join("none" if part is type(None) else _kind_of_value(part) for part in parts)
    several = {int: "whole numbers", float: "numbers", str: "texts"}[parts[0]]
    return f"a list of {len(parts)} {several}" if kind is tuple else f"a list of {several}"
