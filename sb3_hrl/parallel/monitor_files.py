"""The files of SB3's Monitors in a worker that replaces another one: they are continued, not overwritten."""

import json
from pathlib import Path
from typing import Any

from stable_baselines3.common import monitor


class ContinuedResultsWriter(monitor.ResultsWriter):
    """
    Appends to the file of a previous Monitor. Times are relative to the start of that one.

    :param filename: see ``ResultsWriter``
    :param header: see ``ResultsWriter``
    :param extra_keys: see ``ResultsWriter``
    :param override_existing: see ``ResultsWriter``; it has no effect
    """

    def __init__(
        self,
        filename: str = "",
        header: dict[str, float | str] | None = None,
        extra_keys: tuple[str, ...] = (),
        override_existing: bool = True,
    ):
        super().__init__(filename, header, extra_keys, override_existing=False)
        header, self._delay = header or {}, 0.0
        lines = Path(self.file_handler.name).read_text().splitlines()
        if not lines:
            self.file_handler.write(f"#{json.dumps(header)}\n")
            self.logger.writeheader()
            self.file_handler.flush()
        elif lines[0].startswith("#"):
            started = json.loads(lines[0][1:])
            self._delay = float(header.get("t_start", 0.0)) - float(started.get("t_start", 0.0))

    def write_row(self, epinfo: dict[str, Any]) -> None:
        """
        :param epinfo: return, length and time of an episode
        """
        super().write_row(epinfo | {"t": round(epinfo["t"] + self._delay, 6)})


def continue_monitor_files() -> None:
    """From now on, Monitors of this process continue existing files."""
    monitor.ResultsWriter = ContinuedResultsWriter  # type: ignore[misc]
