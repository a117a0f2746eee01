"""The machines of the simulated world and the models that run on them, by their data sheets.

Figures of GPUs are NVIDIA's data sheets' (dense bf16, or fp16 where there is no bf16); idle
power of A100 and H100 servers is what the CDFs of Acme (Hu et al., NSDI'24) show, 56-62 W, and
of the others a sixth of the limit. Models are as their configurations on the Hugging Face hub.
What a device reaches of its data sheet is in `profiles.py`.
"""

import re
from dataclasses import dataclass

from flowmesh.base.errors import Problem, SpecError
from flowmesh.base.nearest import nearest
from flowmesh.core.fleet import Device


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, or one machine without: `flops_per_s` dense at 16 bits, `tdp_w` its limit.

    `nvlink`: GPUs of one machine talk by it, else by PCIe.
    """

    name: str
    memory_bytes: int
    bandwidth_bytes_per_s: float
    flops_per_s: float
    tdp_w: float
    idle_w: float
    nvlink: bool = False


def _gpu(name: str, gb: int, gb_s: float, tflops: float, watts: tuple[float, float]) -> Gpu:
    tdp_w, idle_w = watts
    nvlink = name in ("H200", "H100", "A100-80", "A100-40", "V100")
    return Gpu(name, gb * 10**9, gb_s * 1e9, tflops * 1e12, tdp_w, idle_w, nvlink)


GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        _gpu("H200", 141, 4800, 989, (700, 75)),
        _gpu("H100", 80, 3350, 989, (700, 70)),
        _gpu("A100-80", 80, 2039, 312, (400, 60)),
        _gpu("A100-40", 40, 1555, 312, (400, 55)),
        _gpu("L40S", 48, 864, 362, (350, 35)),
        _gpu("A40", 48, 696, 149.7, (300, 30)),
        _gpu("A10G", 24, 600, 70, (300, 25)),
        _gpu("L4", 24, 300, 121, (72, 13)),
        _gpu("RTX4090", 24, 1008, 165.2, (450, 25)),
        _gpu("RTX3090", 24, 936, 71, (350, 25)),
        _gpu("V100", 16, 900, 125, (300, 40)),
        _gpu("T4", 16, 320, 65, (70, 10)),
    )
}

#: What a host draws beside its GPUs: processors, memory, fans; of each GPU its share.
HOST_W_PER_GPU = 60.0
#: A machine without GPUs: 8 cores.
CPU_CORES = 8
CPU = Gpu("cpu", 32 * 10**9, 40e9, 0.5e12, 120.0, 40.0)
#: From a local NVMe disk into the device's memory, through the host's; of a whole machine.
LOAD_BYTES_PER_S = 2.0e9
_KIND = re.compile(r"(?:(\d+)x)?(.+)")


@dataclass(frozen=True, slots=True)
class Machine:
    """A kind of machine: `gpus` of one kind, working on a batch together.

    `own`: described by the scenario, whose figures hold for the whole machine.
    """

    gpu: Gpu
    gpus: int = 1
    own: bool = False

    @property
    def kind(self) -> str:
        return self.gpu.name if self.gpus == 1 else f"{self.gpus}x{self.gpu.name}"

    @property
    def is_cpu(self) -> bool:
        return self.gpu is CPU

    @property
    def counted(self) -> int:
        """GPUs, for sums of GPU seconds; a machine of a scenario's own counts as one."""
        return 0 if self.is_cpu else self.gpus

    @property
    def idle_w(self) -> float:
        return self.gpus * (self.gpu.idle_w + self._host_w)

    @property
    def busy_w(self) -> float:
        return self.gpus * (self.gpu.tdp_w + self._host_w)

    @property
    def _host_w(self) -> float:
        return 0.0 if self.is_cpu or self.own else HOST_W_PER_GPU

    def device(self, fetch_bytes_per_s: float) -> Device:
        """As the machine describes itself to the control plane: by its data sheet."""
        return Device(
            kind=self.kind,
            flops_per_s=self.gpus * self.gpu.flops_per_s,
            bandwidth_bytes_per_s=self.gpus * self.gpu.bandwidth_bytes_per_s,
            memory_bytes=self.gpus * self.gpu.memory_bytes,
            load_bytes_per_s=LOAD_BYTES_PER_S,
            fetch_bytes_per_s=fetch_bytes_per_s,
            idle_w=self.idle_w,
            busy_w=self.busy_w,
        )


def machine(kind: str, gpus: int = 1) -> Machine:
    """A machine by its kind: `H100`, `4xA100-80`, `cpu`. Raises SpecError for an unknown one."""
    found = _KIND.fullmatch(kind)
    count, name = (int(found[1] or 1), found[2]) if found else (1, kind)
    if name == CPU.name:
        return Machine(CPU)
    if name not in GPUS:
        guess = nearest(name, [*GPUS, CPU.name])
        raise SpecError(Problem(f"there is no kind of machine {name!r}{guess}"))
    return Machine(GPUS[name], gpus=count * gpus)


@dataclass(frozen=True, slots=True)
class Model:
    """A language model at 16 bits.

    `cache_bytes_per_token`: 2 (key, value) x layers x KV heads x head size x 2 bytes.
    `query_size`: heads x head size, for the work of attention.
    """

    name: str
    parameters: float
    layers: int
    query_size: int
    cache_bytes_per_token: int

    @property
    def weights_bytes(self) -> int:
        return round(2 * self.parameters)


def _model(name: str, billions: float, shape: tuple[int, int, int, int]) -> Model:
    layers, heads, kv_heads, size = shape
    return Model(name, billions * 1e9, layers, heads * size, 4 * layers * kv_heads * size)


MODELS: dict[str, Model] = {
    model.name: model
    for model in (
        _model("smollm2-135m", 0.135, (30, 9, 3, 64)),
        _model("qwen2.5-0.5b", 0.494, (24, 14, 2, 64)),
        _model("llama-3.2-1b", 1.236, (16, 32, 8, 64)),
        _model("qwen2.5-1.5b", 1.544, (28, 12, 2, 128)),
        _model("llama-3.2-3b", 3.213, (28, 24, 8, 128)),
        _model("llama-2-7b", 6.738, (32, 32, 32, 128)),
        _model("llama-3.1-8b", 8.030, (32, 32, 8, 128)),
        _model("qwen2.5-32b", 32.76, (64, 40, 8, 128)),
        _model("llama-2-70b", 68.98, (80, 64, 8, 128)),
        _model("llama-3.3-70b", 70.55, (80, 64, 8, 128)),
    )
}


def model(name: str) -> Model:
    """A model by its name. Raises SpecError for an unknown one."""
    if name not in MODELS:
        raise SpecError(Problem(f"there is no model {name!r}{nearest(name, MODELS)}"))
    return MODELS[name]
