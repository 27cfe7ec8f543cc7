"""Imported last in a process that is forked, where each child would otherwise do the same work again."""

import gc
import subprocess
import sys
from importlib.util import find_spec

if find_spec("vl_convert"):
    # Asked in another process: the threads that it starts would be missing in the children.
    import vl_convert

    printed = "import sys, vl_convert; sys.stdout.buffer.write(vl_convert.javascript_bundle().encode())"
    _bundle = subprocess.run([sys.executable, "-c", printed], stdout=subprocess.PIPE, check=True).stdout.decode()
    vl_convert.javascript_bundle = lambda: _bundle

# What is there by now is garbage in no child. A full collection would look through a million objects, and write to
# their memory, which the children share until then.
gc.collect()
gc.freeze()
