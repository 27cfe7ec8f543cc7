"""Imported last in a process that is forked: what is there by then is garbage in none of its children.

A full collection would look through a million objects, and write to their memory, which children share until then.
"""

import gc

gc.collect()
gc.freeze()
