"""A web application that answers on this machine while a test asks it."""

import threading
from contextlib import contextmanager

from budgetnet import guard

HOST = "127.0.0.1"


@contextmanager
def serving(app, limits):
    """The port of a running server."""
    listener, url = guard.listen(HOST, 0)
    running = guard.server(app, limits)
    thread = threading.Thread(target=running.run, args=([listener],))
    thread.start()
    try:
        yield int(url.rpartition(":")[2])
    finally:
        running.should_exit = True
        thread.join()
