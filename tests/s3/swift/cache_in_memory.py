"""A filter for Swift's proxy that replaces memcached: a dictionary, for one process.

Loaded by Swift itself, from its own virtual environment.
"""

import time


class Cache:
    """The part of the cache middleware's interface that the proxy calls."""

    def __init__(self):
        self.kept = {}

    def get(self, key, **_):
        value, end = self.kept.get(key, (None, 0))
        return None if end and end < time.time() else value

    def set(self, key, value, time=0, **_):
        self.kept[key] = (value, _end(time))

    def incr(self, key, delta=1, time=0, **_):
        value = max(0, int(self.get(key) or 0) + int(delta))
        self.kept[key] = (value, _end(time))
        return value

    def decr(self, key, delta=1, time=0, **_):
        return self.incr(key, -delta, time)

    def delete(self, key, **_):
        self.kept.pop(key, None)

    def set_multi(self, mapping, server_key, time=0, **_):
        for key, value in mapping.items():
            self.set(key, value, time)

    def get_multi(self, keys, server_key):
        return [self.get(key) for key in keys]


def _end(seconds):
    return time.time() + seconds if seconds else 0


def filter_factory(global_conf, **local_conf):
    cache = Cache()

    def make(app):
        def call(environ, start_response):
            environ["swift.cache"] = cache
            return app(environ, start_response)

        return call

    return make
