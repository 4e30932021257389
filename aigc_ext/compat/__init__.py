"""Makes existing projects use our ops without changing their files.

Each module here has ``install()`` and ``uninstall()`` for one family of APIs::

    from aigc_ext import compat

    print(compat.stylegan.install())   # before the project's own imports
    import training.networks           # its `from torch_utils.ops import upfirdn2d` is ours

``install()`` returns what it replaced, and can be used as a context manager. Nothing is compiled.
"""

from aigc_ext.compat import basicsr as basicsr
from aigc_ext.compat import mmcv as mmcv
from aigc_ext.compat import rosinality as rosinality
from aigc_ext.compat import stylegan as stylegan
