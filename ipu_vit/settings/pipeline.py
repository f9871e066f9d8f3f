"""Settings of the pipeline: IPUs, replicas, batches, and what is stored where."""

from __future__ import annotations

from typing import Any, Iterator, List, Literal, Optional

from pydantic import Field, field_validator, model_validator

from ipu_vit.batching import BatchPlan, is_power_of_two, least_accumulation, near_micro_batches, powers_of_two
from ipu_vit.errors import UserError
from ipu_vit.settings.section import Section

MOST_IPUS = 64
"""IPUs that one process can use."""


class PipelineSettings(Section):
    """How the model is spread over IPUs and how a global batch is cut up."""

    ipus: int = Field(4, ge=1, le=16, description="IPUs of a replica")
    layers_per_ipu: List[int] = Field(
        [3, 3, 3, 3],
        min_length=1,
        description="encoder layers on each IPU of a replica; embedding on the first, head on the last; "
        "left out: as evenly as their costs allow",
    )
    replicas: int = Field(1, gt=0, description="copies of the pipeline, over all processes")
    global_batch: int = Field(544, gt=0, description="images per weight update")
    micro_batch: int = Field(17, gt=0, description="images per pass through the pipeline")
    device_iterations: int = Field(1, gt=0, description="weight updates per host call")
    recomputation_checkpoints: Literal["layer", "none"] = Field(
        "layer", description="store only each layer's output, or what PopART chooses"
    )
    available_memory_proportion: List[float] = Field(
        [0.3], description="share of each IPU's memory that matrix products may use"
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

    @model_validator(mode="before")
    @classmethod
    def _layers_tell_the_ipus(cls, tree: Any) -> Any:
        """Whoever places the layers need not say how many IPUs there are."""
        layers = tree.get("layers_per_ipu")
        return {"ipus": len(layers), **tree} if isinstance(layers, list) and layers else tree

    @model_validator(mode="after")
    def _ipus_are_those_of_the_layers(self) -> PipelineSettings:
        if len(self.layers_per_ipu) != self.ipus:
            raise ValueError(
                f"pipeline.layers_per_ipu={self.layers_per_ipu} is for {len(self.layers_per_ipu)} IPUs but "
                f"pipeline.ipus={self.ipus}; leave one of the two out"
            )
        return self

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
        return self

    @model_validator(mode="after")
    def _batches_divide(self) -> PipelineSettings:
        self.batch_plan()
        return self

    def replicas_of_each(self, processes: int) -> int:
        """How many replicas each of that many processes runs; raises UserError, naming numbers that work, if none.

        PopTorch lets a process have 1, 2, 4, ... 64 IPUs.
        """
        each, rest = divmod(self.replicas, processes)
        if not rest and is_power_of_two(each) and each * self.ipus <= MOST_IPUS:
            return each
        raise UserError(
            f"pipeline.replicas={self.replicas} of {self.ipus} IPUs do not go into {processes} "
            f"process{'es' if processes > 1 else ''}: each must have as many, on 1, 2, 4, ... {MOST_IPUS} IPUs; "
            f"{', or '.join(self._ways_out(processes))}"
        )

    def _ways_out(self, processes: int) -> Iterator[str]:
        """Settings for that many processes, and processes for these settings; if none fit, the nearest that would."""
        layout = self._layout(processes)
        if layout:
            yield f"write {layout}"
        others = sorted(self.replicas // each for each in self._replicas_of_a_process() if self.replicas % each == 0)
        if others:
            yield f"start {' or '.join(map(str, others))} process{'es' if others != [1] else ''}"
        if not layout:
            most = self.global_batch // least_accumulation(len(self.layers_per_ipu))
            for numbers in range(processes - 1, 1, -1), range(processes + 1, most + 1):
                near = next(filter(self._layout, numbers), None)
                if near is not None and near not in others:
                    yield f"write {self._layout(near)} and start {near}"

    def _layout(self, processes: int) -> str:
        """Replicas, nearest to ours, with which so many processes share the global batch; nothing without any.

        If our micro batch fits none of them, the fewest replicas and the micro batch nearest to it.
        """
        numbers = [processes * number for number in self._replicas_of_a_process()]
        micro_batches = {number: self._micro_batches(number) for number in numbers}
        fitting = [number for number in numbers if self.micro_batch in micro_batches[number]]
        if fitting:
            near = sorted(sorted(fitting, key=lambda number: abs(number - self.replicas))[:3])
            return f"pipeline.replicas={' or '.join(map(str, near))}"
        some = next((number for number in numbers if micro_batches[number]), None)
        return "" if some is None else f"pipeline.replicas={some} pipeline.micro_batch={micro_batches[some][0]}"

    def _micro_batches(self, replicas: int) -> List[int]:
        """Those with which that many replicas split the global batch, nearest to ours first."""
        return near_micro_batches(self.global_batch, self.micro_batch, replicas, len(self.layers_per_ipu))

    def _replicas_of_a_process(self) -> List[int]:
        return powers_of_two(MOST_IPUS // self.ipus)

    def batch_plan(self) -> BatchPlan:
        """How a global batch is cut into micro batches, accumulation steps and replicas."""
        return BatchPlan.of(
            global_batch=self.global_batch,
            micro_batch=self.micro_batch,
            replicas=self.replicas,
            stages=len(self.layers_per_ipu),
            device_iterations=self.device_iterations,
        )
