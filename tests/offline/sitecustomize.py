"""Found by every Python that a test starts: it has no network either."""

import no_network

no_network.install()
