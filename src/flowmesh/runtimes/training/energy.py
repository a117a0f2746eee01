"""Joules that the machine's processors took, where the kernel tells (RAPL)."""

from pathlib import Path

_ROOT = Path("/sys/class/powercap")


class Meter:
    """Adds up the packages' counters, which wrap around."""

    def __init__(self, root: Path = _ROOT) -> None:
        # `intel-rapl:0` is a package; `intel-rapl:0:0` a part of it.
        self._packages = [
            path for path in sorted(root.glob("*rapl:*")) if path.name.count(":") == 1
        ]
        self._last = self._read()
        self._joules = 0.0

    def joules(self) -> float | None:
        """Since the meter was made; None where the counters can not be read."""
        now = self._read()
        if now is None or self._last is None:
            return None
        for (last, _), (value, limit) in zip(self._last, now, strict=True):
            self._joules += (value - last if value >= last else value + limit - last) / 1e6
        self._last = now
        return self._joules

    def _read(self) -> list[tuple[int, int]] | None:
        """(microjoules, where the counter wraps) of each package."""
        try:
            found = [
                (
                    int((path / "energy_uj").read_text()),
                    int((path / "max_energy_range_uj").read_text()),
                )
                for path in self._packages
            ]
        except (OSError, ValueError):  # root only on most machines
            return None
        return found or None
