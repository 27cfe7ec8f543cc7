"""Lightning's own tests, with two passes under every fit or with the monitors beside it.

Lightning's tests know what the Trainer promises: the order of hooks, what is logged and when, what a checkpoint file
holds, how a fit ends on an error. Each of them that passes with plain Lightning must pass here too::

    git clone --branch 2.6.5 https://github.com/Lightning-AI/pytorch-lightning ../lightning
    PYTHONPATH=tests python -m lightning_suite ../lightning

or ``LIGHTNING_CHECKOUT=../lightning .ci/run lightning``, which makes an environment of its own. Take the tests of the
version that is installed, or of the release next to it.

- ``two_pass``: every module in automatic optimization that is fitted gets the mixin and a rule with a radius of 0 that
  takes its second pass all the same. Nothing of that pass may be left.
- ``monitors``: beside every such fit stand `CheckpointFractionMonitor`, `GradientNormMonitor` and `SharpnessMonitor`,
  which measure but log nothing: what they log would be seen, and rightly.

A test that fails is run again without either. If it fails then too, or has fitted nothing, it says nothing about this
package ("fails in plain Lightning too"). If not, it fails here, unless `differences.py` lists it with the reason why it
has to. An entry of that list whose tests all pass fails the run, so that the list stays true; `MAY_PASS` there names
the reasons that depend on the clock. A test has 300 seconds.

Outcomes go to a file, one line for each test, and a run goes on where the last one ended. Tests that fit nothing under
the first kind are left out under the second.
"""
