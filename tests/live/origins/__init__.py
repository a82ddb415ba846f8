"""Origins for tests of real clients: sites that the demo does not need, in the demo world's internet.

``python -m tests.live.origins DIRECTORY`` runs inside the world's internet, at one address of its own, on ports that
the demo's sites leave free; the installation under test maps the real hosts' names there (``[resolve]``). So the
clients keep their own defaults: npm asks registry.npmjs.org, cargo asks index.crates.io.
"""
