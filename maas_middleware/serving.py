"""uvicorn in front of a gateway: one process or several workers, and what they do when they are told to stop."""

from __future__ import annotations

import gc
import signal
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp

from .preset import gateway
from .settings import Settings

if TYPE_CHECKING:
    from uvicorn import Config


_COLLECTED_EVERY = (10_000, 50, 100)


def worker(settings: Settings | None = None) -> ASGIApp:
    """Make the gateway of a process that does nothing else, and spare it the pauses of collecting garbage.

    What was loaded by now stays until the end, so that looking through all of it again and again finds nothing, and
    takes tens of milliseconds each time.

    Raises:
        ConfigurationError: as `gateway` does.
    """
    app = gateway(settings)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECTED_EVERY)
    return app


def serve(app: ASGIApp | str, *, workers: int, shutdown_timeout: int, **binding: Any) -> None:
    """Serve until SIGTERM or SIGINT: then no connection is taken, and what is under way ends in its time.

    Where there is one worker, a second SIGINT breaks that off at once, and it is settled all the same. A second SIGTERM
    changes nothing: whoever stops a whole group of processes sends it to workers that get it from their parent, too.

    Args:
        app: for several workers the import string of a factory, which each of them calls.
        shutdown_timeout: seconds that requests may run on; what then still runs is broken off, and settled.
        binding: host, port, TLS files and whether requests are logged, as uvicorn calls them.
    """
    import uvicorn
    from uvicorn.config import LOGGING_CONFIG

    config = uvicorn.Config(
        app,
        factory=workers > 1,
        workers=workers,
        server_header=False,
        proxy_headers=False,  # whose word counts is for `trusted_proxies` to say
        timeout_graceful_shutdown=shutdown_timeout,
        log_config=_with_our_loggers(LOGGING_CONFIG),
        **binding,
    )
    if workers > 1:
        _supervise(config)
        return
    server = uvicorn.Server(config)
    for number in (signal.SIGINT, signal.SIGTERM):
        # uvicorn raises again what it caught, in its event loop, where nothing has been torn down yet
        signal.signal(number, server.handle_exit)
    server.run()


def _supervise(config: Config) -> None:
    from uvicorn.supervisors import Multiprocess

    class Workers(Multiprocess):
        def terminate_all(self) -> None:
            for listener in self.sockets:  # it takes connections, which nobody answers, until all copies are closed
                listener.close()
            super().terminate_all()

    Workers(config, sockets=[config.bind_socket()]).run()


def _with_our_loggers(config: dict[str, Any]) -> dict[str, Any]:
    """uvicorn's logging, which every worker has, and in it ours; what administrators do is JSON and nothing else."""
    plain = {"class": "logging.StreamHandler", "formatter": "plain", "stream": "ext://sys.stdout"}
    ours = {"handlers": ["default"], "level": "INFO", "propagate": False}
    return {
        **config,
        "formatters": {**config["formatters"], "plain": {"format": "%(message)s"}},
        "handlers": {**config["handlers"], "plain": plain},
        "loggers": {
            **config["loggers"],
            "maas_middleware": ours,
            "maas_middleware.audit": {**ours, "handlers": ["plain"]},
        },
    }
