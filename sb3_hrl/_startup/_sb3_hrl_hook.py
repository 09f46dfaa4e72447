"""
Registers sb3-hrl in rl_zoo3. ``sb3_hrl_zoo.pth`` (``sb3_hrl_zoo.start`` from Python 3.15 on) runs it at interpreter start-up.

It only adds a finder to ``sys.meta_path`` that waits for a few module names. When one of them is imported,
``sb3_hrl.zoo.registration`` adds our entries to it. ``SB3_HRL_NO_ZOO=1`` disables the hook, ``SB3_HRL_DEBUG=1`` prints
messages. It only imports modules of the standard library that are imported at start-up anyway.
"""

import os
import sys

MODULES = frozenset(
    {
        "rl_zoo3.utils",
        "rl_zoo3.import_envs",
        "rl_zoo3.hyperparams_opt",
        "rl_zoo3.exp_manager",
        "huggingface_sb3.push_to_hub",
        "huggingface_sb3.load_from_hub",
    }
)


class _Finder:
    """Uses the other finders to find the module, and patches it after its execution."""

    def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]
        if name not in MODULES:
            return None
        for finder in sys.meta_path:
            find_spec = getattr(finder, "find_spec", None)
            spec = find_spec(name, path, target) if find_spec is not None and finder is not self else None
            if spec is not None:
                _patch_after_execution(name, spec.loader)
                return spec
        return None


def _patch_after_execution(name, loader):  # type: ignore[no-untyped-def]
    execute = loader.exec_module

    def exec_module(module):  # type: ignore[no-untyped-def]
        execute(module)
        patch(name, module)

    try:
        loader.exec_module = exec_module
    except AttributeError as error:
        _debug(f"{name} cannot be patched: {error}")


def patch(name, module):  # type: ignore[no-untyped-def]
    """Add the entries of hddpg to a module. A failure only gives a warning, so that it does not affect other algorithms."""
    try:
        from sb3_hrl.zoo import registration

        registration.PATCHES[name](module)
        _debug(f"patched {name}")
    except Exception as error:
        import warnings

        warnings.warn(
            f"sb3-hrl could not register with {name}: {error!r}. Set SB3_HRL_NO_ZOO=1 to disable the hook.", stacklevel=2
        )


def _debug(message):  # type: ignore[no-untyped-def]
    if os.environ.get("SB3_HRL_DEBUG"):
        print(f"sb3-hrl: {message}", file=sys.stderr)


def install(force=False):  # type: ignore[no-untyped-def]
    """Add the finder if it has not been added yet; ``force`` overrides ``SB3_HRL_NO_ZOO``."""
    if os.environ.get("SB3_HRL_NO_ZOO") and not force:
        return
    if not any(type(finder).__module__ == __name__ for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


install()
