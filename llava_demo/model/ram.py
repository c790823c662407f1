"""Free memory, as this process may take it: the machine's, or that of a container with a limit."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil  # type: ignore[import-untyped]

CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_LIMITS = (  # controller; files of the limit and of what is used; cached files in memory.stat
    ("", "memory.max", "memory.current", "inactive_file"),  # version 2
    ("", "memory.high", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),  # version 1
)


def free_ram() -> int:
    """Bytes of memory that this process may still take: those of the machine, or of a container with a limit.

    transformers 5.23 asks the machine only, and so plans with memory that a container does not have.
    """
    free: int = psutil.virtual_memory().available
    for group, limit_file, used_file, cached in _cgroups():
        try:
            limit = (group / limit_file).read_text().strip()
            used = int((group / used_file).read_text())
            stat = (group / "memory.stat").read_text().split()
        except (OSError, ValueError):
            continue
        if limit != "max":
            freeable = int(stat[stat.index(cached) + 1]) if cached in stat else 0  # cached files
            free = min(free, int(limit) - used + freeable)
    return max(free, 0)


def _cgroups() -> Iterator[tuple[Path, str, str, str]]:
    """The folders of this process's control groups and of those around them, with the names of their files.

    A group's own limit may be "max" where one around it has a number, as systemd's and Kubernetes' have (cgroups(7)).
    """
    try:
        own = [line.split(":", 2) for line in OWN_CGROUPS.read_text().splitlines()]
    except OSError:  # not Linux
        own = []
    for controller, *files in _LIMITS:
        own_paths = [PurePosixPath(path.lstrip("/")) for _, names, path in own if controller in names.split(",")]
        for folder in {PurePosixPath(), *(each for path in own_paths for each in (path, *path.parents))}:
            limit, used, cached = files
            yield CGROUPS / controller / folder, limit, used, cached
