"""How a program on the same machine speaks to the daemon: the command line, the demo, tests.

:mod:`~ringfence.client.api` has one method for every route of the daemon's API,
:mod:`~ringfence.client.daemon` starts the daemon on first need, :mod:`~ringfence.client.session` attaches a
terminal or pipes to a command in a sandbox. Everything is blocking and from the standard library, and nothing
is imported before it is needed: a command line that answers in a tenth of a second is made of what it does
not load.
"""
