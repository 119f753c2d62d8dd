"""Programs that run under other interpreters: plain files that import nothing of gemquant.

``harness.py`` is what is started; it loads one of the others and calls its ``run(job, report)``, or
its ``serve(job, report, requests)``.
They are written for Python 3.8 and newer, and import their tool inside functions.
"""
