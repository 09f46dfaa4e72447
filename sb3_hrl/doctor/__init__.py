"""What is wrong with an environment or with a run, as docs/troubleshooting.md lists it: symptom, metric, cure."""

from sb3_hrl.doctor.environment import diagnose_env
from sb3_hrl.doctor.findings import Finding
from sb3_hrl.doctor.log import diagnose_log, diagnose_run

__all__ = ["Finding", "diagnose_env", "diagnose_log", "diagnose_run"]
