"""Makes existing projects use our ops without changing their files.

One call replaces the StyleGAN ops of a project, wherever it has put its copies of them::

    from aigc_ext import compat

    compat.install()               # before the project's own imports
    import models.stylegan2.model  # its `from models.stylegan2.op import upfirdn2d` is ours
    ...
    print(compat.report())         # what was replaced, how often it was called, what was left and why

``python -m aigc_ext.compat script.py args`` does the same for a script that stays as it is.

A copy is recognised by the last part of its module's name (``fused_act``, ``fused_act_cpu``, ``upfirdn2d``,
``bias_act``, ``filtered_lrelu``, ``conv2d_gradfix``, ``conv2d_resample``, ``fma``, ``grid_sample_gradfix``,
``fused_bias_leakyrelu``) and by what it defines: its file is read, not run, and calls are made in its own
signature (other order, other defaults, ``device=``). A module with a parameter that ours do not know is
left, and reported. Modules that were imported before are changed in place, under any name.

``stylegan``, ``rosinality``, ``basicsr`` and ``mmcv`` have ``install()`` and ``uninstall()`` for one family.
They recognise copies of that family's ops only, and replace the modules with its usual names whatever they
define. ``install()`` can be used as a context manager. Nothing is compiled.

While installed, an error that old code meets on today's libraries (integer ``betas``, ``torch.load``,
``pkg_resources``) is followed by an explanation, with the line to change.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import ModuleType

from aigc_ext.compat import basicsr as basicsr
from aigc_ext.compat import mmcv as mmcv
from aigc_ext.compat import rosinality as rosinality
from aigc_ext.compat import stylegan as stylegan
from aigc_ext.compat._obstacles import explain as explain
from aigc_ext.compat._replacement import Installation as Installation
from aigc_ext.compat._replacement import Replaced as Replaced
from aigc_ext.compat._replacement import Replacement, look_alikes

FAMILIES: dict[str, Replacement] = {
    module.__name__.rpartition(".")[2]: module.replacement for module in (rosinality, basicsr, mmcv, stylegan)
}


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        replaced: modules that are ours, with the number of calls.
        left: modules that have such ops and are the project's own, with the reason.
    """

    replaced: tuple[Replaced, ...]
    left: dict[str, str]

    def __str__(self) -> str:
        lines = [f"aigc_ext.compat: {len(self.replaced)} modules replaced, {len(self.left)} left"]
        lines += [f"  replaced  {record}" for record in self.replaced]
        lines += [f"  left      {module}: {reason}" for module, reason in self.left.items()]
        return "\n".join(lines)


def install(*families: str, package: str | None = None) -> Installation:
    """Replaces copies of the ops of these families under any path, by default of all.

    Args:
        families: of ``"rosinality"``, ``"basicsr"``, ``"mmcv"``, ``"stylegan"``.
        package: a package whose modules with the family's names are replaced whatever they define, e.g.
            ``"models.stylegan2.op"``. It needs one family.

    Raises:
        ValueError: an unknown family, or a package without one family.
    """
    if unknown := set(families) - FAMILIES.keys():
        raise ValueError(f"family is {min(unknown)!r}, but must be one of {', '.join(FAMILIES)}")
    chosen = [FAMILIES[name] for name in families or FAMILIES]
    if package is not None and len(chosen) != 1:
        raise ValueError(
            f"package is {package!r}, but then one family must be given, of {', '.join(FAMILIES)}"
        )
    return Installation.of(chosen, {} if package is None else chosen[0].in_package(package))


def uninstall() -> None:
    """Restores the project's own modules, of all families."""
    for replacement in FAMILIES.values():
        replacement.uninstall()


def report() -> Report:
    """What has been replaced since ``install()``, how often it was called, and what was seen but left."""
    replaced: dict[str, Replaced] = {}
    left: dict[str, str] = {}
    for replacement in FAMILIES.values():
        replaced.update(replacement.replaced)
        left.update(replacement.left)
    for name, module in list(sys.modules.items()):
        if isinstance(module, ModuleType) and name not in replaced and (keys := look_alikes(name, module)):
            left.setdefault(
                name,
                f"it defines {', '.join(keys)} and was imported under a name that is not looked at; call "
                "install() once more after it is imported",
            )
    return Report(tuple(replaced.values()), {n: r for n, r in left.items() if n not in replaced})
