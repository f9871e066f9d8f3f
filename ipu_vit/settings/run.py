"""The settings of a whole run, and the rules that join its groups."""

from __future__ import annotations

from typing import Any, List, Literal, Optional

from pydantic import Field, ValidationError, model_validator

from ipu_vit.balance import balanced_layers
from ipu_vit.models.costs import costs
from ipu_vit.settings.augmentation import AugmentationSettings
from ipu_vit.settings.data import DataSettings
from ipu_vit.settings.model import ModelSettings
from ipu_vit.settings.optimisation import AveragingSettings, LossSettings, OptimizerSettings, ScheduleSettings
from ipu_vit.settings.pipeline import PipelineSettings
from ipu_vit.settings.section import Section
from ipu_vit.settings.tracking import TrackingSettings


class EvaluationSettings(Section):
    """When and how the validation split is evaluated."""

    every: int = Field(0, ge=0, description="weight updates between evaluations; 0: only at the end")
    micro_batch: int = Field(4, gt=0, description="images per pass through the pipeline")
    pictures: int = Field(12, ge=0, description="validation images drawn with their predictions at the end")
    real_labels: Optional[str] = Field(
        None, description="JSON file of reassessed labels of ImageNet's validation images (ReaL), to score by too"
    )
    worst_classes: int = Field(0, ge=0, description="classes with the lowest accuracy that `evaluate` lists")


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
        None,
        description="file, folder or address (docs/downloads.md) of the weights to start from; none: random initial "
        "weights; empty: must still be given",
    )
    weights_resize: Literal["bilinear", "bicubic"] = Field(
        "bilinear", description="how the grid of position embeddings is resized to the model's"
    )
    shrink: bool = Field(False, description="try the run on a tiny model, generated images and a few updates")
    export: Optional[str] = Field(None, description="file that gets the final weights, in Google's .npz layout")
    export_precision: Literal["float16", "float32"] = Field("float32", description="type of the numbers in that file")
    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    augmentation: AugmentationSettings = AugmentationSettings()
    pipeline: PipelineSettings = PipelineSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    loss: LossSettings = LossSettings()
    averaging: AveragingSettings = AveragingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    tracking: TrackingSettings = TrackingSettings()

    @model_validator(mode="before")
    @classmethod
    def _spread_layers(cls, tree: Any) -> Any:
        """Layers that nobody has placed are spread over the IPUs by what they cost."""
        model, pipeline = tree.get("model", {}), tree.get("pipeline", {})
        if not isinstance(model, dict) or not isinstance(pipeline, dict):
            return tree
        if pipeline.get("layers_per_ipu") is not None:
            return tree
        ipus = pipeline.get("ipus", PipelineSettings.model_fields["ipus"].default)
        try:
            sizes = ModelSettings(**model).model_dump()
        except ValidationError:
            return tree  # whose own complaint comes first
        if not isinstance(ipus, int) or isinstance(ipus, bool):
            return tree
        return {**tree, "pipeline": {**pipeline, "layers_per_ipu": balanced_layers(costs(**sizes).parts, ipus)}}

    @model_validator(mode="after")
    def _layers_add_up(self) -> Settings:
        placed, depth = sum(self.pipeline.layers_per_ipu), self.model.depth
        if placed != depth:
            fitting = _fitting_layers(self.model, len(self.pipeline.layers_per_ipu))
            raise ValueError(
                f"pipeline.layers_per_ipu={self.pipeline.layers_per_ipu} places {placed} layers but "
                f"model.depth={depth}; for example {fitting} would fit"
            )
        return self

    @model_validator(mode="after")
    def _export_holds_the_model(self) -> Settings:
        """No tensor of the file says that the mean of the patches is pooled; notes beside it end in `.json`."""
        if self.export is not None and not self.model.pools_as_weights_tell:
            raise ValueError(
                f"export={self.export} cannot tell that model.pooling={self.model.pooling}, unless it is of a Mixer; "
                "use export=none or model.pooling=class"
            )
        if self.export is not None and self.export.endswith(".json"):
            raise ValueError(f"export={self.export} is no name for a file of weights; accepted: one that ends in .npz")
        return self

    @model_validator(mode="after")
    def _crops_fit_in_resized_images(self) -> Settings:
        for key in ("crop_resize", "evaluation_resize"):
            resized, crop = getattr(self.data, key), self.model.image_size
            if resized is not None and resized < crop:
                raise ValueError(
                    f"data.{key}={resized} is too small to crop model.image_size={crop} from; accepted: {crop} or more"
                )
        return self

    @model_validator(mode="after")
    def _mixing_has_pairs(self) -> Settings:
        if self.augmentation.mixes and self.pipeline.micro_batch == 1:
            raise ValueError(
                "pipeline.micro_batch=1 leaves an image alone, and it is mixed with another of its micro batch with "
                f"augmentation.mixup={self.augmentation.mixup} and augmentation.cutmix={self.augmentation.cutmix}; "
                "accepted: 2 or more, or both of those 0"
            )
        return self

    @model_validator(mode="after")
    def _repeats_lie_apart(self) -> Settings:
        repeats, batch, micro_batch = self.augmentation.repeats, self.pipeline.global_batch, self.pipeline.micro_batch
        if repeats > batch // micro_batch:
            raise ValueError(
                f"augmentation.repeats={repeats} brings an image more than once into a pipeline.micro_batch="
                f"{micro_batch} of pipeline.global_batch={batch}; accepted: 1 to {batch // micro_batch}"
            )
        return self

    @model_validator(mode="after")
    def _loss_scale_has_halves_to_follow(self) -> Settings:
        if self.optimizer.automatic_loss_scaling and self.precision != "float16":
            raise ValueError(
                f"optimizer.automatic_loss_scaling=true follows float16 gradients, but precision={self.precision} has "
                "none; accepted: precision=float16, or optimizer.automatic_loss_scaling=false"
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


def _fitting_layers(model: ModelSettings, ipus: int) -> List[int]:
    """A split that would do: over as many IPUs, or over fewer where there would be too few layers for them."""
    parts = costs(**model.model_dump()).parts
    while ipus > len(parts):
        ipus //= 2
    return balanced_layers(parts, ipus)
