"""rankwise: which LoRA rank does this fine-tuning task need? Answered by measuring it.

The public names are listed in ``__init__.pyi``. Each is imported when it is first used, so that
``import rankwise`` loads neither torch nor pandas.
"""

import lazy_loader

from rankwise._version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
