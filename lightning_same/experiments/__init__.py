"""What the study is made of: image data with label noise, reference models and a plain classifier.

Nothing here knows of SAM, so that every method trains the same module on the same data. The public names are listed in
`__init__.pyi`. Each is loaded when it is first used, so that `lightning-same study --help` starts at once.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
