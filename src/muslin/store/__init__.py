"""Where nodes find each other: one datastore a file, behind the protocol in ``base``, named by an explicit table.

Theory of operation: the table holds where a store is to be found and not the store itself, so that whoever keeps
leases in a file never imports what etcd needs.
"""

from __future__ import annotations

import importlib
from typing import Any

from muslin.errors import UnsupportedError

STORES: dict[str, str] = {
    "memory": "muslin.store.memory:MemoryStore",
    "sqlite": "muslin.store.sqlite:SqliteStore",
    "etcd": "muslin.store.etcd:EtcdStore",
}
"""Each store's class by the name that settings use. Their constructors differ; ``base.Store`` is what they share."""


def load_store(name: str) -> Any:
    """The class of the store of that name; KeyError for an unknown one, UnsupportedError where its packages lack."""
    module, _, attribute = STORES[name].partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            f"the store {name!r} needs Python's {error.name}, which is not installed", f"pip install 'muslin[{name}]'"
        ) from error
