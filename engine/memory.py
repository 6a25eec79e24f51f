"""What a GPU's memory holds."""

import torch

from engine.protocol import DeviceMemory, Usage


def device_memory(device: torch.device) -> DeviceMemory | None:
    """As the driver and torch's allocator tell now; None where there is no GPU. Any thread may ask."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    stats = torch.cuda.memory_stats(device)

    def usage(name: str) -> Usage:
        current, peak = (int(stats.get(f"{name}.all.{when}", 0)) for when in ("current", "peak"))
        return Usage(current=current, peak=peak)

    return DeviceMemory(
        device=str(torch.cuda.get_device_properties(device).uuid),
        free=free,
        total=total,
        active=usage("active_bytes"),
        allocated=usage("allocated_bytes"),
        reserved=usage("reserved_bytes"),
        inactive=usage("inactive_split_bytes"),
        retries=int(stats.get("num_alloc_retries", 0)),
        failures=int(stats.get("num_ooms", 0)),
    )
