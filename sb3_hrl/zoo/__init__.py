"""
Integration of ``hddpg`` in rl_zoo3: registration, environments, hyperparameter search, command line.

Imports go in one direction: this module, then the start-up hook, then ``registration`` when a module of the zoo is imported.
"""

import os
import sys

__all__ = ["register"]


def register(force: bool = False) -> None:
    """
    Register ``hddpg`` in rl_zoo3. The zoo's modules are patched at once if they are already imported, otherwise when they are
    imported. ``import sb3_hrl`` calls this function, so registration also works without the hook.

    :param force: also register if ``SB3_HRL_NO_ZOO`` is set
    """
    if os.environ.get("SB3_HRL_NO_ZOO") and not force:
        return
    try:
        import _sb3_hrl_hook as hook
    except ImportError:
        from sb3_hrl._startup import _sb3_hrl_hook as hook
    hook.install(force)
    for name in sorted(hook.MODULES):
        module = sys.modules.get(name)
        # A module that is being imported right now is patched after its import
        if module is not None and not getattr(module.__spec__, "_initializing", False):
            hook.patch(name, module)
